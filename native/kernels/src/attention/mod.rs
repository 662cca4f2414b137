//! `attention`: `softmax(scale * q kᵀ + mask) v`, head by head, without storing all scores.

mod float;
mod matrix;
mod product;
mod weights;

use scoregraph_simd::Disjoint;

use crate::{Context, View, ViewMut};
use matrix::Matrix;

/// The arithmetic of the two products (docs/plan-format.md, Formats).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Operands and sums in float32.
    #[default]
    F32,
    /// Operands and weights rounded to bf16, sums in float32.
    Bf16,
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

/// How many floats of scratch [`attention`] needs for `keys` keys of `dim` elements.
pub fn attention_scratch(keys: usize, dim: usize, _format: Format, threads: usize) -> usize {
    float::scratch(keys, dim) * threads
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
    let per_thread = attention_scratch(keys, dim, op.format, 1);
    assert!(scratch.len() >= threads * per_thread);
    let scratch = Disjoint::new(scratch);
    let y: &ViewMut = y;

    let parts = parts_of_head(n * heads, queries, threads);
    let rows = queries.div_ceil(parts).next_multiple_of(float::ROWS);
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
            scale: op.scale,
            queries: (first, (first + rows).min(queries)),
            keys,
            dim,
        };
        match op.format {
            Format::F32 => ctx.isa.dispatch(float::Float::<false> { tile, scratch }),
            Format::Bf16 => ctx.isa.dispatch(float::Float::<true> { tile, scratch }),
        }
    });
}

/// Into how many tiles the rows of a head go: each packs the keys and values again, so heads are split only where that
/// costs less than threads that wait. How rows are split changes no bits.
fn parts_of_head(heads: usize, queries: usize, threads: usize) -> usize {
    /// Query rows whose products take as long as packing.
    const PACKING: usize = 12;
    let most = if threads == 1 { 1 } else { queries.div_ceil(float::ROWS).min(4 * threads) };
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
    scale: f32,
    queries: (usize, usize),
    keys: usize,
    dim: usize,
}
