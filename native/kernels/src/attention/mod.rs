//! `attention`: `softmax(scale * q kᵀ + mask) v`, head by head, without storing all scores.

mod bound;
mod byte_weights;
mod bytes;
mod float;
mod integer;
mod matrix;
mod product;
mod weights;

use std::f32::consts::LOG2_E;

use scoregraph_simd::{Disjoint, Simd};

use crate::gemm::{PANEL, Rows};
use crate::{Context, View, ViewMut};
use matrix::Matrix;
use weights::Running;

/// Query rows whose scores exist at a time, 24 KiB of them: a multiple of the rows of every register tile.
const ROWS: usize = 24;
/// Keys whose scores exist at a time.
const KEY_BLOCK: usize = 256;
/// Query rows that go through a block of keys before the next one: that block is read from the second-level cache.
const QUERY_BLOCK: usize = 8 * ROWS;
/// Floats of the widest vector.
const WIDEST: usize = 16;

/// The arithmetic of the two products (docs/plan-format.md, Formats).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Operands and sums in float32.
    #[default]
    F32,
    /// Operands and weights rounded to bf16, sums in float32.
    Bf16,
    /// Operands and weights in 8 bits, exact sums.
    I8,
}

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
    /// How they are multiplied.
    pub format: Format,
}

/// Floats of a cache line: vectors that begin in the middle of one take twice as long to read.
const LINE: usize = 16;

/// How many floats of scratch [`attention`] needs for `keys` keys of `dim` elements.
pub fn attention_scratch(keys: usize, dim: usize, format: Format, threads: usize) -> usize {
    scratch_of_thread(keys, dim, format) * threads + LINE
}

fn scratch_of_thread(keys: usize, dim: usize, format: Format) -> usize {
    match format {
        Format::F32 | Format::Bf16 => float::scratch(keys, dim),
        Format::I8 => integer::scratch(keys, dim),
    }
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
    let threads = ctx.pool.threads();
    let per_thread = scratch_of_thread(keys, dim, op.format);
    let (_, scratch) = scratch.split_at_mut(scratch.as_ptr().align_offset(4 * LINE).min(LINE));
    assert!(scratch.len() >= threads * per_thread, "the scratch is too small");
    let scratch = Disjoint::new(scratch);
    let y: &ViewMut = y;

    let parts = parts_of_head(n * heads, queries, threads);
    let rows = queries.div_ceil(parts).next_multiple_of(ROWS);
    let parts = queries.div_ceil(rows);
    ctx.pool.run(n * heads * parts, &|tile, thread| {
        let (head, first) = (tile / parts, tile % parts * rows);
        // SAFETY: a thread runs one tile at a time, and its part of the scratch is its own.
        let scratch = unsafe { scratch.part(thread * per_thread..(thread + 1) * per_thread) };
        let at = [head / heads, head % heads];
        let tile = Tile {
            q: Matrix::of(op.q.as_ptr(), op.q.layout().strides(), at),
            k: Matrix::of(op.k.as_ptr(), op.k.layout().strides(), at),
            v: Matrix::of(op.v.as_ptr(), op.v.layout().strides(), at),
            mask: op.mask.map(|mask| Matrix::of(mask.as_ptr(), mask.layout().strides(), at)),
            y: Matrix::of(y.as_mut_ptr().cast_const(), y.layout().strides(), at),
            factor: op.scale * LOG2_E,
            queries: (first, (first + rows).min(queries)),
            keys,
            dim,
            bounds: op.mask.is_none() && queries >= ROWS && keys >= 2 * dim,
        };
        match op.format {
            Format::F32 => ctx.isa.dispatch(float::Float::<false> { tile, scratch }),
            Format::Bf16 => ctx.isa.dispatch(float::Float::<true> { tile, scratch }),
            Format::I8 => ctx.isa.dispatch_dots(integer::Integer { tile, scratch }),
        }
    });
}

/// Into how many tiles the rows of a head go: each packs the keys and values again, so heads are split only where that
/// costs less than threads that wait. How rows are split changes no bits.
fn parts_of_head(heads: usize, queries: usize, threads: usize) -> usize {
    /// Query rows whose products take as long as packing.
    const PACKING: usize = 12;
    let most = if threads == 1 { 1 } else { queries.div_ceil(ROWS).min(4 * threads) };
    let time = |parts: usize| (heads * parts).div_ceil(threads) * (queries.div_ceil(parts) + PACKING);
    (1..=most.max(1)).min_by_key(|&parts| time(parts)).unwrap_or(1)
}

