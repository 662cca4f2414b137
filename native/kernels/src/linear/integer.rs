//! `linear` of bytes: exact 32-bit sums, scaled to float32.

use scoregraph_simd::{DotKernel, Dots, Simd};

use super::epilogue::{Epilogue, PartSums};
use super::{Bits, Integers, Part, Sums, TILE_COLS, TILE_ROWS, for_parts};
use crate::Context;
use crate::gemm::{self, BLOCK_WORDS, Multiply, PANEL, Panels, Rows, Storage};

/// Computes y from bytes x with their grid.
pub(super) fn run(
    ctx: &Context,
    epilogue: &Epilogue,
    (m, n, k): (usize, usize, usize),
    x: Rows<*const u8>,
    grid: &[f32],
    weights: &Integers,
) {
    let job = Job { epilogue, k, x, grid, share: m / (grid.len() / 2), weights };
    for_parts(ctx, (m, n), |part| ctx.isa.dispatch_dots(Tile { job: &job, part }));
}

struct Job<'a> {
    epilogue: &'a Epilogue<'a>,
    k: usize,
    x: Rows<*const u8>,
    grid: &'a [f32],
    /// Rows of x to a row of the grid.
    share: usize,
    weights: &'a Integers<'a>,
}

// SAFETY: the pointers are those of views and slices borrowed for the call, which nobody writes.
unsafe impl Sync for Job<'_> {}

struct Tile<'a> {
    job: &'a Job<'a>,
    part: Part,
}

impl DotKernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Dots>(self, s: S) {
        let (Tile { job, part }, weights) = (&self, self.job.weights);
        let mut sums: Sums = [const { std::mem::MaybeUninit::uninit() }; TILE_ROWS * TILE_COLS];
        let mut earlier: Sums = [const { std::mem::MaybeUninit::uninit() }; TILE_ROWS * TILE_COLS];
        let mut room = [const { std::mem::MaybeUninit::<u32>::uninit() }; BLOCK_WORDS];
        let c = Rows { ptr: sums.as_mut_ptr().cast::<u32>(), stride: TILE_COLS };
        let storage = match weights.bits {
            Bits::Eight => Storage::Words,
            Bits::Four => Storage::Nibbles,
            Bits::Two => Storage::Crumbs,
        };
        let panels = Panels::stored(weights.stored.as_ptr(), job.k / 4, storage, room.as_mut_ptr().cast());
        let first = part.col / PANEL;
        let words = job.k / weights.groups / 4;
        for group in 0..weights.groups {
            // SAFETY: rows, panels and words inside x and the weights; `sums` has room for TILE_ROWS rows of TILE_COLS
            // columns, of which the part has no more.
            unsafe {
                let start = group * words;
                let a = Rows { ptr: job.x.ptr.add(part.row * job.x.stride + 4 * start), ..job.x };
                let range = first..first + part.cols.div_ceil(PANEL);
                let words = start..start + words;
                let of = Multiply { a, rows: part.rows, b: panels, panels: range, words, c, accumulate: false };
                // The plan has proved the chain.
                gemm::multiply_bytes(s, weights.chain, of);
            }
            let mut scaled = Scaled {
                sums: Rows { ptr: c.ptr.cast_const().cast(), stride: TILE_COLS },
                earlier: (group > 0).then_some(earlier.as_ptr().cast()),
                first: part.row,
                grid: job.grid,
                share: job.share,
                scale: [0.0; TILE_COLS],
                correction: [0; TILE_COLS],
            };
            for col in 0..part.cols {
                let at = (part.col + col) * weights.groups + group;
                scaled.scale[col] = weights.scale[at];
                scaled.correction[col] = weights.sum[at] as i32;
            }
            if group + 1 == weights.groups {
                // SAFETY: the caller's contract.
                unsafe { job.epilogue.finish(s, *part, &scaled) };
            } else {
                for row in 0..part.rows {
                    let of = scaled.row(s, row);
                    let to = earlier.as_mut_ptr().cast::<f32>().wrapping_add(row * TILE_COLS);
                    for col in (0..part.cols.next_multiple_of(PANEL)).step_by(S::LANES) {
                        // SAFETY: whole panels of a row of the tile, in `sums` and in `earlier`.
                        unsafe { s.store(to.add(col), scaled.columns(s, of, col)) };
                    }
                }
            }
        }
    }
}

/// `earlier + (sum - zero * correction) * (scale of the row * scale of the column)`
struct Scaled<'a> {
    sums: Rows<*const i32>,
    /// What the groups before this one add up to, in rows of [`TILE_COLS`].
    earlier: Option<*const f32>,
    /// The first row of the part.
    first: usize,
    grid: &'a [f32],
    share: usize,
    scale: [f32; TILE_COLS],
    correction: [i32; TILE_COLS],
}

/// A row of [`Scaled`].
#[derive(Clone, Copy)]
struct ScaledRow<S: Simd> {
    sums: *const i32,
    earlier: Option<*const f32>,
    scale: S::F,
    zero: S::I,
}

impl<S: Dots> PartSums<S> for Scaled<'_> {
    type Row = ScaledRow<S>;

    #[inline(always)]
    fn row(&self, s: S, row: usize) -> ScaledRow<S> {
        let grid = 2 * ((self.first + row) / self.share);
        ScaledRow {
            sums: self.sums.ptr.wrapping_add(row * self.sums.stride),
            earlier: self.earlier.map(|earlier| earlier.wrapping_add(row * TILE_COLS)),
            scale: s.splat(self.grid[grid]),
            zero: s.splat_i(self.grid[grid + 1] as i32),
        }
    }

    #[inline(always)]
    unsafe fn columns(&self, s: S, row: ScaledRow<S>, col: usize) -> S::F {
        debug_assert!(col + S::LANES <= TILE_COLS);
        // SAFETY: the caller's contract: `col + LANES` stays inside the padded columns of the tile.
        unsafe {
            let sum = s.load_i(row.sums.add(col));
            let correction = s.load_i(self.correction.as_ptr().add(col));
            let scale = s.mul(row.scale, s.load(self.scale.as_ptr().add(col)));
            // Exact: the difference is a sum of products with `q - zero`, no larger than those with q.
            let value = s.mul(s.to_f(s.sub_i(sum, s.mul_i(row.zero, correction))), scale);
            match row.earlier {
                Some(earlier) => s.add(s.load(earlier.add(col)), value),
                None => value,
            }
        }
    }
}
