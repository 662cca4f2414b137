//! `copy`: from any strided window to another: permutes, slices, concatenates, expands.

use crate::{Context, Layout, View, ViewMut};

/// Elements a tile should copy at least, so that handing it out costs little.
const TILE_ELEMENTS: usize = 8192;
/// Side of the squares in which a transposition goes, so that lines of both sides stay in the cache.
const SQUARE: usize = 16;

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
    let per_tile = (TILE_ELEMENTS / to.cols).clamp(1, to.rows);
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
            unsafe { copy_rows(source, &from, target, &to, top, bottom) };
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

/// Copies rows `top..bottom` of a plane.
///
/// # Safety
/// Those rows of the plane at `source` are readable, at `target` writable, and the two do not overlap.
unsafe fn copy_rows<T: Copy>(source: *const T, from: &Planes, target: *mut T, to: &Planes, top: usize, bottom: usize) {
    let adjacent = from.col_stride == 1 && to.col_stride == 1;
    // SAFETY: all offsets are those of elements in the rows; the caller's contract.
    unsafe {
        if adjacent {
            for row in top..bottom {
                let (source, target) = (source.add(row * from.row_stride), target.add(row * to.row_stride));
                std::ptr::copy_nonoverlapping(source, target, to.cols);
            }
            return;
        }
        for left in (0..to.cols).step_by(SQUARE) {
            let right = (left + SQUARE).min(to.cols);
            for row in top..bottom {
                let (source, target) = (source.add(row * from.row_stride), target.add(row * to.row_stride));
                for col in left..right {
                    target.add(col * to.col_stride).write(*source.add(col * from.col_stride));
                }
            }
        }
    }
}
