//! `layer_norm` and `rms_norm`: normalisation over the last dimension.

use scoregraph_simd::{Act, Simd};

use crate::format::{MakeRow, Rows, write_rows};
use crate::rows::{MapVector, RowStarts, map_with, sum};
use crate::{Context, View};

/// What `layer_norm` and `rms_norm` do to normalised rows: `v * weight + bias`, then `v * (1 + scale) + shift`, then act,
/// then `v * smooth`.
#[derive(Clone, Copy)]
pub struct Affine<'a> {
    /// \[D\]
    pub weight: Option<&'a [f32]>,
    /// \[D\]
    pub bias: Option<&'a [f32]>,
    /// \[G, D\], rows strided: row m of x uses row `m / (M / G)`.
    pub scale: Option<View<'a>>,
    /// As `scale`.
    pub shift: Option<View<'a>>,
    /// The activation.
    pub act: Act,
    /// \[D\], the factors of the columns of a result that is quantized.
    pub smooth: Option<&'a [f32]>,
}

impl Affine<'_> {
    /// Nothing.
    pub const NONE: Affine<'static> =
        Affine { weight: None, bias: None, scale: None, shift: None, act: Act::None, smooth: None };
}

/// `layer_norm` of the rows of `x` [.., D] into those of `y`. The variance is biased and computed from centred values, so a
/// large mean does no harm.
///
/// # Panics
/// If the operands do not fit together, or the scratch is shorter than [`crate::format::rows_scratch`] says.
pub fn layer_norm(ctx: &Context, eps: f32, affine: &Affine, x: &View, y: &mut Rows, scratch: &mut [f32]) {
    norm::<true>(ctx, eps, affine, x, y, scratch);
}

/// `x / sqrt(mean(x²) + eps)` of every row of `x` [.., D], and what `affine` adds, into the rows of `y`.
///
/// # Panics
/// As [`layer_norm`].
pub fn rms_norm(ctx: &Context, eps: f32, affine: &Affine, x: &View, y: &mut Rows, scratch: &mut [f32]) {
    norm::<false>(ctx, eps, affine, x, y, scratch);
}

fn norm<const CENTRED: bool>(ctx: &Context, eps: f32, affine: &Affine, x: &View, y: &mut Rows, scratch: &mut [f32]) {
    let starts = RowStarts::new(x.layout()).expect("rows of x have adjacent elements");
    let RowStarts { rows, cols, .. } = starts;
    if rows == 0 {
        return;
    }
    assert!([affine.weight, affine.bias, affine.smooth].iter().flatten().all(|vector| vector.len() == cols));
    let [scale, shift] = [affine.scale, affine.shift].map(|view| view.map(|view| Modulation::new(&view, rows, cols)));
    let made = NormRows::<CENTRED> { eps, affine, scale, shift, x: *x, starts };
    write_rows(ctx, (rows, cols), &made, y, scratch);
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

/// Rows of a norm, with the mean taken off or not.
struct NormRows<'a, const CENTRED: bool> {
    eps: f32,
    affine: &'a Affine<'a>,
    scale: Option<Modulation<'a>>,
    shift: Option<Modulation<'a>>,
    x: View<'a>,
    starts: RowStarts,
}

impl<const CENTRED: bool> MakeRow for NormRows<'_, CENTRED> {
    #[inline(always)]
    fn row<'r, S: Simd>(&'r self, s: S, m: usize, room: &'r mut [f32]) -> &'r [f32] {
        // SAFETY: row `m` lies in the window.
        let x = unsafe { std::slice::from_raw_parts(self.x.as_ptr().add(self.starts.at(m)), self.starts.cols) };
        let (mean, correction, variance) = if CENTRED { moments(s, x) } else { (0.0, 0.0, mean_square(s, x)) };
        let row = NormRow::<S, CENTRED> {
            affine: self.affine,
            scale: self.scale.map(|modulation| modulation.row(m)),
            shift: self.shift.map(|modulation| modulation.row(m)),
            mean: s.splat(mean),
            correction: s.splat(correction),
            scaling: s.splat(1.0 / (variance + self.eps).sqrt()),
        };
        map_with(s, x, room, &row);
        room
    }
}

/// What happens to one row of x when its moments are known.
struct NormRow<'a, S: Simd, const CENTRED: bool> {
    affine: &'a Affine<'a>,
    scale: Option<*const f32>,
    shift: Option<*const f32>,
    mean: S::F,
    correction: S::F,
    scaling: S::F,
}

impl<S: Simd, const CENTRED: bool> MapVector<S> for NormRow<'_, S, CENTRED> {
    #[inline(always)]
    fn apply(&self, s: S, at: usize, n: usize, x: S::F) -> S::F {
        // SAFETY: all of these have `cols` elements, and `map_with` stays within a row of as many.
        let load = |row: *const f32| unsafe { s.load_first(row.add(at), n) };
        let centred = if CENTRED { s.sub(s.sub(x, self.mean), self.correction) } else { x };
        let mut v = s.mul(centred, self.scaling);
        if let Some(weight) = self.affine.weight {
            v = s.mul(v, load(weight.as_ptr()));
        }
        if let Some(bias) = self.affine.bias {
            v = s.add(v, load(bias.as_ptr()));
        }
        if let Some(scale) = self.scale {
            v = s.mul(v, s.add(s.splat(1.0), load(scale)));
        }
        if let Some(shift) = self.shift {
            v = s.add(v, load(shift));
        }
        v = self.affine.act.apply(s, v);
        if let Some(smooth) = self.affine.smooth {
            v = s.mul(v, load(smooth.as_ptr()));
        }
        v
    }
}

/// The mean of the squares of a row.
#[inline(always)]
fn mean_square<S: Simd>(s: S, row: &[f32]) -> f32 {
    let total = sum(
        s,
        row,
        s.splat(0.0),
        #[inline(always)]
        |x| s.mul(x, x),
    );
    total / row.len() as f32
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
