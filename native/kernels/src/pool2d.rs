//! `avg_pool2d`, `max_pool2d` and `upsample_nearest`: changes of resolution of NCHW images.

use scoregraph_simd::{Kernel, Simd};

use crate::Context;
use crate::rows::for_rows;

/// The windows of a pooling call; there is no padding, and what no window covers is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool2d {
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Height and width of a window.
    pub kernel: [usize; 2],
    /// Rows and columns between two windows.
    pub stride: [usize; 2],
}

impl Pool2d {
    /// Height and width of the output, or `None` where no window fits or a size is zero that must not be.
    #[must_use]
    pub fn output(&self) -> Option<[usize; 2]> {
        let along = |axis: usize| {
            let (kernel, stride) = (self.kernel[axis], self.stride[axis]);
            if kernel == 0 || stride == 0 {
                return None;
            }
            Some(self.input[axis].checked_sub(kernel)? / stride + 1)
        };
        Some([along(0)?, along(1)?])
    }
}

/// The mean of every window of `x` \[…, H, W\], into `y` \[…, OH, OW\].
///
/// # Panics
/// If the sizes do not fit together.
pub fn avg_pool2d(ctx: &Context, pool: &Pool2d, x: &[f32], y: &mut [f32]) {
    let area = (pool.kernel[0] * pool.kernel[1]) as f32;
    if (pool.kernel, pool.stride) == ([2; 2], [2; 2]) {
        let (rows, columns) = check(pool, x, y);
        for_rows(ctx, columns, 4 * columns, y, |first, y| HalvedRows { pool, rows, columns, first, x, y });
    } else {
        run(ctx, pool, x, y, 0.0, |sum, x| sum + x, move |sum| sum / area);
    }
}

/// The largest element of every window of `x` \[…, H, W\], into `y` \[…, OH, OW\]; NaN if there is one.
///
/// # Panics
/// If the sizes do not fit together.
pub fn max_pool2d(ctx: &Context, pool: &Pool2d, x: &[f32], y: &mut [f32]) {
    let larger = |max: f32, x: f32| if x > max || x.is_nan() { x } else { max };
    run(ctx, pool, x, y, f32::NEG_INFINITY, larger, |max| max);
}

fn run(
    ctx: &Context,
    pool: &Pool2d,
    x: &[f32],
    y: &mut [f32],
    init: f32,
    step: impl Fn(f32, f32) -> f32 + Copy + Sync,
    finish: impl Fn(f32) -> f32 + Copy + Sync,
) {
    let (rows, columns) = check(pool, x, y);
    for_rows(ctx, columns, columns * pool.kernel[0] * pool.kernel[1], y, |first, y| PoolRows {
        pool,
        rows,
        columns,
        first,
        x,
        y,
        init,
        step,
        finish,
    });
}

/// Rows and columns of the output; panics if the sizes do not fit together.
fn check(pool: &Pool2d, x: &[f32], y: &[f32]) -> (usize, usize) {
    let [rows, columns] = pool.output().expect("a window fits");
    let [height, width] = pool.input;
    assert!(y.len().is_multiple_of(rows * columns));
    assert_eq!(x.len(), y.len() / (rows * columns) * height * width);
    (rows, columns)
}

/// Whole output rows of any planes, from row `first` of all.
struct PoolRows<'a, Step, Finish> {
    pool: &'a Pool2d,
    rows: usize,
    columns: usize,
    first: usize,
    x: &'a [f32],
    y: &'a mut [f32],
    init: f32,
    step: Step,
    finish: Finish,
}

