//! `matmul`: batched products of strided matrices, `z = scale * x y`.

use scoregraph_simd::{Disjoint, Kernel, Simd};

use crate::gemm::{self, PANEL, Rows};
use crate::{Context, Layout, View, ViewMut};

/// Panels of y that a tile packs.
const TILE_PANELS: usize = 6;
/// Columns of a tile of z.
const TILE_COLS: usize = TILE_PANELS * PANEL;
/// Rows of z that are summed at a time.
const TILE_ROWS: usize = 72;

/// How many floats of scratch [`matmul`] needs for an inner length `k`: packed columns of y, and rows of x whose elements
/// are not adjacent.
pub fn matmul_scratch(k: usize, threads: usize) -> usize {
    threads * k * (TILE_COLS + TILE_ROWS)
}

/// `z[.., M, N] = scale * x[.., M, K] y[.., K, N]`, of equal leading dimensions.
///
/// # Panics
/// If the operands do not fit together, or the scratch is too small.
pub fn matmul(ctx: &Context, scale: f32, x: &View, y: &View, z: &mut ViewMut, scratch: &mut [f32]) {
    let (x_batch, [m, k], x_strides) = split(x.layout());
    let (y_batch, [y_k, n], y_strides) = split(y.layout());
    let (z_batch, z_sizes, z_strides) = split(z.layout());
    assert_eq!((y_k, z_sizes), (k, [m, n]), "[M, K] by [K, N] is [M, N]");
    assert!(x_batch.shape() == z_batch.shape() && y_batch.shape() == z_batch.shape(), "leading dimensions are equal");
    if z.layout().len() == 0 {
        return;
    }
    let per_thread = matmul_scratch(k, 1);
    assert!(scratch.len() >= matmul_scratch(k, ctx.pool.threads()));
    let scratch = Disjoint::new(scratch);
    let across = n.div_ceil(TILE_COLS);
    let z: &ViewMut = z;
    ctx.pool.run(z_batch.len() * across, &|tile, thread| {
        let (item, col) = (tile / across, tile % across * TILE_COLS);
        let cols = TILE_COLS.min(n - col);
        // SAFETY: a thread runs one tile at a time, and its part of the scratch is its own.
        let scratch = unsafe { scratch.part(thread * per_thread..(thread + 1) * per_thread) };
        ctx.isa.dispatch(Tile {
            scale,
            sizes: [m, cols, k],
            x: Matrix { ptr: x.as_ptr().wrapping_add(x_batch.offset(item)), strides: x_strides },
            y: Matrix { ptr: y.as_ptr().wrapping_add(y_batch.offset(item) + col * y_strides[1]), strides: y_strides },
            z: Matrix {
                ptr: z.as_mut_ptr().wrapping_add(z_batch.offset(item) + col * z_strides[1]),
                strides: z_strides,
            },
            scratch,
        });
    });
}

/// A layout as leading dimensions and matrices: (leading, sizes, strides).
fn split(layout: &Layout) -> (Layout, [usize; 2], [usize; 2]) {
    let at = layout.rank().checked_sub(2).expect("a matrix has two dimensions");
    let (shape, strides) = (layout.shape(), layout.strides());
    let leading = Layout::new(&shape[..at], &strides[..at]).expect("part of a valid layout");
    (leading, [shape[at], shape[at + 1]], [strides[at], strides[at + 1]])
}

#[derive(Clone, Copy)]
struct Matrix<P> {
    ptr: P,
    strides: [usize; 2],
}

/// Up to `TILE_COLS` columns of one product.
struct Tile<'a> {
    scale: f32,
    /// M, columns, K
    sizes: [usize; 3],
    x: Matrix<*const f32>,
    y: Matrix<*const f32>,
    z: Matrix<*mut f32>,
    scratch: &'a mut [f32],
}

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let [m, cols, k] = self.sizes;
        let (packed, copied) = self.scratch.split_at_mut(k * TILE_COLS);
        let mut sums = [const { std::mem::MaybeUninit::<f32>::uninit() }; TILE_ROWS * TILE_COLS];
        let c = Rows { ptr: sums.as_mut_ptr().cast::<f32>(), stride: TILE_COLS };
        let b = Rows { ptr: packed.as_ptr(), stride: k * PANEL };
        let scale = s.splat(self.scale);
        // SAFETY: all elements are those of the three matrices, which `matmul` has checked; `packed` has room for
        // TILE_COLS columns of k, `copied` for TILE_ROWS rows of k, and `sums` for a tile.
        unsafe {
            gemm::pack(s, self.y.ptr, (cols, k), (self.y.strides[1], self.y.strides[0]), packed.as_mut_ptr());
            for first in (0..m).step_by(TILE_ROWS) {
                let rows = TILE_ROWS.min(m - first);
                let x = self.x.ptr.add(first * self.x.strides[0]);
                let a = if self.x.strides[1] == 1 {
                    Rows { ptr: x, stride: self.x.strides[0] }
                } else {
                    for (row, copied) in copied.chunks_mut(k.max(1)).take(rows).enumerate() {
                        for (i, to) in copied.iter_mut().enumerate() {
                            *to = *x.add(row * self.x.strides[0] + i * self.x.strides[1]);
                        }
                    }
                    Rows { ptr: copied.as_ptr(), stride: k }
                };
                gemm::multiply(s, a, rows, b, cols.div_ceil(PANEL), k, c);
                for row in 0..rows {
                    let z = self.z.ptr.add((first + row) * self.z.strides[0]);
                    for col in (0..cols).step_by(S::LANES) {
                        let sum = c.ptr.add(row * c.stride + col);
                        let v = s.mul(scale, s.load(sum));
                        if self.z.strides[1] == 1 {
                            s.store_first(z.add(col), v, cols - col);
                        } else {
                            s.store(sum, v);
                            for i in 0..S::LANES.min(cols - col) {
                                z.add((col + i) * self.z.strides[1]).write(*sum.add(i));
                            }
                        }
                    }
                }
            }
        }
    }
}
