//! Attention in float32, with operands as they are or rounded to bf16.
//!
//! A tile packs the keys and values of its head, then takes its rows through blocks of keys with a running maximum and sum
//! (FlashAttention, Dao et al., 2022). The blocks of keys are the same for every row.

use scoregraph_simd::{Kernel, Simd, math};

use super::bound::Bound;
use super::matrix::Matrix;
use super::product::{Sums, multiply};
use super::weights::{ROWS_IN_VECTORS, Running, Scored, round_bf16};
use super::{Ends, KEY_BLOCK, QUERY_BLOCK, ROWS, Starts, Tile, WIDEST};
use crate::gemm::{self, Float as Floats, PANEL, Rows};

/// Floats of scratch of a tile.
pub(super) fn scratch(keys: usize, dim: usize) -> usize {
    Lengths::new(keys, dim).total()
}

/// How many floats every part of a tile's scratch takes.
#[derive(Clone, Copy)]
struct Lengths {
    keys: usize,
    values: usize,
    queries: usize,
    scores: usize,
    start: usize,
    sums: usize,
}

impl Lengths {
    fn new(keys: usize, dim: usize) -> Lengths {
        Lengths {
            keys: gemm::packed_len(keys, dim),
            values: gemm::packed_len(dim, keys),
            queries: QUERY_BLOCK * dim,
            scores: ROWS * KEY_BLOCK,
            start: KEY_BLOCK,
            sums: QUERY_BLOCK * dim.next_multiple_of(PANEL),
        }
    }

    fn total(self) -> usize {
        self.keys + self.values + self.queries + self.scores + self.start + self.sums
    }
}

/// A tile in float32, its operands rounded to bf16 or not.
pub(super) struct Float<'a, const BF16: bool> {
    pub(super) tile: Tile,
    pub(super) scratch: &'a mut [f32],
}

