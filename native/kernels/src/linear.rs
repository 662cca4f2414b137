//! `linear`: `y = residual + gate * act(x wᵀ + bias)`.

use scoregraph_simd::{Act, Disjoint, Kernel, Simd};

use crate::gemm::{self, PANEL, Rows};
use crate::{Context, View, ViewMut, copy};

/// Panels of a tile of y.
const TILE_PANELS: usize = 6;
/// Columns of a tile of y.
const TILE_COLS: usize = TILE_PANELS * PANEL;
/// Rows of a tile of y at most; its sums take 27 KiB. A multiple of the rows of every register tile.
const TILE_ROWS: usize = 72;

/// The weights \[N, K\], in one of their layouts.
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    /// `[ceil(N / 16)][K][16]`, padded with 0.
    N16(&'a [f32]),
    /// Row-major; packed at every call.
    Plain(&'a [f32]),
}

/// The operands of `linear` beside y.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    /// N, the number of outputs.
    pub cols: usize,
    /// \[.., K\], rows strided.
    pub x: View<'a>,
    /// \[N, K\]
    pub weights: Weights<'a>,
    /// \[N\]
    pub bias: Option<&'a [f32]>,
    /// Applied to `x wᵀ + bias`.
    pub act: Act,
    /// \[G, N\], rows strided: row m uses row `m / (M / G)`.
    pub gate: Option<View<'a>>,
    /// \[.., N\], rows evenly spaced; may be y itself.
    pub residual: Option<View<'a>>,
}

/// (M, K): the number of rows of x and their length.
fn sizes(x: &View) -> (usize, usize) {
    let (&k, leading) = x.shape().split_last().expect("x has rows");
    (leading.iter().product(), k)
}

/// How many floats of scratch [`linear`] needs: room for plain weights once packed, and for rows of x that are not
/// evenly spaced.
pub fn linear_scratch(op: &Linear) -> usize {
    let (_, k) = sizes(&op.x);
    let packed = match op.weights {
        Weights::N16(_) => 0,
        Weights::Plain(_) => gemm::packed_len(op.cols, k),
    };
    let copied = if op.x.layout().as_rows().is_none() { op.x.layout().len() } else { 0 };
    packed + copied
}

/// Computes `op` into `y` \[.., N\], whose rows are evenly spaced.
///
/// # Panics
/// If the operands do not fit together, or the scratch is too small.
pub fn linear(ctx: &Context, op: &Linear, y: &mut ViewMut, scratch: &mut [f32]) {
    let (m, k) = sizes(&op.x);
    let n = op.cols;
    let rows_of = |layout: &crate::Layout| layout.as_rows().expect("rows are evenly spaced");
    let (y_rows, y_cols, y_stride) = rows_of(y.layout());
    assert_eq!((y_rows, y_cols), (m, n), "y is [M, N]");
    assert!(op.bias.is_none_or(|bias| bias.len() == n), "bias is [N]");
    if m == 0 || n == 0 {
        return;
    }
    let gate = op.gate.map(|gate| {
        let (groups, cols, stride) = rows_of(gate.layout());
        assert!(cols == n && groups > 0 && m.is_multiple_of(groups), "gate is [G, N], and G divides M");
        Gate { rows: Rows { ptr: gate.as_ptr(), stride }, share: m / groups }
    });
    let residual = op.residual.map(|residual| {
        let (rows, cols, stride) = rows_of(residual.layout());
        assert_eq!((rows, cols), (m, n), "residual is [M, N]");
        Rows { ptr: residual.as_ptr(), stride }
    });

    assert!(scratch.len() >= linear_scratch(op));
    let mut scratch = scratch;
    let x = match op.x.layout().as_rows() {
        Some((_, _, stride)) => Rows { ptr: op.x.as_ptr(), stride },
        None => {
            let (dense, rest) = scratch.split_at_mut(op.x.layout().len());
            scratch = rest;
            let mut target = ViewMut::dense(dense, op.x.shape()).expect("of its length");
            copy::copy(ctx, &op.x, &mut target);
            Rows { ptr: target.as_mut_ptr().cast_const(), stride: k }
        }
    };
    let packed = match op.weights {
        Weights::N16(packed) => packed,
        Weights::Plain(plain) => {
            assert_eq!(plain.len(), n * k, "weights are [N, K]");
            pack_weights(ctx, plain, (n, k), scratch)
        }
    };
    assert_eq!(packed.len(), gemm::packed_len(n, k), "packed weights are [ceil(N / 16)][K][16]");

    let tile_rows = gemm::even_share(m, TILE_ROWS).next_multiple_of(24).min(TILE_ROWS);
    let down = m.div_ceil(tile_rows);
    let job = Job {
        op,
        m,
        k,
        x,
        packed: packed.as_ptr(),
        gate,
        residual,
        y: Rows { ptr: y.as_mut_ptr(), stride: y_stride },
        tile_rows,
    };
    // Tiles that share weights follow each other.
    ctx.pool.run(down * n.div_ceil(TILE_COLS), &|tile, _| {
        ctx.isa.dispatch(Tile { job: &job, row: tile % down * tile_rows, col: tile / down * TILE_COLS });
    });
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

/// The rows of gate, each serving `share` rows of y.
#[derive(Clone, Copy)]
struct Gate {
    rows: Rows<*const f32>,
    share: usize,
}

/// A checked call: every pointer's elements exist as far as M, N and K say.
struct Job<'a> {
    op: &'a Linear<'a>,
    m: usize,
    k: usize,
    x: Rows<*const f32>,
    packed: *const f32,
    gate: Option<Gate>,
    residual: Option<Rows<*const f32>>,
    y: Rows<*mut f32>,
    tile_rows: usize,
}

