//! Copies the input of one tile into scratch, with its padding, as `geometry` lays it out.

use scoregraph_simd::Simd;

use super::geometry::{LINE, Tiling};
use super::tile::Tile;

/// One sample of an image: planes of dense rows of cells.
#[derive(Clone, Copy)]
pub(super) struct Planes {
    /// The first plane.
    pub first: *const u32,
    /// Cells from one plane to the next.
    pub pitch: usize,
}

/// Packs the input that a tile reads; cells outside of the image become `padding`.
///
/// Everything in `scratch` is written, also what only idle lanes read: whatever lay there could be numbers that are slow.
///
/// # Safety
/// `x` has the planes of the tile's input, which are readable; `scratch` has at least `tiling.scratch` cells.
#[inline(always)]
pub(super) unsafe fn pack_tile<S: Simd>(simd: S, tile: &Tile, x: Planes, padding: u32, scratch: &mut [u32]) {
    let Tile { shape, tiling, first_row, .. } = *tile;
    let Tiling { lead, row_pitch, row_cells, copy_rows, .. } = *tiling;
    let [height, width] = shape.input;
    let [up_y, up_x] = shape.up;
    let [sy, sx] = shape.stride;
    let [top, left, ..] = shape.padding;
    for plane in 0..tiling.planes {
        let channel = &mut scratch[plane * tiling.channel_pitch..][..tiling.channel_pitch];
        let (copies, rest) = channel.split_at_mut(tiling.copies[0] * tiling.copies[1] * tiling.copy_pitch);
        rest.fill(padding);
        let mut copies = copies.chunks_exact_mut(tiling.copy_pitch);
        for copy_y in 0..tiling.copies[0] {
            for copy_x in 0..tiling.copies[1] {
                let Some(copy) = copies.next() else { unreachable!("a channel has room for its copies") };
                // Column c of the copy is column `c * sx + copy_x - left` of the upsampled image: which are inside?
                let first = left.saturating_sub(copy_x).div_ceil(sx).min(row_cells);
                let end = (width * up_x + left).saturating_sub(copy_x).div_ceil(sx).clamp(first, row_cells);
                let (start, rows) = copy.split_at_mut(lead);
                start.fill(padding);
                rows[copy_rows * row_pitch..].fill(padding);
                for (row, packed) in rows.chunks_exact_mut(row_pitch.max(1)).take(copy_rows).enumerate() {
                    let y = (first_row + row) * sy + copy_y;
                    if y < top || y >= height * up_y + top || first == end {
                        packed.fill(padding);
                        continue;
                    }
                    packed[..first].fill(padding);
                    packed[end..].fill(padding);
                    let column = first * sx + copy_x - left;
                    // SAFETY: the row and the columns `column ..`, `sx` apart, are inside the upsampled image, so what they
                    // repeat is inside the plane.
                    unsafe {
                        let line = x.first.add(plane * x.pitch + (y - top) / up_y * width);
                        let packed = &mut packed[first..end];
                        match (sx, up_x) {
                            (1, 1) => copy_cells(simd, line.add(column), packed),
                            (2, 1) => take_every_second(line.add(column), packed),
                            (1, 2) => repeat_twice(line, column, packed),
                            _ => {
                                for (i, cell) in packed.iter_mut().enumerate() {
                                    *cell = *line.add((column + i * sx) / up_x);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    scratch[tiling.planes * tiling.channel_pitch..][..LINE].fill(padding);
}

/// `to[i] = from[i]`, a vector at a time: rows are too short for a call of `memcpy`.
///
/// # Safety
/// `from` has as many cells as `to`.
#[inline(always)]
unsafe fn copy_cells<S: Simd>(simd: S, from: *const u32, to: &mut [u32]) {
    let (from, target) = (from.cast::<f32>(), to.as_mut_ptr().cast::<f32>());
    let whole = to.len() - to.len() % S::LANES;
    // SAFETY: inside both; vectors move bits as they are.
    unsafe {
        for at in (0..whole).step_by(S::LANES) {
            simd.store(target.add(at), simd.load(from.add(at)));
        }
        let rest = to.len() - whole;
        if rest > 0 {
            simd.store_first(target.add(whole), simd.load_first(from.add(whole), rest), rest);
        }
    }
}

/// `to[i] = from[2 i]`: the stride of U-Nets, as a constant.
///
/// # Safety
/// `from` has the cells that are read.
#[inline(always)]
unsafe fn take_every_second(from: *const u32, to: &mut [u32]) {
    let Some((last, most)) = to.split_last_mut() else { return };
    // SAFETY: the last cell is `2 * most.len()`, so two cells are readable for each one before.
    unsafe {
        let (pairs, _) = std::slice::from_raw_parts(from, 2 * most.len()).as_chunks::<2>();
        for (to, [even, _]) in most.iter_mut().zip(pairs) {
            *to = *even;
        }
        *last = *from.add(2 * most.len());
    }
}

/// `to[i] = line[(column + i) / 2]`: the upsampling of U-Nets, as a constant.
///
/// # Safety
/// `line` has the cells that are read.
#[inline(always)]
unsafe fn repeat_twice(line: *const u32, column: usize, to: &mut [u32]) {
    let (half, rest) = to.split_at_mut((column % 2).min(to.len()));
    // SAFETY: an odd column is the second copy of its cell; from the next cell on, each is read for two, or one at the end.
    unsafe {
        half.fill(*line.add(column / 2));
        let (pairs, last) = rest.as_chunks_mut::<2>();
        let cells = std::slice::from_raw_parts(line.add(column.div_ceil(2)), pairs.len() + last.len());
        for (pair, cell) in pairs.iter_mut().zip(cells) {
            *pair = [*cell; 2];
        }
        if let ([last], Some(cell)) = (last, cells.last()) {
            *last = *cell;
        }
    }
}
