//! What kernels over rows share: tiles of whole rows, folds over a row, and a map over a row.

use std::ops::Range;

use scoregraph_simd::{Disjoint, Kernel, Simd};

use crate::{Context, Layout};

/// Elements a tile should go through at least, so that handing it out costs little: work of one tile stays on its thread.
const TILE_ELEMENTS: usize = 2048;

/// Splits `y` into tiles of whole rows, each the result of `cost` elements, and runs `make(first row, rows)` on each.
pub(crate) fn for_rows<'a, K: Kernel<Output = ()>>(
    ctx: &Context,
    cols: usize,
    cost: usize,
    y: &'a mut [f32],
    make: impl Fn(usize, &'a mut [f32]) -> K + Sync,
) {
    if y.is_empty() {
        return;
    }
    let rows = y.len() / cols;
    let y = Disjoint::new(y);
    for_row_ranges(ctx, rows, cost, |range, _| {
        let first = range.start;
        // SAFETY: tiles are different, so their rows are; the memory is borrowed for 'a by the caller.
        let part = unsafe { y.part(first * cols..range.end * cols) };
        ctx.isa.dispatch(make(first, part));
    });
}

/// Splits `rows` rows, each the result of `cost` elements, into tiles and calls `f(rows of the tile, thread)` on each.
pub(crate) fn for_row_ranges(ctx: &Context, rows: usize, cost: usize, f: impl Fn(Range<usize>, usize) + Sync) {
    let tiles = row_tiles(rows, cost, ctx.pool.threads());
    ctx.pool.run(tiles, &|tile, thread| f(rows * tile / tiles..rows * (tile + 1) / tiles, thread));
}

/// Into how many tiles of nearly as many rows they go: as many for each thread, if there is more than one, so that threads
/// have the same rows from call to call.
fn row_tiles(rows: usize, cost: usize, threads: usize) -> usize {
    let tiles = rows.saturating_mul(cost.max(1)).div_ceil(TILE_ELEMENTS).min(rows);
    if tiles > 1 { tiles.next_multiple_of(threads).min(rows) } else { tiles }
}

/// Where the rows of a window lie: adjacent elements along its last dimension.
#[derive(Clone, Copy)]
pub(crate) struct RowStarts {
    /// Their number.
    pub(crate) rows: usize,
    /// Their length.
    pub(crate) cols: usize,
    /// How far they are apart, if evenly.
    stride: Option<usize>,
    layout: Layout,
}

impl RowStarts {
    /// None if elements of a row are not adjacent.
    pub(crate) fn new(layout: &Layout) -> Option<RowStarts> {
        let &cols = layout.shape().last()?;
        if cols > 1 && layout.strides().last() != Some(&1) {
            return None;
        }
        let stride = layout.as_rows().map(|(_, _, stride)| stride);
        Some(RowStarts { rows: layout.len().checked_div(cols).unwrap_or(0), cols, stride, layout: *layout })
    }

    /// The first element of row `m`.
    #[inline(always)]
    pub(crate) fn at(&self, m: usize) -> usize {
        match self.stride {
            Some(stride) => m * stride,
            None => self.layout.offset(m * self.cols),
        }
    }
}

/// Folds a row into the vectors of a state, in four chains that `join` brings together in one fixed order.
/// Lanes past the end of the row read `fill`.
#[inline(always)]
pub(crate) fn fold<S: Simd, const N: usize>(
    s: S,
    row: &[f32],
    fill: S::F,
    init: [S::F; N],
    step: impl Fn([S::F; N], S::F) -> [S::F; N],
    join: impl Fn([S::F; N], [S::F; N]) -> [S::F; N],
) -> [S::F; N] {
    let mut chains = [init; 4];
    let mut blocks = row.chunks_exact(4 * S::LANES);
    for block in &mut blocks {
        for (i, chain) in chains.iter_mut().enumerate() {
            // SAFETY: the block has four vectors.
            *chain = step(*chain, unsafe { s.load(block.as_ptr().add(i * S::LANES)) });
        }
    }
    for rest in blocks.remainder().chunks(S::LANES) {
        // SAFETY: only the elements of `rest` are read.
        chains[0] = step(chains[0], unsafe { s.load_or(rest.as_ptr(), rest.len(), fill) });
    }
    join(join(chains[0], chains[1]), join(chains[2], chains[3]))
}

