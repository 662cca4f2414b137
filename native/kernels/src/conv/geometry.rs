//! What a convolution looks like in memory: output size, tiles, and the layout of a packed tile.
//!
//! An image is planes of *cells* of four bytes: one float32 of one channel, or the bytes of four channels (a quad). Every
//! convolution, whatever its stride and kernel, is brought to one form: *a tap is an offset*. The cells that a tile reads
//! are copied into scratch with their padding, in planes from which a vector of output pixels reads consecutive cells:
//!
//! - row by row, split by the phase of the stride: the plane `(py, px)` holds the cells at rows `py (mod stride)` and columns
//!   `px (mod stride)`, and the tap `(ky, kx)` reads the plane `(ky mod stride, kx mod stride)`, `ky / stride` rows and
//!   `kx / stride` columns further on; or
//! - flat, where rows would leave much of their last vector idle: a plane of its own for each `kx`, as wide as the output, so
//!   that the output rows of a tile are one run without gaps.
//!
//! Stride 1 is one padded copy, a 1×1 kernel a copy without padding, a patch embedding (kernel = stride) is im2col, a nearest
//! upsampling in front repeats cells while they are copied; borders need no branch.

/// Output channels in one block of the `oc8` and `q4oc8` weight layouts.
pub const FILTER_BLOCK: usize = 8;

/// Input channels in one cell of a quantized image.
pub const QUAD: usize = 4;

/// Cells in a cache line, and in the widest vector of any instruction set: loads may run that far beyond a plane.
pub(super) const LINE: usize = 16;

/// Bytes of packed input a tile aims at: a part of the second-level cache of every processor with AVX2, and of those with
/// AVX-512, whose caches are larger.
const TILE_BYTES: [usize; 2] = [384 * 1024, 768 * 1024];

/// The same for 1×1 kernels, which have no halo to pack again: enough pixels of each channel that the processor sees a stream.
const POINT_TILE_BYTES: [usize; 2] = [192 * 1024, 384 * 1024];

/// Tiles per thread that a single sample is cut into, so that one late thread costs a fraction of the call.
const TILES_PER_THREAD: usize = 2;

/// The shape of a `conv2d` call without its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dShape {
    /// I, the channels of the input.
    pub channels: usize,
    /// O, the channels of the output.
    pub filters: usize,
    /// Height and width of the input, before it is upsampled.
    pub input: [usize; 2],
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Rows and columns between two outputs.
    pub stride: [usize; 2],
    /// Rows and columns of padding: top, left, bottom, right.
    pub padding: [usize; 4],
    /// How often each row and column of the input is repeated (nearest upsampling).
    pub up: [usize; 2],
}

