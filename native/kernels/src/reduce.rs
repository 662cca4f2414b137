//! `reduce`: sum, mean, minimum or maximum over trailing dimensions.

use std::str::FromStr;

use scoregraph_simd::{Kernel, Simd};

use crate::Context;
use crate::rows::{fold, for_rows, sum};

/// What a reduction computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Of nothing: 0.
    Sum,
    /// Of nothing: NaN.
    Mean,
    /// NaN if there is one; of nothing: inf.
    Min,
    /// NaN if there is one; of nothing: -inf.
    Max,
}

impl FromStr for Reduction {
    type Err = String;

    fn from_str(name: &str) -> Result<Reduction, String> {
        match name {
            "sum" => Ok(Reduction::Sum),
            "mean" => Ok(Reduction::Mean),
            "min" => Ok(Reduction::Min),
            "max" => Ok(Reduction::Max),
            _ => Err(format!("`{name}` is not a reduction; choose sum, mean, min or max")),
        }
    }
}

/// Reduces every row of `x` \[len(y), cols\] to an element of `y`.
///
/// # Panics
/// If `x` is not of that size.
pub fn reduce(ctx: &Context, kind: Reduction, cols: usize, x: &[f32], y: &mut [f32]) {
    assert_eq!(Some(x.len()), y.len().checked_mul(cols));
    for_rows(ctx, 1, cols, y, |first, y| Rows { kind, cols, x: &x[first * cols..], y });
}

struct Rows<'a> {
    kind: Reduction,
    cols: usize,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, y) in self.y.iter_mut().enumerate() {
            let row = &self.x[i * self.cols..(i + 1) * self.cols];
            *y = match self.kind {
                Reduction::Sum => long_sum(s, row) as f32,
                Reduction::Mean => (long_sum(s, row) / self.cols as f64) as f32,
                Reduction::Max => extremum(
                    s,
                    row,
                    f32::NEG_INFINITY,
                    #[inline(always)]
                    |a, b| s.max(a, b),
                    #[inline(always)]
                    |v| s.reduce_max(v),
                ),
                Reduction::Min => extremum(
                    s,
                    row,
                    f32::INFINITY,
                    #[inline(always)]
                    |a, b| s.min(a, b),
                    #[inline(always)]
                    |v| s.reduce_min(v),
                ),
            };
        }
    }
}

/// The sum of blocks in single precision, of their sums in double: the error does not grow with the length.
#[inline(always)]
fn long_sum<S: Simd>(s: S, row: &[f32]) -> f64 {
    let mut total = 0.0;
    for block in row.chunks(1024) {
        total += f64::from(sum(
            s,
            block,
            s.splat(0.0),
            #[inline(always)]
            |x| x,
        ));
    }
    total
}

#[inline(always)]
fn extremum<S: Simd>(
    s: S,
    row: &[f32],
    empty: f32,
    choose: impl Fn(S::F, S::F) -> S::F,
    across: impl Fn(S::F) -> f32,
) -> f32 {
    let fill = s.splat(empty);
    let [best, nan] = fold(
        s,
        row,
        fill,
        [fill, s.splat(0.0)],
        #[inline(always)]
        |[best, nan], x| [choose(best, x), s.select(s.is_nan(x), x, nan)],
        #[inline(always)]
        |[a, m], [b, n]| [choose(a, b), s.add(m, n)],
    );
    if s.any(s.is_nan(nan)) { f32::NAN } else { across(best) }
}
