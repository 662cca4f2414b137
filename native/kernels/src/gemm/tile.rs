//! The innermost product: a tile of C in registers, of a size known when it is compiled.

use scoregraph_simd::Simd;

use super::{PANEL, Product, Rows};

/// [`multiply_tile`] for a size known only now.
///
/// # Safety
/// As [`multiply_tile`].
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "three matrices with their sizes")]
pub(super) unsafe fn multiply<S: Simd, P: Product<S>>(
    s: S,
    product: P,
    rows: usize,
    panels: usize,
    a: Rows<*const u8>,
    b: Rows<*const u32>,
    k: usize,
    c: Rows<*mut u32>,
    accumulate: bool,
) {
    /// One arm for each size, `rows x panels => vectors in a row`. Those that the product never asks for are not compiled:
    /// that is what the constant conditions are for.
    macro_rules! sizes {
        ($($rows:literal x $panels:literal => $vectors:literal),* $(,)?) => {$(
            if const { $rows <= P::MOST_ROWS && $panels <= P::MOST_PANELS[$rows] } {
                if (rows, panels) == ($rows, $panels) {
                    // SAFETY: the caller's contract.
                    return unsafe { multiply_tile::<S, P, $rows, $vectors>(s, product, a, b, k, c, accumulate) };
                }
            }
        )*};
    }
    // The largest first: it is nearly always that.
    if const { S::LANES == 16 } {
        sizes! {
            8 x 3 => 3, 7 x 3 => 3, 6 x 3 => 3, 5 x 3 => 3, 4 x 3 => 3, 3 x 3 => 3, 2 x 3 => 3, 1 x 3 => 3,
            8 x 2 => 2, 7 x 2 => 2, 6 x 2 => 2, 5 x 2 => 2, 4 x 2 => 2, 3 x 2 => 2, 2 x 2 => 2, 1 x 2 => 2,
            8 x 1 => 1, 7 x 1 => 1, 6 x 1 => 1, 5 x 1 => 1, 4 x 1 => 1, 3 x 1 => 1, 2 x 1 => 1, 1 x 1 => 1,
        }
    }
    if const { S::LANES == 8 } {
        sizes! {
            6 x 1 => 2, 5 x 1 => 2, 4 x 1 => 2, 3 x 1 => 2, 2 x 1 => 2, 1 x 1 => 2,
            3 x 2 => 4, 2 x 2 => 4, 1 x 2 => 4,
            2 x 3 => 6, 1 x 3 => 6,
        }
    }
    if const { S::LANES == 1 } {
        sizes! { 3 x 1 => 16, 2 x 1 => 16, 1 x 1 => 16 }
    }
    unreachable!("no tile of {rows} rows and {panels} panels");
}

/// `c[ROWS, VECTORS * LANES] = a[ROWS, k] b`, or `+=` if `accumulate`.
///
/// # Safety
/// The words of `a` and `b` are readable, those of `c` writable, and `c` overlaps neither.
#[inline(always)]
unsafe fn multiply_tile<S: Simd, P: Product<S>, const ROWS: usize, const VECTORS: usize>(
    s: S,
    product: P,
    a: Rows<*const u8>,
    b: Rows<*const u32>,
    k: usize,
    c: Rows<*mut u32>,
    accumulate: bool,
) {
    // SAFETY: vector v of a row is lanes `v * LANES ..` of the tile: panel `v * LANES / 16`, column `v * LANES % 16`;
    // rows are below ROWS, vectors below VECTORS, steps below k. The caller's contract.
    unsafe {
        let rows: [*const u8; ROWS] = std::array::from_fn(
            #[inline(always)]
            |row| a.ptr.add(row * a.stride),
        );
        let panels: [*const u32; VECTORS] = std::array::from_fn(
            #[inline(always)]
            |v| b.ptr.add(v * S::LANES / PANEL * b.stride + v * S::LANES % PANEL),
        );
        let mut start = 0;
        while start == 0 || start < k {
            let end = k.min(start.saturating_add(product.chain()));
            let accumulate = accumulate || start > 0;
            let mut sums = [[product.begin(s, c.ptr, false); VECTORS]; ROWS];
            if accumulate {
                for (row, sums) in sums.iter_mut().enumerate() {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = product.begin(s, c.ptr.add(row * c.stride + v * S::LANES), true);
                    }
                }
            }
            let whole = end - (end - start) % P::STEP;
            let mut step = start;
            while step < whole {
                let mut columns = [[product.zero(s); 2]; VECTORS];
                for (columns, panel) in columns.iter_mut().zip(panels) {
                    columns[0] = product.load(s, panel.add(step * PANEL));
                    if P::STEP == 2 {
                        columns[1] = product.load(s, panel.add((step + 1) * PANEL));
                    }
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let x = rows[row].add(4 * step);
                    let second = if P::STEP == 2 { product.splat(s, x.add(4)) } else { product.zero(s) };
                    let x = [product.splat(s, x), second];
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = product.step(s, *sum, x, column);
                    }
                }
                step += P::STEP;
            }
            if P::STEP == 2 && whole < end {
                for (row, sums) in sums.iter_mut().enumerate() {
                    let x = [product.splat(s, rows[row].add(4 * whole)), product.zero(s)];
                    for (sum, panel) in sums.iter_mut().zip(panels) {
                        let column = [product.load(s, panel.add(whole * PANEL)), product.zero(s)];
                        *sum = product.step(s, *sum, x, column);
                    }
                }
            }
            for (row, sums) in sums.into_iter().enumerate() {
                for (v, sum) in sums.into_iter().enumerate() {
                    product.end(s, sum, c.ptr.add(row * c.stride + v * S::LANES), accumulate);
                }
            }
            start = end.max(1);
        }
    }
}
