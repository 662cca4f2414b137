//! `group_norm`: normalisation over the channels of a group and all of space.

use std::ops::Range;

use scoregraph_simd::math::silu_coarse;
use scoregraph_simd::{Act, Disjoint, Kernel, Simd};

use crate::conv::{QUAD, image_strides};
use crate::format::{Extent, Grid, QuantizeVector, Quantizer, for_vectors, span_groups};
use crate::per_channel::PerChannel;
use crate::rows::{fold, for_row_ranges, map, sum};
use crate::{Context, View, ViewMut};

/// Pixels of a quad of channels that are quantized at a time.
const PIECE: usize = 2048;

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
    n * channels * (KEPT + 2)
}

/// `group_norm` of `x` \[n, C, …\], whose pixels are dense, into `y`. The variance is biased and computed from centred values.
///
/// The moments of a group are one thread's work, so the batch and the threads change no bit. A measured grid covers, for each
/// channel of a sample, what the activation makes of the interval between its least and its largest normalised value.
///
/// # Panics
/// If the operands do not fit together, or the scratch is shorter than [`group_norm_scratch`] says.
pub fn group_norm(ctx: &Context, op: &GroupNorm, x: &View, y: &mut Normed, scratch: &mut [f32]) {
    let GroupNorm { channels, groups, .. } = *op;
    let (n, space) = (x.shape()[0], x.shape()[2..].iter().product::<usize>());
    assert_eq!(x.shape()[1], channels);
    assert!(groups > 0 && channels.is_multiple_of(groups), "{channels} channels in {groups} groups");
    assert!([op.weight, op.bias, op.smooth].iter().flatten().all(|vector| vector.len() == channels));
    if n * channels * space == 0 {
        return;
    }
    let [scale, shift] = [op.scale, op.shift].map(|view| view.map(|view| PerChannel::new(view, n, channels)));
    let strides = image_strides(x.layout()).expect("the pixels of x are dense");
    let planes = Planes { x: *x, strides, space };
    let width = channels / groups;
    let job = Job { op, scale, shift, planes, width };
    match y {
        Normed::F32(y) => {
            assert_eq!(x.shape(), y.shape());
            assert!(op.smooth.is_none(), "only a quantized result is smoothed");
            let strides = image_strides(y.layout()).expect("the pixels of y are dense");
            for_row_ranges(ctx, n * groups, width * space, |range, _| {
                ctx.isa.dispatch(Groups { job: &job, range, result: GroupResult::Values(y, strides) });
            });
        }
        Normed::Bytes { y, top, grid } => {
            assert_eq!(y.len(), n * channels.next_multiple_of(QUAD) * space, "the size of the result");
            assert!(grid.rows() > 0 && n.is_multiple_of(grid.rows()), "{} grid rows of {n} samples", grid.rows());
            let (share, top) = (n / grid.rows(), *top);
            let (coefficients, extents) = scratch[..group_norm_scratch(n, channels)].split_at_mut(n * channels * KEPT);
            let parts = (Disjoint::new(coefficients), Disjoint::new(extents));
            let measured = matches!(grid, Grid::Measured(_));
            for_row_ranges(ctx, n * groups, width * space, |range, _| {
                let planes = range.start * width..range.end * width;
                // SAFETY: tiles are different, so the planes of their groups are.
                let (coefficients, extents) = unsafe {
                    let coefficients = parts.0.part(planes.start * KEPT..planes.end * KEPT);
                    (coefficients, parts.1.part(2 * planes.start..2 * planes.end))
                };
                ctx.isa.dispatch(Groups {
                    job: &job,
                    range,
                    result: GroupResult::Coefficients(coefficients, extents, measured),
                });
            });
            let (coefficients, _) = coefficients.as_chunks::<KEPT>();
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
    /// Channels of a group.
    width: usize,
}

impl Job<'_> {
    /// What normalises a channel of a sample, by the mean and the inverse deviation of its group. Weight, bias, scale and
    /// shift are one multiply-add of the centred value.
    #[inline(always)]
    fn coefficients(&self, sample: usize, channel: usize, [mean, scaling]: [f64; 2]) -> [f32; COEFFICIENTS] {
        let operand = |vector: Option<&[f32]>, absent| vector.map_or(absent, |vector| f64::from(vector[channel]));
        let modulation =
            |values: Option<PerChannel>| values.map_or(0.0, |values| f64::from(values.at(sample, channel)));
        let gain = 1.0 + modulation(self.scale);
        let factor = scaling * operand(self.op.weight, 1.0) * gain;
        let addend = operand(self.op.bias, 0.0) * gain + modulation(self.shift);
        // Where the mean is large, its rounding would be an offset of the result: what is left of it moves the addend.
        let rough = mean as f32;
        [rough, factor as f32, (addend - (mean - f64::from(rough)) * factor) as f32]
    }
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

/// Some groups: number g is group `g % groups` of sample `g / groups`.
struct Groups<'a> {
    job: &'a Job<'a>,
    range: Range<usize>,
    result: GroupResult<'a>,
}

/// What becomes of groups.
enum GroupResult<'a> {
    /// They are normalised into a view of these strides.
    Values(&'a ViewMut<'a>, [usize; 2]),
    /// Of each of their channels there is [`KEPT`], and if asked for the [`Extent`] of its result.
    Coefficients(&'a mut [f32], &'a mut [f32], bool),
}

