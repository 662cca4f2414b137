//! How the work of a sample is cut into blocks of tiles and groups of filters, and what one takes in scratch.

use crate::conv::geometry::{Conv2dShape, LINE, spread};
use crate::gemm::even_share;

/// Tiles that lie side by side in scratch: two vectors of AVX-512, four of AVX2.
pub(super) const SPAN: usize = 32;

/// Tiles of a block at most: the filters are read once for them, and what is made of them stays in the second-level cache where
/// layers are not too wide.
const MOST_TILES: usize = 64;

/// Filters of a group at most: the transformed input of wide layers, which leaves the cache, is read once for them.
const MOST_FILTERS: usize = 112;

/// The most rows and columns of padding at an edge: each tile then sees a pixel.
const MOST_PADDING: usize = 2;

/// Sizes are in floats.
#[derive(Clone, Debug)]
pub(super) struct Cut {
    /// Positions along an axis: 4, or 3 behind an upsampling.
    pub points: usize,
    /// Rows and columns of input from one tile to the next.
    pub step: usize,
    /// Height and width of the output.
    pub output: [usize; 2],
    /// Tiles of a sample in a row, and in all.
    pub columns: usize,
    pub tiles: usize,
    /// Tiles of a block (the last one may have fewer).
    pub block: usize,
    pub blocks: usize,
    /// Filters of a range (the last one may have fewer), and of those how many are multiplied before their outputs are made.
    pub filters: usize,
    pub ranges: usize,
    pub group: usize,
    /// From one line of combined input rows to the next.
    pub line_pitch: usize,
    /// From one position of a span's transformed input to the next.
    pub input_pitch: usize,
}

/// From one filter's products in a span to the next one's: an odd number of cache lines, so that they do not compete for few sets.
pub(super) const fn row_pitch(points: usize) -> usize {
    points * points * SPAN + LINE
}

impl Cut {
    /// Cuts `shape` for `threads` threads; `None` where minimal filtering does not apply.
    pub(super) fn new(shape: &Conv2dShape, threads: usize) -> Option<Self> {
        let output = shape.output()?;
        let fits = shape.kernel == [3, 3] && shape.stride == [1, 1] && shape.padding.iter().all(|&p| p <= MOST_PADDING);
        let (points, step) = match shape.up {
            [1, 1] if fits => (4, 2),
            [2, 2] if fits && shape.padding == [1; 4] => (3, 1),
            _ => return None,
        };
        let [rows, columns] = output.map(|size| size.div_ceil(2));
        let tiles = rows.checked_mul(columns)?.max(1);
        let block = even_share(tiles, MOST_TILES).next_multiple_of(SPAN);
        let blocks = tiles.div_ceil(block);
        // A range of filters transforms the same input again: only as many as threads have something to do.
        let all = shape.filters.max(1);
        let ranges = threads.div_ceil(blocks).min(all.div_ceil(LINE));
        let filters = all.div_ceil(ranges);
        let group = even_share(filters, MOST_FILTERS);
        // Before a line there is a cache line for padding, behind it room for the vectors that the last tile reads.
        let half = block.min(columns).checked_add(4 * LINE)?.checked_next_multiple_of(LINE)?;
        let cut = Self {
            points,
            step,
            output,
            columns,
            tiles,
            block,
            blocks,
            filters,
            ranges: all.div_ceil(filters),
            group,
            line_pitch: half.checked_mul(step)?,
            input_pitch: spread(SPAN.checked_mul(shape.channels)?)?,
        };
        let input = cut.input_pitch.checked_mul(block / SPAN * points * points)?;
        let products = (block / SPAN * row_pitch(points)).checked_mul(group)?;
        input.checked_add(products)?.checked_add(cut.lines())?;
        Some(cut)
    }

    /// Floats of the lines of two channels, and of one that is zero.
    pub(super) fn lines(&self) -> usize {
        (2 * self.points + 1) * self.line_pitch
    }

    /// Floats of the transformed input of a block.
    pub(super) fn input(&self) -> usize {
        self.block / SPAN * self.points * self.points * self.input_pitch
    }

    /// Floats of the products of a group.
    pub(super) fn products(&self) -> usize {
        self.block / SPAN * self.group * row_pitch(self.points)
    }

    /// Floats that one block needs.
    pub(super) fn scratch(&self) -> usize {
        self.lines() + self.input() + self.products()
    }
}
