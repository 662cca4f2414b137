//! `linear`: `y = residual + gate * act(x wᵀ + bias)`, in float32, bf16 and integers.

mod bf16;
mod epilogue;
mod float;
mod integer;
mod measured;

use std::ops::Range;

use scoregraph_simd::{Act, Disjoint, Kernel, Simd};

use crate::gemm::{self, PANEL, Rows, Span};
use crate::rows::RowStarts;
use crate::{Context, Isa, Layout, View, ViewMut, copy};

use epilogue::Epilogue;

pub use measured::{Measured, linear_measured, measured_scratch};

/// Panels of a part of y.
const TILE_PANELS: usize = 6;
/// Columns of a part of y.
const TILE_COLS: usize = TILE_PANELS * PANEL;
/// Rows of a part of y at most.
const TILE_ROWS: usize = gemm::MOST_ROWS;
/// So many rows are worth that a thread reads all weights.
const OWN_ROWS: usize = 32;

/// Types of integer weights, by what they hold and how they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// A byte each (i8, i7 and i6).
    Eight,
    /// Two to a byte: -8 … 7.
    Four,
    /// Four to a byte: -2 … 1.
    Two,
}

/// Weights \[N, K\] of bytes in the layout `q4n16`, with a scale per output and group of inputs.
#[derive(Clone, Copy)]
pub struct Integers<'a> {
    /// `[ceil(N / 16)][K / 4][16][4]`, as stored.
    pub stored: &'a [u8],
    /// What a byte holds.
    pub bits: Bits,
    /// \[N, G\]
    pub scale: &'a [f32],
    /// \[N, G\]: the whole sums of each group's weights.
    pub sum: &'a [f32],
    /// G: K / G is a multiple of 4.
    pub groups: usize,
    /// How many products of bytes in pairs add up in 16 bits, as the plan has proved; 0: they need 32.
    pub chain: usize,
}

