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

/// Some consecutive sums of a filter's vectors, and the output pixels of the tile that they are.
#[derive(Clone, Copy, Default)]
struct Piece {
    sum: usize,
    pixel: usize,
    count: usize,
}

/// The vectors of a register tile: where their pixels start in a packed plane, and where their sums go.
///
/// The groups of a tile come one after another from [`Group::advance`].
struct Group {
    /// Runs of output pixels in the tile, and pixels of each, those between two rows included.
    runs: usize,
    width: usize,
    /// Where the next group begins.
    run: usize,
    start: usize,
    vectors: usize,
    offsets: [usize; PIXELS],
    pieces: [Piece; PIXELS * MAX_LANES],
    used: usize,
}

impl Group {
    /// Before the first vectors of a tile of `rows` rows.
    fn new(tiling: &Tiling, rows: usize) -> Self {
        let columns = tiling.output[1];
        let (runs, width) = match tiling.run {
            Run::Rows => (rows, columns),
            Run::Flat => (1, (rows - 1) * tiling.row_pitch + columns),
        };
        let (offsets, pieces) = ([0; PIXELS], [Piece::default(); PIXELS * MAX_LANES]);
        Self { runs, width, run: 0, start: 0, vectors: 0, offsets, pieces, used: 0 }
    }

    /// Goes on to the next vectors, at most [`PIXELS`]; false if there are none.
    fn advance(&mut self, tiling: &Tiling, lanes: usize) -> bool {
        let columns = tiling.output[1];
        (self.vectors, self.used) = (0, 0);
        while self.vectors < PIXELS && self.run < self.runs {
            let (run, start, end) = (self.run, self.start, (self.start + lanes).min(self.width));
            self.offsets[self.vectors] = run * tiling.row_pitch + start;
            if tiling.run == Run::Rows || tiling.row_pitch == columns {
                self.push(lanes, start, start, run * columns + start, end - start);
            } else {
                self.push_rows(tiling, lanes, start, end);
            }
            self.vectors += 1;
            (self.run, self.start) = if end < self.width { (run, end) } else { (run + 1, 0) };
        }
        self.vectors > 0
    }

    /// The pixel `at` of a run and the `count - 1` after it, in the vector that starts at `start`.
    fn push(&mut self, lanes: usize, start: usize, at: usize, pixel: usize, count: usize) {
        self.pieces[self.used] = Piece { sum: self.vectors * lanes + at - start, pixel, count };
        self.used += 1;
    }

    /// The output pixels in `start..end` of a flat run: those that are not between two rows.
    fn push_rows(&mut self, tiling: &Tiling, lanes: usize, start: usize, end: usize) {
        let columns = tiling.output[1];
        for row in start / tiling.row_pitch..end.div_ceil(tiling.row_pitch) {
            let first = row * tiling.row_pitch;
            let (from, to) = (start.max(first), end.min(first + columns));
            if from < to {
                self.push(lanes, start, from, row * columns + from - first, to - from);
            }
        }
    }
}

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Tile { shape, tiling, .. } = self;
        let first_row = self.row_tile * tiling.rows;
        let rows = tiling.rows.min(tiling.output[0] - first_row);
        pack_tile(shape, tiling, self.x, first_row, self.scratch);
        // One check for all vector loads below.
        assert!(self.scratch.len() >= tiling.scratch);

        let mut sums: Sums = [0.0; FILTER_BLOCK * PIXELS * MAX_LANES + MAX_LANES];
        let block_elements = FILTER_BLOCK * tiling.offsets.len();
        let first_filter = self.filter_tile * tiling.blocks * FILTER_BLOCK;
        let end_filter = (first_filter + tiling.blocks * FILTER_BLOCK).min(shape.filters);
        let mut group = Group::new(tiling, rows);
        while group.advance(tiling, S::LANES) {
            let pixels = group.offsets.map(|offset| self.scratch.as_ptr().wrapping_add(offset));
            let mut filter = first_filter;
            while filter < end_filter {
                let block = &self.op.w[filter / FILTER_BLOCK * block_elements..][..block_elements];
                let weights = block.as_ptr().wrapping_add(filter % FILTER_BLOCK);
                let left = end_filter - filter;
                let wide = S::LANES == MAX_LANES && left > 4;
                // SAFETY: `pixels` point to vectors of the tile's first channel in scratch. A vector starts at an output
                // pixel, so at any offset from there it starts inside the plane that the tap reads, and it ends within
                // the slack that `Tiling::scratch` counts in. A block of weights has FILTER_BLOCK floats per offset, of
                // which the kernel reads 8 from the first, or 4 from the first or the fifth.
                unsafe {
                    if wide {
                        multiply_vectors::<S, 8>(simd, group.vectors, pixels, weights, tiling, &mut sums);
                    } else {
                        multiply_vectors::<S, 4>(simd, group.vectors, pixels, weights, tiling, &mut sums);
                    }
                }
                let filters = if wide { 8 } else { 4 };
                for row in 0..filters.min(left) {
                    self.finish(simd, &group, first_row, filter + row, &sums[row * group.vectors * S::LANES..]);
                }
                filter += filters;
            }
        }
    }
}

