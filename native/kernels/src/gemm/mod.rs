//! The matrix product under `linear`, `matmul` and `attention`: C = A B, with B packed in panels of 16 columns.
//!
//! A stays row-major and is broadcast word by word; a tile of C lives in registers while k runs. A word of A and B is one
//! float32, two bf16 or four bytes ([`Product`]). Every element of C is one chain of sums in the order of k, whatever the
//! tile, so all splits give the same bits.

mod pack;
mod panels;
mod product;
mod tile;

use std::ops::Range;

pub(crate) use pack::{PANEL, pack, packed_len};
pub(crate) use panels::{BLOCK_WORDS, Panels, Storage, flush_subnormal};
pub(crate) use product::{Bf16, Exact, Float, Product};
use product::{Chains, Pairs, Singles};
use scoregraph_simd::{DotKernel, Dots, Kernel, Simd};

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
    let of = Multiply {
        a: Rows { ptr: a.ptr.cast(), stride: 4 * a.stride },
        rows,
        b: Panels::words(b.ptr.cast(), b.stride / PANEL),
        panels: 0..panels,
        words: 0..k,
        c: Rows { ptr: c.ptr.cast(), stride: c.stride },
        accumulate,
    };
    // SAFETY: the same elements, of which a word each.
    unsafe { multiply_floats(s, of) };
}

/// A product: `c[rows, 16 * panels] = a[rows, words] b[words, panels]`, or `+=` if `accumulate`, for some panels and words of
/// `b`. Whoever computes it promises that all of its elements are readable, those of `c` writable, and that `c` overlaps
/// neither `a` nor `b`.
#[derive(Clone)]
pub(crate) struct Multiply {
    /// Rows of bytes, which begin with the first of the words.
    pub(crate) a: Rows<*const u8>,
    pub(crate) rows: usize,
    pub(crate) b: Panels,
    pub(crate) panels: Range<usize>,
    pub(crate) words: Range<usize>,
    /// A word an element.
    pub(crate) c: Rows<*mut u32>,
    pub(crate) accumulate: bool,
}

/// A product of words that are float32.
///
/// # Safety
/// See [`Multiply`].
#[inline(always)]
pub(crate) unsafe fn multiply_floats<S: Simd>(s: S, of: Multiply) {
    struct Floats(Multiply);
    impl Kernel for Floats {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            // SAFETY: the contract of `multiply_floats`, which alone makes one.
            unsafe { multiply_words(s, Float, &self.0) };
        }
    }
    // In a function of its own, which all kernels share: its many sizes of tiles take long to compile.
    s.call(Floats(of));
}

/// A product of words that are four bytes, of which products in pairs add up in 16 bits `chain` times; 0: they need 32.
///
/// # Safety
/// See [`Multiply`].
#[inline(always)]
pub(crate) unsafe fn multiply_bytes<S: Dots>(s: S, chain: usize, of: Multiply) {
    struct Bytes(usize, Multiply);
    impl DotKernel for Bytes {
        type Output = ();

        #[inline(always)]
        fn run<S: Dots>(self, s: S) {
            let Bytes(chain, of) = &self;
            // SAFETY: the contract of `multiply_bytes`, which alone makes one.
            unsafe {
                if const { S::VNNI } {
                    return multiply_words(s, Exact, of);
                }
                match *chain {
                    0 => multiply_words(s, Exact, of),
                    1 => multiply_words(s, Singles, of),
                    2 | 3 => multiply_words(s, Pairs, of),
                    chain => multiply_words(s, Chains(chain), of),
                }
            }
        }
    }
    s.call_dots(Bytes(chain, of));
}

/// A product.
///
/// # Safety
/// See [`Multiply`].
#[inline(always)]
pub(crate) unsafe fn multiply_words<S: Simd, P: Product<S>>(s: S, product: P, of: &Multiply) {
    let Multiply { a, rows, b, panels, words, c, accumulate } = of.clone();
    let most_rows = P::MOST_ROWS;
    let mut start = words.start;
    // At least one pass, so that c is set to 0 where k is 0.
    while start == words.start || start < words.end {
        let depth = DEPTH.min(words.end - start);
        let accumulate = accumulate || start > words.start;
        let most_panels = P::MOST_PANELS[rows.min(most_rows)];
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
