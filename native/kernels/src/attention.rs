//! `attention`: `softmax(scale * q kᵀ + mask) v`, head by head, without storing all scores.
//!
//! A tile is a number of query rows of one head. It packs the keys and values of the head, then takes a block of rows
//! through blocks of keys with a running maximum and sum (FlashAttention, Dao et al., 2022). Blocks of keys are the same
//! for every row, so how rows are split changes no bits.

use scoregraph_simd::{Disjoint, Kernel, Simd, math};

use crate::gemm::{self, PANEL, Rows};
use crate::rows::{map, max};
use crate::{Context, View, ViewMut};

/// Query rows that go through the keys together; a multiple of the rows of every register tile.
const QUERY_BLOCK: usize = 48;
/// Keys whose scores exist at a time: 48 KiB of them, in the second-level cache.
const KEY_BLOCK: usize = 256;

/// The operands of `attention` beside y.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// \[n, H, S, D\], strided.
    pub q: View<'a>,
    /// \[n, H, T, D\], strided.
    pub k: View<'a>,
    /// \[n, H, T, D\], strided.
    pub v: View<'a>,
    /// \[n, H, S, T\], strided; added to the scores.
    pub mask: Option<View<'a>>,
    /// Multiplies the scores.
    pub scale: f32,
}

/// How many floats of scratch [`attention`] needs for `keys` keys of `dim` elements.
pub fn attention_scratch(keys: usize, dim: usize, threads: usize) -> usize {
    Lengths::new(keys, dim).total() * threads
}

/// Computes `op` into `y` \[n, H, S, D\]. A row whose keys are all masked with -inf is NaN.
///
/// # Panics
/// If the operands do not fit together, or the scratch is too small.
pub fn attention(ctx: &Context, op: &Attention, y: &mut ViewMut, scratch: &mut [f32]) {
    let &[n, heads, queries, dim] = op.q.shape() else { panic!("q is [n, H, S, D]") };
    let keys = *op.k.shape().get(2).expect("k is [n, H, T, D]");
    assert!(op.k.shape() == [n, heads, keys, dim] && op.v.shape() == [n, heads, keys, dim], "k and v are [n, H, T, D]");
    assert_eq!(y.shape(), op.q.shape());
    assert!(op.mask.is_none_or(|mask| mask.shape() == [n, heads, queries, keys]), "mask is [n, H, S, T]");
    if y.layout().len() == 0 {
        return;
    }
    let per_thread = attention_scratch(keys, dim, 1);
    assert!(scratch.len() >= attention_scratch(keys, dim, ctx.pool.threads()));
    let scratch = Disjoint::new(scratch);
    let y: &ViewMut = y;

    // Packing is shared by the rows of a tile: heads are split only where there are too few of them to go round.
    let blocks = queries.div_ceil(QUERY_BLOCK);
    let wanted = (4 * ctx.pool.threads()).div_ceil(n * heads).min(blocks);
    let rows_per_tile = if ctx.pool.threads() == 1 { queries } else { blocks.div_ceil(wanted) * QUERY_BLOCK };
    let tiles_per_head = queries.div_ceil(rows_per_tile);
    ctx.pool.run(n * heads * tiles_per_head, &|tile, thread| {
        let (head, first) = (tile / tiles_per_head, tile % tiles_per_head * rows_per_tile);
        // SAFETY: a thread runs one tile at a time, and its part of the scratch is its own.
        let scratch = unsafe { scratch.part(thread * per_thread..(thread + 1) * per_thread) };
        let at = [head / heads, head % heads];
        ctx.isa.dispatch(Tile {
            q: Matrix::of(op.q.as_ptr(), op.q.layout().strides(), at),
            k: Matrix::of(op.k.as_ptr(), op.k.layout().strides(), at),
            v: Matrix::of(op.v.as_ptr(), op.v.layout().strides(), at),
            mask: op.mask.map(|mask| Matrix::of(mask.as_ptr(), mask.layout().strides(), at)),
            y: Matrix::of(y.as_mut_ptr().cast_const(), y.layout().strides(), at),
            scale: op.scale,
            queries: (first, (first + rows_per_tile).min(queries)),
            keys,
            dim,
            scratch,
        });
    });
}

/// How many floats every part of a thread's scratch takes.
#[derive(Clone, Copy)]
struct Lengths {
    keys: usize,
    values: usize,
    queries: usize,
    scores: usize,
    sums: usize,
}

impl Lengths {
    fn new(keys: usize, dim: usize) -> Lengths {
        Lengths {
            keys: gemm::packed_len(keys, dim),
            values: gemm::packed_len(dim, keys),
            queries: QUERY_BLOCK * dim,
            scores: QUERY_BLOCK * KEY_BLOCK,
            sums: QUERY_BLOCK * dim.next_multiple_of(PANEL),
        }
    }

