//! Queries, keys and values in 8 bits, laid out for products of four bytes (docs/plan-format.md, Formats).

use scoregraph_simd::{Dots, Simd};

use super::Matrix;
use super::byte_weights::weight_order;
use crate::gemm::{self, PANEL, even_share};

/// Bytes that a word of a product holds.
pub(super) const WORD: usize = 4;
/// What is added to signed bytes to make them unsigned, where a product asks for unsigned ones.
const UNSIGNED: i32 = 128;

/// Added to a small float, it leaves the nearest whole number in the lowest bits.
pub(super) const ROUND: f32 = 1.5 * (1u32 << 23) as f32;
/// What `ROUND` is for each byte of a word, such that what it leaves in other bits is gone in their [`join`].
pub(super) const ROUNDS: [f32; WORD] = [ROUND, ROUND, ROUND + SURPLUS as f32, ROUND];
/// The upper half of what three of them leave, negated: the third byte ends there.
const SURPLUS: u32 = ((ROUND.to_bits() << 8).wrapping_add(ROUND.to_bits()) >> 16).wrapping_neg() & 0xFFFF;
const _: () = assert!(ROUND.to_bits() & 0xFFFF == 0 && ROUNDS[2].to_bits() == ROUND.to_bits() + SURPLUS);

/// Whole numbers 0 … 255, each added to its element of [`ROUNDS`], as the bytes of words.
#[inline(always)]
pub(super) fn join<S: Simd>(s: S, [a, b, c, d]: [S::F; WORD]) -> S::I {
    let [a, b, c, d] = [s.bits(a), s.shl(s.bits(b), 8), s.shl(s.bits(c), 16), s.shl(s.bits(d), 24)];
    s.add_i(s.add_i(a, b), s.add_i(c, d))
}

/// One head's keys: bytes in panels of 16, and what turns sums of products into scores.
pub(super) struct Keys<'a> {
    /// `[ceil(T/16)][D/4][16]` words.
    pub(super) words: &'a mut [f32],
    /// The scale of each key.
    pub(super) scales: &'a mut [f32],
    /// What sums over each key start from, which takes off that queries are unsigned. Bits of i32.
    pub(super) starts: &'a mut [f32],
    /// What is added to scores after [`Keys::round`].
    pub(super) biases: &'a mut [f32],
}

/// The largest width of a head whose sums of products of bytes stay below half of [`ROUND`]'s range, 2^22.
const WIDEST_ROUNDED: usize = (1 << 22) / (127 * 127);

