//! Attention in 8-bit integers, as SageAttention does it (Zhang et al., 2024): keys less their mean and queries quantized
//! token by token, values channel by channel, weights as bytes relative to the largest so far.
//!
//! Rows go through blocks of keys as in float32. Sums of products are exact; scores and weights are made in float32.

use scoregraph_simd::{DotKernel, Dots, Simd};

use super::bytes::{self, Keys, WORD};
use super::matrix::Matrix;
use super::product::{Sums, multiply};
use super::weights::{ROWS_IN_VECTORS, Running, Scored};
use super::{Ends, KEY_BLOCK, QUERY_BLOCK, ROWS, Starts, Tile, WIDEST};
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
    copied: usize,
}

/// The parts of a tile's scratch.
const PARTS: usize = 14;

impl Lengths {
    fn new(keys: usize, dim: usize) -> Lengths {
        let (words, padded_dim) = (dim.div_ceil(WORD), dim.next_multiple_of(PANEL));
        Lengths {
            keys: keys.next_multiple_of(PANEL) * words,
            key_scales: keys.next_multiple_of(PANEL),
            values: padded_dim * bytes::value_words(keys),
            padded_dim,
            queries: (QUERY_BLOCK * words).next_multiple_of(PANEL),
            rows: PANEL * words,
            copied: (keys * dim).next_multiple_of(PANEL),
        }
    }

    /// Keys, their scales, starts, biases and mean; values, scales of channels; queries, scores, weights, starts of scores, sums;
    /// words of some rows; values or keys in rows.
    fn all(self) -> [usize; PARTS] {
        [
            self.keys,
            self.key_scales,
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
            self.rows,
            self.copied,
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
        let Tile { q, k, v, mask, y, factor, queries, keys, dim, .. } = self.tile;
        let (words, padded) = (dim.div_ceil(WORD), dim.next_multiple_of(PANEL));
        let depth = bytes::value_words(keys);
        let mut rest = self.scratch;
        let mut parts: [&mut [f32]; PARTS] = Default::default();
        for (part, len) in parts.iter_mut().zip(Lengths::new(keys, dim).all()) {
            (*part, rest) = rest.split_at_mut(len);
        }
        let [key_words, key_scales, key_starts, key_biases, mean, values, value_scales, query_words, parts @ ..] =
            parts;
        let [scores, weights, start_row, sums, rows, copied] = parts;
        let (sums, copied) = (sums.as_mut_ptr(), copied.as_mut_ptr());
        let mut packed = Keys { words: key_words, scales: key_scales, starts: key_starts, biases: key_biases };
        // SAFETY: both operands have `keys` rows of `dim` elements, and there is room for the copy of one.
        let doubt = unsafe {
            let v = v.in_rows(s, (keys, dim), copied);
            bytes::pack_values(s, v, (keys, dim), values, value_scales, mean);
            let k = k.in_rows(s, (keys, dim), copied);
            packed.pack(s, k, (keys, dim), mean, rows)
        };
        let rounded = mask.is_none() && packed.round(s, (keys, dim));
        for block in (queries.0..queries.1).step_by(QUERY_BLOCK) {
            let block_rows = QUERY_BLOCK.min(queries.1 - block);
            let mut query_scales = [0.0; QUERY_BLOCK];
            // SAFETY: rows of q; the sums have as many elements, and are not in use yet.
            unsafe {
                let q = q.rows_from(block).in_rows(s, (block_rows, dim), sums);
                bytes::pack_queries(s, q, dim, factor, query_words, &mut query_scales[..block_rows]);
            }
            let averages = if y.has_rows() { y.rows_from(block) } else { Matrix::of_rows(sums, padded) };
            query_scales.iter_mut().for_each(|scale| *scale += doubt);
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
                    let mut largest = [f32::NEG_INFINITY; ROWS * WIDEST];
                    let kept = Kept {
                        scores: Rows { ptr: scores.as_mut_ptr(), stride: KEY_BLOCK },
                        largest: largest.as_mut_ptr(),
                    };
                    // SAFETY: `count <= ROWS` rows of queries and scores; keys `key..key + width` begin a panel of the
                    // packed keys; the mask has all queries.
                    unsafe {
                        let a = Rows { ptr: query_words.as_ptr().add(first * words).cast(), stride: WORD * words };
                        let b = Rows { ptr: packed.words.as_ptr().add(key * words).cast(), stride: words * PANEL };
                        let panels = padded_width / PANEL;
                        let key_starts = packed.starts[key..].as_ptr().cast();
                        let key_scales = packed.scales[key..].as_ptr();
                        if rounded {
                            let key_biases = packed.biases[key..].as_ptr();
                            let mut to = Rounded { key_starts, key_scales, key_biases, kept };
                            multiply(s, Exact, a, count, b, panels, words, &mut to);
                        } else {
                            let start = starts.rows(s, (block + first, count), scores);
                            let query_scales = query_scales[first..].as_ptr();
                            let mut to = Started { key_starts, key_scales, query_scales, start, kept };
                            multiply(s, Exact, a, count, b, panels, words, &mut to);
                        }
                    }
                    let scored = Scored {
                        scores,
                        width: padded_width,
                        largest: &mut largest,
                        running: &mut running[first..][..count],
                    };
                    let shrink = if rounded {
                        scored.soften_to_bytes::<S, false>(s, &query_scales[first..][..count], weights)
                    } else {
                        scored.soften_to_bytes::<S, true>(s, &[1.0; ROWS][..count], weights)
                    };
                    let sums = Rows { ptr: sums.wrapping_add(first * padded), stride: padded };
                    let last = key + KEY_BLOCK >= keys;
                    let mut to = Averages {
                        sums,
                        shrink: (key > 0).then_some(&shrink),
                        // SAFETY: rows of y, which only this tile writes, or of the sums.
                        ends: last.then(|| unsafe { Ends::new(averages, first, dim, &running[first..][..count]) }),
                        value_scales: value_scales.as_ptr(),
                    };
                    // SAFETY: as above, and words of every panel of the packed values.
                    unsafe {
                        let a = Rows { ptr: weights.as_ptr().cast(), stride: KEY_BLOCK };
                        let b = Rows { ptr: values.as_ptr().add(key / WORD * PANEL).cast(), stride: depth * PANEL };
                        multiply(s, Exact, a, count, b, padded / PANEL, bytes::value_words(width), &mut to);
                    }
                }
                key += KEY_BLOCK;
            }
            if !y.has_rows() {
                // SAFETY: the averages are in the sums; rows of y, which only this tile writes.
                unsafe { averages.copy(s, y.rows_from(block), (block_rows, dim)) };
            }
        }
    }
}

