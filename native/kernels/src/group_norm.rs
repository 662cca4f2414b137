//! `group_norm`: normalisation over the channels of a group and all of space.

use scoregraph_simd::{Act, Disjoint, Kernel, Simd};

use crate::conv::{QUAD, image_strides};
use crate::format::{Extent, Grid, Quantizer, span_groups};
use crate::norm::moments;
use crate::per_channel::PerChannel;
use crate::rows::{MapVector, fold, map_with};
use crate::{Context, View, ViewMut};

/// Elements whose moments are taken in float32, read twice from the first-level cache; the blocks are merged in float64.
const BLOCK: usize = 2048;

/// Pixels of a quad of channels that a tile quantizes.
const TILE_PIXELS: usize = 2048;

/// The operands of `group_norm` beside x and y.
///
/// `y = act(norm(x) * weight + bias)`, and with scale or shift `act((norm(x) * weight + bias) * (1 + scale) + shift)`; where
/// y is quantized, it is multiplied by `smooth` first.
#[derive(Clone, Copy)]
pub struct GroupNorm<'a> {
    /// C
    pub channels: usize,
    /// Groups of adjacent channels; divides C.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// \[C\]
    pub weight: Option<&'a [f32]>,
    /// \[C\]
    pub bias: Option<&'a [f32]>,
    /// \[n, C\]
    pub scale: Option<View<'a>>,
    /// \[n, C\]
    pub shift: Option<View<'a>>,
    /// The activation.
    pub act: Act,
    /// \[C\], the factors of the channels of a result that is quantized.
    pub smooth: Option<&'a [f32]>,
}

impl GroupNorm<'_> {
    /// What a channel is multiplied by before it is quantized.
    #[inline(always)]
    fn factor(&self, channel: usize) -> f32 {
        self.smooth.map_or(1.0, |factors| factors[channel])
    }
}

/// The result of `group_norm`.
pub enum Normed<'a> {
    /// \[n, C, …\], its pixels dense.
    F32(ViewMut<'a>),
    /// Channel quads \[n, ceil(C/4), …, 4\] of bytes 0 … `top`; a row of the grid is shared by `n / R` samples.
    Bytes {
        /// The bytes, dense.
        y: &'a mut [u8],
        /// 255 for u8, 127 for u7.
        top: u8,
        /// \[R, 2\]
        grid: Grid<'a>,
    },
}

/// Floats of working memory that [`group_norm`] needs for `n` samples, where the result is quantized.
pub fn group_norm_scratch(n: usize, channels: usize) -> usize {
    n * channels * (COEFFICIENTS + 2)
}

/// `group_norm` of `x` \[n, C, …\], whose pixels are dense, into `y`. The variance is biased and computed from centred values.
///
/// A tile is one group of one sample, so the batch and the threads change no bit.
///
/// # Panics
/// If the operands do not fit together, or the scratch is shorter than [`group_norm_scratch`] says.
pub fn group_norm(ctx: &Context, op: &GroupNorm, x: &View, y: &mut Normed, scratch: &mut [f32]) {
    let GroupNorm { channels, groups, .. } = *op;
    let (n, space) = (x.shape()[0], x.shape()[2..].iter().product::<usize>());
    assert_eq!(x.shape()[1], channels);
    assert!(groups > 0 && channels.is_multiple_of(groups), "{channels} channels in {groups} groups");
    assert!([op.weight, op.bias, op.smooth].iter().flatten().all(|vector| vector.len() == channels));
    let [scale, shift] = [op.scale, op.shift].map(|view| view.map(|view| PerChannel::new(view, n, channels)));
    let strides = image_strides(x.layout()).expect("the pixels of x are dense");
    let planes = Planes { x: *x, strides, space };
    let job = Job { op, scale, shift, planes };
    match y {
        Normed::F32(y) => {
            assert_eq!(x.shape(), y.shape());
            assert!(op.smooth.is_none(), "only a quantized result is smoothed");
            let strides = image_strides(y.layout()).expect("the pixels of y are dense");
            let y = &*y;
            ctx.pool.run(if space == 0 { 0 } else { n * groups }, &|tile, _| {
                ctx.isa.dispatch(Group { job: &job, tile, result: GroupResult::Values(y, strides) });
            });
        }
        Normed::Bytes { y, top, grid } => {
            assert_eq!(y.len(), n * channels.next_multiple_of(QUAD) * space, "the size of the result");
            if y.is_empty() {
                return;
            }
            assert!(grid.rows() > 0 && n.is_multiple_of(grid.rows()), "{} grid rows of {n} samples", grid.rows());
            let (share, top) = (n / grid.rows(), *top);
            let (coefficients, extents) =
                scratch[..group_norm_scratch(n, channels)].split_at_mut(n * channels * COEFFICIENTS);
            let parts = (Disjoint::new(coefficients), Disjoint::new(extents));
            let measured = matches!(grid, Grid::Measured(_));
            ctx.pool.run(n * groups, &|tile, _| {
                let planes = tile * (channels / groups)..(tile + 1) * (channels / groups);
                // SAFETY: tiles are different, so the planes of their groups are.
                let (coefficients, extents) = unsafe {
                    let coefficients = parts.0.part(planes.start * COEFFICIENTS..planes.end * COEFFICIENTS);
                    (coefficients, measured.then(|| parts.1.part(2 * planes.start..2 * planes.end)))
                };
                ctx.isa.dispatch(Group { job: &job, tile, result: GroupResult::Coefficients(coefficients, extents) });
            });
            let (coefficients, _) = coefficients.as_chunks::<COEFFICIENTS>();
            match grid {
                Grid::Given(grid) => {
                    let (rows, _) = grid.as_chunks::<2>();
                    write_quads(ctx, &job, coefficients, y, &|sample| Quantizer::of_grid(rows[sample / share], top));
                }
                Grid::Measured(grid) => {
                    let known = span_groups(extents, share * channels, top, grid);
                    write_quads(ctx, &job, coefficients, y, &|sample| known.get(sample / share));
                }
            }
        }
    }
}

