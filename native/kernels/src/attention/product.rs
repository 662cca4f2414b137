//! The two matrix products of attention: a tile of a result in registers, begun and finished by who asks for it.

use scoregraph_simd::Simd;

use crate::gemm::{PANEL, Product, Rows, even_share};

/// Where the sums of a product, vectors of `T`, come from and where they go, so that neither needs a pass of its own.
///
/// Its methods must be `#[inline(always)]`.
pub(super) trait Sums<S: Simd, T> {
    /// What vectors `0..V` of a row start from, the first at column `col`.
    fn start<const V: usize>(&self, s: S, row: usize, col: usize) -> [T; V];
    /// Takes them when they are complete.
    fn finish<const V: usize>(&mut self, s: S, row: usize, col: usize, sums: [T; V]);
}

/// `a b` for `rows` rows of `a`, each of `k` words and `a.stride` bytes apart, and columns `0..16 * panels` of `b`, which is
/// `[panels][k][16]` words, its panels `b.stride` words apart. A word is what `product` makes of it.
///
/// # Safety
/// Those words of `a` and `b` are readable; so is and may be written what `sums` accesses for these rows and columns.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "three matrices with their sizes")]
pub(super) unsafe fn multiply<S: Simd, P: Product<S>>(
    s: S,
    product: P,
    a: Rows<*const u8>,
    rows: usize,
    b: Rows<*const u32>,
    panels: usize,
    k: usize,
    sums: &mut impl Sums<S, P::Sum>,
) {
    /// Arms of tile sizes, `rows x panels => vectors in a row`: the first that fits what is left is taken.
    macro_rules! tiles {
        ($row:ident, $panel:ident, $width:ident: $($rows:literal x $panels:literal => $vectors:literal),* $(,)?) => {
            $(if const { $rows <= P::MOST_ROWS && $panels <= P::MOST_PANELS[$rows] } && $width == $panels && rows - $row >= $rows {
                // SAFETY: `row + ROWS <= rows` and `panel + width <= panels`; the caller's contract.
                unsafe {
                    let a = Rows { ptr: a.ptr.add($row * a.stride), ..a };
                    let b = Rows { ptr: b.ptr.add($panel * b.stride), ..b };
                    tile::<S, P, $rows, $vectors>(s, product, a, b, k, ($row, $panel * PANEL), sums);
                }
                $row += $rows;
                continue;
            })*
        };
    }
    let most = P::MOST_PANELS[rows.min(P::MOST_ROWS)];
    let mut panel = 0;
    while panel < panels {
        let width = even_share(panels - panel, most);
        let mut row = 0;
        while row < rows {
            if S::LANES == 16 {
                tiles! { row, panel, width:
                    8 x 3 => 3, 8 x 2 => 2, 8 x 1 => 1, 4 x 3 => 3, 4 x 2 => 2, 4 x 1 => 1,
                    1 x 3 => 3, 1 x 2 => 2, 1 x 1 => 1,
                }
            } else if S::LANES == 8 {
                tiles! { row, panel, width:
                    6 x 1 => 2, 4 x 1 => 2, 3 x 2 => 4, 3 x 1 => 2, 2 x 3 => 6, 2 x 2 => 4, 2 x 1 => 2,
                    1 x 3 => 6, 1 x 2 => 4, 1 x 1 => 2,
                }
            } else {
                tiles! { row, panel, width: 3 x 1 => 16, 1 x 1 => 16 }
            }
            unreachable!("a tile of one row fits wherever a row is left");
        }
        panel += width;
    }
}

/// One tile: `ROWS` rows by `VECTORS` vectors, of which `(row, col)` is the first.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn tile<S: Simd, P: Product<S>, const ROWS: usize, const VECTORS: usize>(
    s: S,
    product: P,
    a: Rows<*const u8>,
    b: Rows<*const u32>,
    k: usize,
    (row, col): (usize, usize),
    sums: &mut impl Sums<S, P::Sum>,
) {
    const { assert!(P::STEP == 1, "a step is a word") };
    // SAFETY: vector v of a row is panel `v * LANES / 16`, column `v * LANES % 16`; rows are below ROWS, vectors below
    // VECTORS, steps below k. The caller's contract.
    unsafe {
        // Loops, not `array::from_fn`: that is not always inlined, and then compiled without the features.
        let mut rows = [a.ptr; ROWS];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = a.ptr.add(i * a.stride);
        }
        let mut panels = [b.ptr; VECTORS];
        for (v, panel) in panels.iter_mut().enumerate() {
            *panel = b.ptr.add(v * S::LANES / PANEL * b.stride + v * S::LANES % PANEL);
        }
        let mut totals = [sums.start::<VECTORS>(s, row, col); ROWS];
        for (i, totals) in totals.iter_mut().enumerate().skip(1) {
            *totals = sums.start(s, row + i, col);
        }
        let zero = product.zero(s);
        for step in 0..k {
            let mut columns = [zero; VECTORS];
            for (column, panel) in columns.iter_mut().zip(panels) {
                *column = product.load(s, panel.add(step * PANEL));
            }
            for (row, totals) in rows.into_iter().zip(&mut totals) {
                let x = product.splat(s, row.add(4 * step));
                for (total, column) in totals.iter_mut().zip(columns) {
                    *total = product.step(s, *total, [x, zero], [column, zero]);
                }
            }
        }
        for (i, totals) in totals.into_iter().enumerate() {
            sums.finish(s, row + i, col, totals);
        }
    }
}
