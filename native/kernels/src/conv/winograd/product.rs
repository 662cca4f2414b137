//! The products of some filters with the transformed input of a block, position by position.

use std::ops::Range;

use scoregraph_simd::{Kernel, Simd};

use super::cut::{Cut, SPAN, row_pitch};
use crate::gemm::even_share;

/// Words of the transformed input ahead of the product that are asked for: the second-level cache then has the time it needs.
const AHEAD: usize = 16;

/// Multiplies: `products[span][filter][position][tile] = Σ_i weights[position][filter][i] * input[span][position][i][tile]`.
pub(super) struct Products<'a> {
    pub cut: &'a Cut,
    /// \[position\]\[O\]\[I\]
    pub weights: &'a [f32],
    /// O and I.
    pub size: [usize; 2],
    pub input: &'a [f32],
    /// Tiles of the block.
    pub tiles: usize,
    /// No more than a group.
    pub filters: Range<usize>,
    pub products: &'a mut [f32],
}

impl Kernel for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { cut, weights, size: [filters, channels], input, tiles, .. } = self;
        let positions = cut.points * cut.points;
        assert!(weights.len() >= positions * filters * channels && self.filters.end <= filters);
        assert!(input.len() >= cut.input() && tiles <= cut.block);
        assert!(self.products.len() >= cut.products() && self.filters.len() <= cut.group);
        for position in 0..positions {
            let mut filter = self.filters.start;
            while filter < self.filters.end {
                let rows = even_share(self.filters.end - filter, most_rows(S::LANES));
                let weights = weights[(position * filters + filter) * channels..].as_ptr();
                for span in 0..tiles.div_ceil(SPAN) {
                    let input = input[(span * positions + position) * cut.input_pitch..].as_ptr();
                    let row = span * cut.group + filter - self.filters.start;
                    let products = self.products[row * row_pitch(cut.points) + position * SPAN..].as_mut_ptr();
                    let tile = Tile { weights, channels, input, products, pitch: row_pitch(cut.points) };
                    // SAFETY: there are weights of `channels` floats for each of these filters, a position of a span has as many
                    // rows of input, and each filter has a row of products; see the assertions.
                    unsafe { tile.multiply(s, rows, tiles - span * SPAN <= SPAN / 2) };
                }
                filter += rows;
            }
        }
    }
}

/// Some rows of a span's products.
struct Tile {
    /// Rows of `channels`.
    weights: *const f32,
    channels: usize,
    /// `channels` rows of [`SPAN`].
    input: *const f32,
    /// Rows, `pitch` apart.
    products: *mut f32,
    pitch: usize,
}

/// The most rows of a tile: of 32 AVX-512 registers, 14 rows of two vectors leave room for those and one weight; of 16 AVX2
/// registers, 3 rows of four do.
const fn most_rows(lanes: usize) -> usize {
    match lanes {
        16 => 14,
        8 => 3,
        _ => 1,
    }
}

impl Tile {
    /// Multiplies `rows` rows, which are no more than [`most_rows`]; only the first half of the span if `half`.
    ///
    /// # Safety
    /// See [`Tile`].
    #[inline(always)]
    unsafe fn multiply<S: Simd>(&self, s: S, rows: usize, half: bool) {
        /// One arm for each size, `rows x vectors`.
        macro_rules! sizes {
            ($vectors:literal: $($rows:literal)*) => {
                match rows {
                    // SAFETY: the caller's contract.
                    $($rows => unsafe { self.multiply_sized::<S, $rows, $vectors>(s) },)*
                    _ => unreachable!("no tile of {rows} rows"),
                }
            };
        }
        // What an instruction set never asks for is not compiled: that is what the constant conditions are for.
        if const { S::LANES == 16 } {
            if half { sizes!(1: 14 13 12 11 10 9 8 7 6 5 4 3 2 1) } else { sizes!(2: 14 13 12 11 10 9 8 7 6 5 4 3 2 1) }
        } else if const { S::LANES == 8 } {
            if half { sizes!(2: 3 2 1) } else { sizes!(4: 3 2 1) }
        } else if half {
            sizes!(16: 1)
        } else {
            sizes!(32: 1)
        }
    }

    /// [`Tile::multiply`] for `ROWS` rows and `VECTORS` vectors of tiles.
    ///
    /// # Safety
    /// See [`Tile`].
    #[inline(always)]
    unsafe fn multiply_sized<S: Simd, const ROWS: usize, const VECTORS: usize>(&self, s: S) {
        let mut sums = [[s.splat(0.0); VECTORS]; ROWS];
        for channel in 0..self.channels {
            // SAFETY: rows are below ROWS, vectors within a span; the caller's contract.
            unsafe {
                let input = self.input.add(channel * SPAN);
                let columns: [S::F; VECTORS] = std::array::from_fn(
                    #[inline(always)]
                    |v| s.load(input.add(v * S::LANES)),
                );
                for v in (0..VECTORS * S::LANES).step_by(16) {
                    s.prefetch(input.wrapping_add(AHEAD * SPAN + v));
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let weight = s.splat(*self.weights.add(row * self.channels + channel));
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = s.mul_add(weight, column, *sum);
                    }
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                // SAFETY: the caller's contract.
                unsafe { s.store(self.products.add(row * self.pitch + v * S::LANES), sum) };
            }
        }
    }
}