/// A checked call.
struct Job<'a> {
    op: &'a GroupNorm<'a>,
    scale: Option<PerChannel<'a>>,
    shift: Option<PerChannel<'a>>,
    planes: Planes<'a>,
}

/// The channels of samples, each of `space` adjacent elements.
struct Planes<'a> {
    x: View<'a>,
    strides: [usize; 2],
    space: usize,
}

impl Planes<'_> {
    #[inline(always)]
    fn plane(&self, sample: usize, channel: usize) -> &[f32] {
        let first = self.x.as_ptr().wrapping_add(sample * self.strides[0] + channel * self.strides[1]);
        // SAFETY: the plane lies in the window.
        unsafe { std::slice::from_raw_parts(first, self.space) }
    }
}

/// Group `tile % groups` of sample `tile / groups`.
struct Group<'a> {
    job: &'a Job<'a>,
    tile: usize,
    result: GroupResult<'a>,
}

/// What becomes of a group.
enum GroupResult<'a> {
    /// It is normalised into a view of these strides.
    Values(&'a ViewMut<'a>, [usize; 2]),
    /// The [`COEFFICIENTS`] of its channels are kept, and if need be the [`Extent`] of what they make of each.
    Coefficients(&'a mut [f32], Option<&'a mut [f32]>),
}

impl Kernel for Group<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Job { op, scale, shift, ref planes } = *self.job;
        let (sample, width) = (self.tile / op.groups, op.channels / op.groups);
        let first = self.tile % op.groups * width;
        let (mean, variance) = blocked_moments(s, planes, sample, first..first + width);
        let scaling = 1.0 / (variance + f64::from(op.eps)).sqrt();
        // Where the mean is large, its rounding would be an offset of the result: subtract what is left of it as well.
        let rough = mean as f32;
        let rest = (mean - f64::from(rough)) as f32;
        let mut result = self.result;
        for own in 0..width {
            let channel = first + own;
            let operand = |vector: Option<&[f32]>, absent| vector.map_or(absent, |vector| f64::from(vector[channel]));
            let modulation =
                |values: Option<PerChannel>| values.map_or(0.0, |values| f64::from(values.at(sample, channel)));
            // Weight, bias, scale and shift are one multiply-add of the centred value.
            let gain = 1.0 + modulation(scale);
            let factor = (scaling * operand(op.weight, 1.0) * gain) as f32;
            let addend = (operand(op.bias, 0.0) * gain + modulation(shift)) as f32;
            let coefficients = [rough, rest, factor, addend];
            let affine = Affine::new(s, coefficients, op.act);
            let x = planes.plane(sample, channel);
            match &mut result {
                GroupResult::Values(y, [by_sample, by_channel]) => {
                    let first = y.as_mut_ptr().wrapping_add(sample * *by_sample + channel * *by_channel);
                    // SAFETY: the plane lies in the window, which is borrowed exclusively, and only this tile writes it.
                    map_with(s, x, unsafe { std::slice::from_raw_parts_mut(first, planes.space) }, &affine);
                }
                GroupResult::Coefficients(kept, extents) => {
                    kept[own * COEFFICIENTS..][..COEFFICIENTS].copy_from_slice(&coefficients);
                    if let Some(extents) = extents {
                        let extent = affine.extent(s, x).times(op.factor(channel));
                        extents[2 * own..][..2].copy_from_slice(&extent.pack());
                    }
                }
            }
        }
    }
}

