//! One tile of a convolution, packed: its products, and what follows them.

use scoregraph_simd::{Act, DotKernel, Dots, Kernel, Simd};

use super::Epilogue;
use super::geometry::{Conv2dShape, FILTER_BLOCK, LINE, Run, Tiling};
use super::pack::{Planes, pack_tile};
use super::product::{Bytes, Floats, MOST_VECTORS, Product};
use crate::per_channel::PerChannel;

/// Weights that all pixels of a tile go through before the next: they stay in the second-level cache meanwhile.
const WEIGHT_BYTES: usize = 128 * 1024;

/// Where a tile lies in its sample.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    pub shape: &'a Conv2dShape,
    pub tiling: &'a Tiling,
    pub first_row: usize,
    pub rows: usize,
}

impl<'a> Tile<'a> {
    /// The row tile `number` of a sample.
    pub(super) fn new(shape: &'a Conv2dShape, tiling: &'a Tiling, number: usize) -> Self {
        let first_row = number * tiling.rows;
        Self { shape, tiling, first_row, rows: tiling.rows.min(tiling.output[0] - first_row) }
    }
}

/// Packs a tile's input into scratch.
pub(super) struct Pack<'a> {
    pub tile: Tile<'a>,
    /// The input; it has the cells that `tile.shape` says.
    pub x: Planes,
    /// The cell that stands for zero outside of the image.
    pub padding: u32,
    pub scratch: &'a mut [u32],
}

impl Kernel for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        assert!(self.scratch.len() >= self.tile.tiling.scratch);
        // SAFETY: the fields' contracts, and the assertion.
        unsafe { pack_tile(simd, &self.tile, self.x, self.padding, self.scratch) };
    }
}

/// A packed tile, and the operands of the call as its sample sees them.
pub(super) struct Part<'a, P> {
    pub tile: Tile<'a>,
    pub packed: &'a [u32],
    pub product: P,
    /// The weights, as many as `tile.shape` says: a block of eight filters after the other, with a cell per filter for
    /// every tap.
    pub weights: *const u32,
    pub epilogue: &'a Epilogue<'a>,
    pub emb: Option<PerChannel<'a>>,
    pub sample: usize,
    /// The filters' planes of this sample, and elements from one to the next; nobody else writes the tile's.
    pub y: (*mut f32, usize),
    pub residual: Option<(*const f32, usize)>,
}

/// Some filters of a packed tile, `FILTERS` at a time.
///
/// Each number of filters is a kernel of its own: the compiler keeps the sums of a register tile in registers only where
/// few of them share a function.
pub(super) struct Filters<'a, P, const FILTERS: usize> {
    pub part: &'a Part<'a, P>,
    /// A multiple of `FILTERS`, so that no turn leaves its block of weights.
    pub first: usize,
    pub end: usize,
}

impl<const FILTERS: usize> Kernel for Filters<'_, Floats, FILTERS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // What `Conv2d` never asks for is not compiled.
        if FILTERS == 8 && S::LANES < LINE {
            unreachable!("no {FILTERS} filters on {}", S::ISA.name());
        }
        self.multiply(simd);
    }
}

impl<const FILTERS: usize, const CHAIN: usize> DotKernel for Filters<'_, Bytes<'_, CHAIN>, FILTERS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Dots>(self, simd: S) {
        // What `Conv2d` never asks for is not compiled.
        if (CHAIN > 0 && (S::VNNI || S::LANES == 1)) || (FILTERS == 8 && S::LANES < LINE) {
            unreachable!("no chains of {CHAIN} and {FILTERS} filters on {}", S::ISA.name());
        }
        self.multiply(simd);
    }
}

impl<P: Copy, const FILTERS: usize> Filters<'_, P, FILTERS> {
    #[inline(always)]
    fn multiply<S: Simd>(self, simd: S)
    where
        P: Product<S>,
    {
        const { assert!(FILTERS <= FILTER_BLOCK && P::VECTORS <= MOST_VECTORS && S::LANES <= LINE) };
        let Part { tile, packed, weights, .. } = *self.part;
        let tiling = tile.tiling;
        // One check for all vector loads below.
        assert!(packed.len() >= tiling.scratch);
        let offsets = &tiling.offsets[..];
        let mut sums = [0; FILTER_BLOCK * MOST_VECTORS * LINE];
        let filter_bytes = size_of_val(offsets).max(1);
        let chunk = (WEIGHT_BYTES / filter_bytes / FILTERS * FILTERS).max(FILTERS);
        for first in (self.first..self.end).step_by(chunk) {
            let end = (first + chunk).min(self.end);
            let mut group = Group::new(&tile, S::LANES, P::VECTORS);
            while group.advance(S::LANES) {
                let [a, b, c] = group.offsets.map(|offset| packed.as_ptr().wrapping_add(offset));
                for filter in (first..end).step_by(FILTERS) {
                    let block = filter / FILTER_BLOCK * FILTER_BLOCK * offsets.len();
                    let weights = weights.wrapping_add(block + filter % FILTER_BLOCK);
                    let sums = sums.as_mut_ptr();
                    // SAFETY: a vector starts at an output pixel, so at any tap's offset from there it starts inside the copy
                    // that the tap reads, and it ends within the slack that `Tiling::scratch` counts in. A block of weights
                    // has FILTER_BLOCK cells per tap, of which the product reads FILTERS from `filter`'s on.
                    unsafe {
                        match group.vectors {
                            1 => P::multiply::<FILTERS, 1>(simd, [a], weights, offsets, sums),
                            2 => P::multiply::<FILTERS, 2>(simd, [a, b], weights, offsets, sums),
                            _ => P::multiply::<FILTERS, 3>(simd, [a, b, c], weights, offsets, sums),
                        }
                        self.part.finish(simd, &group, filter, FILTERS.min(end - filter), sums);
                    }
                }
            }
        }
    }
}

