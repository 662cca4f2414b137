//! `copy`: from any strided window to another: permutes, slices, concatenates, expands.

use std::ops::Range;

use scoregraph_simd::{Kernel, Simd};

use crate::{Context, Layout, View, ViewMut};

/// Elements a tile should copy at least, so that handing it out costs little.
const TILE_ELEMENTS: usize = 8192;
/// Side of the squares in which a transposition goes, so that lines of both sides stay in the cache.
const SQUARE: usize = 16;
/// Side of the squares that are transposed in registers.
const BLOCK: usize = 8;

/// Copies `x` to `y`, which has the same shape and does not overlap it.
///
/// # Panics
/// If the shapes differ.
pub fn copy<T: Copy + Send + Sync>(ctx: &Context, x: &View<T>, y: &mut ViewMut<T>) {
    assert_eq!(x.shape(), y.shape());
    if y.layout().len() == 0 {
        return;
    }
    let [from, to] = Layout::merge([*x.layout(), *y.layout()]).map(|layout| Planes::new(&layout));
    let y: &ViewMut<T> = y;
    let planes = to.outer.len();
    // Squares are not cut.
    let side = if from.col_stride == 1 && to.col_stride == 1 { 1 } else { SQUARE };
    let per_tile = (TILE_ELEMENTS / to.cols).max(1).next_multiple_of(side).min(to.rows);
    let tiles_per_plane = to.rows.div_ceil(per_tile);
    // Small planes go many to a tile.
    let planes_per_tile = (TILE_ELEMENTS / (to.rows * to.cols)).clamp(1, planes);
    ctx.pool.run(planes.div_ceil(planes_per_tile) * tiles_per_plane, &|tile, _| {
        let first = tile / tiles_per_plane * planes_per_tile;
        let top = tile % tiles_per_plane * per_tile;
        let bottom = (top + per_tile).min(to.rows);
        for plane in first..(first + planes_per_tile).min(planes) {
            let source = x.as_ptr().wrapping_add(from.outer.offset(plane));
            let target = y.as_mut_ptr().wrapping_add(to.outer.offset(plane));
            // SAFETY: rows `top..bottom` of a plane of both views; every plane's row is in one tile.
            unsafe { copy_rows(ctx, source, &from, target, &to, top..bottom) };
        }
    });
}

/// A layout as planes: its last two dimensions, and the others.
struct Planes {
    outer: Layout,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl Planes {
    fn new(layout: &Layout) -> Planes {
        let (shape, strides) = (layout.shape(), layout.strides());
        let cols = shape.len() - 1;
        let outer = cols.saturating_sub(1);
        let (rows, row_stride) = if cols > 0 { (shape[outer], strides[outer]) } else { (1, 0) };
        Planes {
            outer: Layout::new(&shape[..outer], &strides[..outer]).expect("part of a valid layout"),
            rows,
            cols: shape[cols],
            row_stride,
            col_stride: strides[cols],
        }
    }
}

/// Copies some rows of a plane.
///
/// # Safety
/// Those rows of the plane at `source` are readable, at `target` writable, and the two do not overlap.
unsafe fn copy_rows<T: Copy>(
    ctx: &Context,
    source: *const T,
    from: &Planes,
    target: *mut T,
    to: &Planes,
    rows: Range<usize>,
) {
    // SAFETY: all offsets are those of elements in the rows; the caller's contract.
    unsafe {
        if from.col_stride == 1 && to.col_stride == 1 {
            for row in rows {
                let (source, target) = (source.add(row * from.row_stride), target.add(row * to.row_stride));
                std::ptr::copy_nonoverlapping(source, target, to.cols);
            }
            return;
        }
        let words = size_of::<T>() == size_of::<f32>();
        let (x, y) = (source.cast::<f32>(), target.cast::<f32>());
        if words && from.row_stride == 1 && to.col_stride == 1 {
            let strides = (from.col_stride, to.row_stride);
            return ctx.isa.dispatch(Transpose { x, y, strides, adjacent: rows, spread: 0..to.cols });
        }
        if words && from.col_stride == 1 && to.row_stride == 1 {
            let strides = (from.row_stride, to.col_stride);
            return ctx.isa.dispatch(Transpose { x, y, strides, adjacent: 0..to.cols, spread: rows });
        }
        for left in (0..to.cols).step_by(SQUARE) {
            let right = (left + SQUARE).min(to.cols);
            for row in rows.clone() {
                let (source, target) = (source.add(row * from.row_stride), target.add(row * to.row_stride));
                for col in left..right {
                    target.add(col * to.col_stride).write(*source.add(col * from.col_stride));
                }
            }
        }
    }
}

/// `y[a * strides.1 + s] = x[s * strides.0 + a]` for every a of `adjacent` and s of `spread`, all of which can be read and
/// written.
pub(crate) struct Transpose {
    pub(crate) x: *const f32,
    pub(crate) y: *mut f32,
    pub(crate) strides: (usize, usize),
    pub(crate) adjacent: Range<usize>,
    pub(crate) spread: Range<usize>,
}

impl Kernel for Transpose {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Transpose { x, y, strides, adjacent, spread } = self;
        // Rows that a large power of two separates compete for few cache lines: only a block's of them are kept at a time.
        let (a_step, s_step) =
            if strides.1.trailing_zeros() > strides.0.trailing_zeros() { (BLOCK, SQUARE) } else { (SQUARE, BLOCK) };
        for first_a in adjacent.clone().step_by(a_step) {
            for first_s in spread.clone().step_by(s_step) {
                let (end_a, end_s) = ((first_a + a_step).min(adjacent.end), (first_s + s_step).min(spread.end));
                let blocks = (first_a..end_a).step_by(BLOCK).flat_map(
                    #[inline(always)]
                    |a| (first_s..end_s).step_by(BLOCK).map(move |s| (a, s)),
                );
                for (a, s) in blocks {
                    let (x, y) = (x.wrapping_add(s * strides.0 + a), y.wrapping_add(a * strides.1 + s));
                    let (wide, high) = (BLOCK.min(end_a - a), BLOCK.min(end_s - s));
                    // SAFETY: the elements a.. and s.. of the ranges.
                    unsafe {
                        if (wide, high) == (BLOCK, BLOCK) {
                            simd.transpose_8x8(x, strides.0, y, strides.1);
                            continue;
                        }
                        for a in 0..wide {
                            for s in 0..high {
                                y.add(a * strides.1 + s).write(*x.add(s * strides.0 + a));
                            }
                        }
                    }
                }
            }
        }
    }
}
