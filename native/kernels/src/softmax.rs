//! `softmax` over the last dimension.

use scoregraph_simd::{Kernel, Simd, math};

use crate::Context;
use crate::rows::{for_rows, map, max, sum};

/// `softmax` of every row of `x` \[M, cols\], into `y`. A row with a NaN, or of -inf only, becomes NaN.
///
/// # Panics
/// If the operands do not fit together.
pub fn softmax(ctx: &Context, cols: usize, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    assert!(x.is_empty() || (cols > 0 && x.len().is_multiple_of(cols)), "{} elements in rows of {cols}", x.len());
    for_rows(ctx, cols, cols, y, |first, y| Rows { cols, x: &x[first * cols..], y });
}

struct Rows<'a> {
    cols: usize,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, y) in self.x.chunks(self.cols).zip(self.y.chunks_mut(self.cols)) {
            let largest = s.splat(max(s, x));
            map(
                s,
                x,
                y,
                #[inline(always)]
                |_, _, x| math::exp_flushed(s, s.sub(x, largest)),
            );
            let total = s.splat(sum(
                s,
                y,
                s.splat(0.0),
                #[inline(always)]
                |e| e,
            ));
            let inverse = s.div(s.splat(1.0), total);
            for chunk in y.chunks_mut(S::LANES) {
                // SAFETY: only the elements of `chunk` are touched.
                unsafe {
                    let e = s.load_first(chunk.as_ptr(), chunk.len());
                    s.store_first(chunk.as_mut_ptr(), s.mul(e, inverse), chunk.len());
                }
            }
        }
    }
}
