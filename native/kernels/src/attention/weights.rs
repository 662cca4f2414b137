//! Scores to weights: `2^(score - base)`, and what is kept of a row from one block of its keys to the next.
//!
//! Scores are in base 2: queries and masks are multiplied by log2 e, so that no exponential has to do it.

use scoregraph_simd::{Simd, math};

use super::{KEY_BLOCK, ROWS, WIDEST};

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
    const NONE: Base = Base { offset: 0.0, exponent: 0.0 };

    /// What weights relative to this base are multiplied by to be relative to a larger one.
    fn over(self, larger: Base) -> f32 {
        let power = power_of_two(self.exponent - larger.exponent);
        power * if self.offset == larger.offset { 1.0 } else { (self.offset - larger.offset).exp2() }
    }

    fn of(largest: f32) -> Base {
        let exponent = largest.round_ties_even();
        if largest == f32::NEG_INFINITY {
            // All keys so far are masked: weights are 2^(-inf - 0) = 0, not NaN, since a later block may not be masked.
            Base::NONE
        } else if exponent.abs() > math::LARGEST_EXPONENT {
            Base { offset: largest, exponent: 0.0 }
        } else {
            Base { offset: 0.0, exponent }
        }
    }
}

/// [`ROWS`] in whole vectors.
pub(super) const ROWS_IN_VECTORS: usize = ROWS.next_multiple_of(WIDEST);

/// A row after some blocks of its keys.
#[derive(Clone, Copy)]
pub(super) struct Running {
    /// The largest score.
    pub(super) largest: f32,
    /// The sum of the weights, relative to the base of `largest`.
    pub(super) total: f32,
}

impl Running {
    /// No keys yet.
    pub(super) const START: Running = Running { largest: f32::NEG_INFINITY, total: 0.0 };
}

/// Some rows of the scores of one block of keys.
pub(super) struct Scored<'a> {
    /// [`KEY_BLOCK`] for each row. Past the last key they are -inf.
    pub(super) scores: &'a mut [f32],
    /// How many of a row's scores count: whole panels.
    pub(super) width: usize,
    /// A vector for each row, [`WIDEST`] floats apart, of which the largest lane is its largest score. Overwritten.
    pub(super) largest: &'a mut [f32; ROWS * WIDEST],
    /// The rows after the blocks before this.
    pub(super) running: &'a mut [Running],
}

impl Scored<'_> {
    /// Turns scores into weights. Returns what the sums of earlier blocks must be multiplied by.
    ///
    /// With `BF16` the weights are rounded to bf16 before they are summed.
    #[inline(always)]
    pub(super) fn soften<S: Simd, const BF16: bool>(self, s: S) -> [f32; ROWS_IN_VECTORS] {
        let mut shrink = [1.0; ROWS_IN_VECTORS];
        let mut bases = [Base::NONE; ROWS];
        // What takes reductions and scalars goes in loops of its own, so that rows do not wait for one another.
        for (row, running) in self.running.iter_mut().enumerate() {
            // SAFETY: a vector of `largest`.
            let largest = s.reduce_max(unsafe { s.load(self.largest.as_ptr().add(row * WIDEST)) });
            let before = running.largest;
            // A NaN that this drops comes back through the weights.
            running.largest = if before > largest { before } else { largest };
            bases[row] = Base::of(running.largest);
            // Before the first score above -inf all sums are 0, whatever their base.
            if before != f32::NEG_INFINITY {
                shrink[row] = Base::of(before).over(bases[row]);
            }
        }
        let rows = self.scores.chunks_mut(KEY_BLOCK).zip(self.largest.chunks_exact_mut(WIDEST)).zip(bases);
        for ((scores, total), base) in rows.take(self.running.len()) {
            let scores = &mut scores[..self.width];
            if base.offset != 0.0 {
                let offset = s.splat(base.offset);
                for chunk in scores.chunks_exact_mut(S::LANES) {
                    // SAFETY: the chunk is a vector.
                    unsafe { s.store(chunk.as_mut_ptr(), s.sub(s.load(chunk.as_ptr()), offset)) };
                }
            }
            let sum = exponentials::<S, BF16>(s, scores, base.exponent);
            // SAFETY: a vector of the row's.
            unsafe { s.store(total.as_mut_ptr(), sum) };
        }
        for (row, running) in self.running.iter_mut().enumerate() {
            // SAFETY: a vector of `largest`.
            let total = s.reduce_add(unsafe { s.load(self.largest.as_ptr().add(row * WIDEST)) });
            running.total = running.total * shrink[row] + total;
        }
        shrink
    }
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

/// `x[i] = sqrt(2) 2^x[i] / 2^exponent`; the lanes of what it returns add up to their sum.
#[inline(always)]
fn exponentials<S: Simd, const BF16: bool>(s: S, x: &mut [f32], exponent: f32) -> S::F {
    let relative = math::relative_to(s, exponent);
    let mut totals = [s.splat(0.0); 4];
    let mut blocks = x.chunks_exact_mut(4 * S::LANES);
    for block in &mut blocks {
        for (i, total) in totals.iter_mut().enumerate() {
            // SAFETY: the block is four vectors.
            unsafe {
                let at = block.as_mut_ptr().add(i * S::LANES);
                let e = math::exp2_relative::<S, BF16>(s, s.load(at), relative);
                *total = s.add(*total, e);
                s.store(at, e);
            }
        }
    }
    for chunk in blocks.into_remainder().chunks_exact_mut(S::LANES) {
        // SAFETY: the chunk is a vector.
        unsafe {
            let e = math::exp2_relative::<S, BF16>(s, s.load(chunk.as_ptr()), relative);
            totals[0] = s.add(totals[0], e);
            s.store(chunk.as_mut_ptr(), e);
        }
    }
    let [a, b, c, d] = totals;
    s.add(s.add(a, b), s.add(c, d))
}

/// The nearest value of bf16.
#[inline(always)]
pub(super) fn round_bf16<S: Simd>(s: S, x: S::F) -> S::F {
    s.from_bits(s.shl(s.to_bf16(x), 16))
}
