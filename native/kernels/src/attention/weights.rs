//! Scores to weights: `exp(score - base)`, and what is kept of a row from one block of its keys to the next.

use scoregraph_simd::{Simd, math};

/// What weights are relative to. Not the largest score itself but a power of two near it, which the exponential takes off
/// for nothing; so bases differ by exact factors too.
#[derive(Clone, Copy)]
struct Base {
    /// Taken off scores first: 0 unless they are astronomic.
    offset: f32,
    /// Weights are divided by `2^exponent`; whole, its magnitude at most [`math::LARGEST_EXPONENT`].
    exponent: f32,
}

impl Base {
    fn of(largest: f32) -> Base {
        let exponent = (largest * std::f32::consts::LOG2_E).round_ties_even();
        if largest == f32::NEG_INFINITY {
            // All keys so far are masked: weights are exp(-inf - 0) = 0, not NaN, since a later block may not be masked.
            Base { offset: 0.0, exponent: 0.0 }
        } else if exponent.abs() > math::LARGEST_EXPONENT {
            Base { offset: largest, exponent: 0.0 }
        } else {
            Base { offset: 0.0, exponent }
        }
    }
}

/// A row after some blocks of its keys.
#[derive(Clone, Copy)]
pub(super) struct Running {
    /// The largest score.
    largest: f32,
    /// The sum of the weights, relative to the base of `largest`.
    pub(super) total: f32,
}

impl Running {
    /// No keys yet.
    pub(super) const START: Running = Running { largest: f32::NEG_INFINITY, total: 0.0 };
}

/// Turns the scores of one more block of keys, of which `largest` is the largest, into weights. `scores` is whole vectors;
/// those past the last key are -inf. Returns the row after it, and what the sums of earlier blocks must be multiplied by.
///
/// With `BF16` the weights are rounded to bf16 before they are summed.
#[inline(always)]
pub(super) fn soften<S: Simd, const BF16: bool>(
    s: S,
    scores: &mut [f32],
    largest: f32,
    before: Running,
) -> (Running, f32) {
    // A NaN that this drops comes back through the weights.
    let largest = if before.largest > largest { before.largest } else { largest };
    let (old, new) = (Base::of(before.largest), Base::of(largest));
    if new.offset != 0.0 {
        let offset = s.splat(new.offset);
        for chunk in scores.chunks_exact_mut(S::LANES) {
            // SAFETY: the chunk is a vector.
            unsafe { s.store(chunk.as_mut_ptr(), s.sub(s.load(chunk.as_ptr()), offset)) };
        }
    }
    let total = exponentials::<S, BF16>(s, scores, new.exponent);
    // Before the first score above -inf all sums are 0, whatever their base.
    let shrink = if before.largest == f32::NEG_INFINITY {
        1.0
    } else {
        power_of_two(old.exponent - new.exponent)
            * if old.offset == new.offset { 1.0 } else { (old.offset - new.offset).exp() }
    };
    (Running { largest, total: before.total * shrink + total }, shrink)
}

/// The same in bytes: `weights` are 255 for the largest score so far, and their sum is exact.
#[inline(always)]
pub(super) fn soften_bytes<S: Simd>(
    s: S,
    scores: &[f32],
    largest: f32,
    before: Running,
    weights: &mut [f32],
) -> (Running, f32) {
    /// Added to a small float, it leaves the nearest whole number in the lowest bits.
    const ROUND: f32 = 1.5 * (1u32 << 23) as f32;
    assert!(size_of_val(weights) >= scores.len());
    let largest = if before.largest > largest { before.largest } else { largest };
    let base = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
    let (base, top, round) = (s.splat(base), s.splat(255.0), s.splat(ROUND));
    let bytes: *mut u8 = weights.as_mut_ptr().cast();
    let (mut total, mut check) = (s.splat_i(0), s.splat(0.0));
    for (i, chunk) in scores.chunks_exact(S::LANES).enumerate() {
        // SAFETY: the chunk is a vector, and there is a byte for each of its elements.
        unsafe {
            let e = math::exp_coarse(s, s.sub(s.load(chunk.as_ptr()), base));
            let rounded = s.bits(s.mul_add(e, top, round));
            total = s.add_i(total, rounded);
            check = s.add(check, e);
            s.store_bytes(bytes.add(i * S::LANES), rounded, S::LANES);
        }
    }
    // What ROUND put into the sum; integers wrap.
    let surplus = (ROUND.to_bits() as i32).wrapping_mul((scores.len() / S::LANES) as i32);
    let total = s.reduce_add(s.to_f(s.sub_i(total, s.splat_i(surplus))));
    // A NaN leaves no trace in bytes.
    let total = if s.any(s.is_nan(check)) { f32::NAN } else { total };
    let shrink = if before.largest == f32::NEG_INFINITY { 1.0 } else { (before.largest - largest).exp() };
    (Running { largest, total: before.total * shrink + total }, shrink)
}

/// `2^n` for a whole `n` that is not positive, 0 where it would be subnormal; NaN for NaN.
fn power_of_two(n: f32) -> f32 {
    if n >= -126.0 {
        f32::from_bits(((n as i32 + 127) as u32) << 23)
    } else if n.is_nan() {
        n
    } else {
        0.0
    }
}

/// `x[i] = exp(x[i]) / 2^exponent`; returns their sum.
#[inline(always)]
fn exponentials<S: Simd, const BF16: bool>(s: S, x: &mut [f32], exponent: f32) -> f32 {
    let relative = math::relative_to(s, exponent);
    let mut totals = [s.splat(0.0); 4];
    let mut blocks = x.chunks_exact_mut(4 * S::LANES);
    for block in &mut blocks {
        for (i, total) in totals.iter_mut().enumerate() {
            // SAFETY: the block is four vectors.
            unsafe {
                let at = block.as_mut_ptr().add(i * S::LANES);
                let e = weight::<S, BF16>(s, s.load(at), relative);
                *total = s.add(*total, e);
                s.store(at, e);
            }
        }
    }
    for chunk in blocks.into_remainder().chunks_exact_mut(S::LANES) {
        // SAFETY: the chunk is a vector.
        unsafe {
            let e = weight::<S, BF16>(s, s.load(chunk.as_ptr()), relative);
            totals[0] = s.add(totals[0], e);
            s.store(chunk.as_mut_ptr(), e);
        }
    }
    let [a, b, c, d] = totals;
    s.reduce_add(s.add(s.add(a, b), s.add(c, d)))
}

#[inline(always)]
fn weight<S: Simd, const BF16: bool>(s: S, x: S::F, relative: math::Relative<S::F>) -> S::F {
    let e = math::exp_relative(s, x, relative);
    if BF16 { round_bf16(s, e) } else { e }
}

/// The nearest value of bf16.
#[inline(always)]
pub(super) fn round_bf16<S: Simd>(s: S, x: S::F) -> S::F {
    s.from_bits(s.shl(s.to_bf16(x), 16))
}