impl<Step: Fn(f32, f32) -> f32, Finish: Fn(f32) -> f32> Kernel for PoolRows<'_, Step, Finish> {
    type Output = ();

    /// The loops run along the output row, so that the compiler can use the vectors of `S`.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Pool2d { input: [height, width], kernel: [kh, kw], stride: [sy, sx] } = *self.pool;
        for (row, y) in (self.first..).zip(self.y.chunks_exact_mut(self.columns)) {
            let top = row / self.rows * height + row % self.rows * sy;
            y.fill(self.init);
            for ky in 0..kh {
                let line = &self.x[(top + ky) * width..][..width];
                for kx in 0..kw {
                    if sx == 2 {
                        // The stride of U-Nets, as a constant.
                        for (y, x) in y.iter_mut().zip(line[kx..].iter().step_by(2)) {
                            *y = (self.step)(*y, *x);
                        }
                    } else {
                        for (y, x) in y.iter_mut().zip(line[kx..].iter().step_by(sx)) {
                            *y = (self.step)(*y, *x);
                        }
                    }
                }
            }
            for y in y {
                *y = (self.finish)(*y);
            }
        }
    }
}

/// The same of means over two by two elements, next to one another: how U-Nets halve an image.
struct HalvedRows<'a> {
    pool: &'a Pool2d,
    rows: usize,
    columns: usize,
    first: usize,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for HalvedRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let [height, width] = self.pool.input;
        let quarter = s.splat(0.25);
        for (row, y) in (self.first..).zip(self.y.chunks_exact_mut(self.columns)) {
            let top = row / self.rows * height + row % self.rows * 2;
            let (above, below) = self.x[top * width..][..2 * width].split_at(width);
            for at in (0..self.columns).step_by(S::LANES) {
                let n = S::LANES.min(self.columns - at);
                let [(a, b), (c, d)] = [even_and_odd(s, above, at, n), even_and_odd(s, below, at, n)];
                let mean = s.mul(s.add(s.add(s.add(a, b), c), d), quarter);
                // SAFETY: `at + n` elements are in y.
                unsafe { s.store_first(y.as_mut_ptr().add(at), mean, n) };
            }
        }
    }
}

/// The elements of a line in pairs from number `at` on, of which `n` are read, a vector at most: the first ones and the second.
#[inline(always)]
fn even_and_odd<S: Simd>(s: S, line: &[f32], at: usize, n: usize) -> (S::F, S::F) {
    let pairs = &line[2 * at..2 * (at + n)];
    let (a, b) = pairs.split_at(pairs.len().min(S::LANES));
    // SAFETY: two vectors hold all of the pairs, and only those are read.
    unsafe { s.deinterleave(s.load_first(a.as_ptr(), a.len()), s.load_first(b.as_ptr(), b.len())) }
}

/// Repeats every element of the planes `x` \[…, W\] `factor[0]` times along rows and `factor[1]` times along columns, into
/// `y` \[…, factor · W\].
///
/// # Panics
/// If the sizes do not fit together.
pub fn upsample_nearest(ctx: &Context, width: usize, factor: [usize; 2], x: &[f32], y: &mut [f32]) {
    assert_eq!(y.len(), x.len() * factor[0] * factor[1]);
    if y.is_empty() {
        return;
    }
    assert!(width > 0 && x.len().is_multiple_of(width), "{} elements in rows of {width}", x.len());
    for_rows(ctx, width * factor[1], width * factor[1], y, |first, y| UpsampleRows { width, factor, first, x, y });
}

/// Whole output rows, from row `first` of all: output row r repeats the elements of input row `r / factor[0]`.
struct UpsampleRows<'a> {
    width: usize,
    factor: [usize; 2],
    first: usize,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for UpsampleRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let [fy, fx] = self.factor;
        for (row, y) in (self.first..).zip(self.y.chunks_exact_mut(self.width * fx)) {
            let x = &self.x[row / fy * self.width..][..self.width];
            match fx {
                1 => y.copy_from_slice(x),
                // The factor of U-Nets, as a constant.
                2 => {
                    let (pairs, _) = y.as_chunks_mut::<2>();
                    for (pair, x) in pairs.iter_mut().zip(x) {
                        *pair = [*x; 2];
                    }
                }
                _ => {
                    for (cell, x) in y.chunks_exact_mut(fx).zip(x) {
                        cell.fill(*x);
                    }
                }
            }
        }
    }
}
