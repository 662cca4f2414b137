//! The innermost product: a tile of C in registers, of a size known when it is compiled.

use scoregraph_simd::Simd;

use super::{PANEL, Rows};

/// The most rows of a tile.
///
/// Of 32 AVX-512 registers, 8 rows by 3 panels take 24 for C, 3 for B and one for A; of 16 AVX2 registers, 6 rows by one
/// panel (two registers) take 12, 2 and one.
#[inline(always)]
pub(super) const fn most_rows<S: Simd>() -> usize {
    match S::LANES {
        16 => 8,
        8 => 6,
        _ => 3,
    }
}

/// The most panels of a tile of `rows` rows: few rows leave registers for more panels, whose chains hide the latency.
#[inline(always)]
pub(super) const fn most_panels<S: Simd>(rows: usize) -> usize {
    match (S::LANES, rows) {
        (16, _) => 3,
        (8, 0..=2) => 3,
        (8, 3) => 2,
        _ => 1,
    }
}

/// [`multiply_tile`] for a size known only now.
///
/// # Safety
/// As [`multiply_tile`].
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "three matrices with their sizes")]
pub(super) unsafe fn multiply<S: Simd>(
    s: S,
    rows: usize,
    panels: usize,
    a: Rows<*const f32>,
    b: Rows<*const f32>,
    k: usize,
    c: Rows<*mut f32>,
    accumulate: bool,
) {
    /// One arm for each size, `rows x panels => vectors in a row`.
    macro_rules! sizes {
        ($($rows:literal x $panels:literal => $vectors:literal),* $(,)?) => {
            match (rows, panels) {
                // SAFETY: the caller's contract.
                $(($rows, $panels) => unsafe { multiply_tile::<S, $rows, $vectors>(s, a, b, k, c, accumulate) },)*
                _ => unreachable!("no tile of {rows} rows and {panels} panels"),
            }
        };
    }
    if S::LANES == 16 {
        sizes! {
            1 x 1 => 1, 2 x 1 => 1, 3 x 1 => 1, 4 x 1 => 1, 5 x 1 => 1, 6 x 1 => 1, 7 x 1 => 1, 8 x 1 => 1,
            1 x 2 => 2, 2 x 2 => 2, 3 x 2 => 2, 4 x 2 => 2, 5 x 2 => 2, 6 x 2 => 2, 7 x 2 => 2, 8 x 2 => 2,
            1 x 3 => 3, 2 x 3 => 3, 3 x 3 => 3, 4 x 3 => 3, 5 x 3 => 3, 6 x 3 => 3, 7 x 3 => 3, 8 x 3 => 3,
        }
    } else if S::LANES == 8 {
        sizes! {
            1 x 1 => 2, 2 x 1 => 2, 3 x 1 => 2, 4 x 1 => 2, 5 x 1 => 2, 6 x 1 => 2,
            1 x 2 => 4, 2 x 2 => 4, 3 x 2 => 4,
            1 x 3 => 6, 2 x 3 => 6,
        }
    } else {
        sizes! { 1 x 1 => 16, 2 x 1 => 16, 3 x 1 => 16 }
    }
}

/// `c[ROWS, VECTORS * LANES] = a[ROWS, k] b`, or `+=` if `accumulate`.
///
/// # Safety
/// The elements of `a` and `b` are readable, those of `c` writable, and `c` overlaps neither.
#[inline(always)]
unsafe fn multiply_tile<S: Simd, const ROWS: usize, const VECTORS: usize>(
    s: S,
    a: Rows<*const f32>,
    b: Rows<*const f32>,
    k: usize,
    c: Rows<*mut f32>,
    accumulate: bool,
) {
    // SAFETY: vector v of a row is lanes `v * LANES ..` of the tile: panel `v * LANES / 16`, column `v * LANES % 16`;
    // rows are below ROWS, vectors below VECTORS, steps below k. The caller's contract.
    unsafe {
        let rows: [*const f32; ROWS] = std::array::from_fn(
            #[inline(always)]
            |row| a.ptr.add(row * a.stride),
        );
        let panels: [*const f32; VECTORS] = std::array::from_fn(
            #[inline(always)]
            |v| b.ptr.add(v * S::LANES / PANEL * b.stride + v * S::LANES % PANEL),
        );
        let mut sums = [[s.splat(0.0); VECTORS]; ROWS];
        if accumulate {
            for (row, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = s.load(c.ptr.add(row * c.stride + v * S::LANES));
                }
            }
        }
        for step in 0..k {
            let columns: [S::F; VECTORS] = std::array::from_fn(
                #[inline(always)]
                |v| s.load(panels[v].add(step * PANEL)),
            );
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = s.splat(*rows[row].add(step));
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = s.mul_add(x, column, *sum);
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            for (v, sum) in sums.into_iter().enumerate() {
                s.store(c.ptr.add(row * c.stride + v * S::LANES), sum);
            }
        }
    }
}