/// The weights \[N, K\], in one of their layouts.
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    /// `[ceil(N / 16)][K][16]`, padded with 0.
    N16(&'a [f32]),
    /// Row-major; packed at every call.
    Plain(&'a [f32]),
    /// `[ceil(N / 16)][K / 2][16][2]` of bf16: x is rounded to bf16 too.
    Bf16(&'a [u16]),
    /// Bytes, for an x of bytes.
    Integers(Integers<'a>),
}

/// x \[.., K\], rows of adjacent elements.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// float32: for all weights but integers.
    F32(View<'a>),
    /// bf16: for weights of bf16.
    Bf16(View<'a, u16>),
    /// Bytes, of the value `scale * (q - zero)`: for integer weights.
    Bytes {
        /// The bytes q.
        q: View<'a, u8>,
        /// \[R, 2\], rows (scale, zero): row m uses row `m / (M / R)`.
        grid: &'a [f32],
    },
}

impl Input<'_> {
    fn layout(&self) -> &Layout {
        match self {
            Input::F32(x) => x.layout(),
            Input::Bf16(x) => x.layout(),
            Input::Bytes { q, .. } => q.layout(),
        }
    }
}

/// y \[.., N\], rows of adjacent elements.
pub enum Output<'a> {
    /// float32
    F32(ViewMut<'a>),
    /// bf16, rounded to nearest even
    Bf16(ViewMut<'a, u16>),
    /// Bytes 0 … `top` on a grid that was chosen before.
    Bytes {
        /// The bytes.
        q: ViewMut<'a, u8>,
        /// \[R, 2\], rows (scale, zero): row m uses row `m / (M / R)`.
        grid: &'a [f32],
        /// 255 or 127.
        top: u8,
    },
}

/// The operands of `linear` beside y.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    /// N, the number of outputs.
    pub cols: usize,
    /// \[.., K\]
    pub x: Input<'a>,
    /// \[N, K\]
    pub weights: Weights<'a>,
    /// \[N\]
    pub bias: Option<&'a [f32]>,
    /// Applied to `x wᵀ + bias`.
    pub act: Act,
    /// \[G, N\], rows strided: row m uses row `m / (M / G)`.
    pub gate: Option<View<'a>>,
    /// \[.., N\], rows of adjacent elements; may be y itself where that is float32.
    pub residual: Option<View<'a>>,
}

/// (M, K): the number of rows of x and their length.
fn sizes(op: &Linear) -> (usize, usize) {
    let (&k, leading) = op.x.layout().shape().split_last().expect("x has rows");
    (leading.iter().product(), k)
}

/// The types of x and of the weights, as far as scratch depends on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// float32, packed.
    N16,
    /// float32, row-major.
    Plain,
    /// Weights of bf16, and whether x is bf16 too.
    Bf16 {
        /// Whether x is.
        x: bool,
    },
    /// Bytes.
    Integers,
}

/// How many floats of scratch [`linear`] needs for x of this layout and `cols` outputs: room for plain weights once packed,
/// for x once it is rounded to bf16, and for rows of x that are not evenly spaced.
pub fn scratch_floats(kind: Kind, x: &Layout, cols: usize, isa: Isa) -> usize {
    let k = *x.shape().last().expect("x has rows");
    let elements = x.len();
    let uneven = x.as_rows().is_none();
    match kind {
        Kind::N16 if uneven => elements,
        Kind::Plain if uneven => elements + gemm::packed_len(cols, k),
        Kind::Plain => gemm::packed_len(cols, k),
        Kind::Bf16 { x } => bf16::scratch(isa, elements, x && !uneven),
        Kind::Integers if uneven => elements.div_ceil(4),
        Kind::N16 | Kind::Integers => 0,
    }
}

/// [`scratch_floats`] of a call.
pub fn linear_scratch(op: &Linear, isa: Isa) -> usize {
    let kind = match op.weights {
        Weights::N16(_) => Kind::N16,
        Weights::Plain(_) => Kind::Plain,
        Weights::Bf16(_) => Kind::Bf16 { x: matches!(op.x, Input::Bf16(_)) },
        Weights::Integers(_) => Kind::Integers,
    };
    scratch_floats(kind, op.x.layout(), op.cols, isa)
}

/// Computes `op` into `y`.
///
/// # Panics
/// If the operands do not fit together, or the scratch is too small.
pub fn linear(ctx: &Context, op: &Linear, y: Output, scratch: &mut [f32]) {
    let (m, k) = sizes(op);
    let n = op.cols;
    let epilogue = Epilogue::new(op, m, y);
    if m == 0 || n == 0 {
        return;
    }
    assert!(scratch.len() >= linear_scratch(op, ctx.isa));
    let panels = n.div_ceil(PANEL);
    match (op.weights, op.x) {
        (Weights::N16(packed), Input::F32(x)) => {
            assert_eq!(packed.len(), gemm::packed_len(n, k), "packed weights are [ceil(N / 16)][K][16]");
            let (x, _) = even_rows(ctx, x, scratch);
            float::run(ctx, &epilogue, (m, n, k), x, packed);
        }
        (Weights::Plain(plain), Input::F32(x)) => {
            assert_eq!(plain.len(), n * k, "weights are [N, K]");
            let (x, scratch) = even_rows(ctx, x, scratch);
            float::run(ctx, &epilogue, (m, n, k), x, pack_weights(ctx, plain, (n, k), scratch));
        }
        (Weights::Bf16(packed), Input::F32(_) | Input::Bf16(_)) => {
            assert!(
                k.is_multiple_of(2) && packed.len() == panels * PANEL * k,
                "weights are [ceil(N / 16)][K / 2][16][2]"
            );
            bf16::run(ctx, &epilogue, (m, n, k), op.x, packed, scratch);
        }
        (Weights::Integers(weights), Input::Bytes { q, grid }) => {
            let values = panels * PANEL * k;
            let stored = match weights.bits {
                Bits::Eight => values,
                Bits::Four => values.div_ceil(128) * 64,
                Bits::Two => values.div_ceil(256) * 64,
            };
            assert!(k.is_multiple_of(4) && weights.stored.len() == stored, "weights are [ceil(N / 16)][K / 4][16][4]");
            let scales = [weights.scale.len(), weights.sum.len()];
            assert!(weights.groups > 0 && k.is_multiple_of(4 * weights.groups), "groups are of quads");
            assert_eq!(scales, [n * weights.groups; 2], "scales and sums are [N, G]");
            let rows = grid.len() / 2;
            assert!(rows > 0 && m.is_multiple_of(rows), "the grid is [R, 2], and R divides M");
            let (x, _) = even_rows(ctx, q, scratch);
            integer::run(ctx, &epilogue, (m, n, k), x, grid, &weights);
        }
        _ => panic!("x is of no type that the weights take"),
    }
}

/// The rows of x, copied to the scratch if they are not evenly spaced, and the rest of the scratch.
fn even_rows<'s, T: Copy + Send + Sync>(
    ctx: &Context,
    x: View<'_, T>,
    scratch: &'s mut [f32],
) -> (Rows<*const T>, &'s mut [f32]) {
    if let Some((_, _, stride)) = x.layout().as_rows() {
        return (Rows { ptr: x.as_ptr(), stride }, scratch);
    }
    let floats = (x.layout().len() * size_of::<T>()).div_ceil(size_of::<f32>());
    let (dense, rest) = scratch.split_at_mut(floats);
    let layout = Layout::dense(x.shape()).expect("a shape that exists");
    // SAFETY: the floats are room for as many elements of T, which are no longer than floats and valid as any bits.
    let mut target = unsafe { ViewMut::from_raw(dense.as_mut_ptr().cast::<T>(), layout) };
    copy::copy(ctx, &x, &mut target);
    let cols = *x.shape().last().expect("x has rows");
    (Rows { ptr: target.as_mut_ptr().cast_const(), stride: cols }, rest)
}

/// Packs plain weights \[n, k\] into the scratch.
fn pack_weights<'a>(ctx: &Context, plain: &[f32], (n, k): (usize, usize), scratch: &'a mut [f32]) -> &'a [f32] {
    struct Panel<'a> {
        plain: &'a [f32],
        cols: usize,
        k: usize,
        out: &'a mut [f32],
    }
    impl Kernel for Panel<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            // SAFETY: `plain` has `cols` rows of `k` elements, and `out` is a panel of `k`.
            unsafe { gemm::pack(s, self.plain.as_ptr(), (self.cols, self.k), (self.k, 1), self.out.as_mut_ptr()) };
        }
    }
    let packed = &mut scratch[..gemm::packed_len(n, k)];
    let panels = Disjoint::new(packed);
    ctx.pool.run(n.div_ceil(PANEL), &|panel, _| {
        let cols = PANEL.min(n - panel * PANEL);
        // SAFETY: every panel is in one tile.
        let out = unsafe { panels.part(panel * k * PANEL..(panel + 1) * k * PANEL) };
        ctx.isa.dispatch(Panel { plain: &plain[panel * PANEL * k..], cols, k, out });
    });
    packed
}

