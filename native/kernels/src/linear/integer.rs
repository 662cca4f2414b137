//! `linear` of bytes: exact 32-bit sums, scaled to float32.

use scoregraph_simd::{DotKernel, Dots, Simd};

use super::epilogue::{Epilogue, FloatSums, Groups, TileSums};
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
        let Tile { job, part } = self;
        let weights = job.weights;
        let mut earlier = Earlier::new();
        let mut room = Aligned::<u32, BLOCK_WORDS>::new();
        let storage = match weights.bits {
            Bits::Eight => Storage::Words,
            Bits::Four => Storage::Nibbles,
            Bits::Two => Storage::Crumbs,
        };
        let panels = Panels::stored(weights.stored.as_ptr(), job.k / 4, storage, room.as_mut_ptr());
        let words = job.k / weights.groups / 4;
        let mut finish = FinishBytes::new(s, job, part, &mut earlier);
        for group in 0..weights.groups {
            let start = group * words;
            finish.start(s, group);
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
    /// The scales of the part's rows.
    row_scale: Aligned<f32, TILE_ROWS>,
    /// The zeros of the part's rows.
    zero: Aligned<i32, TILE_ROWS>,
}

impl<'a> FinishBytes<'a> {
    /// Of a part: brings what its rows have, once for all tiles. [`FinishBytes::start`] comes next.
    #[inline(always)]
    fn new<S: Dots>(s: S, job: &'a Job<'a>, part: Part, earlier: &'a mut Earlier) -> FinishBytes<'a> {
        let mut row_scale = Aligned::new();
        let mut zero = Aligned::<i32, TILE_ROWS>::new();
        let to: [*mut f32; 2] = [row_scale.as_mut_ptr(), zero.as_mut_ptr().cast()];
        let mut groups = Groups::from(part.row);
        for row in 0..part.rows {
            let grid = 2 * groups.next_group(job.share);
            // SAFETY: a part has no more than TILE_ROWS rows.
            unsafe {
                to[0].add(row).write(job.grid[grid]);
                to[1].add(row).write(job.grid[grid + 1]);
            }
        }
        for first in (0..part.rows).step_by(S::LANES) {
            let n = S::LANES.min(part.rows - first);
            // SAFETY: as above. Zeros become integers where they are.
            unsafe {
                let zeros = s.round_i(s.load_first(to[1].add(first), n));
                s.store_first(to[1].add(first), s.from_bits(zeros), n);
            }
        }
        let (scale, correction) = (Aligned::new(), Aligned::new());
        FinishBytes { job, part, group: 0, earlier, scale, correction, row_scale, zero }
    }

    /// Begins a group: brings the scales of the part's columns and the sums of their weights, in whole vectors.
    #[inline(always)]
    fn start<S: Dots>(&mut self, s: S, group: usize) {
        self.group = group;
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
    fn ahead(&self, at: Span) -> Option<Rows<*const f32>> {
        let last = self.group + 1 == self.job.weights.groups;
        if last { self.job.epilogue.ahead(self.part.at(at)) } else { None }
    }

    #[inline(always)]
    unsafe fn finish(&mut self, s: S, at: Span, sums: Rows<*const u32>) {
        let (tile, groups) = (self.part.at(at), self.job.weights.groups);
        let col = at.panel * PANEL;
        let scaled = Scaled {
            sums: Rows { ptr: sums.ptr.cast(), stride: sums.stride },
            row_scale: self.row_scale.as_mut_ptr().wrapping_add(at.row),
            zero: self.zero.as_mut_ptr().wrapping_add(at.row),
            scale: self.scale.as_mut_ptr().wrapping_add(col),
            correction: self.correction.as_mut_ptr().wrapping_add(col),
        };
        // SAFETY: a tile of the part, whose rows of whole panels the sums have and `earlier` has room for; the caller's contract.
        unsafe {
            if groups == 1 {
                return self.job.epilogue.finish(s, tile, &scaled);
            }
            let earlier = self.earlier.as_mut_ptr().add(at.row * TILE_COLS + col);
            for row in 0..at.rows {
                let of = scaled.row(s, row);
                for col in (0..at.panels * PANEL).step_by(S::LANES) {
                    let value = scaled.sums(s, of, scaled.columns(s, col), col);
                    let to = earlier.add(row * TILE_COLS + col);
                    s.store(to, if self.group > 0 { s.add(s.load(to), value) } else { value });
                }
            }
            if self.group + 1 == groups {
                let values = FloatSums(Rows { ptr: earlier.cast_const(), stride: TILE_COLS });
                self.job.epilogue.finish(s, tile, &values);
            }
        }
    }
}

/// `(sum - zero * correction) * (scale of the row * scale of the column)`
struct Scaled {
    sums: Rows<*const i32>,
    /// Of the tile's rows.
    row_scale: *const f32,
    zero: *const i32,
    /// Of the tile's columns.
    scale: *const f32,
    correction: *const i32,
}

/// A row of [`Scaled`].
#[derive(Clone, Copy)]
struct ScaledRow<S: Simd> {
    sums: *const i32,
    scale: S::F,
    zero: S::I,
}

/// A vector of columns of [`Scaled`].
#[derive(Clone, Copy)]
struct ScaledColumns<S: Simd> {
    scale: S::F,
    correction: S::I,
}

impl<S: Dots> TileSums<S> for Scaled {
    type Row = ScaledRow<S>;
    type Columns = ScaledColumns<S>;

    #[inline(always)]
    unsafe fn row(&self, s: S, row: usize) -> ScaledRow<S> {
        // SAFETY: the tile has that row.
        let (scale, zero) = unsafe { (*self.row_scale.add(row), *self.zero.add(row)) };
        ScaledRow {
            sums: self.sums.ptr.wrapping_add(row * self.sums.stride),
            scale: s.splat(scale),
            zero: s.splat_i(zero),
        }
    }

    #[inline(always)]
    unsafe fn columns(&self, s: S, col: usize) -> ScaledColumns<S> {
        // SAFETY: `col + LANES` stays inside the padded columns of the tile.
        unsafe { ScaledColumns { scale: s.load(self.scale.add(col)), correction: s.load_i(self.correction.add(col)) } }
    }

    #[inline(always)]
    unsafe fn sums(&self, s: S, row: ScaledRow<S>, columns: ScaledColumns<S>, col: usize) -> S::F {
        // SAFETY: as for the columns.
        let sum = unsafe { s.load_i(row.sums.add(col)) };
        // Exact: the difference is a sum of products with `q - zero`, no larger than those with q.
        let exact = s.sub_i(sum, s.mul_i(row.zero, columns.correction));
        s.mul(s.to_f(exact), s.mul(row.scale, columns.scale))
    }
}
