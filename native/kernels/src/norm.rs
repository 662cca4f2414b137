//! `layer_norm` and `rms_norm`: normalisation over the last dimension.

use scoregraph_simd::{Act, Kernel, Simd};

use crate::rows::{MapVector, for_rows, map, map_with, sum};
use crate::{Context, View};

/// The operands of `layer_norm` beside x and y.
///
/// `y = act(norm(x) * weight + bias)`, and with scale or shift `act((norm(x) * weight + bias) * (1 + scale) + shift)`.
#[derive(Clone, Copy)]
pub struct LayerNorm<'a> {
    /// D, the length of a row.
    pub cols: usize,
    /// Added to the variance.
    pub eps: f32,
    /// \[D\]
    pub weight: Option<&'a [f32]>,
    /// \[D\]
    pub bias: Option<&'a [f32]>,
    /// \[G, D\], rows strided: row m of x uses row `m / (M / G)`.
    pub scale: Option<View<'a>>,
    /// As `scale`.
    pub shift: Option<View<'a>>,
    /// Applied last.
    pub act: Act,
}

/// `layer_norm` of `x` \[M, D\] into `y`. The variance is biased and computed from centred values, so a large mean does
/// no harm.
///
/// # Panics
/// If the operands do not fit together.
pub fn layer_norm(ctx: &Context, op: &LayerNorm, x: &[f32], y: &mut [f32]) {
    check(op.cols, x, y, &[op.weight, op.bias]);
    if y.is_empty() {
        return;
    }
    let rows = y.len() / op.cols;
    let [scale, shift] = [op.scale, op.shift].map(|view| view.map(|view| Modulation::new(&view, rows, op.cols)));
    for_rows(ctx, op.cols, op.cols, y, |first, y| LayerNormRows {
        op,
        scale,
        shift,
        first,
        x: &x[first * op.cols..],
        y,
    });
}

/// `x / sqrt(mean(x²) + eps) * weight` of every row of `x` \[M, cols\], into `y`.
///
/// # Panics
/// If the operands do not fit together.
pub fn rms_norm(ctx: &Context, cols: usize, eps: f32, weight: Option<&[f32]>, x: &[f32], y: &mut [f32]) {
    check(cols, x, y, &[weight]);
    for_rows(ctx, cols, cols, y, |first, y| RmsNormRows { cols, eps, weight, x: &x[first * cols..], y });
}

fn check(cols: usize, x: &[f32], y: &[f32], vectors: &[Option<&[f32]>]) {
    assert_eq!(x.len(), y.len());
    assert!(x.is_empty() || (cols > 0 && x.len().is_multiple_of(cols)), "{} elements in rows of {cols}", x.len());
    assert!(vectors.iter().flatten().all(|vector| vector.len() == cols));
}

/// Rows of scale or shift, each serving `share` rows of x.
#[derive(Clone, Copy)]
struct Modulation<'a> {
    view: View<'a>,
    stride: usize,
    share: usize,
}

impl<'a> Modulation<'a> {
    fn new(view: &View<'a>, rows: usize, cols: usize) -> Self {
        let (groups, own_cols, stride) = view.layout().as_rows().expect("scale and shift have adjacent elements");
        assert!(own_cols == cols && groups > 0 && rows.is_multiple_of(groups), "{groups} groups of {rows} rows");
        Modulation { view: *view, stride, share: rows / groups }
    }

    /// The row that row `m` of x uses.
    fn row(&self, m: usize) -> *const f32 {
        self.view.as_ptr().wrapping_add(m / self.share * self.stride)
    }
}

struct LayerNormRows<'a> {
    op: &'a LayerNorm<'a>,
    scale: Option<Modulation<'a>>,
    shift: Option<Modulation<'a>>,
    first: usize,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for LayerNormRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let cols = self.op.cols;
        for (i, (x, y)) in self.x.chunks(cols).zip(self.y.chunks_mut(cols)).enumerate() {
            let (mean, correction, variance) = moments(s, x);
            let scaling = s.splat(1.0 / (variance + self.op.eps).sqrt());
            let (mean, correction) = (s.splat(mean), s.splat(correction));
            let row = LayerNormRow::<S> {
                op: self.op,
                scale: self.scale.map(|modulation| modulation.row(self.first + i)),
                shift: self.shift.map(|modulation| modulation.row(self.first + i)),
                mean,
                correction,
                scaling,
            };
            map_with(s, x, y, &row);
        }
    }
}

/// What happens to one row of x when its moments are known.
struct LayerNormRow<'a, S: Simd> {
    op: &'a LayerNorm<'a>,
    scale: Option<*const f32>,
    shift: Option<*const f32>,
    mean: S::F,
    correction: S::F,
    scaling: S::F,
}

impl<S: Simd> MapVector<S> for LayerNormRow<'_, S> {
    #[inline(always)]
    fn apply(&self, s: S, at: usize, n: usize, x: S::F) -> S::F {
        // SAFETY: all of these have `cols` elements, and `map_with` stays within a row of as many.
        let load = |row: *const f32| unsafe { s.load_first(row.add(at), n) };
        let mut v = s.mul(s.sub(s.sub(x, self.mean), self.correction), self.scaling);
        if let Some(weight) = self.op.weight {
            v = s.mul(v, load(weight.as_ptr()));
        }
        if let Some(bias) = self.op.bias {
            v = s.add(v, load(bias.as_ptr()));
        }
        if let Some(scale) = self.scale {
            v = s.mul(v, s.add(s.splat(1.0), load(scale)));
        }
        if let Some(shift) = self.shift {
            v = s.add(v, load(shift));
        }
        self.op.act.apply(s, v)
    }
}

/// A rough mean, what is to be added to it, and the variance, by the corrected two-pass algorithm (Chan, Golub and
/// LeVeque, 1983): with d = x - rough mean, the correction is mean(d), the variance mean(d²) - mean(d)².
#[inline(always)]
pub(crate) fn moments<S: Simd>(s: S, row: &[f32]) -> (f32, f32, f32) {
    let count = row.len() as f32;
    let mean = sum(
        s,
        row,
        s.splat(0.0),
        #[inline(always)]
        |x| x,
    ) / count;
    let centre = s.splat(mean);
    let [d, squares] = crate::rows::fold(
        s,
        row,
        centre,
        [s.splat(0.0); 2],
        #[inline(always)]
        |[a, b], x| {
            let d = s.sub(x, centre);
            [s.add(a, d), s.mul_add(d, d, b)]
        },
        #[inline(always)]
        |[a, b], [c, d]| [s.add(a, c), s.add(b, d)],
    );
    let correction = s.reduce_add(d) / count;
    (mean, correction, s.reduce_add(squares) / count - correction * correction)
}

struct RmsNormRows<'a> {
    cols: usize,
    eps: f32,
    weight: Option<&'a [f32]>,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for RmsNormRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, y) in self.x.chunks(self.cols).zip(self.y.chunks_mut(self.cols)) {
            let mean = sum(
                s,
                x,
                s.splat(0.0),
                #[inline(always)]
                |x| s.mul(x, x),
            ) / self.cols as f32;
            let scaling = s.splat(1.0 / (mean + self.eps).sqrt());
            map(
                s,
                x,
                y,
                #[inline(always)]
                |at, n, x| {
                    let v = s.mul(x, scaling);
                    match self.weight {
                        // SAFETY: the weight has `cols` elements, and `map` stays within a row of as many.
                        Some(weight) => s.mul(v, unsafe { s.load_first(weight.as_ptr().add(at), n) }),
                        None => v,
                    }
                },
            );
        }
    }
}