impl Conv2dShape {
    /// Height and width of the output, or `None` where the kernel does not fit, a size is zero that must not be, or a size
    /// overflows.
    #[must_use]
    pub fn output(&self) -> Option<[usize; 2]> {
        let along = |axis: usize| {
            let (kernel, stride, up) = (self.kernel[axis], self.stride[axis], self.up[axis]);
            if kernel == 0 || stride == 0 || up == 0 {
                return None;
            }
            let grown = self.input[axis].checked_mul(up)?;
            let padded = grown.checked_add(self.padding[axis])?.checked_add(self.padding[axis + 2])?;
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
        self.weight_cells(self.channels)
    }

    /// Bytes of the weight in the `q4oc8` layout `[ceil(O/8)][ceil(I/4)][kh][kw][8][4]`, or `None` on overflow.
    #[must_use]
    pub fn quantized_weight_bytes(&self) -> Option<usize> {
        self.weight_cells(self.channels.div_ceil(QUAD))?.checked_mul(QUAD)
    }

    fn weight_cells(&self, planes: usize) -> Option<usize> {
        let [kh, kw] = self.kernel;
        self.filter_blocks().checked_mul(FILTER_BLOCK)?.checked_mul(planes)?.checked_mul(kh)?.checked_mul(kw)
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Run {
    /// Each output row starts a vector; the last vector of a row may be partly idle.
    Rows,
    /// The output rows of a tile are one run.
    Flat,
}

/// How the work of one sample is cut, and how the input of a tile lies in scratch. All sizes are in cells.
#[derive(Clone, Debug)]
pub(super) struct Tiling {
    /// Channels, or quads of channels, of the input.
    pub planes: usize,
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
    /// Copies of a channel: phases of the stride that some tap reads, or along a flat run the columns of the kernel.
    pub copies: [usize; 2],
    /// Rows of a copy, what is needed of each, and the distance of one to the next.
    pub copy_rows: usize,
    pub row_cells: usize,
    pub row_pitch: usize,
    /// Where the first row of a copy begins in it: such that the image, behind its padding, begins a cache line.
    pub lead: usize,
    /// From one copy to the next.
    pub copy_pitch: usize,
    /// From a channel's first copy to the next channel's.
    pub channel_pitch: usize,
    /// Offset in scratch of what each tap `(channel, ky, kx)`, row-major, reads for the first output pixel.
    pub offsets: Vec<u32>,
    /// Cells of scratch one tile needs, slack included.
    pub scratch: usize,
}

impl Tiling {
    /// Cuts `shape`, whose input has `planes` planes of cells, for vectors of `lanes` cells and `threads` threads; `None`
    /// where `shape` has no output or overflows.
    pub(super) fn new(shape: &Conv2dShape, planes: usize, lanes: usize, threads: usize) -> Option<Self> {
        let output = shape.output()?;
        let [kh, kw] = shape.kernel;
        let [sy, sx] = shape.stride;
        let halo = (kh - 1) / sy;
        // A flat run packs each row once per column of the kernel; it is worth it from a tenth of idle lanes on.
        let vectors = output[1].div_ceil(lanes) * lanes;
        let run = if kw == 1 || output[1] <= vectors - vectors / 10 { Run::Flat } else { Run::Rows };
        let (copies_x, row_cells, row_pitch, lead) = match run {
            Run::Flat => (kw, output[1], output[1], 0),
            Run::Rows => {
                let cells = output[1].checked_add((kw - 1) / sx)?;
                let inside = shape.padding[1].div_ceil(sx);
                (sx.min(kw), cells, cells.checked_next_multiple_of(LINE)?, inside.next_multiple_of(LINE) - inside)
            }
        };
        let copies = [sy.min(kh), copies_x];
        let row_bytes = row_pitch
            .checked_mul(copies[0].checked_mul(copies[1])?)?
            .checked_mul(planes.max(1))?
            .checked_mul(size_of::<u32>())?;

        // Rows by cache first; then as many ranges as the threads need, rows before filters, because a range of filters
        // packs the same input again. Below four rows the halo costs more than packing twice.
        let budget = if shape.kernel == [1, 1] {
            POINT_TILE_BYTES[usize::from(lanes == LINE)]
        } else {
            TILE_BYTES[usize::from(lanes == LINE)]
        };
        let fitting = (budget / row_bytes.max(1)).saturating_sub(halo).clamp(1, output[0]);
        let mut row_tiles = output[0].div_ceil(fitting);
        let wanted = if threads > 1 { threads * TILES_PER_THREAD } else { 1 };
        if row_tiles < wanted {
            let cuttable = if halo == 0 { output[0] } else { output[0] / 4 };
            row_tiles = row_tiles.max(cuttable.min(wanted));
        }
        let rows = output[0].div_ceil(row_tiles);
        let row_tiles = output[0].div_ceil(rows);
        let filter_blocks = shape.filter_blocks().max(1);
        let filter_tiles = wanted.div_ceil(row_tiles).min(filter_blocks);
        let blocks = filter_blocks.div_ceil(filter_tiles);

        let copy_rows = rows.checked_add(halo)?;
        // Behind the rows there is room for the vector that writes the end of the last one.
        let copy_pitch = copy_rows.checked_mul(row_pitch)?.checked_add(lead + LINE)?.checked_next_multiple_of(LINE)?;
        let channel_pitch = spread(copy_pitch.checked_mul(copies[0])?.checked_mul(copies[1])?)?;
        let scratch = channel_pitch.checked_mul(planes)?.checked_add(LINE)?;
        u32::try_from(scratch).ok()?;
        let taps = (0..planes).flat_map(|plane| (0..kh * kw).map(move |tap| (plane, tap / kw, tap % kw)));
        let offsets = taps
            .map(|(plane, ky, kx)| {
                let (copy, column) = if run == Run::Flat { (kx, 0) } else { (kx % sx, kx / sx) };
                let copy = (ky % sy) * copies_x + copy;
                (plane * channel_pitch + copy * copy_pitch + lead + (ky / sy) * row_pitch + column) as u32
            })
            .collect();
        Some(Self {
            planes,
            output,
            rows,
            blocks,
            row_tiles,
            filter_tiles: filter_blocks.div_ceil(blocks),
            run,
            copies,
            copy_rows,
            row_cells,
            row_pitch,
            lead,
            copy_pitch,
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
pub(super) fn spread(cells: usize) -> Option<usize> {
    Some(((cells.checked_add(LINE - 1)? / LINE) | 1) * LINE)
}