impl Kernel for Groups<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Job { op, ref planes, width, .. } = *self.job;
        let first_group = self.range.start;
        let mut result = self.result;
        for group in self.range {
            let (sample, first) = (group / op.groups, group % op.groups * width);
            let channels = first..first + width;
            // Where the group's channels lie in the results of the tile.
            let own = (group - first_group) * width;
            match &mut result {
                GroupResult::Values(y, [by_sample, by_channel]) => {
                    let moments = moments::<S, false>(s, planes, sample, channels.clone(), &mut []);
                    let normalizer = moments.normalizer(op.eps);
                    for channel in channels {
                        let affine = Affine::new(s, self.job.coefficients(sample, channel, normalizer));
                        let first = y.as_mut_ptr().wrapping_add(sample * *by_sample + channel * *by_channel);
                        // SAFETY: the plane lies in the window, which is borrowed exclusively, and only this tile writes it.
                        let y = unsafe { std::slice::from_raw_parts_mut(first, planes.space) };
                        normalize(s, &affine, op.act, planes.plane(sample, channel), y);
                    }
                }
                GroupResult::Coefficients(kept, extents, measured) => {
                    let moments = moments::<S, true>(s, planes, sample, channels.clone(), &mut extents[2 * own..]);
                    let normalizer = moments.normalizer(op.eps);
                    for (at, channel) in channels.enumerate() {
                        let coefficients = self.job.coefficients(sample, channel, normalizer);
                        let affine = Affine::new(s, coefficients);
                        let ends = &mut extents[2 * (own + at)..][..2];
                        let (v, w) = (affine.apply(s, s.splat(ends[0])), affine.apply(s, s.splat(ends[1])));
                        if *measured {
                            ends.copy_from_slice(&extent(s, v, w, op.act).times(op.factor(channel)).pack());
                        }
                        let [mean, factor, addend] = coefficients;
                        let reach = s.reduce_max(s.max(s.abs(v), s.abs(w)));
                        kept[(own + at) * KEPT..][..KEPT].copy_from_slice(&[mean, factor, addend, reach]);
                    }
                }
            }
        }
    }
}

/// Numbers that normalise a channel of a sample, see [`Affine`].
const COEFFICIENTS: usize = 3;
/// Those of a channel, and how far its normalised values reach from 0: NaN if one is.
const KEPT: usize = COEFFICIENTS + 1;

/// `(x - mean) * factor + addend`
#[derive(Clone, Copy)]
struct Affine<S: Simd> {
    mean: S::F,
    factor: S::F,
    addend: S::F,
}

impl<S: Simd> Affine<S> {
    #[inline(always)]
    fn new(s: S, [mean, factor, addend]: [f32; COEFFICIENTS]) -> Self {
        Self { mean: s.splat(mean), factor: s.splat(factor), addend: s.splat(addend) }
    }

