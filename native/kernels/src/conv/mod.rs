//! `conv2d`: `y = residual + act(conv(x, w) + bias + emb)`, as an implicit GEMM over NCHW float32.
//!
//! A tile is a range of output rows and filters of one sample. It packs its input once (see `geometry`) and then runs a register
//! kernel whose vectors lie along the output pixels: a tap of the kernel is one unaligned load per vector and one broadcast
//! weight per filter, with no border to handle. Nothing is reduced across tiles: every output is one chain of multiply-adds,
//! channels outermost, then taps row by row, whatever the tile, the thread or the batch, so its bits depend on none of them.

mod geometry;
mod pack;
mod tile;

pub use geometry::{Conv2dShape, FILTER_BLOCK};

use geometry::Tiling;
use scoregraph_simd::{Act, Disjoint, Isa, Parallel};

use crate::View;
use crate::per_channel::PerChannel;

/// A convolution of a fixed shape, cut for an instruction set and a number of threads; its batch is free.
#[derive(Clone, Debug)]
pub struct Conv2d {
    shape: Conv2dShape,
    isa: Isa,
    tiling: Tiling,
}

/// The operands of `conv2d` beside x and y.
#[derive(Clone, Copy)]
pub struct Conv2dOp<'a> {
    /// Layout `oc8`: `[ceil(O/8)][I][kh][kw][8]`, zero where O ends; see [`Conv2dShape::pack_weight`].
    pub w: &'a [f32],
    /// \[O\]
    pub bias: Option<&'a [f32]>,
    /// \[n, O\], one addend per sample and filter: the time embedding of a U-Net.
    pub emb: Option<View<'a>>,
    /// \[n, O, OH, OW\], added after the activation.
    pub residual: Option<&'a [f32]>,
    /// The activation of `conv + bias + emb`.
    pub act: Act,
}

impl Conv2d {
    /// Cuts a convolution of `shape`, or returns `None` where the kernel does not fit the input or a size overflows.
    #[must_use]
    pub fn new(shape: Conv2dShape, isa: Isa, threads: usize) -> Option<Self> {
        let lanes = match isa {
            Isa::Scalar => 1,
            Isa::Avx2 => 8,
            Isa::Avx512 => 16,
        };
        Some(Self { tiling: Tiling::new(&shape, lanes, threads)?, shape, isa })
    }

    /// The shape this convolution was cut for.
    #[must_use]
    pub fn shape(&self) -> &Conv2dShape {
        &self.shape
    }

    /// Floats of scratch that `run` needs with `threads` threads; it does not depend on the batch. Saturates on overflow.
    #[must_use]
    pub fn scratch_floats(&self, threads: usize) -> usize {
        self.tiling.scratch.saturating_mul(threads)
    }

    /// Convolves `x` \[n, I, H, W\] into `y` \[n, O, OH, OW\].
    ///
    /// # Panics
    /// If the operands do not fit together, or `scratch` is shorter than [`Conv2d::scratch_floats`].
    pub fn run(&self, pool: &dyn Parallel, n: usize, op: &Conv2dOp, x: &[f32], y: &mut [f32], scratch: &mut [f32]) {
        let Conv2dShape { channels, filters, input: [height, width], .. } = self.shape;
        let [rows, columns] = self.tiling.output;
        let (x_sample, y_sample) = (channels * height * width, filters * rows * columns);
        assert_eq!((x.len(), y.len()), (n * x_sample, n * y_sample), "conv2d of {n} samples of {:?}", self.shape);
        assert_eq!(Some(op.w.len()), self.shape.weight_elements());
        assert!(op.bias.is_none_or(|bias| bias.len() == filters));
        assert!(op.residual.is_none_or(|residual| residual.len() == y.len()));
        assert!(scratch.len() >= self.scratch_floats(pool.threads()));
        if y.is_empty() {
            return;
        }

        let emb = op.emb.map(|view| PerChannel::new(view, n, filters));
        let (y, scratch) = (Disjoint::new(y), Disjoint::new(scratch));
        let tiles = self.tiling.tiles();
        pool.run(n * tiles, &|index, thread| {
            let (sample, tile) = (index / tiles, index % tiles);
            let first = thread * self.tiling.scratch;
            self.isa.dispatch(tile::Tile {
                shape: &self.shape,
                tiling: &self.tiling,
                op,
                emb,
                sample,
                x: &x[sample * x_sample..][..x_sample],
                y: &y,
                // SAFETY: tiles that run at the same time have different threads, so nobody else holds this part.
                scratch: unsafe { scratch.part(first..first + self.tiling.scratch) },
                row_tile: tile / self.tiling.filter_tiles,
                filter_tile: tile % self.tiling.filter_tiles,
            });
        });
    }
}