/// Where scores go; the largest of each row is kept.
#[derive(Clone, Copy)]
struct Kept {
    scores: Rows<*mut f32>,
    /// A vector for every row, [`WIDEST`] floats apart.
    largest: *mut f32,
}

impl Kept {
    /// Takes the scores `score(sum, column)` of a row.
    ///
    /// # Safety
    /// The row and its columns are those of scores.
    #[inline(always)]
    unsafe fn finish<S: Simd, const V: usize>(
        self,
        s: S,
        row: usize,
        col: usize,
        sums: [S::I; V],
        score: impl Fn(S::I, usize) -> S::F,
    ) {
        // SAFETY: vectors of a row of the scores and the row's of `largest`.
        unsafe {
            let kept = self.largest.add(row * WIDEST);
            let mut largest = s.load(kept);
            for (v, sum) in sums.into_iter().enumerate() {
                let at = col + v * S::LANES;
                let score = score(sum, at);
                largest = s.max(largest, score);
                s.store(self.scores.ptr.add(row * self.scores.stride + at), score);
            }
            s.store(kept, largest);
        }
    }
}

/// What the sums of each key start from.
///
/// # Safety
/// There is one for every key, in whole panels.
#[inline(always)]
unsafe fn start_sums<S: Simd, const V: usize>(s: S, key_starts: *const i32, col: usize) -> [S::I; V] {
    let mut sums = [s.splat_i(0); V];
    for (v, sum) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's contract.
        *sum = unsafe { s.load_i(key_starts.add(col + v * S::LANES)) };
    }
    sums
}

