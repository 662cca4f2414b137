//! One tile of a convolution: pack, multiply, finish.

use scoregraph_simd::{Disjoint, Kernel, Simd};

use super::Conv2dOp;
use super::geometry::{Conv2dShape, FILTER_BLOCK, Run, Tiling};
use super::pack::pack_tile;
use crate::per_channel::PerChannel;

/// Vectors of output pixels in a register tile: 8 filters x 3 of AVX-512, or 4 x 3 of AVX2, leave just room for the
/// pixels and one weight.
const PIXELS: usize = 3;

/// The widest vector of any instruction set.
const MAX_LANES: usize = 16;

/// The sums of one register tile, `[filter][vector][lane]`; loads of shifted vectors may run into the last `MAX_LANES`.
type Sums = [f32; FILTER_BLOCK * PIXELS * MAX_LANES + MAX_LANES];

/// The work of one tile, for [`scoregraph_simd::Isa::dispatch`].
pub(super) struct Tile<'a> {
    pub shape: &'a Conv2dShape,
    pub tiling: &'a Tiling,
    pub op: &'a Conv2dOp<'a>,
    pub emb: Option<PerChannel<'a>>,
    pub sample: usize,
    /// One sample.
    pub x: &'a [f32],
    /// All samples.
    pub y: &'a Disjoint<'a, f32>,
    pub scratch: &'a mut [f32],
    pub row_tile: usize,
    pub filter_tile: usize,
}

/// Some consecutive lanes of a vector, and the output pixels of the tile that they are.
struct Piece {
    lane: usize,
    pixel: usize,
    count: usize,
}

/// The vectors that cover the output pixels of a tile.
struct Cover {
    run: Run,
    lanes: usize,
    columns: usize,
    row_pitch: usize,
    /// Pixels of one run, the columns between rows included.
    width: usize,
    vectors_per_run: usize,
    vectors: usize,
}

impl Cover {
    #[inline(always)]
    fn new(tiling: &Tiling, rows: usize, lanes: usize) -> Self {
        let columns = tiling.output[1];
        let (runs, width) = match tiling.run {
            Run::Rows => (rows, columns),
            Run::Flat => (1, (rows - 1) * tiling.row_pitch + columns),
        };
        let vectors_per_run = width.div_ceil(lanes);
        let vectors = runs * vectors_per_run;
        Self { run: tiling.run, lanes, columns, row_pitch: tiling.row_pitch, width, vectors_per_run, vectors }
    }

    /// Offset of a vector's first pixel in a packed plane.
    #[inline(always)]
    fn offset(&self, vector: usize) -> usize {
        vector / self.vectors_per_run * self.row_pitch + vector % self.vectors_per_run * self.lanes
    }

    /// The pieces of a vector that are output pixels, from `from` lanes on: the first one, or `None` after the last.
    #[inline(always)]
    fn piece(&self, vector: usize, from: usize) -> Option<Piece> {
        let start = vector % self.vectors_per_run * self.lanes;
        let end = (start + self.lanes).min(self.width);
        let at = start + from;
        if at >= end {
            return None;
        }
        if self.run == Run::Rows || self.row_pitch == self.columns {
            let row = vector / self.vectors_per_run;
            return Some(Piece { lane: from, pixel: row * self.columns + at, count: end - at });
        }
        let (row, column) = (at / self.row_pitch, at % self.row_pitch);
        if column >= self.columns {
            return self.piece_of_next_row(start, end, row + 1);
        }
        Some(Piece { lane: from, pixel: row * self.columns + column, count: (self.columns - column).min(end - at) })
    }

    #[inline(always)]
    fn piece_of_next_row(&self, start: usize, end: usize, row: usize) -> Option<Piece> {
        let at = row * self.row_pitch;
        (at < end).then(|| Piece { lane: at - start, pixel: row * self.columns, count: self.columns.min(end - at) })
    }
}

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Tile { shape, tiling, .. } = self;
        let first_row = self.row_tile * tiling.rows;
        let rows = tiling.rows.min(tiling.output[0] - first_row);
        let cover = Cover::new(tiling, rows, S::LANES);
        pack_tile(shape, tiling, self.x, first_row, self.scratch);
        // One check for all vector loads below.
        assert!(self.scratch.len() >= tiling.scratch);

        let mut sums: Sums = [0.0; FILTER_BLOCK * PIXELS * MAX_LANES + MAX_LANES];
        let first_filter = self.filter_tile * tiling.blocks * FILTER_BLOCK;
        let end_filter = (first_filter + tiling.blocks * FILTER_BLOCK).min(shape.filters);
        for vector in (0..cover.vectors).step_by(PIXELS) {
            let vectors = PIXELS.min(cover.vectors - vector);
            // Idle vectors of the last group repeat its first one and are not stored.
            let pixels: [*const f32; PIXELS] = std::array::from_fn(|i| {
                let offset = cover.offset(if i < vectors { vector + i } else { vector });
                self.scratch.as_ptr().wrapping_add(offset)
            });
            let mut filter = first_filter;
            while filter < end_filter {
                let weights = &self.op.w[filter / FILTER_BLOCK * FILTER_BLOCK * shape.channels * tiling.taps.len()..];
                let weights = weights[..FILTER_BLOCK * shape.channels * tiling.taps.len()].as_ptr();
                let weights = weights.wrapping_add(filter % FILTER_BLOCK);
                let left = end_filter - filter;
                let filters = if S::LANES == MAX_LANES && left > 4 { 8 } else { 4 };
                // SAFETY: `pixels` point to vectors of the tile's first channel in scratch. A vector starts at an output pixel,
                // so `channel * channel_pitch + tap` from there it starts inside that channel's planes, and it ends within
                // the slack that `Tiling::scratch` counts in. `weights` has FILTER_BLOCK floats per channel and tap, of
                // which the kernel reads `filters` from `filter % FILTER_BLOCK` on: 8 from 0, or 4 from 0 or 4.
                unsafe {
                    if S::LANES == MAX_LANES && filters == 8 {
                        multiply_vectors::<S, 8>(simd, vectors, pixels, weights, shape.channels, tiling, &mut sums);
                    } else {
                        multiply_vectors::<S, 4>(simd, vectors, pixels, weights, shape.channels, tiling, &mut sums);
                    }
                }
                for row in 0..filters.min(left) {
                    for i in 0..vectors {
                        let sums = &sums[(row * vectors + i) * S::LANES..][..S::LANES + MAX_LANES];
                        self.finish(simd, &cover, first_row, filter + row, vector + i, sums);
                    }
                }
                filter += filters;
            }
        }
    }
}