    /// The normalised value, before the activation.
    #[inline(always)]
    fn apply(&self, s: S, x: S::F) -> S::F {
        s.mul_add(s.sub(x, self.mean), self.factor, self.addend)
    }
}

/// What `act` makes of the interval between `v` and `w`.
#[inline(always)]
fn extent<S: Simd>(s: S, v: S::F, w: S::F, act: Act) -> Extent {
    let (f, g) = (act.apply(s, v), act.apply(s, w));
    let zero = s.splat(0.0);
    // A product with 0 keeps NaN and infinities.
    let finite = s.reduce_add(s.mul_add(f, zero, s.mul(g, zero))) == 0.0;
    let (low, high) = (s.reduce_min(s.min(s.min(f, g), zero)), s.reduce_max(s.max(s.max(f, g), zero)));
    match bottom(act) {
        Some((at, value)) if s.reduce_min(s.min(v, w)) <= at && at <= s.reduce_max(s.max(v, w)) => {
            Extent { low: low.min(value), high, finite }
        }
        _ => Extent { low, high, finite },
    }
}

/// Where an activation that first falls and then rises is smallest, and its value there; the others only rise.
fn bottom(act: Act) -> Option<(f32, f32)> {
    match act {
        Act::Silu => Some((-1.278_464_6, -0.278_464_54)),
        Act::QuickGelu => Some((-0.751_154_26, -0.163_610_19)),
        Act::GeluErf => Some((-0.751_791_5, -0.169_971_21)),
        Act::GeluTanh => Some((-0.752_461_4, -0.170_040_75)),
        Act::None | Act::Relu | Act::Tanh | Act::Sigmoid => None,
    }
}

/// Normalises a plane.
#[inline(always)]
fn normalize<S: Simd>(s: S, affine: &Affine<S>, act: Act, x: &[f32], y: &mut [f32]) {
    map(
        s,
        x,
        y,
        #[inline(always)]
        |_, _, x| act.apply(s, affine.apply(s, x)),
    );
}

/// Normalises with known coefficients, quantizes, and brings four channels side by side.
fn write_quads(
    ctx: &Context,
    job: &Job,
    kept: &[[f32; KEPT]],
    y: &mut [u8],
    known: &(dyn Fn(usize) -> Quantizer + Sync),
) {
    let space = job.planes.space;
    let (quads, pieces) = (job.op.channels.div_ceil(QUAD), space.div_ceil(PIECE));
    let count = y.len() / (QUAD * space) * pieces;
    let y = Disjoint::new(y);
    for_row_ranges(ctx, count, QUAD * space.min(PIECE), |range, _| {
        ctx.isa.dispatch(WriteQuads { job, kept, quads, pieces, range, known, y: &y });
    });
}

/// Some pieces of quads: number p is piece `p % pieces` of quad `p / pieces`.
struct WriteQuads<'a> {
    job: &'a Job<'a>,
    /// Of all channels of all samples.
    kept: &'a [[f32; KEPT]],
    /// Quads of a sample.
    quads: usize,
    /// Pieces of a quad.
    pieces: usize,
    range: Range<usize>,
    /// The quantizer of a sample.
    known: &'a (dyn Fn(usize) -> Quantizer + Sync),
    y: &'a Disjoint<'a, u8>,
}

impl Kernel for WriteQuads<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.job.op.smooth {
            None => self.write(
                s,
                #[inline(always)]
                |_, v| v,
            ),
            Some(factors) => self.write(
                s,
                #[inline(always)]
                |channel, v| s.mul(v, s.splat(factors[channel])),
            ),
        }
    }
}