impl Tile<'_> {
    /// Applies the epilogue to the sums of one filter and stores those that are output pixels.
    #[inline(always)]
    fn finish<S: Simd>(&self, simd: S, group: &Group, first_row: usize, filter: usize, sums: &[f32]) {
        let Conv2dOp { bias, residual, act, .. } = self.op;
        let shift = bias.map_or(0.0, |bias| bias[filter]) + self.emb.map_or(0.0, |emb| emb.at(self.sample, filter));
        let shift = simd.splat(shift);
        let [rows, columns] = self.tiling.output;
        let plane = ((self.sample * self.shape.filters + filter) * rows + first_row) * columns;
        for &Piece { sum, pixel, count } in &group.pieces[..group.used] {
            let pixels = plane + pixel..plane + pixel + count;
            let sums = &sums[sum..][..S::LANES];
            // SAFETY: `sums` has a vector. A piece lies in the output rows of this tile and filter, which no other tile
            // writes, so the part is exclusive; it and the residual have `count` elements.
            unsafe {
                let mut value = act.apply(simd, simd.add(simd.load(sums.as_ptr()), shift));
                if let Some(residual) = residual {
                    value = simd.add(simd.load_first(residual[pixels.clone()].as_ptr(), count), value);
                }
                let y = self.y.part(pixels).as_mut_ptr();
                if count == S::LANES { simd.store(y, value) } else { simd.store_first(y, value, count) }
            }
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
    tiling: &Tiling,
    sums: &mut Sums,
) {
    let [first, second, _] = pixels;
    // SAFETY: the caller's contract.
    unsafe {
        match vectors {
            1 => multiply::<S, FILTERS, 1>(simd, [first], weights, tiling, sums),
            2 => multiply::<S, FILTERS, 2>(simd, [first, second], weights, tiling, sums),
            _ => multiply::<S, FILTERS, 3>(simd, pixels, weights, tiling, sums),
        }
    }
}

/// The register kernel: `sums[f][v] = Σ_i weights[i][f] * pixels[v][offsets[i]]`, i over channels and taps.
///
/// One loop over both: an inner loop over the taps would mispredict its end once per channel.
///
/// # Safety
/// For every offset i, `FILTERS` floats are readable at `weights + i * 8`, and a vector at `pixels[v] + offsets[i]` for
/// every v.
#[inline(always)]
unsafe fn multiply<S: Simd, const FILTERS: usize, const VECTORS: usize>(
    simd: S,
    pixels: [*const f32; VECTORS],
    mut weights: *const f32,
    tiling: &Tiling,
    sums: &mut Sums,
) {
    let mut sum = [[simd.splat(0.0); VECTORS]; FILTERS];
    for &offset in &tiling.offsets {
        // SAFETY: the caller's contract; a step of `weights` is one offset.
        unsafe {
            let x: [S::F; VECTORS] = std::array::from_fn(|v| simd.load(pixels[v].add(offset as usize)));
            for (filter, row) in sum.iter_mut().enumerate() {
                let w = simd.splat(*weights.add(filter));
                for v in 0..VECTORS {
                    row[v] = simd.mul_add(w, x[v], row[v]);
                }
                (weights, *row) = simd.pin(weights, *row);
            }
            weights = weights.add(FILTER_BLOCK);
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