/// A part of y: rows and columns from (`row`, `col`) on, at most [`TILE_ROWS`] by [`TILE_COLS`].
#[derive(Clone, Copy)]
struct Part {
    row: usize,
    col: usize,
    rows: usize,
    cols: usize,
}

impl Part {
    /// The panels of its columns.
    fn panels(&self) -> Range<usize> {
        let first = self.col / PANEL;
        first..first + self.cols.div_ceil(PANEL)
    }

    /// The tile of it that is there.
    #[inline(always)]
    fn at(&self, span: Span) -> Part {
        let col = span.panel * PANEL;
        Part {
            row: self.row + span.row,
            col: self.col + col,
            rows: span.rows,
            cols: (span.panels * PANEL).min(self.cols - col),
        }
    }
}

/// Cuts y \[m, n\] into parts and runs `f` on each. Where every thread has many rows, it computes whole rows: the same as in
/// the calls before and after, so that they are in its cache.
fn for_parts(ctx: &Context, (m, n): (usize, usize), f: impl Fn(Part) + Sync) {
    let threads = ctx.pool.threads();
    let blocks = if m >= threads * OWN_ROWS { threads } else { 1 };
    let (down, panels) = (m.div_ceil(blocks).div_ceil(TILE_ROWS), n.div_ceil(PANEL));
    // In pairs of panels, of which tiles of registers take two.
    let pairs = panels.div_ceil(2);
    let across = parts_across(panels, blocks * down, threads).min(pairs);
    ctx.pool.run(blocks * across * down, &|tile, _| {
        let (block, within) = (tile / (across * down), tile % (across * down));
        // Parts that share weights follow each other.
        let (part, rows) = (within / down, block * down + within % down);
        let (row, last) = (m * rows / (blocks * down), m * (rows + 1) / (blocks * down));
        let (col, end) = (part * pairs / across * 2 * PANEL, (part + 1) * pairs / across * 2 * PANEL);
        f(Part { row, col, rows: last - row, cols: end.min(n) - col });
    });
}

