//! The matrix product under `linear`, `matmul` and `attention`: C = A B, with B packed in panels of 16 columns.
//!
//! A stays row-major and is broadcast word by word; a tile of C lives in registers while k runs. A word of A and B is one
//! float32, two bf16 or four bytes ([`Product`]). Every element of C is one chain of sums in the order of k, whatever the
//! tile, so all splits give the same bits.

mod pack;
mod panels;
mod product;
mod tile;

pub(crate) use pack::{PANEL, pack, packed_len};
pub(crate) use panels::{BLOCK_WORDS, Panels, Storage, flush_subnormal};
pub(crate) use product::{Bf16, Chains, Exact, Float, Pairs, Product, Singles};
use scoregraph_simd::Simd;

/// Words of k that a pass goes through: three panels of them (24 KiB) stay in the first-level cache while the rows of A
/// go by. Even, so that pairs are not torn apart.
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
    let a = Rows { ptr: a.ptr.cast(), stride: 4 * a.stride };
    let b = Panels::words(b.ptr.cast(), b.stride / PANEL);
    let c = Rows { ptr: c.ptr.cast(), stride: c.stride };
    // SAFETY: the same elements, of which a word each.
    unsafe { multiply_words(s, Float, a, rows, &b, 0..panels, 0..k, c, accumulate) };
}

/// `c[rows, 16 * panels] = a[rows, words] b[words, panels]`, or `+=` if `accumulate`, for some panels and words of `b`.
///
/// The rows of `a` are `stride` bytes apart and begin with the first of the words; c has a word an element.
///
/// # Safety
/// All of these elements are readable, those of `c` writable, and `c` overlaps neither `a` nor `b`.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "three matrices with their sizes")]
pub(crate) unsafe fn multiply_words<S: Simd, P: Product<S>>(
    s: S,
    product: P,
    a: Rows<*const u8>,
    rows: usize,
    b: &Panels,
    panels: std::ops::Range<usize>,
    words: std::ops::Range<usize>,
    c: Rows<*mut u32>,
    accumulate: bool,
) {
    let most_rows = P::most_rows();
    let mut start = words.start;
    // At least one pass, so that c is set to 0 where k is 0.
    while start == words.start || start < words.end {
        let depth = DEPTH.min(words.end - start);
        let accumulate = accumulate || start > words.start;
        let most_panels = P::most_panels(rows.min(most_rows));
        let mut panel = panels.start;
        while panel < panels.end {
            let width = even_share(panels.end - panel, most_panels);
            // SAFETY: panels and words that b has; the caller's contract.
            let block = unsafe { b.block(s, panel..panel + width, start..start + depth) };
            let mut row = 0;
            while row < rows {
                let height = even_share(rows - row, most_rows);
                // SAFETY: `row + height <= rows`, and the block holds `width` panels of `depth` words.
                unsafe {
                    let a = Rows { ptr: a.ptr.add(row * a.stride + 4 * (start - words.start)), ..a };
                    let c = Rows { ptr: c.ptr.add(row * c.stride + (panel - panels.start) * PANEL), ..c };
                    tile::multiply(s, product, height, width, a, block, depth, c, accumulate);
                }
                row += height;
            }
            panel += width;
        }
        start += DEPTH;
    }
}
