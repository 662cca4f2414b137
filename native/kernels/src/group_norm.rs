//! `group_norm`: normalisation over the channels of a group and all of space.

use scoregraph_simd::{Act, Disjoint, Kernel, Simd};

use crate::norm::moments;
use crate::per_channel::PerChannel;
use crate::rows::{MapVector, map_with};
use crate::{Context, View};

/// Elements whose moments are taken in float32, read twice from the first-level cache; the blocks are merged in float64.
const BLOCK: usize = 2048;

/// The operands of `group_norm` beside x and y.
///
/// `y = act(norm(x) * weight + bias)`, and with scale or shift `act((norm(x) * weight + bias) * (1 + scale) + shift)`.
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
    /// Applied last.
    pub act: Act,
}

/// `group_norm` of `n` samples `x` \[n, C, …\] into `y`. The variance is biased and computed from centred values.
///
/// A tile is one group of one sample, so the batch and the threads change no bit.
///
/// # Panics
/// If the operands do not fit together.
pub fn group_norm(ctx: &Context, op: &GroupNorm, n: usize, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    if y.is_empty() {
        return;
    }
    let GroupNorm { channels, groups, .. } = *op;
    assert!(groups > 0 && channels.is_multiple_of(groups), "{channels} channels in {groups} groups");
    assert!(y.len().is_multiple_of(n * channels), "{} elements of {n} samples of {channels} channels", y.len());
    assert!([op.weight, op.bias].iter().flatten().all(|vector| vector.len() == channels));
    let [scale, shift] = [op.scale, op.shift].map(|view| view.map(|view| PerChannel::new(view, n, channels)));
    let space = y.len() / (n * channels);
    let group = channels / groups * space;
    let y = Disjoint::new(y);
    ctx.pool.run(n * groups, &|tile, _| {
        let range = tile * group..(tile + 1) * group;
        let x = &x[range.clone()];
        // SAFETY: tiles are different, so their groups are.
        let y = unsafe { y.part(range) };
        let (sample, first_channel) = (tile / groups, tile % groups * (channels / groups));
        ctx.isa.dispatch(Group { op, scale, shift, sample, first_channel, space, x, y });
    });
}

/// One group of one sample: `[channels of the group, space]`.
struct Group<'a> {
    op: &'a GroupNorm<'a>,
    scale: Option<PerChannel<'a>>,
    shift: Option<PerChannel<'a>>,
    sample: usize,
    first_channel: usize,
    space: usize,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Group<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (mean, variance) = blocked_moments(s, self.x);
        let scaling = 1.0 / (variance + f64::from(self.op.eps)).sqrt();
        // Where the mean is large, its rounding would be an offset of the result: subtract what is left of it as well.
        let rough = mean as f32;
        let (rough, rest) = (s.splat(rough), s.splat((mean - f64::from(rough)) as f32));
        let planes = self.x.chunks_exact(self.space).zip(self.y.chunks_exact_mut(self.space));
        for (channel, (x, y)) in (self.first_channel..).zip(planes) {
            let operand = |vector: Option<&[f32]>, absent| vector.map_or(absent, |vector| f64::from(vector[channel]));
            let modulation =
                |values: Option<PerChannel>| values.map_or(0.0, |values| f64::from(values.at(self.sample, channel)));
            // Weight, bias, scale and shift are one multiply-add of the centred value.
            let gain = 1.0 + modulation(self.scale);
            let factor = s.splat((scaling * operand(self.op.weight, 1.0) * gain) as f32);
            let addend = s.splat((operand(self.op.bias, 0.0) * gain + modulation(self.shift)) as f32);
            map_with(s, x, y, &Affine { rough, rest, factor, addend, act: self.op.act });
        }
    }
}

/// `act((x - rough - rest) * factor + addend)`
struct Affine<S: Simd> {
    rough: S::F,
    rest: S::F,
    factor: S::F,
    addend: S::F,
    act: Act,
}

impl<S: Simd> MapVector<S> for Affine<S> {
    #[inline(always)]
    fn apply(&self, s: S, _: usize, _: usize, x: S::F) -> S::F {
        let centred = s.sub(s.sub(x, self.rough), self.rest);
        self.act.apply(s, s.mul_add(centred, self.factor, self.addend))
    }
}

/// Mean and biased variance, block by block, merged by the update of Chan, Golub and LeVeque (1979).
#[inline(always)]
fn blocked_moments<S: Simd>(s: S, x: &[f32]) -> (f64, f64) {
    let (mut count, mut mean, mut squares) = (0.0, 0.0, 0.0);
    for block in x.chunks(BLOCK) {
        let (rough, correction, variance) = moments(s, block);
        let own = block.len() as f64;
        let delta = f64::from(rough) + f64::from(correction) - mean;
        let total = count + own;
        squares += f64::from(variance) * own + delta * delta * count * own / total;
        mean += delta * own / total;
        count = total;
    }
    (mean, squares / count)
}