/// Numbers that normalise a channel of a sample, see [`Affine`].
const COEFFICIENTS: usize = 4;

/// `act((x - rough - rest) * factor + addend)`
struct Affine<S: Simd> {
    rough: S::F,
    rest: S::F,
    factor: S::F,
    addend: S::F,
    act: Act,
}

impl<S: Simd> Affine<S> {
    #[inline(always)]
    fn new(s: S, [rough, rest, factor, addend]: [f32; COEFFICIENTS], act: Act) -> Self {
        Self { rough: s.splat(rough), rest: s.splat(rest), factor: s.splat(factor), addend: s.splat(addend), act }
    }

    /// The normalised value, before the activation.
    #[inline(always)]
    fn centred(&self, s: S, x: S::F) -> S::F {
        s.mul_add(s.sub(s.sub(x, self.rough), self.rest), self.factor, self.addend)
    }

    /// What the values of a row span.
    #[inline(always)]
    fn extent(&self, s: S, x: &[f32]) -> Extent {
        if let (Act::Silu, Some(extent)) = (self.act, self.silu_extent(s, x)) {
            return extent;
        }
        let zero = s.splat(0.0);
        // Lanes past the end repeat an element, which changes no extreme.
        let [low, high, poison] = fold(
            s,
            x,
            s.splat(x.first().copied().unwrap_or(0.0)),
            [zero; 3],
            #[inline(always)]
            |[low, high, poison], x| {
                let y = self.apply(s, 0, S::LANES, x);
                // The order of the operands lets a NaN leave the extremes alone; a product with 0 keeps it, and infinities.
                [s.min(y, low), s.max(y, high), s.mul_add(y, zero, poison)]
            },
            #[inline(always)]
            |[a, b, c], [d, e, f]| [s.min(a, d), s.max(b, e), s.add(c, f)],
        );
        Extent { low: s.reduce_min(low), high: s.reduce_max(high), finite: s.reduce_add(poison) == 0.0 }
    }
}

/// Rows from this length on are worth a look at where SiLU has its extremes.
const SILU_ROW: usize = 512;
/// Where SiLU is smallest, and how far from there its values are too large to be the smallest of a row that has one twice as
/// close: there the curve rises by 0.1 d², 1e-5 against 3e-6, and its values are exact to 1e-7.
const SILU_BOTTOM: f32 = -1.278_464_6;
const SILU_NEAR: f32 = 0.01;
/// To the right of that neighbourhood SiLU rises by at least 1e-3: what is larger by more than this cannot have the smallest
/// value of a row that does not reach the bottom.
const SILU_STEP: f32 = 1e-3;
/// Above 0 it rises at least in proportion: what is smaller by more than this part cannot have the largest value.
const SILU_PART: f32 = 1.0 - 1.0 / 4096.0;

impl<S: Simd> Affine<S> {
    /// What the values of SiLU span, of which only those are computed that may be an extreme; `None` where that does not
    /// tell.
    #[inline(always)]
    fn silu_extent(&self, s: S, x: &[f32]) -> Option<Extent> {
        if x.len() < SILU_ROW {
            return None;
        }
        let zero = s.splat(0.0);
        let [mut low, mut high, mut poison] = [zero; 3];
        // Beyond these, a value may be an extreme.
        let (mut large, mut small) = (zero, s.splat(f32::INFINITY));
        let mut reached = false;
        for at in (0..x.len()).step_by(S::LANES) {
            let n = S::LANES.min(x.len() - at);
            // SAFETY: `at + n` elements are in the row; lanes past the end repeat an element.
            let own = unsafe { s.load_or(x.as_ptr().add(at), n, s.splat(x[at])) };
            let v = self.centred(s, own);
            poison = s.mul_add(v, zero, poison);
            let distance = s.abs(s.sub(v, s.splat(SILU_BOTTOM)));
            if s.any(s.lt(distance, s.splat(SILU_NEAR))) || s.any(s.lt(large, v)) || s.any(s.lt(v, small)) {
                let y = self.act.apply(s, v);
                (low, high) = (s.min(y, low), s.max(y, high));
                reached |= s.any(s.lt(distance, s.splat(SILU_NEAR / 2.0)));
                large = s.max(s.splat(s.reduce_max(s.max(v, zero)) * SILU_PART), large);
                small = s.min(s.splat(s.reduce_min(v) + SILU_STEP), small);
            }
        }
        let finite = s.reduce_add(poison) == 0.0;
        let rises = s.reduce_min(small) - SILU_STEP > SILU_BOTTOM;
        (reached || rises).then(|| Extent { low: s.reduce_min(low), high: s.reduce_max(high), finite })
    }
}