    fn total(self) -> usize {
        self.keys + self.values + self.queries + self.scores + self.sums
    }
}

/// One head of an operand: rows and columns, strided.
#[derive(Clone, Copy)]
struct Matrix {
    ptr: *const f32,
    rows: usize,
    cols: usize,
}

impl Matrix {
    fn of(ptr: *const f32, strides: &[usize], [n, head]: [usize; 2]) -> Matrix {
        Matrix { ptr: ptr.wrapping_add(n * strides[0] + head * strides[1]), rows: strides[2], cols: strides[3] }
    }

    fn row(&self, row: usize) -> *const f32 {
        self.ptr.wrapping_add(row * self.rows)
    }
}

/// Some query rows of one head.
struct Tile<'a> {
    q: Matrix,
    k: Matrix,
    v: Matrix,
    mask: Option<Matrix>,
    /// Written by this tile only, in its rows.
    y: Matrix,
    scale: f32,
    queries: (usize, usize),
    keys: usize,
    dim: usize,
    scratch: &'a mut [f32],
}

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (keys, dim) = (self.keys, self.dim);
        let lengths = Lengths::new(keys, dim);
        let (packed_keys, rest) = self.scratch.split_at_mut(lengths.keys);
        let (packed_values, rest) = rest.split_at_mut(lengths.values);
        let (queries, rest) = rest.split_at_mut(lengths.queries);
        let (scores, sums) = rest.split_at_mut(lengths.scores);
        let (panels, padded) = (dim.div_ceil(PANEL), dim.next_multiple_of(PANEL));
        // SAFETY: both operands have `keys` rows of `dim` elements, and the scratch has room for them packed: keys are
        // the columns of kᵀ, dimensions the columns of v.
        unsafe {
            gemm::pack(s, self.k.ptr, (keys, dim), (self.k.rows, self.k.cols), packed_keys.as_mut_ptr());
            gemm::pack(s, self.v.ptr, (dim, keys), (self.v.cols, self.v.rows), packed_values.as_mut_ptr());
        }
        for first in (self.queries.0..self.queries.1).step_by(QUERY_BLOCK) {
            let rows = QUERY_BLOCK.min(self.queries.1 - first);
            for (row, to) in queries.chunks_mut(dim).take(rows).enumerate() {
                // SAFETY: a row of q.
                unsafe { read_scaled(s, self.q.row(first + row), self.q.cols, self.scale, to) };
            }
            let mut running = [(f32::NEG_INFINITY, 0.0f32); QUERY_BLOCK];
            // At least one block, so that the sums are set to 0 where there are no keys.
            let mut start = 0;
            while start == 0 || start < keys {
                let block = KEY_BLOCK.min(keys - start);
                // SAFETY: `rows <= QUERY_BLOCK` rows of queries, scores and sums; keys `start..start + block`, which begin
                // a panel of the packed keys, and a row of every panel of the packed values.
                unsafe {
                    let q = Rows { ptr: queries.as_ptr(), stride: dim };
                    let k = Rows { ptr: packed_keys.as_ptr().add(start * dim), stride: dim * PANEL };
                    let c = Rows { ptr: scores.as_mut_ptr(), stride: KEY_BLOCK };
                    gemm::multiply(s, q, rows, k, block.div_ceil(PANEL), dim, c, false);
                }
                for (row, (scores, sums)) in
                    scores.chunks_mut(KEY_BLOCK).zip(sums.chunks_mut(padded)).take(rows).enumerate()
                {
                    let scores = &mut scores[..block];
                    if let Some(mask) = self.mask {
                        // SAFETY: elements `start..start + block` of a row of the mask.
                        unsafe { add_strided(s, scores, mask.row(first + row).add(start * mask.cols), mask.cols) };
                    }
                    running[row] = soften(s, scores, running[row], (start > 0).then_some(sums));
                }
                // SAFETY: as above.
                unsafe {
                    let p = Rows { ptr: scores.as_ptr(), stride: KEY_BLOCK };
                    let v = Rows { ptr: packed_values.as_ptr().add(start * PANEL), stride: keys * PANEL };
                    let c = Rows { ptr: sums.as_mut_ptr(), stride: padded };
                    gemm::multiply(s, p, rows, v, panels, block, c, start > 0);
                }
                start += KEY_BLOCK;
            }
            for (row, sums) in sums.chunks(padded).take(rows).enumerate() {
                let weight = 1.0 / running[row].1;
                // SAFETY: a row of y, which only this tile writes.
                unsafe { write_scaled(s, &sums[..dim], weight, self.y.row(first + row).cast_mut(), self.y.cols) };
            }
        }
    }
}