impl WriteQuads<'_> {
    /// Writes the bytes of `smooth(channel, act(normalised value))`.
    #[inline(always)]
    fn write<S: Simd>(&self, s: S, smooth: impl Fn(usize, S::F) -> S::F) {
        let GroupNorm { channels, act, .. } = *self.job.op;
        let space = self.job.planes.space;
        for piece in self.range.clone() {
            let (quad, first) = (piece / self.pieces, piece % self.pieces * PIECE);
            let (sample, channel) = (quad / self.quads, quad % self.quads * QUAD);
            let pixels = first..(first + PIECE).min(space);
            // SAFETY: pieces are different, so their quads or pixels are.
            let y = unsafe { self.y.part(QUAD * (quad * space + pixels.start)..QUAD * (quad * space + pixels.end)) };
            let quantize = (self.known)(sample).vectors(s);
            // Beyond the last channel any bytes do: they are its own.
            let quad = [0, 1, 2, 3].map(|place| (channel + place).min(channels - 1));
            let planes = quad.map(|channel| &self.job.planes.plane(sample, channel)[pixels.clone()]);
            let kept = quad.map(|channel| self.kept[sample * channels + channel]);
            if act == Act::Silu && kept.iter().all(is_tame) {
                let (factors, addends) = (
                    kept.map(|[_, factor, ..]| s.splat(factor)),
                    kept.map(|[mean, factor, addend, _]| s.splat(addend - mean * factor)),
                );
                write_quad(
                    s,
                    planes,
                    y,
                    &quantize,
                    #[inline(always)]
                    |place, x| {
                        smooth(quad[place], silu_coarse::<S, true>(s, s.mul_add(x, factors[place], addends[place])))
                    },
                );
            } else {
                let affines = kept.map(|[mean, factor, addend, _]| Affine::new(s, [mean, factor, addend]));
                write_quad(
                    s,
                    planes,
                    y,
                    &quantize,
                    #[inline(always)]
                    |place, x| {
                        let v = affines[place].apply(s, x);
                        let y = if act == Act::Silu { silu_coarse::<S, false>(s, v) } else { act.apply(s, v) };
                        smooth(quad[place], y)
                    },
                );
            }
        }
    }
}

/// Whether bytes do not show what is left out for the sake of speed: the mean need not be subtracted by itself, whose
/// rounding weighs 1e-5 at most, and [`silu_coarse`] has the values in its range.
fn is_tame([mean, factor, _, reach]: &[f32; KEPT]) -> bool {
    (mean * factor).abs() <= 64.0 && *reach <= 80.0
}

/// Writes the bytes of `value(place, x)` of four channels, places 0 to 3, to `y` \[pixels, 4\].
#[inline(always)]
fn write_quad<S: Simd>(
    s: S,
    planes: [&[f32]; QUAD],
    y: &mut [u8],
    quantize: &QuantizeVector<S>,
    value: impl Fn(usize, S::F) -> S::F,
) {
    assert!(planes.iter().all(|plane| QUAD * plane.len() == y.len()));
    let y = y.as_mut_ptr();
    for_vectors(
        s,
        planes[0],
        #[inline(always)]
        |at, n, _| {
            let mut values = [s.splat(0.0); QUAD];
            for place in 0..QUAD {
                // SAFETY: all planes have the pixels `at..at + n`.
                values[place] = value(place, unsafe { s.load_first(planes[place].as_ptr().add(at), n) });
            }
            // SAFETY: `at + n` pixels are in y; a float's lane moves four bytes as they are.
            unsafe { s.store_first(y.add(QUAD * at).cast(), s.from_bits(quantize.quads(s, values)), n) };
        },
    );
}

/// Elements whose sums are taken in float32; the blocks are merged in float64.
const BLOCK: usize = 2048;

/// The number of some values, their mean, and the sum of the squares of their deviations from it.
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    /// The mean, and the inverse of the deviation.
    #[inline(always)]
    fn normalizer(&self, eps: f32) -> [f64; 2] {
        [self.mean, 1.0 / (self.squares.max(0.0) / self.count + f64::from(eps)).sqrt()]
    }

    /// The moments of the values of both: the update of Chan, Golub and LeVeque (1979).
    #[inline(always)]
    fn merge(&mut self, other: Moments) {
        let (delta, count) = (other.mean - self.mean, self.count + other.count);
        self.squares += other.squares + delta * delta * self.count * other.count / count;
        self.mean += delta * other.count / count;
        self.count = count;
    }
}

