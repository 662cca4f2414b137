//! What a convolution looks like in memory: output size, tiles, and the layout of a packed tile.
//!
//! Every convolution, whatever its stride, is brought to one form: *a tap is an offset*. The input of a tile is copied into
//! scratch as zero-padded planes, split by the phase of the stride: the plane `(py, px)` holds the input elements at rows
//! `py (mod stride)` and columns `px (mod stride)`. The tap `(ky, kx)` of consecutive output pixels then reads consecutive
//! elements of the plane `(ky mod stride, kx mod stride)`, `ky / stride` rows and `kx / stride` columns further on. Stride 1 is
//! one padded copy; a patch embedding (kernel = stride) is im2col; borders need no branch.

/// Output channels in one block of the `oc8` weight layout.
pub const FILTER_BLOCK: usize = 8;

/// Floats behind a packed tile that a vector load may touch: the widest vector of any ISA.
const SLACK: usize = 16;

/// Bytes of packed input a tile aims at: a part of the second-level cache of every processor with AVX2.
const TILE_BYTES: usize = 384 * 1024;

/// Tiles per thread that a single sample is cut into, so that one late thread costs a fraction of the call.
const TILES_PER_THREAD: usize = 2;

/// The shape of a `conv2d` call without its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dShape {
    /// I, the channels of the input.
    pub channels: usize,
    /// O, the channels of the output.
    pub filters: usize,
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Rows and columns between two outputs.
    pub stride: [usize; 2],
    /// Zero rows and columns on each side of the input.
    pub padding: [usize; 2],
}

impl Conv2dShape {
    /// Height and width of the output, or `None` where the kernel does not fit, a size is zero that must not be, or a size
    /// overflows.
    #[must_use]
    pub fn output(&self) -> Option<[usize; 2]> {
        let along = |axis: usize| {
            let (kernel, stride) = (self.kernel[axis], self.stride[axis]);
            if kernel == 0 || stride == 0 {
                return None;
            }
            let padded = self.padding[axis].checked_mul(2)?.checked_add(self.input[axis])?;
            Some(padded.checked_sub(kernel)? / stride + 1)
        };
        Some([along(0)?, along(1)?])
    }

    /// Blocks of eight output channels.
    pub(super) fn filter_blocks(&self) -> usize {
        self.filters.div_ceil(FILTER_BLOCK)
    }

    /// Elements of the weight in the `oc8` layout `[ceil(O/8)][I][kh][kw][8]`, or `None` on overflow.
    #[must_use]
    pub fn weight_elements(&self) -> Option<usize> {
        let [kh, kw] = self.kernel;
        self.filter_blocks().checked_mul(FILTER_BLOCK)?.checked_mul(self.channels)?.checked_mul(kh)?.checked_mul(kw)
    }

    /// Brings a plain weight `[O, I, kh, kw]` into the `oc8` layout.
    ///
    /// # Panics
    /// If `plain` is shorter than that.
    #[must_use]
    pub fn pack_weight(&self, plain: &[f32]) -> Vec<f32> {
        let per_filter = self.channels * self.kernel[0] * self.kernel[1];
        let mut packed = vec![0.0; self.filter_blocks() * FILTER_BLOCK * per_filter];
        if per_filter == 0 {
            return packed;
        }
        for filter in 0..self.filters {
            let block = &mut packed[filter / FILTER_BLOCK * FILTER_BLOCK * per_filter..];
            let column = block[filter % FILTER_BLOCK..].iter_mut().step_by(FILTER_BLOCK);
            for (to, from) in column.zip(&plain[filter * per_filter..][..per_filter]) {
                *to = *from;
            }
        }
        packed
    }
}

/// How the output pixels of a tile lie under the vectors.
///
/// Row by row, the last vector of each row is partly idle. As one flat run over the padded rows, the vectors are full but some
/// lanes compute the columns between two rows, which nobody asked for. The better one depends on the width alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Run {
    /// Each output row starts a vector.
    Rows,
    /// The output rows of a tile are one run, `row_pitch` apart.
    Flat,
}

