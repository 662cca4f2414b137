//! `linear` in float32.

use scoregraph_simd::{Kernel, Simd};

use super::epilogue::{Epilogue, FloatSums};
use super::{Part, for_parts};
use crate::Context;
use crate::gemm::{self, Finish, Float, Multiply, Panels, Product, Rows, Span};

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
        unsafe { multiply_part(s, Float, self.job, self.job.packed, self.part) };
    }
}

/// Computes a part of y.
///
/// # Safety
/// It is inside of it and nobody else's; x has its rows and the weights have its columns, of `k` words.
#[inline(always)]
pub(super) unsafe fn multiply_part<S: Simd, P: Product<S>>(s: S, product: P, job: &Job, packed: Panels, part: Part) {
    // SAFETY: the caller's contract.
    unsafe {
        let a = Rows { ptr: job.x.ptr.add(part.row * job.x.stride), ..job.x };
        let of = Multiply { a, rows: part.rows, b: packed, panels: part.panels(), words: 0..job.k };
        gemm::multiply_words(s, product, &of, &mut FinishFloats { epilogue: job.epilogue, part });
    }
}

/// Sums that are the values themselves.
struct FinishFloats<'a> {
    epilogue: &'a Epilogue<'a>,
    part: Part,
}

impl<S: Simd> Finish<S> for FinishFloats<'_> {
    #[inline(always)]
    fn ahead(&self, at: Span) -> Option<Rows<*const f32>> {
        self.epilogue.ahead(self.part.at(at))
    }

    #[inline(always)]
    unsafe fn finish(&mut self, s: S, at: Span, sums: Rows<*const u32>) {
        let sums = FloatSums(Rows { ptr: sums.ptr.cast(), stride: sums.stride });
        // SAFETY: a tile of the part; the caller's contract.
        unsafe { self.epilogue.finish(s, self.part.at(at), &sums) };
    }
}