/// The moments of some channels of a sample, in one pass; with `ENDS`, the least and the largest element of each become
/// `ends` \[channels, 2\].
///
/// Squares are taken of deviations from a shift: for the first block its mean, then the mean of all blocks before. Where
/// that is far from a block's own mean, rounding harms the block's squares, but the distance itself makes the variance of all
/// as much larger: the relative error of the variance stays a few units of float32.
#[inline(always)]
fn moments<S: Simd, const ENDS: bool>(
    s: S,
    planes: &Planes,
    sample: usize,
    channels: Range<usize>,
    ends: &mut [f32],
) -> Moments {
    let mut all = Moments { count: 0.0, mean: 0.0, squares: 0.0 };
    if ENDS {
        ends[..2 * channels.len()].as_chunks_mut().0.fill([f32::INFINITY, f32::NEG_INFINITY]);
    }
    // A block is some whole channels, or a piece of one.
    let per_block = (BLOCK / planes.space).max(1);
    for first in channels.clone().step_by(per_block) {
        let last = (first + per_block).min(channels.end);
        for pixel in (0..planes.space).step_by(BLOCK) {
            let pixels = pixel..(pixel + BLOCK).min(planes.space);
            let row = |channel: usize| &planes.plane(sample, channel)[pixels.clone()];
            let count = ((last - first) * pixels.len()) as f64;
            let shift = if all.count == 0.0 {
                let mut total = 0.0;
                for channel in first..last {
                    total += f64::from(sum(
                        s,
                        row(channel),
                        s.splat(0.0),
                        #[inline(always)]
                        |x| x,
                    ));
                }
                (total / count) as f32
            } else {
                all.mean as f32
            };
            let centre = s.splat(shift);
            let [mut deviations, mut squares] = [s.splat(0.0); 2];
            for channel in first..last {
                let [d, q, low, high] = deviate::<S, ENDS>(s, row(channel), centre);
                (deviations, squares) = (s.add(deviations, d), s.add(squares, q));
                if ENDS {
                    let ends = &mut ends[2 * (channel - channels.start)..][..2];
                    ends[0] = ends[0].min(s.reduce_min(low));
                    ends[1] = ends[1].max(s.reduce_max(high));
                }
            }
            let rest = f64::from(s.reduce_add(deviations)) / count;
            let squares = f64::from(s.reduce_add(squares)) - rest * rest * count;
            all.merge(Moments { count, mean: f64::from(shift) + rest, squares });
        }
    }
    all
}

/// Vectors whose lanes together are the sums of a row's deviations from `centre` and of their squares, and with `ENDS` its
/// least and its largest element; a NaN is in the sums only.
#[inline(always)]
fn deviate<S: Simd, const ENDS: bool>(s: S, row: &[f32], centre: S::F) -> [S::F; 4] {
    let zero = s.splat(0.0);
    let (whole, rest) = row.split_at(row.len() - row.len() % S::LANES);
    let all = fold(
        s,
        whole,
        zero,
        [zero, zero, s.splat(f32::INFINITY), s.splat(f32::NEG_INFINITY)],
        #[inline(always)]
        |all, x| add_deviation::<S, ENDS>(s, all, s.sub(x, centre), x),
        #[inline(always)]
        |[a, b, c, d], [e, f, g, h]| [s.add(a, e), s.add(b, f), s.min(c, g), s.max(d, h)],
    );
    if rest.is_empty() {
        return all;
    }
    // SAFETY: only the elements of `rest` are read. Lanes past the end do not deviate, and repeat an element.
    let (d, x) = unsafe {
        let d = s.sub(s.load_or(rest.as_ptr(), rest.len(), centre), centre);
        (d, s.load_or(rest.as_ptr(), rest.len(), s.splat(rest[0])))
    };
    add_deviation::<S, ENDS>(s, all, d, x)
}

/// A step of [`deviate`]: values `x` that deviate by `d`.
#[inline(always)]
fn add_deviation<S: Simd, const ENDS: bool>(s: S, [sum, squares, low, high]: [S::F; 4], d: S::F, x: S::F) -> [S::F; 4] {
    let (sum, squares) = (s.add(sum, d), s.mul_add(d, d, squares));
    if ENDS { [sum, squares, s.min(x, low), s.max(x, high)] } else { [sum, squares, low, high] }
}
