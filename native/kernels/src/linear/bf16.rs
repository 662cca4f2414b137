//! `linear` in bf16: x is rounded to it, products are exact and summed in float32.
//!
//! Of each pair of inputs the odd one's product is added first, then the even one's, as the processor's instruction does
//! that takes pairs. Where there is none, or where it is slower than float32, pairs are expanded to float32, the odd one
//! first: the same sums in the same order.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use scoregraph_simd::{Bf16Dots, Bf16Kernel, Disjoint, Isa, Kernel, Simd};

use super::epilogue::Epilogue;
use super::float::{Job, multiply_part};
use super::{Input, Part, even_rows, for_parts, row_starts};
use crate::Context;
use crate::gemm::{Aligned, BLOCK_WORDS, Bf16, Float, Panels, Rows, Storage, flush_subnormal};
use crate::rows::{RowStarts, for_row_ranges};

/// Floats of scratch for so many elements of x; `ready` if it is bf16 in evenly spaced rows already.
pub(super) fn scratch(isa: Isa, elements: usize, ready: bool) -> usize {
    match Form::of(isa) {
        Form::Pairs if ready => 0,
        Form::Pairs => elements.div_ceil(2),
        Form::Expanded => elements,
    }
}

/// Computes y from x and weights in the layout `k2n16`.
pub(super) fn run(
    ctx: &Context,
    epilogue: &Epilogue,
    sizes: (usize, usize, usize),
    x: Input,
    packed: &[u16],
    scratch: &mut [f32],
) {
    run_as(Form::of(ctx.isa), ctx, epilogue, sizes, x, packed, scratch);
}

fn run_as(
    form: Form,
    ctx: &Context,
    epilogue: &Epilogue,
    (m, n, k): (usize, usize, usize),
    x: Input,
    packed: &[u16],
    scratch: &mut [f32],
) {
    let weights = packed.as_ptr().cast();
    let x: Rows<*const u8> = match (form, x) {
        (Form::Pairs, Input::Bf16(x)) => {
            let (x, _) = even_rows(ctx, x, scratch);
            Rows { ptr: x.ptr.cast(), stride: 2 * x.stride }
        }
        _ => {
            prepare(ctx, x, (m, k), form, scratch);
            Rows { ptr: scratch.as_ptr().cast(), stride: form.bytes() * k }
        }
    };
    let (storage, words) = match form {
        Form::Pairs => (Storage::Words, k / 2),
        Form::Expanded => (Storage::Bf16, k),
    };
    let job = Job { epilogue, k: words, x, packed: Panels::stored(weights, words, storage, std::ptr::null_mut()) };
    for_parts(ctx, (m, n), |part| {
        let tile = Tile { job: &job, part };
        match form {
            Form::Pairs => ctx.isa.dispatch_bf16(tile),
            Form::Expanded => ctx.isa.dispatch(tile),
        }
    });
}

struct Tile<'a> {
    job: &'a Job<'a>,
    part: Part,
}

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut room = Aligned::<u32, BLOCK_WORDS>::new();
        let packed = self.job.packed.with_room(room.as_mut_ptr());
        // SAFETY: a part of a checked call, whose words are floats once they are expanded.
        unsafe { multiply_part(s, Float, self.job, packed, self.part) };
    }
}

impl Bf16Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Bf16Dots>(self, s: S) {
        // SAFETY: a part of a checked call.
        unsafe { multiply_part(s, Bf16, self.job, self.job.packed, self.part) };
    }
}

/// What a word of the product is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// A pair of bf16, for the processor's instruction.
    Pairs,
    /// A float32; of each pair the odd one comes first.
    Expanded,
}

impl Form {
    /// The faster one. The results are the same.
    fn of(isa: Isa) -> Form {
        if pairs_are_faster(isa) { Form::Pairs } else { Form::Expanded }
    }

    /// What an element of x takes.
    fn bytes(self) -> usize {
        match self {
            Form::Pairs => 2,
            Form::Expanded => 4,
        }
    }
}

/// Writes x \[m, k\] to the scratch, rounded.
fn prepare(ctx: &Context, x: Input, (m, k): (usize, usize), form: Form, scratch: &mut [f32]) {
    let starts = row_starts(x.layout(), (m, k), "x");
    let floats = if form == Form::Pairs { k / 2 } else { k };
    let out = Disjoint::new(&mut scratch[..m * floats]);
    for_row_ranges(ctx, m, k, |rows, _| {
        // SAFETY: every row is in one range.
        let out = unsafe { out.part(rows.start * floats..rows.end * floats) };
        ctx.isa.dispatch(Prepare { x, starts: &starts, first: rows.start, k, form, out });
    });
}

struct Prepare<'a> {
    x: Input<'a>,
    starts: &'a RowStarts,
    first: usize,
    k: usize,
    form: Form,
    out: &'a mut [f32],
}

