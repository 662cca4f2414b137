//! `linear` in float32.

use scoregraph_simd::{Kernel, Simd};

use super::epilogue::{Epilogue, PartSums};
use super::{Part, Sums, TILE_COLS, TILE_ROWS, for_parts};
use crate::Context;
use crate::gemm::{self, Multiply, PANEL, Panels, Rows};

/// Sums that are the values themselves.
pub(super) struct FloatSums(pub(super) Rows<*const f32>);

impl<S: Simd> PartSums<S> for FloatSums {
    type Row = *const f32;

    #[inline(always)]
    fn row(&self, _: S, row: usize) -> *const f32 {
        self.0.ptr.wrapping_add(row * self.0.stride)
    }

    #[inline(always)]
    unsafe fn columns(&self, s: S, row: *const f32, col: usize) -> S::F {
        // SAFETY: the caller's contract; rows are padded to whole panels.
        unsafe { s.load(row.add(col)) }
    }
}

/// Computes y from x and weights in the layout `n16`.
pub(super) fn run(
    ctx: &Context,
    epilogue: &Epilogue,
    (m, n, k): (usize, usize, usize),
    x: Rows<*const f32>,
    packed: &[f32],
) {
    let x = Rows { ptr: x.ptr.cast(), stride: 4 * x.stride };
    let job = Job { epilogue, k, x, packed: Panels::words(packed.as_ptr().cast(), k) };
    for_parts(ctx, (m, n), |part| ctx.isa.dispatch(Tile { job: &job, part }));
}

/// A product of which a word is a float, the panels' too once they are unpacked.
pub(super) struct Job<'a> {
    pub(super) epilogue: &'a Epilogue<'a>,
    pub(super) k: usize,
    /// Rows of bytes.
    pub(super) x: Rows<*const u8>,
    pub(super) packed: Panels,
}

// SAFETY: the pointers are those of views and slices borrowed for the call, which nobody writes.
unsafe impl Sync for Job<'_> {}

struct Tile<'a> {
    job: &'a Job<'a>,
    part: Part,
}

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: a part of a checked call.
        unsafe { multiply_part(s, self.job, &self.job.packed, self.part) };
    }
}

/// Computes a part of y.
///
/// # Safety
/// It is inside of it and nobody else's; x has its rows and the weights have its columns, of `k` words.
#[inline(always)]
pub(super) unsafe fn multiply_part<S: Simd>(s: S, job: &Job, packed: &Panels, part: Part) {
    let mut sums: Sums = [const { std::mem::MaybeUninit::uninit() }; TILE_ROWS * TILE_COLS];
    let c = Rows { ptr: sums.as_mut_ptr().cast::<u32>(), stride: TILE_COLS };
    let first = part.col / PANEL;
    // SAFETY: the caller's contract; `sums` has room for TILE_ROWS rows of TILE_COLS columns.
    unsafe {
        let a = Rows { ptr: job.x.ptr.add(part.row * job.x.stride), ..job.x };
        let panels = first..first + part.cols.div_ceil(PANEL);
        let of = Multiply { a, rows: part.rows, b: *packed, panels, words: 0..job.k, c, accumulate: false };
        gemm::multiply_floats(s, of);
        let sums = FloatSums(Rows { ptr: c.ptr.cast_const().cast(), stride: c.stride });
        job.epilogue.finish(s, part, &sums);
    }
}
