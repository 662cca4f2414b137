//! The innermost product: a tile of C in registers, of a size known when it is compiled.

use scoregraph_simd::Simd;

use super::{PANEL, Product, Rows};

/// Words of a panel ahead of the product that are asked for: the second-level cache then has the time it needs.
const AHEAD: usize = 16;

/// `c[rows, 16 * panels] = a[rows, k] b`, or `+=` if `accumulate`. Whoever computes it promises that the words of `a` and `b`
/// are readable, those of `c` writable, that `c` overlaps neither, and that the size is one that the product has.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    pub(super) rows: usize,
    pub(super) panels: usize,
    pub(super) a: Rows<*const u8>,
    pub(super) b: Rows<*const u32>,
    pub(super) k: usize,
    pub(super) c: Rows<*mut u32>,
    pub(super) accumulate: bool,
    /// Rows as many and as long as those of `c`, which need not be there: asked for while the product runs, evenly spread over
    /// it, since a core waits for a dozen lines of memory at a time and no more.
    pub(super) ahead: Rows<*const f32>,
    /// As many words as a panel of `b` has, which need not be there: asked for a word a step, for a later tile.
    pub(super) later: *const u32,
}

/// Whether a product with these constants of [`Product`] asks for tiles of that size.
const fn is_size(rows: usize, panels: usize, most_rows: usize, most_panels: &[usize; 9], tall_rows: usize) -> bool {
    if rows <= most_rows { panels <= most_panels[rows] } else { panels == 2 && rows <= tall_rows }
}

impl Tile {
    /// Computes it.
    ///
    /// # Safety
    /// What [`Tile`] says.
    #[inline(always)]
    pub(super) unsafe fn multiply<S: Simd, P: Product<S>>(&self, s: S, product: P) {
        let Tile { rows, panels, .. } = *self;
        /// One arm for each size, `rows x panels => vectors in a row`. Those that the product never asks for are not
        /// compiled: that is what the constant conditions are for.
        macro_rules! sizes {
            ($($rows:literal x $panels:literal => $vectors:literal),* $(,)?) => {$(
                if const { is_size($rows, $panels, P::MOST_ROWS, &P::MOST_PANELS, P::TALL_ROWS) } {
                    if (rows, panels) == ($rows, $panels) {
                        // SAFETY: the caller's contract.
                        return unsafe { self.multiply_sized::<S, P, $rows, $vectors>(s, product) };
                    }
                }
            )*};
        }
        // The largest first: it is nearly always that.
        if const { S::LANES == 16 } {
            sizes! {
                14 x 2 => 2, 13 x 2 => 2, 12 x 2 => 2, 11 x 2 => 2, 10 x 2 => 2, 9 x 2 => 2,
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

    /// [`Tile::multiply`] for `ROWS` rows and `VECTORS` vectors of columns.
    ///
    /// # Safety
    /// What [`Tile`] says.
    #[inline(always)]
    unsafe fn multiply_sized<S: Simd, P: Product<S>, const ROWS: usize, const VECTORS: usize>(self, s: S, product: P) {
        let Tile { a, b, k, c, accumulate, ahead, later, .. } = self;
        // SAFETY: vector v of a row is lanes `v * LANES ..` of the tile: panel `v * LANES / 16`, column `v * LANES % 16`;
        // rows are below ROWS, vectors below VECTORS, steps below k. The caller's contract.
        unsafe {
            let mut panels = [b.ptr; VECTORS];
            for (v, panel) in panels.iter_mut().enumerate() {
                *panel = b.ptr.add(v * S::LANES / PANEL * b.stride + v * S::LANES % PANEL);
            }
            // Steps for which a row of those ahead is asked for, and the first one that is not yet.
            let share = (k / ROWS).next_multiple_of(P::STEP).max(P::STEP);
            let mut next = 0;
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
                    let pause = whole.min(step + share);
                    if next < ROWS {
                        for col in (0..VECTORS * S::LANES).step_by(PANEL) {
                            s.prefetch(ahead.ptr.wrapping_add(next * ahead.stride + col));
                        }
                        next += 1;
                    }
                    while step < pause {
                        let mut columns = [[product.zero(s); 2]; VECTORS];
                        for (columns, panel) in columns.iter_mut().zip(&panels) {
                            columns[0] = product.load(s, panel.add(step * PANEL));
                            if P::STEP == 2 {
                                columns[1] = product.load(s, panel.add((step + 1) * PANEL));
                            }
                        }
                        for (v, panel) in panels.iter().enumerate() {
                            if v * S::LANES % PANEL == 0 {
                                s.prefetch(panel.wrapping_add((step + AHEAD) * PANEL).cast());
                                if P::STEP == 2 {
                                    s.prefetch(panel.wrapping_add((step + 1 + AHEAD) * PANEL).cast());
                                }
                            }
                        }
                        for word in 0..P::STEP {
                            s.prefetch_far(later.wrapping_add((step + word) * PANEL).cast());
                        }
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let x = a.ptr.add(row * a.stride + 4 * step);
                            let second = if P::STEP == 2 { product.splat(s, x.add(4)) } else { product.zero(s) };
                            let x = [product.splat(s, x), second];
                            for (sum, column) in sums.iter_mut().zip(columns) {
                                *sum = product.step(s, *sum, x, column);
                            }
                        }
                        step += P::STEP;
                    }
                }
                if P::STEP == 2 && whole < end {
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let x = [product.splat(s, a.ptr.add(row * a.stride + 4 * whole)), product.zero(s)];
                        for (sum, panel) in sums.iter_mut().zip(panels) {
                            let column = [product.load(s, panel.add(whole * PANEL)), product.zero(s)];
                            *sum = product.step(s, *sum, x, column);
                        }
                    }
                }
                for (row, sums) in sums.iter().enumerate() {
                    for (v, &sum) in sums.iter().enumerate() {
                        product.end(s, sum, c.ptr.add(row * c.stride + v * S::LANES), accumulate);
                    }
                }
                start = end.max(1);
            }
        }
    }
}
