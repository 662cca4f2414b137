//! Scores to weights that are bytes: 255 for the largest score of a row so far.

use std::f32::consts::LN_2;

use scoregraph_simd::{Dots, Simd, math};

use super::bytes::{ROUND, ROUNDS, WORD, join};
use super::weights::{ROWS_IN_VECTORS, Scored};
use super::{KEY_BLOCK, WIDEST};

impl Scored<'_> {
    /// Turns scores, which are multiples of a positive unit of their row, into `weights`: [`KEY_BLOCK`] bytes for each row,
    /// whose totals are exact. Returns what the sums of earlier blocks must be multiplied by.
    ///
    /// Of every four vectors of scores, a word holds the bytes of one lane ([`weight_order`]); what is left over follows key
    /// by key. A score that is NaN makes its total NaN where scores are `CHECKED`; a unit that is NaN and a largest score
    /// that is infinite do so where they are not.
    #[inline(always)]
    pub(super) fn soften_to_bytes<S: Dots, const CHECKED: bool>(
        self,
        s: S,
        units: &[f32],
        weights: &mut [f32],
    ) -> [f32; ROWS_IN_VECTORS] {
        let mut shrink = [0.0; ROWS_IN_VECTORS];
        // What takes reductions and scalars goes in loops of its own, so that rows do not wait for one another.
        for (row, running) in self.running.iter_mut().enumerate() {
            // SAFETY: a vector of `largest`.
            let largest = s.reduce_max(unsafe { s.load(self.largest.as_ptr().add(row * WIDEST)) });
            // Before the first score above -inf all sums are 0, however they shrink.
            if running.largest == f32::NEG_INFINITY {
                running.largest = largest;
            } else if largest > running.largest {
                shrink[row] = (running.largest - largest) * units[row];
                running.largest = largest;
            }
        }
        for chunk in shrink.chunks_exact_mut(S::LANES) {
            // SAFETY: the chunk is a vector.
            unsafe {
                let exponent = s.mul(s.load(chunk.as_ptr()), s.splat(LN_2));
                s.store(chunk.as_mut_ptr(), math::exp_flushed(s, exponent));
            }
        }
        let rows = self.scores.chunks(KEY_BLOCK).zip(weights.chunks_mut(KEY_BLOCK / WORD));
        let rows = rows.zip(self.largest.chunks_exact_mut(WIDEST)).zip(&*self.running).zip(units);
        for ((((scores, weights), total), running), unit) in rows {
            let bytes = Bytes::<_, CHECKED>::new(s, running.largest, *unit);
            let sum = bytes.row(s, &scores[..self.width], weights);
            // SAFETY: a vector of the row's.
            unsafe { s.store(total.as_mut_ptr(), sum) };
        }
        for (row, running) in self.running.iter_mut().enumerate() {
            // SAFETY: a vector of `largest`.
            let total = s.reduce_add(unsafe { s.load(self.largest.as_ptr().add(row * WIDEST)) });
            let doubt = if CHECKED { 0.0 } else { 0.0 * (running.largest + units[row]) };
            running.total = running.total * shrink[row] + (total + doubt);
        }
        shrink
    }
}

/// Where the bytes of one word of weights come from among the `keys` keys of whole panels: the key of its first byte, and
/// the step to the next.
#[inline(always)]
pub(super) fn weight_order<S: Simd>(keys: usize, word: usize) -> (usize, usize) {
    let group = word / S::LANES * S::LANES * WORD;
    if group + WORD * S::LANES <= keys { (group + word % S::LANES, S::LANES) } else { (word * WORD, 1) }
}

/// 255 times this power of two is rounded to 0.
const NOTHING: f32 = -24.0;

/// How the scores of a row become bytes.
#[derive(Clone, Copy)]
struct Bytes<F, const CHECKED: bool> {
    base: F,
    /// Scores less the base are at least this.
    least: F,
    unit: F,
}

impl<F: Copy, const CHECKED: bool> Bytes<F, CHECKED> {
    #[inline(always)]
    fn new<S: Simd<F = F>>(s: S, largest: f32, unit: f32) -> Self {
        // Where all keys so far are masked, weights are 2^(-inf - 0) = 0, not NaN: a later block may not be.
        let base = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
        // That it is finite lets it be multiplied by any unit.
        let least = (NOTHING / unit).max(f32::MIN);
        Bytes { base: s.splat(base), least: s.splat(least), unit: s.splat(unit) }
    }

    /// Writes the bytes of a row. The lanes of what it returns add up to their sum, NaN if they are `CHECKED` and one is.
    #[inline(always)]
    fn row<S: Dots<F = F>>(self, s: S, scores: &[f32], weights: &mut [f32]) -> F {
        assert!(size_of_val(weights) >= scores.len());
        let (mut total, mut check) = (s.splat_i(0), s.splat(0.0));
        let mut groups = scores.chunks_exact(WORD * S::LANES);
        let (words, rest) = weights.split_at_mut(scores.len() / (WORD * S::LANES) * S::LANES);
        for (group, words) in (&mut groups).zip(words.chunks_exact_mut(S::LANES)) {
            let mut bytes = [s.splat(0.0); WORD];
            for (i, byte) in bytes.iter_mut().enumerate() {
                // SAFETY: the group is four vectors.
                *byte = unsafe { self.byte(s, group.as_ptr().add(i * S::LANES), ROUNDS[i]) };
                if CHECKED {
                    check = s.add(check, *byte);
                }
            }
            let word = join(s, bytes);
            total = s.dot4(total, word, s.splat_i(0x0101_0101));
            // SAFETY: the words are a vector.
            unsafe { s.store_i(words.as_mut_ptr().cast(), word) };
        }
        let to: *mut u8 = rest.as_mut_ptr().cast();
        for (i, chunk) in groups.remainder().chunks_exact(S::LANES).enumerate() {
            // SAFETY: the chunk is a vector, and there is a byte for each of its elements.
            unsafe {
                let byte = self.byte(s, chunk.as_ptr(), ROUND);
                if CHECKED {
                    check = s.add(check, byte);
                }
                total = s.add_i(total, s.and(s.bits(byte), s.splat_i(0xFF)));
                s.store_bytes(to.add(i * S::LANES), s.bits(byte), S::LANES);
            }
        }
        // A NaN leaves no trace in bytes.
        s.mul_add(check, s.splat(0.0), s.to_f(total))
    }

    /// A vector of scores at `ptr` as whole numbers, added to `round`. NaN stays NaN.
    ///
    /// # Safety
    /// It is readable.
    #[inline(always)]
    unsafe fn byte<S: Simd<F = F>>(self, s: S, ptr: *const f32, round: f32) -> F {
        // SAFETY: the caller's contract.
        let score = unsafe { s.load(ptr) };
        // The order of the operands keeps NaN.
        let below = s.max(self.least, s.sub(score, self.base));
        let [a, b] = math::exp2_coarse(s, 255.0, below, self.unit);
        s.mul_add(a, b, s.splat(round))
    }
}
