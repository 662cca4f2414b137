//! Attention in 8-bit integers, as SageAttention does it (Zhang et al., 2024): keys less their mean and queries quantized
//! token by token, values channel by channel, weights as bytes relative to the largest so far.
//!
//! Rows go through blocks of keys as in float32. Sums of products are exact; scores and weights are made in float32.

use scoregraph_simd::{DotKernel, Dots, Simd};

use super::bytes::{self, Keys, WORD};
use super::product::{Sums, multiply};
use super::weights::{Running, soften_bytes};
use super::{KEY_BLOCK, QUERY_BLOCK, ROWS, Starts, Tile, WIDEST};
use crate::gemm::{Exact, PANEL, Rows};

/// Floats of scratch of a tile.
pub(super) fn scratch(keys: usize, dim: usize) -> usize {
    Lengths::new(keys, dim).all().iter().sum()
}

/// How many 32-bit words every part of a tile's scratch takes.
#[derive(Clone, Copy)]
struct Lengths {
    keys: usize,
    key_scales: usize,
    values: usize,
    padded_dim: usize,
    queries: usize,
    rows: usize,
}

/// The parts of a tile's scratch.
const PARTS: usize = 13;

impl Lengths {
    fn new(keys: usize, dim: usize) -> Lengths {
        let (words, padded_dim) = (dim.div_ceil(WORD), dim.next_multiple_of(PANEL));
        Lengths {
            keys: keys.next_multiple_of(PANEL) * words,
            key_scales: keys.next_multiple_of(PANEL),
            values: padded_dim * keys.div_ceil(WORD),
            padded_dim,
            queries: (QUERY_BLOCK * words).next_multiple_of(PANEL),
            rows: PANEL * words,
        }
    }

    /// Keys, their scales, starts and mean; values, scales of channels; queries, scores, weights, starts of scores, sums; a
    /// row, and words of some.
    fn all(self) -> [usize; PARTS] {
        [
            self.keys,
            self.key_scales,
            self.key_scales,
            self.padded_dim,
            self.values,
            self.padded_dim,
            self.queries,
            ROWS * KEY_BLOCK,
            ROWS * KEY_BLOCK / WORD,
            KEY_BLOCK,
            QUERY_BLOCK * self.padded_dim,
            self.padded_dim,
            self.rows,
        ]
    }
}

/// A tile in 8-bit integers.
pub(super) struct Integer<'a> {
    pub(super) tile: Tile,
    pub(super) scratch: &'a mut [f32],
}

impl DotKernel for Integer<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Dots>(self, s: S) {
        let Tile { q, k, v, mask, y, scale, queries, keys, dim } = self.tile;
        let (words, padded) = (dim.div_ceil(WORD), dim.next_multiple_of(PANEL));
        let depth = keys.div_ceil(WORD);
        let mut rest = self.scratch;
        let mut parts: [&mut [f32]; PARTS] = Default::default();
        for (part, len) in parts.iter_mut().zip(Lengths::new(keys, dim).all()) {
            (*part, rest) = rest.split_at_mut(len);
        }
        let [key_words, key_scales, key_starts, mean, values, value_scales, query_words, parts @ ..] = parts;
        let [scores, weights, start_row, sums, row, rows] = parts;
        // SAFETY: both operands have `keys` rows of `dim` elements.
        unsafe {
            bytes::pack_values(s, v, (keys, dim), values, value_scales);
            let mut packed = Keys { words: key_words, scales: key_scales, starts: key_starts };
            packed.pack(s, k, (keys, dim), mean, row, rows);
        }
        let factor = s.splat(scale);
        for block in (queries.0..queries.1).step_by(QUERY_BLOCK) {
            let block_rows = QUERY_BLOCK.min(queries.1 - block);
            let mut query_scales = [0.0; QUERY_BLOCK];
            for (i, to) in query_words.chunks_mut(words).take(block_rows).enumerate() {
                // SAFETY: a row of q.
                query_scales[i] = unsafe { bytes::pack_query(s, q, block + i, factor, &mut row[..dim], to) };
            }
            let mut running = [Running::START; QUERY_BLOCK];
            // At least one block of keys, so that y is written where there are none.
            let mut key = 0;
            while key == 0 || key < keys {
                let width = KEY_BLOCK.min(keys - key);
                let padded_width = width.next_multiple_of(PANEL);
                // SAFETY: the mask has all keys.
                let starts = unsafe { Starts::new(s, mask, (key, width), start_row) };
                for first in (0..block_rows).step_by(ROWS) {
                    let count = ROWS.min(block_rows - first);
                    // SAFETY: the mask has all queries.
                    let start = unsafe { starts.rows(s, (block + first, count), scores) };
                    let mut largest = [f32::NEG_INFINITY; ROWS * WIDEST];
                    let mut to = Scores {
                        start,
                        key_starts: key_starts[key..].as_ptr().cast(),
                        key_scales: key_scales[key..].as_ptr(),
                        query_scales: query_scales[first..].as_ptr(),
                        scores: Rows { ptr: scores.as_mut_ptr(), stride: KEY_BLOCK },
                        largest: largest.as_mut_ptr(),
                    };
                    // SAFETY: `count <= ROWS` rows of queries and scores; keys `key..key + width` begin a panel of the
                    // packed keys.
                    unsafe {
                        let a = Rows { ptr: query_words.as_ptr().add(first * words).cast(), stride: WORD * words };
                        let b = Rows { ptr: key_words.as_ptr().add(key * words).cast(), stride: words * PANEL };
                        multiply(s, Exact, a, count, b, padded_width / PANEL, words, &mut to);
                    }
                    let mut shrink = [1.0; ROWS];
                    let rows = scores.chunks(KEY_BLOCK).zip(weights.chunks_mut(KEY_BLOCK / WORD));
                    for (i, (scores, weights)) in rows.take(count).enumerate() {
                        // SAFETY: a vector of `largest`.
                        let largest = s.reduce_max(unsafe { s.load(largest.as_ptr().add(i * WIDEST)) });
                        let running = &mut running[first + i];
                        (*running, shrink[i]) = soften_bytes(s, &scores[..padded_width], largest, *running, weights);
                    }
                    let mut to = Averages {
                        sums: Rows { ptr: sums.as_mut_ptr().wrapping_add(first * padded), stride: padded },
                        shrink: (key > 0).then_some(&shrink),
                    };
                    // SAFETY: as above, and words of every panel of the packed values.
                    unsafe {
                        let a = Rows { ptr: weights.as_ptr().cast(), stride: KEY_BLOCK };
                        let b = Rows { ptr: values.as_ptr().add(key / WORD * PANEL).cast(), stride: depth * PANEL };
                        multiply(s, Exact, a, count, b, padded / PANEL, width.div_ceil(WORD), &mut to);
                    }
                }
                key += KEY_BLOCK;
            }
            for (i, sums) in sums.chunks_mut(padded).take(block_rows).enumerate() {
                for (sum, scale) in sums.chunks_exact_mut(S::LANES).zip(value_scales.chunks_exact(S::LANES)) {
                    // SAFETY: both are vectors.
                    unsafe { s.store(sum.as_mut_ptr(), s.mul(s.load(sum.as_ptr()), s.load(scale.as_ptr()))) };
                }
                // SAFETY: a row of y, which only this tile writes.
                unsafe { y.write_scaled(s, block + i, &sums[..dim], 1.0 / running[i].total) };
            }
        }
    }
}

