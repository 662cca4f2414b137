//! Queries, keys and values in 8 bits, laid out for products of four bytes (docs/plan-format.md, Formats).

use scoregraph_simd::{Dots, Simd};

use super::Matrix;
use crate::gemm::{self, PANEL};

/// Bytes that a word of a product holds.
pub(super) const WORD: usize = 4;
/// What is added to signed bytes to make them unsigned, where a product asks for unsigned ones.
const UNSIGNED: i32 = 128;

/// Rows of a fold over tokens that do not wait for one another.
const CHAINS: usize = 4;

/// One head's keys: bytes in panels of 16, and what turns sums of products into scores.
pub(super) struct Keys<'a> {
    /// `[ceil(T/16)][D/4][16]` words.
    pub(super) words: &'a mut [f32],
    /// The scale of each key.
    pub(super) scales: &'a mut [f32],
    /// What sums over each key start from, which takes off that queries are unsigned. Bits of i32.
    pub(super) starts: &'a mut [f32],
}

impl Keys<'_> {
    /// Packs the keys less their mean, for which `mean` and `row` hold a row of whole vectors, `rows` the words of 16 keys.
    /// The scale of a key that is not finite is NaN.
    ///
    /// # Safety
    /// `k` has `keys` readable rows of `dim` elements.
    #[inline(always)]
    pub(super) unsafe fn pack<S: Dots>(
        &mut self,
        s: S,
        k: Matrix,
        (keys, dim): (usize, usize),
        mean: &mut [f32],
        row: &mut [f32],
        rows: &mut [f32],
    ) {
        let words = dim.div_ceil(WORD);
        let share = s.splat(1.0 / keys as f32);
        for (at, n) in vectors::<S>(dim) {
            let mut sums = [s.splat(0.0); CHAINS];
            for first in (0..keys).step_by(CHAINS) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    if first + i < keys {
                        // SAFETY: elements `at..at + n` of a row.
                        *sum = s.add(*sum, unsafe { k.vector(s, (first + i, at), n) });
                    }
                }
            }
            let sum = s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]));
            // SAFETY: a vector of the padded row.
            unsafe { s.store(mean.as_mut_ptr().add(at), s.mul(sum, share)) };
        }
        // Those past the last key count too: 0 times their sums.
        self.scales.fill(0.0);
        for first in (0..keys).step_by(PANEL) {
            let count = PANEL.min(keys - first);
            for key in 0..count {
                let magnitude = magnitude(
                    s,
                    &mut row[..dim],
                    #[inline(always)]
                    // SAFETY: elements of a row of k, and a vector of the padded mean.
                    |at, n| unsafe { s.sub(k.vector(s, (first + key, at), n), s.load(mean.as_ptr().add(at))) },
                );
                let (scale, inverse) = scale_of(magnitude);
                self.scales[first + key] = scale;
                quantize(s, &row[..dim], inverse, 0, &mut rows[key * words..][..words]);
            }
            let panel = &mut self.words[first * words..][..PANEL * words];
            // SAFETY: `rows` has `count` rows of words, and the panel room for 16.
            unsafe { gemm::pack(s, rows.as_ptr(), (count, words), (words, 1), panel.as_mut_ptr()) };
            for v in (0..PANEL).step_by(S::LANES) {
                let mut sum = s.splat_i(0);
                for word in panel.chunks_exact(PANEL) {
                    // SAFETY: a vector of the 16 words.
                    sum = s.dot4(sum, s.splat_i(0x0101_0101), unsafe { s.load_i(word.as_ptr().add(v).cast()) });
                }
                let start = s.mul_i(sum, s.splat_i(-UNSIGNED));
                // SAFETY: a vector of the panel's part of the starts.
                unsafe { s.store_i(self.starts.as_mut_ptr().add(first + v).cast(), start) };
            }
        }
    }
}