// SAFETY: the pointers are those of views and slices borrowed for the call; tiles write different elements of y.
unsafe impl Sync for Job<'_> {}

/// The part of y from (row, col).
struct Tile<'a> {
    job: &'a Job<'a>,
    row: usize,
    col: usize,
}

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let job = self.job;
        let rows = job.tile_rows.min(job.m - self.row);
        let cols = TILE_COLS.min(job.op.cols - self.col);
        let mut sums = [const { std::mem::MaybeUninit::<f32>::uninit() }; TILE_ROWS * TILE_COLS];
        let c = Rows { ptr: sums.as_mut_ptr().cast::<f32>(), stride: TILE_COLS };
        // SAFETY: rows and panels inside x and the packed weights, as `linear` has checked; `sums` has room for
        // `rows <= TILE_ROWS` rows of `TILE_PANELS` panels.
        unsafe {
            let a = Rows { ptr: job.x.ptr.add(self.row * job.x.stride), ..job.x };
            let b = Rows { ptr: job.packed.add(self.col * job.k), stride: job.k * PANEL };
            gemm::multiply(s, a, rows, b, cols.div_ceil(PANEL), job.k, c, false);
        }
        for row in 0..rows {
            let m = self.row + row;
            let at = |rows: Rows<*const f32>, row: usize| rows.ptr.wrapping_add(row * rows.stride + self.col);
            let gate = job.gate.map(|gate| at(gate.rows, m / gate.share));
            let residual = job.residual.map(|residual| at(residual, m));
            let bias = job.op.bias.map(|bias| bias[self.col..].as_ptr());
            let y = job.y.ptr.wrapping_add(m * job.y.stride + self.col);
            for col in (0..cols).step_by(S::LANES) {
                let n = cols - col;
                // SAFETY: every row has at least `col + n` elements; what is read of the residual is written after,
                // so it may be y.
                unsafe {
                    let load = |row: *const f32| s.load_first(row.add(col), n);
                    let mut v = s.load(c.ptr.add(row * c.stride + col));
                    if let Some(bias) = bias {
                        v = s.add(v, load(bias));
                    }
                    v = job.op.act.apply(s, v);
                    v = match (gate, residual) {
                        (None, None) => v,
                        (None, Some(residual)) => s.add(load(residual), v),
                        (Some(gate), None) => s.mul(load(gate), v),
                        (Some(gate), Some(residual)) => s.mul_add(load(gate), v, load(residual)),
                    };
                    s.store_first(y.add(col), v, n);
                }
            }
        }
    }
}