/// Scores from exact sums whose bits are those of floats ([`Keys::round`]), in multiples of the scale of their query.
struct Rounded {
    key_starts: *const i32,
    key_scales: *const f32,
    key_biases: *const f32,
    kept: Kept,
}

impl<S: Simd> Sums<S, S::I> for Rounded {
    #[inline(always)]
    fn start<const V: usize>(&self, s: S, _: usize, col: usize) -> [S::I; V] {
        // SAFETY: the keys are those of the product.
        unsafe { start_sums(s, self.key_starts, col) }
    }

    #[inline(always)]
    fn finish<const V: usize>(&mut self, s: S, row: usize, col: usize, sums: [S::I; V]) {
        // SAFETY: the keys and rows are those of the product; scales and biases are whole panels.
        unsafe {
            self.kept.finish(
                s,
                row,
                col,
                sums,
                #[inline(always)]
                |sum, at| s.mul_add(s.from_bits(sum), s.load(self.key_scales.add(at)), s.load(self.key_biases.add(at))),
            );
        }
    }
}

/// Scores from exact sums, to which something may be added.
struct Started {
    key_starts: *const i32,
    key_scales: *const f32,
    query_scales: *const f32,
    /// What is added, row by row; a stride of 0 is one for all.
    start: Option<Rows<*const f32>>,
    kept: Kept,
}

impl<S: Simd> Sums<S, S::I> for Started {
    #[inline(always)]
    fn start<const V: usize>(&self, s: S, _: usize, col: usize) -> [S::I; V] {
        // SAFETY: the keys are those of the product.
        unsafe { start_sums(s, self.key_starts, col) }
    }

    #[inline(always)]
    fn finish<const V: usize>(&mut self, s: S, row: usize, col: usize, sums: [S::I; V]) {
        // SAFETY: the keys and rows are those of the product; scales are whole panels, and what is added is as long as a row
        // of the scores.
        unsafe {
            let query_scale = s.splat(*self.query_scales.add(row));
            self.kept.finish(
                s,
                row,
                col,
                sums,
                #[inline(always)]
                |sum, at| {
                    let score = s.mul(s.to_f(sum), s.load(self.key_scales.add(at)));
                    match self.start {
                        Some(start) => s.mul_add(score, query_scale, s.load(start.ptr.add(row * start.stride + at))),
                        None => s.mul(score, query_scale),
                    }
                },
            );
        }
    }
}

/// Weighted sums of values: those of earlier blocks of keys shrink to the new largest score.
struct Averages<'a> {
    sums: Rows<*mut f32>,
    /// What the sums so far are multiplied by, row by row; none in the first block.
    shrink: Option<&'a [f32; ROWS_IN_VECTORS]>,
    /// Where they go after the last block.
    ends: Option<Ends>,
    value_scales: *const f32,
}

impl<S: Simd> Sums<S, S::I> for Averages<'_> {
    #[inline(always)]
    fn start<const V: usize>(&self, s: S, _: usize, _: usize) -> [S::I; V] {
        [s.splat_i(0); V]
    }

    #[inline(always)]
    fn finish<const V: usize>(&mut self, s: S, row: usize, col: usize, sums: [S::I; V]) {
        for (v, sum) in sums.into_iter().enumerate() {
            let at = col + v * S::LANES;
            // SAFETY: vectors of a row of the sums and of the scales of whole panels of channels.
            unsafe {
                let to = self.sums.ptr.add(row * self.sums.stride + at);
                let mut sum = s.to_f(sum);
                if let Some(shrink) = self.shrink {
                    sum = s.mul_add(s.load(to), s.splat(shrink[row]), sum);
                }
                match &self.ends {
                    None => s.store(to, sum),
                    Some(ends) => ends.write(s, (row, at), s.mul(sum, s.load(self.value_scales.add(at)))),
                }
            }
        }
    }
}
