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
use scoregraph_simd::{Dots, Simd};
use tile::Tile;

/// Room for words from the start of a cache line, so that no vector lies across two.
#[repr(align(64))]
pub(crate) struct Aligned<T, const N: usize>([std::mem::MaybeUninit<T>; N]);

impl<T, const N: usize> Aligned<T, N> {
    #[inline(always)]
    pub(crate) fn new() -> Aligned<T, N> {
        Aligned([const { std::mem::MaybeUninit::uninit() }; N])
    }

    #[inline(always)]
    pub(crate) fn as_mut_ptr(&mut self) -> *mut T {
        self.0.as_mut_ptr().cast()
    }
}

/// Rows that a product goes through at most.
pub(crate) const MOST_ROWS: usize = 72;
/// The most panels of a register tile.
const WIDTH: usize = 3;
/// The most elements of one.
pub(crate) const MOST_TILE: usize = 28 * PANEL;

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

/// `c[rows, 16 * panels] = a[rows, k] b`; `b` is `[panels][k][16]`, its panels `b.stride` elements apart.
///
/// # Safety
/// All of these elements are readable, those of `c` writable, `c` overlaps neither `a` nor `b`, and there are at most
/// [`MOST_ROWS`] rows.
#[inline(always)]
pub(crate) unsafe fn multiply<S: Simd>(
    s: S,
    a: Rows<*const f32>,
    rows: usize,
    b: Rows<*const f32>,
    panels: usize,
    k: usize,
    c: Rows<*mut f32>,
) {
    struct Store(Rows<*mut f32>);
    impl<S: Simd> Finish<S> for Store {
        #[inline(always)]
        unsafe fn finish(&mut self, s: S, at: Span, sums: Rows<*const u32>) {
            for row in 0..at.rows {
                for col in (0..at.panels * PANEL).step_by(S::LANES) {
                    // SAFETY: the sums are those of the tile, which c has.
                    unsafe {
                        let to = self.0.ptr.add((at.row + row) * self.0.stride + at.panel * PANEL + col);
                        s.store(to, s.load(sums.ptr.add(row * sums.stride + col).cast()));
                    }
                }
            }
        }
    }
    let of = Multiply {
        a: Rows { ptr: a.ptr.cast(), stride: 4 * a.stride },
        rows,
        b: Panels::words(b.ptr.cast(), b.stride / PANEL),
        panels: 0..panels,
        words: 0..k,
    };
    // SAFETY: the same elements, of which a word each.
    unsafe { multiply_words(s, Float, &of, &mut Store(c)) };
}

/// A product: `a[rows, words] b[words, panels]`, for some panels and words of `b`. Whoever computes it promises that all of
/// its elements are readable, and that there are at most [`MOST_ROWS`] rows.
pub(crate) struct Multiply {
    /// Rows of bytes, which begin with the first of the words.
    pub(crate) a: Rows<*const u8>,
    pub(crate) rows: usize,
    pub(crate) b: Panels,
    pub(crate) panels: Range<usize>,
    pub(crate) words: Range<usize>,
}

/// Where a tile is: its first row, and its first panel counted from the product's first one.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) row: usize,
    pub(crate) rows: usize,
    pub(crate) panel: usize,
    pub(crate) panels: usize,
}

/// What becomes of a product, a tile at a time. Methods must be `#[inline(always)]`.
pub(crate) trait Finish<S: Simd> {
    /// The memory that a tile will be written to, if there is some that is worth asking for while it is computed: rows of
    /// float32.
    #[inline(always)]
    fn ahead(&self, _: Span) -> Option<Rows<*const f32>> {
        None
    }

    /// Takes the sums of a tile, a word each.
    ///
    /// # Safety
    /// They are readable: `rows` rows of `panels` panels.
    unsafe fn finish(&mut self, s: S, at: Span, sums: Rows<*const u32>);
}

