//! Best-of-N speed of the heavy kernels on one thread, for every instruction set of this machine, beside the rate of
//! multiply-adds that keep to registers. Run: `cargo run --release -p scoregraph-kernels --example speed`.

use std::hint::black_box;
use std::time::Instant;

use scoregraph_kernels::attention::{Attention, Format, attention, attention_scratch};
use scoregraph_kernels::linear::{Bits, Input, Integers, Linear, Output, Weights, linear, linear_scratch};
use scoregraph_kernels::{Act, Context, Isa, Kernel, Serial, Simd, View, ViewMut};

/// Seconds of the fastest of `repeats` calls.
fn best(repeats: usize, mut f: impl FnMut()) -> f64 {
    (0..repeats).fold(f64::INFINITY, |best, _| {
        let start = Instant::now();
        f();
        best.min(start.elapsed().as_secs_f64())
    })
}

/// Multiply-adds of twelve chains that never leave their registers.
struct Peak(usize);

impl Kernel for Peak {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut chains = [s.splat(1.0); 12];
        let (x, y) = (s.splat(black_box(0.999)), s.splat(black_box(1e-3)));
        for _ in 0..self.0 {
            for chain in &mut chains {
                *chain = s.mul_add(*chain, x, y);
            }
        }
        chains.into_iter().fold(0.0, |sum, chain| sum + s.reduce_add(chain))
    }
}

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 1000.0 - 0.5).collect()
}

/// Products of the sizes of a DiT block, and of few rows.
const SIZES: [(usize, usize, usize); 8] = [
    (256, 384, 1536),
    (256, 1536, 384),
    (256, 1152, 1152),
    (256, 1152, 4608),
    (64, 384, 384),
    (6, 1152, 1152),
    (2, 1152, 4608),
    (1, 1152, 1152),
];

fn linears(ctx: &Context, peak: f64) {
    for (m, k, n) in SIZES {
        let (x, w, bias) = (values(m * k), values(n.div_ceil(16) * 16 * k), values(n));
        time_linear(
            ctx,
            "f32",
            (m, k, n),
            Input::F32(View::dense(&x, &[m, k]).unwrap()),
            Weights::N16(&w),
            &bias,
            peak,
        );
    }
}

/// Products of bytes: with exact sums, and with every length of chain where there is no VNNI.
fn integers(ctx: &Context, peak: f64) {
    let vnni = matches!(ctx.isa, Isa::AvxVnni | Isa::Avx512Vnni);
    let formats: [(&str, Bits, usize); 9] = [
        ("w8a8", Bits::Eight, 0),
        ("w4a8", Bits::Four, 8),
        ("w2a8", Bits::Two, 32),
        ("w8a7", Bits::Eight, 1),
        ("w7a7", Bits::Eight, 2),
        ("w6a7", Bits::Eight, 4),
        ("c = 8", Bits::Eight, 8),
        ("w4a7", Bits::Four, 16),
        ("c = 32", Bits::Eight, 32),
    ];
    for (format, bits, chain) in formats.into_iter().take(if vnni { 3 } else { 9 }) {
        for (m, k, n) in SIZES.into_iter().take(if chain == 0 { 8 } else { 3 }) {
            let share = match bits {
                Bits::Eight => 1,
                Bits::Four => 2,
                Bits::Two => 4,
            };
            let stored: Vec<u8> =
                (0..n.div_ceil(16) * 16 * k / share).map(|i| if share == 1 { i % 3 } else { i % 251 } as u8).collect();
            let x: Vec<u8> = (0..m * k).map(|i| (i % 127) as u8).collect();
            let (grid, scale, sum, bias) = (values(2 * m), values(n), vec![0.0; n], values(n));
            let x = Input::Bytes { q: View::dense(&x, &[m, k]).unwrap(), grid: &grid };
            let weights =
                Weights::Integers(Integers { stored: &stored, bits, scale: &scale, sum: &sum, groups: 1, chain });
            time_linear(ctx, format, (m, k, n), x, weights, &bias, peak);
        }
    }
}