impl Keys<'_> {
    /// Packs the keys less their mean, for which `mean` holds a row of whole vectors and `rows` the words of 16 keys.
    /// The scale of a key that is not finite is NaN, and so is what this returns if there is one, else 0.
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
        rows: &mut [f32],
    ) -> f32 {
        let mut doubt = 0.0;
        let words = dim.div_ceil(WORD);
        let share = s.splat(1.0 / keys as f32);
        // SAFETY: the caller's contract; vectors of the padded mean.
        unsafe {
            fold_rows(
                s,
                k,
                (keys, dim),
                s.splat(0.0),
                #[inline(always)]
                |sum, x| s.add(sum, x),
                #[inline(always)]
                |at, sum| s.store(mean.as_mut_ptr().add(at), s.mul(sum, share)),
            );
        }
        // Those past the last key count too: 0 times their sums.
        self.scales.fill(0.0);
        for first in (0..keys).step_by(PANEL) {
            let count = PANEL.min(keys - first);
            let scales = quantize_rows(
                s,
                (count, dim),
                #[inline(always)]
                // SAFETY: elements of a row of k, and a vector of the padded mean.
                |key, at, n| unsafe { s.sub(k.vector(s, (first + key, at), n), s.load(mean.as_ptr().add(at))) },
                1.0,
                ROUND,
                rows,
            );
            for (to, scale) in self.scales[first..].iter_mut().zip(&scales[..count]) {
                // Two bits less, and its product with ROUND is exact.
                *to = f32::from_bits(scale.to_bits() & !3);
                doubt += 0.0 * scale;
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
        doubt
    }

    /// Where that is possible, makes sums start from [`ROUND`], so that their bits are those of floats and it is one
    /// operation to turn them into scores: `scale * bits + bias`, which is -inf past the last key. Whether it has done so.
    #[inline(always)]
    pub(super) fn round<S: Simd>(&mut self, s: S, (keys, dim): (usize, usize)) -> bool {
        let scales = &self.scales[..keys];
        if dim > WIDEST_ROUNDED || !scales.iter().all(|scale| scale.is_finite() && ROUND * scale < f32::MAX) {
            return false;
        }
        for (start, (scale, bias)) in self
            .starts
            .chunks_exact_mut(S::LANES)
            .zip(self.scales.chunks_exact(S::LANES).zip(self.biases.chunks_exact_mut(S::LANES)))
        {
            // SAFETY: all three are vectors.
            unsafe {
                let start = start.as_mut_ptr().cast();
                s.store_i(start, s.add_i(s.load_i(start), s.bits(s.splat(ROUND))));
                s.store(bias.as_mut_ptr(), s.mul(s.load(scale.as_ptr()), s.splat(-ROUND)));
            }
        }
        self.biases[keys..].fill(f32::NEG_INFINITY);
        true
    }
}

/// Words of values for each channel: as many as those of weights.
pub(super) fn value_words(keys: usize) -> usize {
    keys.next_multiple_of(PANEL) / WORD
}

/// Packs values into `words` `[ceil(D/16)][value_words][16]`, whose words are four keys of a channel in the order of the
/// weights, and writes the scale of each channel to `scales`, as many as the padded row has; NaN if the channel is not
/// finite. `inverses` is as long.
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
    inverses: &mut [f32],
) {
    scales.fill(0.0);
    // SAFETY: the caller's contract; vectors of the padded scales.
    unsafe {
        fold_rows(
            s,
            v,
            (keys, dim),
            Magnitude::new(s),
            #[inline(always)]
            |magnitude, x| magnitude.and(s, x),
            #[inline(always)]
            |at, magnitude| s.store(scales.as_mut_ptr().add(at), magnitude.lanes(s)),
        );
    }
    for (scale, inverse) in scales.chunks_exact_mut(S::LANES).zip(inverses.chunks_exact_mut(S::LANES)) {
        // SAFETY: both are vectors.
        unsafe {
            let (of_channels, inverses) = scales_of(s, s.load(scale.as_ptr()));
            s.store(scale.as_mut_ptr(), of_channels);
            s.store(inverse.as_mut_ptr(), inverses);
        }
    }
    let depth = value_words(keys);
    for word in 0..depth {
        let (first, step) = weight_order::<S>(4 * depth, word);
        for at in (0..dim.next_multiple_of(PANEL)).step_by(S::LANES) {
            let n = S::LANES.min(dim.saturating_sub(at));
            // SAFETY: vectors of the inverses, of rows of v, and of a word of their panel.
            unsafe {
                let inverse = s.load(inverses.as_ptr().add(at));
                let mut bytes = [s.splat(0.0); WORD];
                for (i, byte) in bytes.iter_mut().enumerate() {
                    let key = first + i * step;
                    let x = if key < keys { v.vector(s, (key, at), n) } else { s.splat(0.0) };
                    *byte = s.mul_add(x, inverse, s.splat(ROUNDS[i] + UNSIGNED as f32));
                }
                // The highest bit of a byte is what makes it unsigned.
                let packed = s.xor(join(s, bytes), s.splat_i(i32::from_ne_bytes([UNSIGNED as u8; WORD])));
                s.store_i(words.as_mut_ptr().add((at / PANEL * depth + word) * PANEL + at % PANEL).cast(), packed);
            }
        }
    }
}

/// Writes `factor` times the first `scales.len()` rows of q, which have `dim` elements, as unsigned bytes to `words`, and their
/// scales, NaN if a row is not finite.
///
/// # Safety
/// The rows are readable.
#[inline(always)]
pub(super) unsafe fn pack_queries<S: Simd>(
    s: S,
    q: Matrix,
    dim: usize,
    factor: f32,
    words: &mut [f32],
    scales: &mut [f32],
) {
    let chunks = words.chunks_mut(PANEL * dim.div_ceil(WORD)).zip(scales.chunks_mut(PANEL));
    for (i, (words, scales)) in chunks.enumerate() {
        let of_rows = quantize_rows(
            s,
            (scales.len(), dim),
            #[inline(always)]
            // SAFETY: elements of a row of q.
            |row, at, n| unsafe { q.vector(s, (i * PANEL + row, at), n) },
            factor,
            ROUND + UNSIGNED as f32,
            words,
        );
        scales.copy_from_slice(&of_rows[..scales.len()]);
    }
}