/// Turns scores into weights relative to the largest so far, and scales the sums of the blocks before to it, if there
/// were any. Takes and returns the running (largest score, sum of weights).
#[inline(always)]
fn soften<S: Simd>(s: S, scores: &mut [f32], (largest, weight): (f32, f32), sums: Option<&mut [f32]>) -> (f32, f32) {
    let here = max(s, scores);
    // A NaN that this drops comes back through the weights.
    let new = if largest > here { largest } else { here };
    // While everything is masked, weights are exp(-inf - 0) = 0, not NaN: a later block may not be masked.
    let base = if new == f32::NEG_INFINITY { 0.0 } else { new };
    let total = exponentials(s, scores, s.splat(base));
    let Some(sums) = sums else { return (new, total) };
    let shrink = if largest == base { 1.0 } else { s.reduce_max(math::exp(s, s.splat(largest - base))) };
    if shrink != 1.0 {
        let shrink = s.splat(shrink);
        for chunk in sums.chunks_exact_mut(S::LANES) {
            // SAFETY: the chunk is a vector.
            unsafe { s.store(chunk.as_mut_ptr(), s.mul(shrink, s.load(chunk.as_ptr()))) };
        }
    }
    (new, weight * shrink + total)
}

/// `x[i] = exp(x[i] - base)`; returns their sum.
#[inline(always)]
fn exponentials<S: Simd>(s: S, x: &mut [f32], base: S::F) -> f32 {
    let mut totals = [s.splat(0.0); 2];
    let mut pairs = x.chunks_exact_mut(2 * S::LANES);
    for pair in &mut pairs {
        for (i, total) in totals.iter_mut().enumerate() {
            // SAFETY: the pair is two vectors.
            unsafe {
                let at = pair.as_mut_ptr().add(i * S::LANES);
                let e = math::exp_flushed(s, s.sub(s.load(at), base));
                *total = s.add(*total, e);
                s.store(at, e);
            }
        }
    }
    for chunk in pairs.into_remainder().chunks_mut(S::LANES) {
        // SAFETY: only the elements of `chunk` are touched; the lanes past them count as exp(-inf) = 0.
        unsafe {
            let score = s.load_or(chunk.as_ptr(), chunk.len(), s.splat(f32::NEG_INFINITY));
            let e = math::exp_flushed(s, s.sub(score, base));
            totals[0] = s.add(totals[0], e);
            s.store_first(chunk.as_mut_ptr(), e, chunk.len());
        }
    }
    s.reduce_add(s.add(totals[0], totals[1]))
}

/// `to[i] = scale * from[i * step]`
///
/// # Safety
/// Those elements are readable.
#[inline(always)]
unsafe fn read_scaled<S: Simd>(s: S, from: *const f32, step: usize, scale: f32, to: &mut [f32]) {
    if step == 1 {
        // SAFETY: the caller's contract.
        let from = unsafe { std::slice::from_raw_parts(from, to.len()) };
        let scale = s.splat(scale);
        map(
            s,
            from,
            to,
            #[inline(always)]
            |_, _, x| s.mul(scale, x),
        );
    } else {
        for (i, to) in to.iter_mut().enumerate() {
            // SAFETY: the caller's contract.
            *to = scale * unsafe { *from.add(i * step) };
        }
    }
}

/// `to[i] += from[i * step]`
///
/// # Safety
/// Those elements are readable.
#[inline(always)]
unsafe fn add_strided<S: Simd>(s: S, to: &mut [f32], from: *const f32, step: usize) {
    for (i, chunk) in to.chunks_mut(S::LANES).enumerate() {
        let n = chunk.len();
        // SAFETY: the caller's contract; only the elements of `chunk` are written.
        unsafe {
            if step == 1 {
                let sum = s.add(s.load_first(chunk.as_ptr(), n), s.load_first(from.add(i * S::LANES), n));
                s.store_first(chunk.as_mut_ptr(), sum, n);
            } else {
                for (j, to) in chunk.iter_mut().enumerate() {
                    *to += *from.add((i * S::LANES + j) * step);
                }
            }
        }
    }
}

/// `to[i * step] = scale * from[i]`
///
/// # Safety
/// Those elements are writable and not those of `from`.
#[inline(always)]
unsafe fn write_scaled<S: Simd>(s: S, from: &[f32], scale: f32, to: *mut f32, step: usize) {
    for (i, chunk) in from.chunks(S::LANES).enumerate() {
        // SAFETY: the caller's contract; only the elements of `chunk` are read.
        unsafe {
            if step == 1 {
                let v = s.mul(s.splat(scale), s.load_first(chunk.as_ptr(), chunk.len()));
                s.store_first(to.add(i * S::LANES), v, chunk.len());
            } else {
                for (j, from) in chunk.iter().enumerate() {
                    to.add((i * S::LANES + j) * step).write(scale * from);
                }
            }
        }
    }
}