impl<S: Simd> MapVector<S> for Affine<S> {
    #[inline(always)]
    fn apply(&self, s: S, _: usize, _: usize, x: S::F) -> S::F {
        self.act.apply(s, self.centred(s, x))
    }
}

/// Normalises with known coefficients, quantizes, and brings four channels side by side.
fn write_quads(
    ctx: &Context,
    job: &Job,
    coefficients: &[[f32; COEFFICIENTS]],
    y: &mut [u8],
    known: &(dyn Fn(usize) -> Quantizer + Sync),
) {
    let (channels, space) = (job.op.channels, job.planes.space);
    let (quads, pieces) = (channels.div_ceil(QUAD), space.div_ceil(TILE_PIXELS));
    let n = y.len() / (QUAD * quads * space);
    let y = Disjoint::new(y);
    ctx.pool.run(n * quads * pieces, &|tile, _| {
        let (quad, first) = (tile / pieces, tile % pieces * TILE_PIXELS);
        let last = (first + TILE_PIXELS).min(space);
        // SAFETY: tiles are different, so their quads or pixels are.
        let y = unsafe { y.part(QUAD * (quad * space + first)..QUAD * (quad * space + last)) };
        let (sample, channel) = (quad / quads, quad % quads * QUAD);
        let own = sample * channels + channel..sample * channels + channels.min(channel + QUAD);
        let coefficients = &coefficients[own];
        ctx.isa.dispatch(WriteQuad { job, coefficients, sample, channel, first, quantizer: known(sample), y });
    });
}

/// The pixels from `first` on of up to four channels of a sample: [pixels, 4].
struct WriteQuad<'a> {
    job: &'a Job<'a>,
    /// Of the channels.
    coefficients: &'a [[f32; COEFFICIENTS]],
    sample: usize,
    channel: usize,
    first: usize,
    quantizer: Quantizer,
    y: &'a mut [u8],
}

impl Kernel for WriteQuad<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let quantize = self.quantizer.vectors(s);
        let pixels = self.y.len() / QUAD;
        let act = self.job.op.act;
        let count = self.coefficients.len();
        let channel: [_; QUAD] = std::array::from_fn(
            #[inline(always)]
            |i| {
                let i = i.min(count - 1);
                let plane = &self.job.planes.plane(self.sample, self.channel + i)[self.first..][..pixels];
                let factor = s.splat(self.job.op.factor(self.channel + i));
                (plane.as_ptr(), Affine::new(s, self.coefficients[i], act), factor)
            },
        );
        for at in (0..pixels).step_by(S::LANES) {
            let n = S::LANES.min(pixels - at);
            let mut quads = s.splat_i(0);
            for (i, (plane, affine, factor)) in channel[..count].iter().enumerate() {
                // SAFETY: the plane has `pixels >= at + n` elements.
                let x = unsafe { s.load_first(plane.add(at), n) };
                let byte = quantize.bytes(s, s.mul(affine.apply(s, at, n, x), *factor));
                quads = s.or(quads, s.shl(byte, 8 * i as u32));
            }
            // SAFETY: `QUAD * (at + n)` bytes are in y; a float's lane moves its four bytes as they are.
            unsafe { s.store_first(self.y.as_mut_ptr().add(QUAD * at).cast(), s.from_bits(quads), n) };
        }
    }
}

/// Mean and biased variance of some channels, block by block, merged by the update of Chan, Golub and LeVeque (1979).
#[inline(always)]
fn blocked_moments<S: Simd>(s: S, planes: &Planes, sample: usize, channels: std::ops::Range<usize>) -> (f64, f64) {
    let (mut count, mut mean, mut squares) = (0.0, 0.0, 0.0);
    for channel in channels {
        for block in planes.plane(sample, channel).chunks(BLOCK) {
            let (rough, correction, variance) = moments(s, block);
            let own = block.len() as f64;
            let delta = f64::from(rough) + f64::from(correction) - mean;
            let total = count + own;
            squares += f64::from(variance) * own + delta * delta * count * own / total;
            mean += delta * own / total;
            count = total;
        }
    }
    (mean, squares / count)
}
