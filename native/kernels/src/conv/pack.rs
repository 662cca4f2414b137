//! Copies the input of one tile into scratch, with its padding, as `geometry` lays it out.

use std::ops::Range;

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
/// Everything in `scratch` is written, also what only idle lanes read: whatever lay there could be numbers that are slow. A
/// copy is written in ascending order in whole vectors, of which the next overwrites what was too much.
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
    // Row or column c of a copy is `c * stride + phase - padding` of the upsampled image: which are inside?
    let inside = |phase: usize, padding: usize, size: usize, stride: usize, most: usize| {
        let first = padding.saturating_sub(phase).div_ceil(stride).min(most);
        first..(size + padding).saturating_sub(phase).div_ceil(stride).clamp(first, most)
    };
    for copy in 0..tiling.copies[0] * tiling.copies[1] {
        let (copy_y, copy_x) = (first_row * sy + copy / tiling.copies[1], copy % tiling.copies[1]);
        let columns = inside(copy_x, left, width * up_x, sx, row_cells);
        let mut rows = inside(copy_y, top, height * up_y, sy, copy_rows);
        if columns.is_empty() {
            rows = 0..0;
        }
        let column = if columns.is_empty() { 0 } else { columns.start * sx + copy_x - left };
        for plane in 0..tiling.planes {
            let start = plane * tiling.channel_pitch + copy * tiling.copy_pitch;
            let copy = &mut scratch[start..][..tiling.copy_pitch];
            let (before, behind) = (lead + rows.start * row_pitch, lead + rows.end * row_pitch);
            fill(simd, copy, 0..before, padding);
            for row in rows.clone() {
                let packed = &mut copy[lead + row * row_pitch..][..row_pitch + LINE];
                fill(simd, packed, 0..columns.start, padding);
                let y = row * sy + copy_y - top;
                let y = if up_y == 1 { y } else { y / up_y };
                // SAFETY: the row and the columns `column ..`, `sx` apart, are inside the upsampled image, so what they
                // repeat is inside the plane.
                unsafe {
                    let line = x.first.add(plane * x.pitch + y * width);
                    let packed = &mut packed[columns.start..];
                    match (sx, up_x) {
                        (1, 1) => copy_cells(simd, line.add(column), packed, columns.len()),
                        (2, 1) => take_every_second(line.add(column), &mut packed[..columns.len()]),
                        (1, 2) => repeat_twice(line, column, &mut packed[..columns.len()]),
                        _ => {
                            for (i, cell) in packed[..columns.len()].iter_mut().enumerate() {
                                *cell = *line.add((column + i * sx) / up_x);
                            }
                        }
                    }
                }
                fill(simd, packed, columns.end..row_pitch, padding);
            }
            fill(simd, copy, behind..tiling.copy_pitch, padding);
        }
    }
    for plane in 0..tiling.planes {
        let rest = tiling.copies[0] * tiling.copies[1] * tiling.copy_pitch..tiling.channel_pitch;
        scratch[plane * tiling.channel_pitch..][rest].fill(padding);
    }
    scratch[tiling.planes * tiling.channel_pitch..][..LINE].fill(padding);
}

/// Writes `value` to the cells of `range`, and to what follows up to a whole vector. A range that ends less than a vector before
/// the end of `to` has a vector at least.
#[inline(always)]
fn fill<S: Simd>(simd: S, to: &mut [u32], range: Range<usize>, value: u32) {
    assert!(to.len() >= range.end.max(S::LANES));
    let (value, last) = (simd.splat_i(value as i32), to.len() - S::LANES);
    for at in range.step_by(S::LANES) {
        // SAFETY: inside the slice, as asserted.
        unsafe { simd.store_i(to.as_mut_ptr().add(at.min(last)).cast(), value) };
    }
}

/// `to[i] = from[i]` for `cells` cells, and zeros up to a whole vector: rows are too short for a call of `memcpy`.
///
/// # Safety
/// `from` has that many cells.
#[inline(always)]
unsafe fn copy_cells<S: Simd>(simd: S, from: *const u32, to: &mut [u32], cells: usize) {
    assert!(to.len() >= cells.next_multiple_of(S::LANES));
    let (from, to) = (from.cast::<f32>(), to.as_mut_ptr().cast::<f32>());
    let whole = cells - cells % S::LANES;
    // SAFETY: inside both, as asserted; vectors move bits as they are.
    unsafe {
        for at in (0..whole).step_by(S::LANES) {
            simd.store(to.add(at), simd.load(from.add(at)));
        }
        if whole < cells {
            simd.store(to.add(whole), simd.load_first(from.add(whole), cells - whole));
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