/// How the work of one sample is cut, and how the input of a tile lies in scratch.
#[derive(Clone, Debug)]
pub(super) struct Tiling {
    /// Height and width of the output.
    pub output: [usize; 2],
    /// Output rows of a tile (the last one may have fewer).
    pub rows: usize,
    /// Blocks of eight filters of a tile (the last one may have fewer).
    pub blocks: usize,
    /// Number of row ranges and of filter ranges of a sample.
    pub row_tiles: usize,
    pub filter_tiles: usize,
    pub run: Run,
    /// Phases of the stride that some tap reads.
    pub phases: [usize; 2],
    /// Rows of a packed plane, and floats from one row to the next.
    pub plane_rows: usize,
    pub row_pitch: usize,
    /// Floats from a channel's first plane to the next channel's.
    pub channel_pitch: usize,
    /// Offset in scratch of what each tap `(channel, ky, kx)`, row-major, reads for the first output pixel.
    pub offsets: Vec<u32>,
    /// Floats of scratch one tile needs, slack included.
    pub scratch: usize,
}

impl Tiling {
    /// Cuts `shape` for vectors of `lanes` floats and `threads` threads; `None` where `shape` has no output or overflows.
    pub(super) fn new(shape: &Conv2dShape, lanes: usize, threads: usize) -> Option<Self> {
        let output = shape.output()?;
        let [kh, kw] = shape.kernel;
        let [sy, sx] = shape.stride;
        let phases = [sy.min(kh), sx.min(kw)];
        let halo = (kh - 1) / sy;
        let row_pitch = output[1].checked_add((kw - 1) / sx)?;
        let row_bytes = row_pitch
            .checked_mul(phases[0].checked_mul(phases[1])?)?
            .checked_mul(shape.channels.max(1))?
            .checked_mul(size_of::<f32>())?;

        // Rows by cache first; then as many ranges as the threads need, rows before filters, because a range of filters
        // packs the same input again. Below four rows the halo costs more than packing twice.
        let fitting = (TILE_BYTES / row_bytes.max(1)).saturating_sub(halo).clamp(1, output[0]);
        let mut row_tiles = output[0].div_ceil(fitting);
        let wanted = if threads > 1 { threads * TILES_PER_THREAD } else { 1 };
        if row_tiles < wanted {
            let cuttable = if row_pitch == output[1] { output[0] } else { output[0] / 4 };
            row_tiles = row_tiles.max(cuttable.min(wanted));
        }
        let rows = output[0].div_ceil(row_tiles);
        let row_tiles = output[0].div_ceil(rows);
        let filter_blocks = shape.filter_blocks().max(1);
        let filter_tiles = wanted.div_ceil(row_tiles).min(filter_blocks);
        let blocks = filter_blocks.div_ceil(filter_tiles);

        let plane_rows = rows.checked_add(halo)?;
        let plane = plane_rows.checked_mul(row_pitch)?;
        let channel_pitch = spread(plane.checked_mul(phases[0])?.checked_mul(phases[1])?)?;
        let scratch = channel_pitch.checked_mul(shape.channels)?.checked_add(SLACK)?;
        u32::try_from(scratch).ok()?;
        let taps = (0..shape.channels).flat_map(|channel| (0..kh * kw).map(move |tap| (channel, tap / kw, tap % kw)));
        let offsets = taps
            .map(|(channel, ky, kx)| {
                let phase = (ky % sy) * phases[1] + kx % sx;
                (channel * channel_pitch + phase * plane + (ky / sy) * row_pitch + kx / sx) as u32
            })
            .collect();
        let by_rows = rows * output[1].div_ceil(lanes);
        let flat = ((rows - 1) * row_pitch + output[1]).div_ceil(lanes);
        Some(Self {
            output,
            rows,
            blocks,
            row_tiles,
            filter_tiles: filter_blocks.div_ceil(blocks),
            run: if flat < by_rows || row_pitch == output[1] { Run::Flat } else { Run::Rows },
            phases,
            plane_rows,
            row_pitch,
            channel_pitch,
            offsets,
            scratch,
        })
    }

    /// Tiles of one sample.
    pub(super) fn tiles(&self) -> usize {
        self.row_tiles * self.filter_tiles
    }
}

/// Rounds a channel's size up to an odd number of cache lines: with a power of two, the same pixel of every channel would
/// compete for the same few cache sets.
fn spread(floats: usize) -> Option<usize> {
    const LINE: usize = 16;
    Some(((floats.checked_add(LINE - 1)? / LINE) | 1) * LINE)
}
