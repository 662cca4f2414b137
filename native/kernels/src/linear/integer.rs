//! `linear` of bytes: exact 32-bit sums, scaled to float32.

use scoregraph_simd::{DotKernel, Dots, Simd};

use super::epilogue::{Epilogue, Groups, TileSums};
use super::{Bits, Integers, Part, TILE_COLS, TILE_ROWS, for_parts};
use crate::Context;
use crate::gemm::{self, Aligned, BLOCK_WORDS, Finish, Multiply, PANEL, Panels, Rows, Span, Storage};

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
        let mut earlier = Earlier::new();
        let mut room = Aligned::<u32, BLOCK_WORDS>::new();
        let storage = match weights.bits {
            Bits::Eight => Storage::Words,
            Bits::Four => Storage::Nibbles,
            Bits::Two => Storage::Crumbs,
        };
        let panels = Panels::stored(weights.stored.as_ptr(), job.k / 4, storage, room.as_mut_ptr());
        let words = job.k / weights.groups / 4;
        for group in 0..weights.groups {
            let start = group * words;
            let mut finish = FinishBytes {
                job,
                part: *part,
                group,
                earlier: &mut earlier,
                scale: Aligned::new(),
                correction: Aligned::new(),
            };
            finish.load_columns(s);
            // SAFETY: rows, panels and words inside x and the weights; the plan has proved the chain.
            unsafe {
                let a = Rows { ptr: job.x.ptr.add(part.row * job.x.stride + 4 * start), ..job.x };
                let words = start..start + words;
                let of = Multiply { a, rows: part.rows, b: panels, panels: part.panels(), words };
                gemm::multiply_bytes(s, weights.chain, &of, &mut finish);
            }
        }
    }
}

/// Room for what the groups before one add up to.
type Earlier = Aligned<f32, { TILE_ROWS * TILE_COLS }>;

/// What becomes of the sums of one group of inputs.
struct FinishBytes<'a> {
    job: &'a Job<'a>,
    part: Part,
    group: usize,
    earlier: &'a mut Earlier,
    /// Of the part's columns.
    scale: Aligned<f32, TILE_COLS>,
    /// The sums of their weights.
    correction: Aligned<i32, TILE_COLS>,
}

impl FinishBytes<'_> {
    /// Brings the scales of the part's columns and the sums of their weights, in whole vectors.
    #[inline(always)]
    fn load_columns<S: Dots>(&mut self, s: S) {
        let (weights, part) = (self.job.weights, self.part);
        let (scale, correction) = (self.scale.as_mut_ptr(), self.correction.as_mut_ptr());
        for first in (0..part.cols).step_by(S::LANES) {
            let n = S::LANES.min(part.cols - first);
            let (mut scales, mut sums) = ([0.0; PANEL], [0.0; PANEL]);
            let from = if weights.groups == 1 {
                let from = part.col + first..part.col + first + n;
                [weights.scale[from.clone()].as_ptr(), weights.sum[from].as_ptr()]
            } else {
                for col in 0..n {
                    let at = (part.col + first + col) * weights.groups + self.group;
                    (scales[col], sums[col]) = (weights.scale[at], weights.sum[at]);
                }
                [scales.as_ptr(), sums.as_ptr()]
            };
            // SAFETY: there are `n` of each; a part has no more than TILE_COLS columns, which are whole vectors.
            unsafe {
                s.store(scale.add(first), s.load_first(from[0], n));
                s.store_i(correction.add(first), s.round_i(s.load_first(from[1], n)));
            }
        }
    }
}

impl<S: Dots> Finish<S> for FinishBytes<'_> {
    #[inline(always)]
    fn begin(&mut self, s: S, at: Span) {
        if self.group + 1 == self.job.weights.groups {
            self.job.epilogue.prefetch(s, self.part.at(at));
        }
    }

    #[inline(always)]
    unsafe fn finish(&mut self, s: S, at: Span, sums: Rows<*const u32>) {
        let tile = self.part.at(at);
        let col = at.panel * PANEL;
        let earlier = self.earlier.as_mut_ptr().wrapping_add(at.row * TILE_COLS + col);
        let mut scaled = Scaled {
            sums: Rows { ptr: sums.ptr.cast(), stride: sums.stride },
            earlier: (self.group > 0).then_some(earlier.cast_const()),
            grid: self.job.grid,
            share: self.job.share,
            groups: Groups::from(tile.row),
            scale: self.scale.as_mut_ptr().wrapping_add(col),
            correction: self.correction.as_mut_ptr().wrapping_add(col),
        };
        if self.group + 1 == self.job.weights.groups {
            // SAFETY: a tile of the part; the caller's contract.
            return unsafe { self.job.epilogue.finish(s, tile, &mut scaled) };
        }
        for row in 0..at.rows {
            let of = scaled.row(s, row);
            for col in (0..at.panels * PANEL).step_by(S::LANES) {
                // SAFETY: whole panels of a row of the tile, in `sums` and in `earlier`.
                unsafe { s.store(earlier.add(row * TILE_COLS + col), scaled.columns(s, of, col)) };
            }
        }
    }
}

/// `earlier + (sum - zero * correction) * (scale of the row * scale of the column)`
struct Scaled<'a> {
    sums: Rows<*const i32>,
    /// What the groups before this one add up to, in rows of [`TILE_COLS`].
    earlier: Option<*const f32>,
    grid: &'a [f32],
    /// Rows of x to a row of the grid.
    share: usize,
    groups: Groups,
    /// Of the tile's columns.
    scale: *const f32,
    correction: *const i32,
}

/// A row of [`Scaled`].
#[derive(Clone, Copy)]
struct ScaledRow<S: Simd> {
    sums: *const i32,
    earlier: Option<*const f32>,
    scale: S::F,
    zero: S::I,
}

impl<S: Dots> TileSums<S> for Scaled<'_> {
    type Row = ScaledRow<S>;

    #[inline(always)]
    fn row(&mut self, s: S, row: usize) -> ScaledRow<S> {
        let grid = 2 * self.groups.next_group(self.share);
        ScaledRow {
            sums: self.sums.ptr.wrapping_add(row * self.sums.stride),
            earlier: self.earlier.map(|earlier| earlier.wrapping_add(row * TILE_COLS)),
            scale: s.splat(self.grid[grid]),
            zero: s.splat_i(self.grid[grid + 1] as i32),
        }
    }

    #[inline(always)]
    unsafe fn columns(&self, s: S, row: ScaledRow<S>, col: usize) -> S::F {
        // SAFETY: the caller's contract: `col + LANES` stays inside the padded columns of the tile.
        unsafe {
            let sum = s.load_i(row.sums.add(col));
            let correction = s.load_i(self.correction.add(col));
            let scale = s.mul(row.scale, s.load(self.scale.add(col)));
            // Exact: the difference is a sum of products with `q - zero`, no larger than those with q.
            let value = s.mul(s.to_f(s.sub_i(sum, s.mul_i(row.zero, correction))), scale);
            match row.earlier {
                Some(earlier) => s.add(s.load(earlier.add(col)), value),
                None => value,
            }
        }
    }
}
