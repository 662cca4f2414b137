//! The matrix product under `linear`, `matmul` and `attention`: C = A B, with B packed in panels of 16 columns.
//!
//! A stays row-major and is broadcast element by element; a tile of C lives in registers while k runs. Every element of C
//! is one chain of multiply-adds in the order of k, whatever the tile, so all splits give the same bits.

mod pack;
mod tile;

pub(crate) use pack::{PANEL, pack, packed_len};
use scoregraph_simd::Simd;

/// Rows of B that a pass goes through: three panels of them (24 KiB) stay in the first-level cache while the rows of A
/// go by.
const DEPTH: usize = 128;

/// Rows of an evenly spaced matrix whose elements are adjacent.
#[derive(Clone, Copy)]
pub(crate) struct Rows<P> {
    pub(crate) ptr: P,
    pub(crate) stride: usize,
}

/// `ceil(total / parts)` for the fewest parts of at most `most`: tails are shared out instead of left to the end.
#[inline(always)]
pub(crate) fn even_share(total: usize, most: usize) -> usize {
    total.div_ceil(total.div_ceil(most))
}

/// `c[rows, 16 * panels] = a[rows, k] b`, or `+=` if `accumulate`; `b` is `[panels][k][16]`, its panels `panel_stride`
/// elements apart.
///
/// # Safety
/// All of these elements are readable, those of `c` writable, and `c` overlaps neither `a` nor `b`.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "three matrices with their sizes")]
pub(crate) unsafe fn multiply<S: Simd>(
    s: S,
    a: Rows<*const f32>,
    rows: usize,
    b: Rows<*const f32>,
    panels: usize,
    k: usize,
    c: Rows<*mut f32>,
    accumulate: bool,
) {
    let mut start = 0;
    // At least one pass, so that c is set to 0 where k is 0.
    while start == 0 || start < k {
        let depth = DEPTH.min(k - start);
        let accumulate = accumulate || start > 0;
        let most_rows = tile::most_rows::<S>();
        let width = tile::most_panels::<S>(rows.min(most_rows));
        let mut panel = 0;
        while panel < panels {
            let width = even_share(panels - panel, width);
            let mut row = 0;
            while row < rows {
                let height = even_share(rows - row, most_rows);
                // SAFETY: `row + height <= rows`, `panel + width <= panels`, `start + depth <= k`.
                unsafe {
                    let a = Rows { ptr: a.ptr.add(row * a.stride + start), ..a };
                    let b = Rows { ptr: b.ptr.add(panel * b.stride + start * PANEL), ..b };
                    let c = Rows { ptr: c.ptr.add(row * c.stride + panel * PANEL), ..c };
                    tile::multiply(s, height, width, a, b, depth, c, accumulate);
                }
                row += height;
            }
            panel += width;
        }
        start += DEPTH;
    }
}