/// Products of bf16.
fn halves(ctx: &Context, peak: f64) {
    for (m, k, n) in SIZES {
        let (x, bias) = (values(m * k), values(n));
        let w: Vec<u16> = values(n.div_ceil(16) * 16 * k).into_iter().map(|w| (w.to_bits() >> 16) as u16).collect();
        time_linear(
            ctx,
            "bf16",
            (m, k, n),
            Input::F32(View::dense(&x, &[m, k]).unwrap()),
            Weights::Bf16(&w),
            &bias,
            peak,
        );
    }
}

fn time_linear(
    ctx: &Context,
    format: &str,
    (m, k, n): (usize, usize, usize),
    x: Input,
    weights: Weights,
    bias: &[f32],
    peak: f64,
) {
    let mut y = vec![0.0; m * n];
    let op = Linear { cols: n, x, weights, bias: Some(bias), act: Act::None, gate: None, residual: None };
    let mut scratch = vec![0.0; linear_scratch(&op, ctx.isa)];
    let repeats = if ctx.isa == Isa::Scalar { 1 } else { 4 + 3_000_000_000 / (m * k * n) };
    let seconds =
        best(repeats, || linear(ctx, &op, Output::F32(ViewMut::dense(&mut y, &[m, n]).unwrap()), &mut scratch));
    report(ctx, &format!("linear {format} {m}x{k}x{n}"), (2 * m * k * n) as f64 / seconds / 1e9, peak);
}

/// Heads of the sizes of transformers and of U-Nets.
fn attentions(ctx: &Context, peak: f64) {
    for (heads, tokens, dim) in [(6, 256, 64), (1, 512, 64), (1, 1024, 64), (1, 4096, 64), (8, 256, 16), (8, 64, 32)] {
        let shape = [1, heads, tokens, dim];
        let (q, k, v) = (values(heads * tokens * dim), values(heads * tokens * dim), values(heads * tokens * dim));
        let mut y = vec![0.0; q.len()];
        let mut scratch = vec![0.0; attention_scratch(tokens, dim, Format::F32, 1)];
        let op = Attention {
            q: View::dense(&q, &shape).unwrap(),
            k: View::dense(&k, &shape).unwrap(),
            v: View::dense(&v, &shape).unwrap(),
            mask: None,
            scale: 0.125,
            format: Format::F32,
        };
        let work = 4 * heads * tokens * tokens * dim;
        let repeats = if ctx.isa == Isa::Scalar { 1 } else { 3 + 2_000_000_000 / work };
        let seconds = best(repeats, || attention(ctx, &op, &mut ViewMut::dense(&mut y, &shape).unwrap(), &mut scratch));
        report(ctx, &format!("attention {heads} heads, {tokens} tokens of {dim}"), work as f64 / seconds / 1e9, peak);
    }
}

fn report(ctx: &Context, what: &str, rate: f64, peak: f64) {
    println!("{:<10} {what:<38} {rate:6.1} Gop/s, {:3.0} % of float32", ctx.isa.name(), 100.0 * rate / peak);
}

fn main() {
    // What to measure, by a part of its name: all of it without arguments.
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|word| word == name);
    for isa in Isa::ALL.into_iter().filter(|isa| isa.supported()) {
        let ctx = Context { isa, pool: &Serial };
        let float = Isa::FLOAT.contains(&isa);
        if !wanted.iter().all(|word| Isa::ALL.iter().all(|isa| isa.name() != word)) && !wants(isa.name()) {
            continue;
        }
        let lanes = isa.lanes();
        let steps = 200_000;
        let seconds = best(20, || {
            black_box(isa.dispatch(Peak(steps)));
        });
        let peak = (steps * 12 * 2 * lanes) as f64 / seconds / 1e9;
        report(&ctx, "registers only", peak, peak);
        if float && wants("f32") {
            linears(&ctx, peak);
        }
        if isa != Isa::Scalar && wants("integers") {
            integers(&ctx, peak);
        }
        if (float || isa == Isa::Avx512Vnni) && isa != Isa::Scalar && wants("bf16") {
            halves(&ctx, peak);
        }
        if float && wants("attention") {
            attentions(&ctx, peak);
        }
    }
}