impl Kernel for Prepare<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let floats = if self.form == Form::Pairs { self.k / 2 } else { self.k };
        if floats == 0 {
            return;
        }
        let mut lanes = [0.0f32; 16];
        for (row, out) in self.out.chunks_exact_mut(floats).enumerate() {
            let start = self.starts.at(self.first + row);
            let out = out.as_mut_ptr();
            for col in (0..self.k).step_by(S::LANES) {
                let n = S::LANES.min(self.k - col);
                // SAFETY: row `first + row` of x has `k` elements from `start` on, `out` room for as many in its form,
                // and LANES <= 16.
                unsafe {
                    let upper = match self.x {
                        Input::F32(x) => s.to_bf16(s.load_first(x.as_ptr().add(start + col), n)),
                        Input::Bf16(x) => {
                            for (i, lane) in lanes.iter_mut().enumerate().take(n) {
                                *lane = f32::from_bits(u32::from(x.as_ptr().add(start + col + i).read_unaligned()));
                            }
                            s.bits(s.load(lanes.as_ptr()))
                        }
                        Input::Bytes { .. } => unreachable!("bytes are not rounded to bf16"),
                    };
                    if self.form == Form::Pairs {
                        s.store_words(out.cast::<u16>().add(col), upper, n);
                        continue;
                    }
                    let value = flush_subnormal(s, s.shl(upper, 16));
                    if S::LANES == 1 {
                        s.store(out.add(col ^ 1), value);
                        continue;
                    }
                    // Neighbours change places.
                    s.store(lanes.as_mut_ptr(), value);
                    for i in (0..n).step_by(2) {
                        out.add(col + i).write(lanes[i + 1]);
                        out.add(col + i + 1).write(lanes[i]);
                    }
                }
            }
        }
    }
}

/// Whether the processor's products of bf16 pairs are faster than float32 ones, measured once.
///
/// Zen 4 issues as many of them as float32 multiply-adds, with twice the work in each; the first Xeons to have them run
/// them at a quarter of that.
fn pairs_are_faster(isa: Isa) -> bool {
    static FASTER: OnceLock<bool> = OnceLock::new();
    isa.has_bf16_dots()
        && *FASTER.get_or_init(|| {
            let best = |f: &dyn Fn()| {
                let time = || {
                    let start = Instant::now();
                    f();
                    start.elapsed()
                };
                (0..5).map(|_| time()).min().unwrap_or(Duration::MAX)
            };
            let pairs = best(&|| _ = std::hint::black_box(isa.dispatch_bf16(Chain(1.0))));
            let floats = best(&|| _ = std::hint::black_box(isa.dispatch(Chain(1.0))));
            // Twelve products of pairs do the work of twenty-four.
            pairs < 2 * floats
        })
}

/// Products in twelve independent chains, which keep to registers: a few microseconds.
struct Chain(f32);

const CHAIN_STEPS: usize = 500;

impl Kernel for Chain {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut sums = [s.splat(0.0); 12];
        let x = s.splat(std::hint::black_box(self.0));
        for _ in 0..CHAIN_STEPS {
            for sum in &mut sums {
                *sum = s.mul_add(x, x, *sum);
            }
        }
        sums.into_iter().fold(0.0, |total, sum| total + s.reduce_add(sum))
    }
}

impl Bf16Kernel for Chain {
    type Output = f32;

    #[inline(always)]
    fn run<S: Bf16Dots>(self, s: S) -> f32 {
        let mut sums = [s.splat(0.0); 12];
        let x = s.bits(s.splat(std::hint::black_box(self.0)));
        for _ in 0..CHAIN_STEPS {
            for sum in &mut sums {
                *sum = s.dot_bf16(*sum, x, x);
            }
        }
        sums.into_iter().fold(0.0, |total, sum| total + s.reduce_add(sum))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::PANEL;
    use crate::linear::{Linear, Output, Weights};
    use crate::{Act, Serial, View, ViewMut};

    /// Numbers of all signs and of exponents near 1, and some 0 and subnormal ones.
    fn halves(n: usize, seed: u32) -> Vec<u16> {
        let random = |i: usize| (i as u32 + seed).wrapping_mul(2_654_435_761).rotate_left(13).wrapping_mul(0x9E37_79B9);
        (0..n).map(|i| if i % 53 == 7 { 0x8003 } else { (random(i) >> 16) as u16 & 0x80FF | 0x3F00 }).collect()
    }

    #[test]
    fn pairs_and_expanded_pairs_are_the_same_bits() {
        let isa = Isa::best();
        if !isa.has_bf16_dots() {
            return;
        }
        let ctx = Context { isa, pool: &Serial };
        for (m, k, n) in [(1usize, 2usize, 1usize), (9, 38, 17), (80, 300, 130), (20, 1100, 40)] {
            let (x, packed) = (halves(m * k, 1), halves(n.div_ceil(PANEL) * PANEL * k, 2));
            let wide: Vec<f32> = x.iter().map(|&x| f32::from_bits(u32::from(x) << 16)).collect();
            let inputs =
                [Input::Bf16(View::dense(&x, &[m, k]).unwrap()), Input::F32(View::dense(&wide, &[m, k]).unwrap())];
            let mut results = Vec::new();
            for (form, x) in [Form::Pairs, Form::Expanded].into_iter().flat_map(|form| inputs.map(|x| (form, x))) {
                let weights = Weights::Bf16(&packed);
                let op = Linear { cols: n, x, weights, bias: None, act: Act::None, gate: None, residual: None };
                let (mut y, mut scratch) = (vec![f32::NAN; m * n], vec![f32::NAN; m * k]);
                let epilogue = Epilogue::new(&op, m, Output::F32(ViewMut::dense(&mut y, &[m, n]).unwrap()));
                run_as(form, &ctx, &epilogue, (m, n, k), x, &packed, &mut scratch);
                results.push(y.into_iter().map(f32::to_bits).collect::<Vec<_>>());
            }
            assert!(results.iter().all(|result| *result == results[0]), "{m}x{k}x{n}");
        }
    }
}