impl<const BF16: bool> Kernel for Float<'_, BF16> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Tile { q, k, v, mask, y, factor, queries, keys, dim, bounds } = self.tile;
        let lengths = Lengths::new(keys, dim);
        let (packed_keys, rest) = self.scratch.split_at_mut(lengths.keys);
        let (packed_values, rest) = rest.split_at_mut(lengths.values);
        let (rows_of_q, rest) = rest.split_at_mut(lengths.queries);
        let (scores, rest) = rest.split_at_mut(lengths.scores);
        let (start_row, sums) = rest.split_at_mut(lengths.start);
        let (panels, padded) = (dim.div_ceil(PANEL), dim.next_multiple_of(PANEL));
        let sums = sums.as_mut_ptr();
        // SAFETY: both operands have `keys` rows of `dim` elements, and the scratch has room for them packed: keys are
        // the columns of kᵀ, dimensions the columns of v.
        unsafe {
            gemm::pack(s, k.ptr, (keys, dim), (k.rows, k.cols), packed_keys.as_mut_ptr());
            gemm::pack(s, v.ptr, (dim, keys), (v.cols, v.rows), packed_values.as_mut_ptr());
        }
        if BF16 {
            for packed in [&mut packed_keys[..], &mut packed_values[..]] {
                for chunk in packed.chunks_exact_mut(S::LANES) {
                    // SAFETY: the chunk is a vector.
                    unsafe { s.store(chunk.as_mut_ptr(), round_bf16(s, s.load(chunk.as_ptr()))) };
                }
            }
        }
        let bound = if S::SCALES && bounds { Bound::new(s, packed_keys, dim, packed_values) } else { Bound::NONE };
        let factor = s.splat(factor);
        for block in (queries.0..queries.1).step_by(QUERY_BLOCK) {
            let block_rows = QUERY_BLOCK.min(queries.1 - block);
            // SAFETY: rows of q; the sums have as many elements, and are not in use yet.
            let q = unsafe { q.rows_from(block).in_rows(s, (block_rows, dim), sums) };
            let averages = if y.has_rows() { y.rows_from(block) } else { Matrix::of_rows(sums, padded) };
            for (row, to) in rows_of_q.chunks_mut(dim).take(block_rows).enumerate() {
                // SAFETY: a row of q.
                unsafe {
                    q.read(
                        s,
                        (row, 0),
                        to,
                        #[inline(always)]
                        |x| s.mul(factor, if BF16 { round_bf16(s, x) } else { x }),
                    );
                }
            }
            let mut bounded = [false; QUERY_BLOCK / ROWS];
            for (bounded, rows) in bounded.iter_mut().zip(rows_of_q[..block_rows * dim].chunks(ROWS * dim)) {
                *bounded = bound.holds(s, rows, dim);
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
                    let rows = ROWS.min(block_rows - first);
                    // SAFETY: the mask has all queries.
                    let start = unsafe { starts.rows(s, (block + first, rows), scores) };
                    let running = &mut running[first..][..rows];
                    let to = Rows { ptr: scores.as_mut_ptr(), stride: KEY_BLOCK };
                    // SAFETY: `rows <= ROWS` rows of queries and scores; keys `key..key + width` begin a panel of the
                    // packed keys.
                    let shrink = unsafe {
                        let a = Rows { ptr: rows_of_q.as_ptr().add(first * dim).cast(), stride: 4 * dim };
                        let b = Rows { ptr: packed_keys.as_ptr().add(key * dim).cast(), stride: dim * PANEL };
                        let panels = padded_width / PANEL;
                        if S::SCALES && bounded[first / ROWS] {
                            let mut totals = [0.0; ROWS * WIDEST];
                            let mut to = Weights::<BF16> { start, weights: to, totals: totals.as_mut_ptr() };
                            multiply(s, Floats, a, rows, b, panels, dim, &mut to);
                            for (running, total) in running.iter_mut().zip(totals.chunks_exact(WIDEST)) {
                                running.total += s.reduce_add(s.load(total.as_ptr()));
                            }
                            [1.0; ROWS_IN_VECTORS]
                        } else {
                            let mut largest = [f32::NEG_INFINITY; ROWS * WIDEST];
                            let mut to = Scores { start, scores: to, largest: largest.as_mut_ptr() };
                            multiply(s, Floats, a, rows, b, panels, dim, &mut to);
                            let largest = &mut largest;
                            Scored { scores, width: padded_width, largest, running }.soften::<S, BF16>(s)
                        }
                    };
                    let last = key + KEY_BLOCK >= keys;
                    let mut to = Averages {
                        sums: Rows { ptr: sums.wrapping_add(first * padded), stride: padded },
                        shrink: (key > 0).then_some(&shrink),
                        // SAFETY: rows of y, which only this tile writes, or of the sums.
                        ends: last.then(|| unsafe { Ends::new(averages, first, dim, running) }),
                    };
                    // SAFETY: as above, and a row of every panel of the packed values.
                    unsafe {
                        let a = Rows { ptr: scores.as_ptr().cast(), stride: 4 * KEY_BLOCK };
                        let b = Rows { ptr: packed_values.as_ptr().add(key * PANEL).cast(), stride: keys * PANEL };
                        multiply(s, Floats, a, rows, b, panels, width, &mut to);
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

/// Weights of scores that are known to be small: powers of two as they are.
struct Weights<const BF16: bool> {
    /// Rows that scores start from; a stride of 0 is one for all. None is 0.
    start: Option<Rows<*const f32>>,
    weights: Rows<*mut f32>,
    /// A vector for every row, [`WIDEST`] floats apart, whose lanes add up to the sum of its weights.
    totals: *mut f32,
}

impl<S: Simd, const BF16: bool> Sums<S, S::F> for Weights<BF16> {
    #[inline(always)]
    fn start<const V: usize>(&self, s: S, row: usize, col: usize) -> [S::F; V] {
        start_sums(s, self.start, row, col)
    }

    #[inline(always)]
    fn finish<const V: usize>(&mut self, s: S, row: usize, col: usize, sums: [S::F; V]) {
        // SAFETY: vectors of a row of the weights, and the row's vector of the totals.
        unsafe {
            let kept = self.totals.add(row * WIDEST);
            let mut total = s.load(kept);
            for (v, sum) in sums.into_iter().enumerate() {
                let weight = math::exp2_bounded::<S, BF16>(s, sum);
                total = s.add(total, weight);
                s.store(self.weights.ptr.add(row * self.weights.stride + col + v * S::LANES), weight);
            }
            s.store(kept, total);
        }
    }
}

/// What the scores of a row start from.
#[inline(always)]
fn start_sums<S: Simd, const V: usize>(s: S, start: Option<Rows<*const f32>>, row: usize, col: usize) -> [S::F; V] {
    let mut sums = [s.splat(0.0); V];
    if let Some(start) = start {
        for (v, sum) in sums.iter_mut().enumerate() {
            // SAFETY: these rows are as long as those of the scores.
            *sum = unsafe { s.load(start.ptr.add(row * start.stride + col + v * S::LANES)) };
        }
    }
    sums
}

/// Scores: they start from a row, and the largest of each row is kept.
struct Scores {
    /// Rows they start from; a stride of 0 is one for all. None is 0.
    start: Option<Rows<*const f32>>,
    scores: Rows<*mut f32>,
    /// A vector for every row, [`WIDEST`] floats apart.
    largest: *mut f32,
}

impl<S: Simd> Sums<S, S::F> for Scores {
    #[inline(always)]
    fn start<const V: usize>(&self, s: S, row: usize, col: usize) -> [S::F; V] {
        start_sums(s, self.start, row, col)
    }

    #[inline(always)]
    fn finish<const V: usize>(&mut self, s: S, row: usize, col: usize, sums: [S::F; V]) {
        // SAFETY: vectors of a row of the scores, and the row's vector of `largest`.
        unsafe {
            let kept = self.largest.add(row * WIDEST);
            let mut largest = s.load(kept);
            for (v, sum) in sums.into_iter().enumerate() {
                largest = s.max(largest, sum);
                s.store(self.scores.ptr.add(row * self.scores.stride + col + v * S::LANES), sum);
            }
            s.store(kept, largest);
        }
    }
}

/// Weighted sums of values: those of earlier blocks of keys shrink to the new base.
struct Averages<'a> {
    sums: Rows<*mut f32>,
    /// What the sums so far are multiplied by, row by row; none in the first block.
    shrink: Option<&'a [f32; ROWS_IN_VECTORS]>,
    /// Where they go after the last block.
    ends: Option<Ends>,
}

impl<S: Simd> Sums<S, S::F> for Averages<'_> {
    #[inline(always)]
    fn start<const V: usize>(&self, s: S, row: usize, col: usize) -> [S::F; V] {
        let mut sums = [s.splat(0.0); V];
        if let Some(shrink) = self.shrink {
            let shrink = s.splat(shrink[row]);
            for (v, sum) in sums.iter_mut().enumerate() {
                // SAFETY: vectors of a row of the sums.
                let so_far = unsafe { s.load(self.sums.ptr.add(row * self.sums.stride + col + v * S::LANES)) };
                *sum = s.mul(shrink, so_far);
            }
        }
        sums
    }

    #[inline(always)]
    fn finish<const V: usize>(&mut self, s: S, row: usize, col: usize, sums: [S::F; V]) {
        for (v, sum) in sums.into_iter().enumerate() {
            let at = col + v * S::LANES;
            match &self.ends {
                // SAFETY: vectors of a row of the sums.
                None => unsafe { s.store(self.sums.ptr.add(row * self.sums.stride + at), sum) },
                Some(ends) => ends.write(s, (row, at), sum),
            }
        }
    }
}