/// Writes `factor` times rows of the vectors `read(row, at, n)`, 16 at most, as bytes to `words`: the lowest bits of
/// themselves divided by their scale and added to `round`. Returns their scales, NaN if a row is not finite.
#[inline(always)]
fn quantize_rows<S: Simd>(
    s: S,
    (rows, dim): (usize, usize),
    read: impl Fn(usize, usize, usize) -> S::F,
    factor: f32,
    round: f32,
    words: &mut [f32],
) -> [f32; PANEL] {
    let (mut scales, mut inverses) = ([0.0; PANEL], [0.0; PANEL]);
    // Loops of their own, so that rows do not wait for one another.
    for (row, magnitude) in scales.iter_mut().enumerate().take(rows) {
        let mut of_row = Magnitude::new(s);
        for_vectors(
            s,
            dim,
            #[inline(always)]
            |at, n| of_row = of_row.and(s, read(row, at, n)),
        );
        *magnitude = of_row.largest(s);
    }
    for (scale, inverse) in scales.chunks_exact_mut(S::LANES).zip(inverses.chunks_exact_mut(S::LANES)) {
        // SAFETY: both are vectors.
        unsafe {
            let (of_rows, inverses) = scales_of(s, s.load(scale.as_ptr()));
            s.store(scale.as_mut_ptr(), s.mul(of_rows, s.splat(factor.abs())));
            s.store(inverse.as_mut_ptr(), s.mul(inverses, s.splat(1f32.copysign(factor))));
        }
    }
    let width = dim.div_ceil(WORD);
    for (row, (words, inverse)) in words.chunks_exact_mut(width).zip(inverses).enumerate().take(rows) {
        let (inverse, round) = (s.splat(inverse), s.splat(round));
        words[width - 1] = 0.0;
        for_vectors(
            s,
            dim,
            #[inline(always)]
            |at, n| {
                let byte = s.mul_add(read(row, at, n), inverse, round);
                // SAFETY: as many bytes of the words as there are elements.
                unsafe { s.store_bytes(words.as_mut_ptr().cast::<u8>().add(at), s.bits(byte), n) };
            },
        );
    }
    scales
}

/// Calls `f(at, n)` for the vectors of a row, of which `n` lanes from element `at` on are elements.
#[inline(always)]
fn for_vectors<S: Simd>(_: S, len: usize, mut f: impl FnMut(usize, usize)) {
    let whole = len - len % S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        f(at, S::LANES);
    }
    if whole < len {
        f(whole, len - whole);
    }
}

/// Folds every column over the rows, from the first one on: `finish(at, folded)` for vectors of columns.
///
/// # Safety
/// `of` has this many readable rows and columns.
#[inline(always)]
unsafe fn fold_rows<S: Simd, T: Copy>(
    s: S,
    of: Matrix,
    (rows, cols): (usize, usize),
    start: T,
    step: impl Fn(T, S::F) -> T,
    mut finish: impl FnMut(usize, T),
) {
    /// Vectors of a row that are folded together.
    const MOST: usize = 4;
    let mut at = 0;
    while at < cols {
        let left = (cols - at).div_ceil(S::LANES);
        let width = even_share(left, MOST);
        /// An arm for each width, so that what is folded stays in registers.
        macro_rules! widths {
            ($($width:literal)*) => {
                match width {
                    $($width => {
                        let mut folded = [start; $width];
                        for row in 0..rows {
                            for (v, folded) in folded.iter_mut().enumerate() {
                                let at = at + v * S::LANES;
                                // SAFETY: elements of a row.
                                *folded = step(*folded, unsafe { of.vector(s, (row, at), S::LANES.min(cols - at)) });
                            }
                        }
                        for (v, folded) in folded.into_iter().enumerate() {
                            finish(at + v * S::LANES, folded);
                        }
                    })*
                    _ => unreachable!("a width of at most {MOST}"),
                }
            };
        }
        widths! { 1 2 3 4 }
        at += width * S::LANES;
    }
}

/// The largest magnitude of some numbers, lane by lane, and whether all are finite.
#[derive(Clone, Copy)]
struct Magnitude<F> {
    largest: F,
    /// 0, or NaN.
    check: F,
}

impl<F: Copy> Magnitude<F> {
    #[inline(always)]
    fn new<S: Simd<F = F>>(s: S) -> Self {
        Magnitude { largest: s.splat(0.0), check: s.splat(0.0) }
    }

    #[inline(always)]
    fn and<S: Simd<F = F>>(self, s: S, x: F) -> Self {
        Magnitude { largest: s.max(s.abs(x), self.largest), check: s.mul_add(x, s.splat(0.0), self.check) }
    }

    /// That of every lane, NaN if not all are finite.
    #[inline(always)]
    fn lanes<S: Simd<F = F>>(self, s: S) -> F {
        s.add(self.largest, self.check)
    }

    /// That of all lanes, NaN if not all are finite.
    #[inline(always)]
    fn largest<S: Simd<F = F>>(self, s: S) -> f32 {
        if s.any(s.is_nan(self.check)) { f32::NAN } else { s.reduce_max(self.largest) }
    }
}

/// The scales of bytes -127 … 127 that hold numbers up to `magnitude`, and their inverses: (1, 0) where all are 0.
#[inline(always)]
fn scales_of<S: Simd>(s: S, magnitude: S::F) -> (S::F, S::F) {
    // Below this the inverse would be infinite.
    let none = s.lt(magnitude, s.splat(1e-36));
    let most = s.splat(127.0);
    let (scale, inverse) = (s.div(magnitude, most), s.div(most, magnitude));
    (s.select(none, s.splat(1.0), scale), s.select(none, s.splat(0.0), inverse))
}