/// Scores from exact sums; the largest of each row is kept.
struct Scores {
    /// What is added to the scores, row by row; a stride of 0 is one for all.
    start: Option<Rows<*const f32>>,
    /// What the sums of each key start from.
    key_starts: *const i32,
    key_scales: *const f32,
    query_scales: *const f32,
    scores: Rows<*mut f32>,
    /// A vector for every row, [`WIDEST`] floats apart.
    largest: *mut f32,
}

impl<S: Simd> Sums<S, S::I> for Scores {
    #[inline(always)]
    fn start<const V: usize>(&self, s: S, _: usize, col: usize) -> [S::I; V] {
        let mut sums = [s.splat_i(0); V];
        for (v, sum) in sums.iter_mut().enumerate() {
            // SAFETY: there is a start for every key, in whole panels.
            *sum = unsafe { s.load_i(self.key_starts.add(col + v * S::LANES)) };
        }
        sums
    }

    #[inline(always)]
    fn finish<const V: usize>(&mut self, s: S, row: usize, col: usize, sums: [S::I; V]) {
        // SAFETY: vectors of a row of the scores and of the starts, of the scales of whole panels of keys, and the row's
        // scale and vector of `largest`.
        unsafe {
            let query_scale = s.splat(*self.query_scales.add(row));
            let kept = self.largest.add(row * WIDEST);
            let mut largest = s.load(kept);
            for (v, sum) in sums.into_iter().enumerate() {
                let at = col + v * S::LANES;
                let score = s.mul(s.to_f(sum), s.load(self.key_scales.add(at)));
                let score = match self.start {
                    Some(start) => s.mul_add(score, query_scale, s.load(start.ptr.add(row * start.stride + at))),
                    None => s.mul(score, query_scale),
                };
                largest = s.max(largest, score);
                s.store(self.scores.ptr.add(row * self.scores.stride + at), score);
            }
            s.store(kept, largest);
        }
    }
}

/// Weighted sums of values: those of earlier blocks of keys shrink to the new largest score.
struct Averages<'a> {
    sums: Rows<*mut f32>,
    /// What the sums so far are multiplied by, row by row; none in the first block.
    shrink: Option<&'a [f32; ROWS]>,
}

impl<S: Simd> Sums<S, S::I> for Averages<'_> {
    #[inline(always)]
    fn start<const V: usize>(&self, s: S, _: usize, _: usize) -> [S::I; V] {
        [s.splat_i(0); V]
    }

    #[inline(always)]
    fn finish<const V: usize>(&mut self, s: S, row: usize, col: usize, sums: [S::I; V]) {
        for (v, sum) in sums.into_iter().enumerate() {
            // SAFETY: vectors of a row of the sums.
            unsafe {
                let to = self.sums.ptr.add(row * self.sums.stride + col + v * S::LANES);
                let mut sum = s.to_f(sum);
                if let Some(shrink) = self.shrink {
                    sum = s.mul_add(s.load(to), s.splat(shrink[row]), sum);
                }
                s.store(to, sum);
            }
        }
    }
}