/// Into how many parts of nearly as many panels, [`TILE_PANELS`] at most, the columns of y go: as few as leave no thread
/// with more parts than the others.
fn parts_across(panels: usize, down: usize, threads: usize) -> usize {
    let least = panels.div_ceil(TILE_PANELS);
    (least..least + threads).find(|across| (across * down).is_multiple_of(threads)).unwrap_or(least)
}

/// The rows of a window whose elements are adjacent in each.
fn row_starts(layout: &Layout, (m, n): (usize, usize), what: &str) -> RowStarts {
    let starts = RowStarts::new(layout).unwrap_or_else(|| panic!("the rows of {what} have adjacent elements"));
    assert_eq!((starts.rows, starts.cols), (m, n), "the shape of {what}");
    starts
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use scoregraph_simd::Parallel;

    use super::*;

    /// Several threads as far as kernels can tell; all tiles run on the caller.
    struct Threads(usize);

    impl Parallel for Threads {
        fn threads(&self) -> usize {
            self.0
        }

        fn run(&self, tiles: usize, f: &(dyn Fn(usize, usize) + Sync)) {
            (0..tiles).for_each(|tile| f(tile, 0));
        }
    }

    /// Every element is in one part, and a thread's share of them, taken in order, is whole rows where it has many.
    #[test]
    fn parts_cover_a_product_once_and_threads_have_rows_of_their_own() {
        for threads in [1, 2, 3, 7, 64] {
            for m in [1, 2, 31, 63, 64, 65, 96, 145, 256, 449, 1000] {
                for n in [1, 16, 17, 95, 96, 384, 1000] {
                    let parts = Mutex::new(Vec::new());
                    let ctx = Context { isa: Isa::Scalar, pool: &Threads(threads) };
                    for_parts(&ctx, (m, n), |part| parts.lock().unwrap().push(part));
                    let (mut hits, parts) = (vec![0; m * n], parts.into_inner().unwrap());
                    for part in &parts {
                        assert!(part.rows <= TILE_ROWS && part.cols <= TILE_COLS && part.col.is_multiple_of(PANEL));
                        for row in part.row..part.row + part.rows {
                            hits[row * n + part.col..][..part.cols].iter_mut().for_each(|hit| *hit += 1);
                        }
                    }
                    assert!(hits.iter().all(|&hit| hit == 1), "{m} by {n} on {threads} threads");
                    if m >= threads * OWN_ROWS {
                        let of_thread = |t: usize| &parts[parts.len() * t / threads..parts.len() * (t + 1) / threads];
                        let own = |t: usize| m * t / threads..m * (t + 1) / threads;
                        let keeps =
                            |t| of_thread(t).iter().all(|p| own(t).start <= p.row && p.row + p.rows <= own(t).end);
                        assert!((0..threads).all(keeps), "{m} by {n} on {threads} threads");
                    }
                }
            }
        }
    }
}