/// The sum of `f` over a row whose lanes past the end read `fill`.
#[inline(always)]
pub(crate) fn sum<S: Simd>(s: S, row: &[f32], fill: S::F, f: impl Fn(S::F) -> S::F) -> f32 {
    let [total] = fold(
        s,
        row,
        fill,
        [s.splat(0.0)],
        #[inline(always)]
        |[a], x| [s.add(a, f(x))],
        #[inline(always)]
        |[a], [b]| [s.add(a, b)],
    );
    s.reduce_add(total)
}

/// The largest element of a row, -inf for none; meaningless if there is a NaN.
#[inline(always)]
pub(crate) fn max<S: Simd>(s: S, row: &[f32]) -> f32 {
    let low = s.splat(f32::NEG_INFINITY);
    let [largest] = fold(
        s,
        row,
        low,
        [low],
        #[inline(always)]
        |[a], x| [s.max(a, x)],
        #[inline(always)]
        |[a], [b]| [s.max(a, b)],
    );
    s.reduce_max(largest)
}

/// What [`map_with`] does to each vector of a row, from element `at` on; `n` lanes are real.
///
/// A trait or a closure, it must be `#[inline(always)]`: anything as large as an activation otherwise becomes a function of
/// its own, which is compiled without the features of the instruction set and 20 times slower.
pub(crate) trait MapVector<S: Simd> {
    fn apply(&self, s: S, at: usize, n: usize, x: S::F) -> S::F;
}

/// `y[i] = f(i, x[i])` over a row, a vector at a time.
#[inline(always)]
pub(crate) fn map_with<S: Simd>(s: S, x: &[f32], y: &mut [f32], f: &impl MapVector<S>) {
    assert_eq!(x.len(), y.len());
    let whole = x.len() - x.len() % S::LANES;
    // SAFETY: `i + LANES <= whole <= len` in the loop; the tail touches `len - whole` elements.
    unsafe {
        for i in (0..whole).step_by(S::LANES) {
            s.store(y.as_mut_ptr().add(i), f.apply(s, i, S::LANES, s.load(x.as_ptr().add(i))));
        }
        let rest = x.len() - whole;
        if rest > 0 {
            let v = f.apply(s, whole, rest, s.load_first(x.as_ptr().add(whole), rest));
            s.store_first(y.as_mut_ptr().add(whole), v, rest);
        }
    }
}

/// [`map_with`] of a closure, which the caller marks `#[inline(always)]`; see [`MapVector`] for why.
#[inline(always)]
pub(crate) fn map<S: Simd>(s: S, x: &[f32], y: &mut [f32], f: impl Fn(usize, usize, S::F) -> S::F) {
    map_with(s, x, y, &Closure(f));
}

/// A closure as a [`MapVector`].
struct Closure<F>(F);

impl<S: Simd, F: Fn(usize, usize, S::F) -> S::F> MapVector<S> for Closure<F> {
    #[inline(always)]
    fn apply(&self, _: S, at: usize, n: usize, x: S::F) -> S::F {
        self.0(at, n, x)
    }
}

#[cfg(test)]
mod tests {
    use super::row_tiles;

    #[test]
    fn threads_have_as_many_tiles_as_each_other_and_the_same_rows_whatever_they_cost() {
        for threads in [1, 2, 3, 8] {
            for rows in [1usize, 2, 15, 16, 64, 145, 256, 4096] {
                for cost in [0, 1, 256, 384, 1536, 100_000] {
                    let tiles = row_tiles(rows, cost, threads);
                    assert!((1..=rows).contains(&tiles));
                    if tiles == 1 || tiles == rows {
                        continue;
                    }
                    assert!(tiles.is_multiple_of(threads), "{tiles} tiles of {rows} rows on {threads} threads");
                    for thread in 0..=threads {
                        let first = tiles * thread / threads;
                        assert_eq!(rows * first / tiles, rows * thread / threads);
                    }
                }
            }
        }
    }
}