impl Tile<'_> {
    /// Applies the epilogue to the sums of one vector of one filter and stores those that are output pixels.
    #[inline(always)]
    fn finish<S: Simd>(&self, simd: S, cover: &Cover, first_row: usize, filter: usize, vector: usize, sums: &[f32]) {
        let Conv2dOp { bias, residual, act, .. } = self.op;
        let shift = bias.map_or(0.0, |bias| bias[filter]) + self.emb.map_or(0.0, |emb| emb.at(self.sample, filter));
        let shift = simd.splat(shift);
        let [rows, columns] = self.tiling.output;
        let plane = ((self.sample * self.shape.filters + filter) * rows + first_row) * columns;
        let mut from = 0;
        while let Some(Piece { lane, pixel, count }) = cover.piece(vector, from) {
            let pixels = plane + pixel..plane + pixel + count;
            assert!(lane + S::LANES <= sums.len());
            // SAFETY: the assertion bounds the load. A piece lies in one output row of this tile and filter, which no
            // other tile writes, so the part is exclusive; it and the residual have `count` elements.
            unsafe {
                let mut value = act.apply(simd, simd.add(simd.load(sums.as_ptr().add(lane)), shift));
                if let Some(residual) = residual {
                    value = simd.add(simd.load_first(residual[pixels.clone()].as_ptr(), count), value);
                }
                let y = self.y.part(pixels).as_mut_ptr();
                if count == S::LANES { simd.store(y, value) } else { simd.store_first(y, value, count) }
            }
            from = lane + count;
        }
    }
}

/// [`multiply`] for 1, 2 or 3 vectors.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn multiply_vectors<S: Simd, const FILTERS: usize>(
    simd: S,
    vectors: usize,
    pixels: [*const f32; PIXELS],
    weights: *const f32,
    channels: usize,
    tiling: &Tiling,
    sums: &mut Sums,
) {
    let [first, second, _] = pixels;
    // SAFETY: the caller's contract.
    unsafe {
        match vectors {
            1 => multiply::<S, FILTERS, 1>(simd, [first], weights, channels, tiling, sums),
            2 => multiply::<S, FILTERS, 2>(simd, [first, second], weights, channels, tiling, sums),
            _ => multiply::<S, FILTERS, 3>(simd, pixels, weights, channels, tiling, sums),
        }
    }
}

/// The register kernel: `sums[f][v] = Σ_channel Σ_tap weights[channel][tap][f] * pixels[v][channel * pitch + tap]`.
///
/// # Safety
/// For every channel and tap, `FILTERS` floats are readable at `weights + (channel * taps + tap) * 8`, and a vector at
/// `pixels[v] + channel * channel_pitch + tap` for every v.
#[inline(always)]
unsafe fn multiply<S: Simd, const FILTERS: usize, const VECTORS: usize>(
    simd: S,
    pixels: [*const f32; VECTORS],
    mut weights: *const f32,
    channels: usize,
    tiling: &Tiling,
    sums: &mut Sums,
) {
    let mut sum = [[simd.splat(0.0); VECTORS]; FILTERS];
    for channel in 0..channels {
        let plane = channel * tiling.channel_pitch;
        for tap in &tiling.taps {
            // SAFETY: the caller's contract; a step of `weights` is one tap.
            unsafe {
                let x: [S::F; VECTORS] = std::array::from_fn(|v| simd.load(pixels[v].add(plane + tap)));
                let mut weight = weights;
                for row in &mut sum {
                    let w = simd.splat(*weight);
                    for v in 0..VECTORS {
                        row[v] = simd.mul_add(w, x[v], row[v]);
                    }
                    (weight, *row) = simd.pin(weight.add(1), *row);
                }
                weights = weights.add(FILTER_BLOCK);
            }
        }
    }
    const { assert!(FILTERS <= FILTER_BLOCK && VECTORS <= PIXELS && S::LANES <= MAX_LANES) };
    for (f, row) in sum.iter().enumerate() {
        for (v, value) in row.iter().enumerate() {
            // SAFETY: the assertion above keeps the index inside `Sums`.
            unsafe { simd.store(sums.as_mut_ptr().add((f * VECTORS + v) * S::LANES), *value) };
        }
    }
}