/// Packs values into `words` `[ceil(D/16)][ceil(T/4)][16]`, whose words are four keys of a channel, and writes the scale of
/// each channel to `scales`, as many as the padded row has; NaN if the channel is not finite.
///
/// # Safety
/// `v` has `keys` readable rows of `dim` elements.
#[inline(always)]
pub(super) unsafe fn pack_values<S: Simd>(
    s: S,
    v: Matrix,
    (keys, dim): (usize, usize),
    words: &mut [f32],
    scales: &mut [f32],
) {
    let depth = keys.div_ceil(WORD);
    // The last panel has vectors of no channels at all where it is less than half full; they are 0.
    for (at, n) in vectors::<S>(dim.next_multiple_of(PANEL)).map(|(at, _)| (at, S::LANES.min(dim.saturating_sub(at)))) {
        let mut chains = [(s.splat(0.0), s.splat(0.0)); CHAINS];
        for first in (0..keys).step_by(CHAINS) {
            for (i, (largest, check)) in chains.iter_mut().enumerate() {
                if first + i < keys {
                    // SAFETY: elements `at..at + n` of a row.
                    let x = unsafe { v.vector(s, (first + i, at), n) };
                    (*largest, *check) = (s.max(s.abs(x), *largest), s.mul_add(x, s.splat(0.0), *check));
                }
            }
        }
        let (mut largest, mut check) = chains[0];
        for chain in &chains[1..] {
            (largest, check) = (s.max(largest, chain.0), s.add(check, chain.1));
        }
        let mut inverses = [0.0; 16];
        // SAFETY: vectors of the padded scales, of the inverses, of four rows and of a word of their panel.
        unsafe {
            s.store(scales.as_mut_ptr().add(at), s.add(largest, check));
            for (scale, inverse) in scales[at..][..S::LANES].iter_mut().zip(&mut inverses) {
                (*scale, *inverse) = scale_of(*scale);
            }
            let inverse = s.load(inverses.as_ptr());
            let to = words.as_mut_ptr().add(at / PANEL * depth * PANEL + at % PANEL);
            for word in 0..depth {
                let mut packed = s.splat_i(0);
                for i in 0..WORD.min(keys - word * WORD) {
                    let byte = s.round_i(s.mul(v.vector(s, (word * WORD + i, at), n), inverse));
                    packed = s.or(packed, s.shl(s.and(byte, s.splat_i(0xFF)), 8 * i as u32));
                }
                s.store_i(to.add(word * PANEL).cast(), packed);
            }
        }
    }
}

/// Writes `factor` times a row of q as unsigned bytes to `words`; `row` holds it meanwhile. Returns its scale, NaN if it is
/// not finite.
///
/// # Safety
/// The row is readable and as long as `row`.
#[inline(always)]
pub(super) unsafe fn pack_query<S: Simd>(
    s: S,
    q: Matrix,
    index: usize,
    factor: S::F,
    row: &mut [f32],
    words: &mut [f32],
) -> f32 {
    let magnitude = magnitude(
        s,
        row,
        #[inline(always)]
        // SAFETY: elements of a row of q.
        |at, n| s.mul(factor, unsafe { q.vector(s, (index, at), n) }),
    );
    let (scale, inverse) = scale_of(magnitude);
    quantize(s, row, inverse, UNSIGNED, words);
    scale
}

/// The vectors of a row: where each begins, and how many of its lanes are elements.
#[inline(always)]
fn vectors<S: Simd>(len: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len).step_by(S::LANES).map(move |at| (at, S::LANES.min(len - at)))
}

/// Writes the vectors `f(at, n)` to `row`. Returns the largest magnitude, NaN if an element is not finite.
#[inline(always)]
fn magnitude<S: Simd>(s: S, row: &mut [f32], f: impl Fn(usize, usize) -> S::F) -> f32 {
    let (mut largest, mut check) = (s.splat(0.0), s.splat(0.0));
    for (at, n) in vectors::<S>(row.len()) {
        let x = f(at, n);
        largest = s.max(s.abs(x), largest);
        check = s.mul_add(x, s.splat(0.0), check);
        let to = row.as_mut_ptr().wrapping_add(at);
        // SAFETY: `n` elements of the row.
        unsafe { if n == S::LANES { s.store(to, x) } else { s.store_first(to, x, n) } };
    }
    if s.any(s.is_nan(check)) { f32::NAN } else { s.reduce_max(largest) }
}

/// The scale of bytes -127 … 127 that hold numbers up to `magnitude`, and its inverse: (1, 0) if all are 0.
#[inline(always)]
fn scale_of(magnitude: f32) -> (f32, f32) {
    // Below this the inverse would be infinite.
    if magnitude < 1e-36 { (1.0, 0.0) } else { (magnitude / 127.0, 127.0 / magnitude) }
}

/// The bytes `rne(row[i] * inverse) + offset`, four to a word; those past the row are 0.
#[inline(always)]
fn quantize<S: Simd>(s: S, row: &[f32], inverse: f32, offset: i32, words: &mut [f32]) {
    words[row.len().div_ceil(WORD) - 1] = 0.0;
    let bytes: *mut u8 = words.as_mut_ptr().cast();
    let (inverse, offset) = (s.splat(inverse), s.splat_i(offset));
    for (at, n) in vectors::<S>(row.len()) {
        // SAFETY: `n` elements of the row, and as many bytes of the words.
        unsafe {
            let from = row.as_ptr().add(at);
            let x = if n == S::LANES { s.load(from) } else { s.load_first(from, n) };
            let byte = s.add_i(s.round_i(s.mul(x, inverse)), offset);
            s.store_bytes(bytes.add(at), byte, n);
        }
    }
}