impl<P: Copy> Part<'_, P> {
    /// Applies the epilogue to the sums of `filters` filters and stores those that are output pixels.
    ///
    /// # Safety
    /// `sums` are those of that many filters and of the group's vectors.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, simd: S, group: &Group, filter: usize, filters: usize, sums: *const u32)
    where
        P: Product<S>,
    {
        let act = self.epilogue.act;
        // SAFETY: the caller's contract; a group is whole if every lane of it is a pixel.
        unsafe {
            if act == Act::None && group.lanes[..group.vectors].iter().all(|&lanes| lanes == S::LANES) {
                self.finish_as::<S, true>(simd, Act::None, group, filter, filters, sums);
            } else {
                self.finish_as::<S, false>(simd, act, group, filter, filters, sums);
            }
        }
    }

    /// [`Part::finish`] with an activation, for groups that are all pixels if `WHOLE`: the most frequent case has little to
    /// do, which the next products do not wait for.
    ///
    /// # Safety
    /// As [`Part::finish`], and the group is `WHOLE`.
    #[inline(always)]
    unsafe fn finish_as<S: Simd, const WHOLE: bool>(
        &self,
        simd: S,
        act: Act,
        group: &Group,
        filter: usize,
        filters: usize,
        sums: *const u32,
    ) where
        P: Product<S>,
    {
        let bias = self.epilogue.bias;
        let first_pixel = self.tile.first_row * self.tile.tiling.output[1];
        for row in 0..filters {
            let filter = filter + row;
            let shift = bias.map_or(0.0, |bias| bias[filter]) + self.emb.map_or(0.0, |emb| emb.at(self.sample, filter));
            let shift = simd.splat(shift);
            let terms = self.product.terms(filter);
            let y = self.y.0.wrapping_add(filter * self.y.1 + first_pixel);
            let residual = self.residual.map(|(first, pitch)| first.wrapping_add(filter * pitch + first_pixel));
            for vector in 0..group.vectors {
                let (pixel, lanes) = (group.pixels[vector], if WHOLE { S::LANES } else { group.lanes[vector] });
                // SAFETY: `sums` has a vector. The pixels lie in the output rows of this tile and filter, which no other
                // tile writes, and which y and the residual have; what is read of the residual is written after, so it
                // may be y.
                unsafe {
                    let sum = P::value(simd, sums.add((row * group.vectors + vector) * S::LANES), terms);
                    let mut value = act.apply(simd, simd.add(sum, shift));
                    if let Some(residual) = residual {
                        let from = residual.add(pixel);
                        let residual = if WHOLE { simd.load(from) } else { simd.load_first(from, lanes) };
                        value = simd.add(residual, value);
                    }
                    if WHOLE { simd.store(y.add(pixel), value) } else { simd.store_first(y.add(pixel), value, lanes) }
                }
            }
        }
    }
}

/// The vectors of a register tile; those of a tile come one after another from [`Group::advance`].
struct Group {
    /// From one run of output pixels in the tile to the next, in cells, and the pixels of each.
    pitch: usize,
    width: usize,
    /// Where the next group begins.
    run: usize,
    start: usize,
    /// Vectors and groups that are left.
    left: usize,
    groups: usize,
    /// Of each vector: where its cells start in a packed copy, its first output pixel in the tile, and how many it has.
    offsets: [usize; MOST_VECTORS],
    pixels: [usize; MOST_VECTORS],
    lanes: [usize; MOST_VECTORS],
    vectors: usize,
}

impl Group {
    /// Before the first vectors of a tile, of which at most `most` go together.
    #[inline(always)]
    fn new(tile: &Tile, lanes: usize, most: usize) -> Self {
        let columns = tile.tiling.output[1];
        let (runs, width) = match tile.tiling.run {
            Run::Rows => (tile.rows, columns),
            Run::Flat => (1, tile.rows * columns),
        };
        let left = runs * width.div_ceil(lanes);
        let [offsets, pixels, lanes] = [[0; MOST_VECTORS]; 3];
        let pitch = tile.tiling.row_pitch;
        Self { pitch, width, run: 0, start: 0, left, groups: left.div_ceil(most), offsets, pixels, lanes, vectors: 0 }
    }

    /// Goes on to the next vectors; false if there are none. Four are two and two: one alone would read as many weights for
    /// half of the work.
    #[inline(always)]
    fn advance(&mut self, lanes: usize) -> bool {
        if self.groups == 0 {
            return false;
        }
        self.vectors = self.left.div_ceil(self.groups);
        (self.left, self.groups) = (self.left - self.vectors, self.groups - 1);
        for at in 0..self.vectors {
            let left = self.width - self.start;
            self.offsets[at] = self.run * self.pitch + self.start;
            self.pixels[at] = self.run * self.width + self.start;
            self.lanes[at] = lanes.min(left);
            (self.run, self.start) = if left > lanes { (self.run, self.start + lanes) } else { (self.run + 1, 0) };
        }
        true
    }
}