/// Some query rows of one head.
#[derive(Clone, Copy)]
struct Tile {
    q: Matrix,
    k: Matrix,
    v: Matrix,
    mask: Option<Matrix>,
    /// Written by this tile only, in its rows.
    y: Matrix,
    /// Multiplies the products of q and k to scores in base 2.
    factor: f32,
    queries: (usize, usize),
    keys: usize,
    dim: usize,
    /// Whether bounding the scores may gain: there is no mask, and there are many scores for what it takes.
    bounds: bool,
}

/// Where the averages of some rows go.
struct Ends {
    y: Matrix,
    /// The first row.
    first: usize,
    dim: usize,
    /// What sums are multiplied by, row by row.
    inverses: [f32; ROWS],
}

impl Ends {
    /// # Safety
    /// Rows `first..` of y are writable while this lives, as many as there are `rows`, and nobody else accesses them.
    #[inline(always)]
    unsafe fn new(y: Matrix, first: usize, dim: usize, rows: &[Running]) -> Ends {
        let mut inverses = [0.0; ROWS];
        for (inverse, row) in inverses.iter_mut().zip(rows) {
            *inverse = 1.0 / row.total;
        }
        Ends { y, first, dim, inverses }
    }

    /// Writes a vector of the sums of a row, the first at column `col`, which may be past the last one.
    #[inline(always)]
    fn write<S: Simd>(&self, s: S, (row, col): (usize, usize), sums: S::F) {
        let average = s.mul(sums, s.splat(self.inverses[row]));
        // SAFETY: the contract of `new`; elements of the row.
        unsafe { self.y.write(s, (self.first + row, col), average, S::LANES.min(self.dim.saturating_sub(col))) };
    }
}

/// What the scores of one block of keys start from: the mask, or 0; and -inf past the last key.
struct Starts<'a> {
    mask: Option<Matrix>,
    /// The first key of the block, and how many it has.
    key: usize,
    width: usize,
    /// A row for all queries, where they start alike.
    row: &'a mut [f32],
}

impl<'a> Starts<'a> {
    /// # Safety
    /// Elements `key..key + width` of every row of the mask are readable while this lives.
    #[inline(always)]
    unsafe fn new<S: Simd>(s: S, mask: Option<Matrix>, (key, width): (usize, usize), row: &'a mut [f32]) -> Self {
        let starts = Starts { mask, key, width, row: &mut row[..width.next_multiple_of(PANEL)] };
        if starts.alike() {
            // SAFETY: the caller's contract.
            unsafe { start_scores(s, mask, (0, key), starts.row, width) };
        }
        starts
    }

    /// Whether one row of the mask, or none, serves all queries.
    #[inline(always)]
    fn alike(&self) -> bool {
        self.mask.is_none_or(|mask| mask.rows == 0)
    }

    /// Where `rows` rows from query `first` on start, which may be in `scores`, the very rows they are for; None: at 0.
    ///
    /// # Safety
    /// The mask has these rows.
    #[inline(always)]
    unsafe fn rows<S: Simd>(
        &self,
        s: S,
        (first, rows): (usize, usize),
        scores: &mut [f32],
    ) -> Option<Rows<*const f32>> {
        if self.alike() {
            let none = self.mask.is_none() && self.row.len() == self.width;
            return (!none).then_some(Rows { ptr: self.row.as_ptr(), stride: 0 });
        }
        for (row, to) in scores.chunks_mut(KEY_BLOCK).take(rows).enumerate() {
            // SAFETY: the contracts of `new` and of this.
            unsafe { start_scores(s, self.mask, (first + row, self.key), &mut to[..self.row.len()], self.width) };
        }
        Some(Rows { ptr: scores.as_ptr(), stride: KEY_BLOCK })
    }
}

/// What the scores of a row start from: the mask in base 2, or 0; and -inf past the last key.
///
/// # Safety
/// `width` elements of the mask from `at` on are readable.
#[inline(always)]
unsafe fn start_scores<S: Simd>(s: S, mask: Option<Matrix>, at: (usize, usize), to: &mut [f32], width: usize) {
    let (real, rest) = to.split_at_mut(width);
    rest.fill(f32::NEG_INFINITY);
    match mask {
        // SAFETY: the caller's contract.
        Some(mask) => unsafe {
            mask.read(
                s,
                at,
                real,
                #[inline(always)]
                |x| s.mul(x, s.splat(LOG2_E)),
            );
        },
        None => real.fill(0.0),
    }
}