/// A product of words that are four bytes, of which products in pairs add up in 16 bits `chain` times; 0: they need 32.
///
/// # Safety
/// See [`Multiply`].
#[inline(always)]
pub(crate) unsafe fn multiply_bytes<S: Dots>(s: S, chain: usize, of: &Multiply, finish: &mut impl Finish<S>) {
    // SAFETY: the caller's contract.
    unsafe {
        if const { S::VNNI } {
            return multiply_words(s, Exact, of, finish);
        }
        match chain {
            0 => multiply_words(s, Exact, of, finish),
            1 => multiply_words(s, Singles, of, finish),
            2 | 3 => multiply_words(s, Pairs, of, finish),
            chain => multiply_words(s, Chains(chain), of, finish),
        }
    }
}

/// A product.
///
/// # Safety
/// See [`Multiply`].
#[inline(always)]
pub(crate) unsafe fn multiply_words<S: Simd, P: Product<S>>(
    s: S,
    product: P,
    of: &Multiply,
    finish: &mut impl Finish<S>,
) {
    let Multiply { a, rows, b, panels, words, .. } = of;
    let rows = *rows;
    let mut room = Aligned::<u32, { MOST_ROWS * WIDTH * PANEL }>::new();
    let room = Rows { ptr: room.as_mut_ptr(), stride: WIDTH * PANEL };
    // Many rows take the tiles of two panels, which read least of B for what they compute.
    let tall = even_share(rows, P::TALL_ROWS) > P::MOST_ROWS;
    let most_panels = if tall { 2 } else { P::MOST_PANELS[rows.min(P::MOST_ROWS)] };
    let mut panel = panels.start;
    while panel < panels.end {
        // Three that are left go together: a tile of one panel would load more than it multiplies.
        let left = panels.end - panel;
        let width = if tall && left == 3 { 3 } else { even_share(left, most_panels) };
        let most_rows = if tall && width == 2 { P::TALL_ROWS } else { P::MOST_ROWS };
        let most_words = b.most_words(width, rows <= most_rows);
        let mut start = words.start;
        // At least one pass, so that sums are 0 where there are no words.
        loop {
            let depth = most_words.min(words.end - start);
            let last = start + depth == words.end;
            // SAFETY: panels and words that b has; the caller's contract.
            let block = unsafe { b.block(s, panel..panel + width, start..start + depth) };
            let (mut row, mut tile) = (0, 0);
            while row < rows {
                let height = even_share(rows - row, most_rows);
                let at = Span { row, rows: height, panel: panel - panels.start, panels: width };
                // Where a tile is not finished, its sums are what is close by.
                let ahead = if last { finish.ahead(at) } else { None };
                let ahead = ahead.unwrap_or(Rows { ptr: room.ptr.cast_const().cast(), stride: 0 });
                // The first tiles ask for the panels that come after these, one of them each: they may be far away.
                let later = if tile < width { b.place(panel + width + tile, start) } else { None };
                let later = later.unwrap_or(block.ptr);
                // SAFETY: `row + height <= rows`, which the room has; the block holds `width` panels of `depth` words.
                unsafe {
                    // Sums that one pass completes may all lie in the same place, which stays in the first-level cache.
                    let first = if last && start == words.start { 0 } else { row };
                    let c = Rows { ptr: room.ptr.add(first * room.stride), ..room };
                    let a = Rows { ptr: a.ptr.add(row * a.stride + 4 * (start - words.start)), ..*a };
                    let accumulate = start > words.start;
                    product.tile(
                        s,
                        &Tile { rows: height, panels: width, a, b: block, k: depth, c, accumulate, ahead, later },
                    );
                    if last {
                        finish.finish(s, at, Rows { ptr: c.ptr.cast_const(), stride: c.stride });
                    }
                }
                row += height;
                tile += 1;
            }
            start += depth;
            if last {
                break;
            }
        }
        panel += width;
    }
}
