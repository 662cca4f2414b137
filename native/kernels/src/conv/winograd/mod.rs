//! Convolutions of 3×3 and stride 1 by Winograd's minimal filtering F(2×2, 3×3) (Lavin & Gray 2016, "Fast Algorithms for
//! Convolutional Neural Networks", section 4.1), which multiplies 16 times for four outputs instead of 36 times.
//!
//! A *tile* is 2×2 outputs, which read 4×4 inputs d through a filter g of 3×3:
//!
//! ```text
//!                                          1  0  0           1  0 -1  0
//!     Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A   G = ½  ½  ½      Bᵀ = 0  1  1  0      Aᵀ = 1  1  1  0
//!                                          ½ -½  ½           0 -1  1  0           0  1 -1 -1
//!                                          0  0  1           0  1  0 -1
//! ```
//!
//! Where every pixel of the input is first repeated 2×2 times (nearest upsampling), the four inputs of a pair of outputs along
//! an axis are a, b, b, c, and what Bᵀ makes of them is a - b, 2 b, 0, b - c: the third product vanishes, the factor 2 is in the
//! filter, nine products are left, and a tile is one pixel of the input.
//!
//! The sum over channels is one matrix product for each of these *positions*: M\[p\] = U\[p\] V\[p\], with the transformed filters
//! U\[p\] \[O, I\] of the plan and the tiles' transformed inputs V\[p\] \[I, tiles\]. A block of tiles is transformed (`input`),
//! multiplied (`product`) and transformed back (`output`) while it is in the second-level cache.
//!
//! An output is one chain of multiply-adds per position, channels in order, whatever the block, the thread or the batch, so its
//! bits depend on none of them. Its error is of the order of the direct sum's; infinite inputs become NaN in the outputs
//! that see them, and a NaN stays in its window.

mod cut;
mod input;
mod output;
mod product;

use scoregraph_simd::{Disjoint, Isa, Parallel};

use super::geometry::Conv2dShape;
use super::{Ends, Epilogue, dense_image};
use crate::{View, ViewMut};
use cut::Cut;
use input::Input;
use output::Output;
use product::Products;

/// A convolution of a fixed shape by minimal filtering, cut for an instruction set and a number of threads; its batch is free.
#[derive(Clone, Debug)]
pub struct Winograd {
    shape: Conv2dShape,
    isa: Isa,
    cut: Cut,
}

impl Winograd {
    /// Cuts a convolution of `shape`, or returns `None` where a size overflows or it is none of these: a kernel of 3×3, stride
    /// 1, a padding of at most 2 and no upsampling; or one of 2×2 with a padding of 1 all around.
    #[must_use]
    pub fn new(shape: Conv2dShape, isa: Isa, threads: usize) -> Option<Self> {
        Some(Self { cut: Cut::new(&shape, threads)?, shape, isa })
    }

    /// The shape this convolution was cut for.
    #[must_use]
    pub fn shape(&self) -> &Conv2dShape {
        &self.shape
    }

    /// Positions along an axis: the transformed filters are \[points, points, O, I\].
    #[must_use]
    pub fn points(&self) -> usize {
        self.cut.points
    }

    /// Brings a weight \[O, I, 3, 3\] to these positions: G g Gᵀ in float64, rounded once.
    ///
    /// # Panics
    /// If `plain` has another size.
    #[must_use]
    pub fn transform_weight(&self, plain: &[f32]) -> Vec<f32> {
        let filters = self.shape.filters * self.shape.channels;
        assert_eq!(plain.len(), 9 * filters);
        let full = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];
        let repeated = [[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]];
        let g: &[[f64; 3]] = if self.cut.points == 4 { &full } else { &repeated };
        let along = |g: &[f64; 3], x: [f64; 3]| g[0] * x[0] + g[1] * x[1] + g[2] * x[2];
        let mut transformed = vec![0.0; g.len() * g.len() * filters];
        for (number, filter) in plain.as_chunks::<9>().0.iter().enumerate() {
            let filter = filter.map(f64::from);
            for (q, vertical) in g.iter().enumerate() {
                let row = [0, 1, 2].map(|x| along(vertical, [filter[x], filter[3 + x], filter[6 + x]]));
                for (p, horizontal) in g.iter().enumerate() {
                    transformed[(q * g.len() + p) * filters + number] = along(horizontal, row) as f32;
                }
            }
        }
        transformed
    }

    /// Floats of scratch that a run needs with `threads` threads; it does not depend on the batch. Saturates on overflow.
    #[must_use]
    pub fn scratch_floats(&self, threads: usize) -> usize {
        self.cut.scratch().saturating_mul(threads)
    }

    /// Convolves `x` \[n, I, H, W\] with `weights` \[points, points, O, I\] into `y` \[n, O, OH, OW\]; the pixels of both are
    /// dense.
    ///
    /// # Panics
    /// If the operands do not fit together, or `scratch` is shorter than [`Winograd::scratch_floats`].
    pub fn run(
        &self,
        pool: &dyn Parallel,
        weights: &[f32],
        x: &View,
        epilogue: &Epilogue,
        y: &mut ViewMut,
        scratch: &mut [f32],
    ) {
        let Conv2dShape { channels, filters, input: [height, width], .. } = self.shape;
        let cut = &self.cut;
        let n = y.shape()[0];
        assert_eq!(x.shape(), [n, channels, height, width], "conv2d of {:?}", self.shape);
        assert_eq!(weights.len(), cut.points * cut.points * filters * channels);
        assert!(scratch.len() >= self.scratch_floats(pool.threads()));
        let Some(ends) = Ends::new(epilogue, y, filters, cut.output) else { return };
        let x = (x.as_ptr(), dense_image(x.layout(), "x"));
        let scratch = Disjoint::new(scratch);
        let pointers = Shared((x, ends));
        pool.run(n * cut.blocks * cut.ranges, &|index, thread| {
            let &Shared((x, ends)) = &pointers;
            let (sample, range) = (index / cut.ranges / cut.blocks, index % cut.ranges);
            let first = index / cut.ranges % cut.blocks * cut.block;
            let tiles = first..(first + cut.block).min(cut.tiles);
            // SAFETY: blocks that run at the same time have different threads, so nobody else holds this part.
            let scratch = unsafe { scratch.part(thread * cut.scratch()..(thread + 1) * cut.scratch()) };
            let (lines, scratch) = scratch.split_at_mut(cut.lines());
            let (input, products) = scratch.split_at_mut(cut.input());
            self.isa.dispatch(Input {
                shape: &self.shape,
                cut,
                tiles: tiles.clone(),
                x: x.0.wrapping_add(sample * x.1[0]),
                plane: x.1[1],
                lines,
                input,
            });
            let (y, residual) = ends.of_sample(sample);
            let end = ((range + 1) * cut.filters).min(filters);
            for first in (range * cut.filters..end).step_by(cut.group) {
                let filters = first..(first + cut.group).min(end);
                self.isa.dispatch(Products {
                    cut,
                    weights,
                    size: [self.shape.filters, channels],
                    input,
                    tiles: tiles.len(),
                    filters: filters.clone(),
                    products,
                });
                self.isa.dispatch(Output {
                    cut,
                    tiles: tiles.clone(),
                    filters,
                    products,
                    epilogue,
                    emb: ends.emb,
                    sample,
                    y,
                    residual,
                });
            }
        });
    }
}

/// Lets threads share pointers.
struct Shared<T>(T);

// SAFETY: made by `Winograd::run` alone, of pointers to operands that blocks read, and to y, of which each writes its own.
unsafe impl<T> Sync for Shared<T> {}
