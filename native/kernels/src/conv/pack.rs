//! Copies the input of one tile into scratch, padded and split by the phase of the stride.

use super::geometry::{Conv2dShape, Tiling};

/// Packs the input rows that the output rows `first_row ..` of a tile read.
///
/// `x` is one sample `[I, H, W]`; `scratch` has at least `tiling.scratch` floats. Everything a tap of those rows reads is
/// written; the padding between channels and the slack at the end are not read into any result.
#[inline(always)]
pub(super) fn pack_tile(shape: &Conv2dShape, tiling: &Tiling, x: &[f32], first_row: usize, scratch: &mut [f32]) {
    let [height, width] = shape.input;
    let [sy, sx] = shape.stride;
    let [pad_y, pad_x] = shape.padding;
    let row_pitch = tiling.row_pitch;
    for channel in 0..shape.channels {
        let source = &x[channel * height * width..][..height * width];
        let mut rows = scratch[channel * tiling.channel_pitch..].chunks_exact_mut(row_pitch);
        for phase_y in 0..tiling.phases[0] {
            for phase_x in 0..tiling.phases[1] {
                // Columns c of the plane that lie inside the input: 0 <= c * sx + phase_x - pad_x < width.
                let first = pad_x.saturating_sub(phase_x).div_ceil(sx).min(row_pitch);
                let end = (width + pad_x).saturating_sub(phase_x).div_ceil(sx).clamp(first, row_pitch);
                for (row, packed) in rows.by_ref().take(tiling.plane_rows).enumerate() {
                    let y = (first_row + row) * sy + phase_y;
                    if y < pad_y || y >= height + pad_y {
                        packed.fill(0.0);
                        continue;
                    }
                    let line = &source[(y - pad_y) * width..][..width];
                    packed[..first].fill(0.0);
                    packed[end..].fill(0.0);
                    if first == end {
                        continue;
                    }
                    let inside = &line[first * sx + phase_x - pad_x..];
                    gather(&mut packed[first..end], inside, sx);
                }
            }
        }
    }
}

/// `packed[i] = line[i * stride]`, with the strides of U-Nets as constants.
#[inline(always)]
fn gather(packed: &mut [f32], line: &[f32], stride: usize) {
    match stride {
        1 => packed.copy_from_slice(&line[..packed.len()]),
        2 => {
            let (pairs, last) = line.as_chunks::<2>();
            let (whole, rest) = packed.split_at_mut(packed.len().min(pairs.len()));
            for (to, from) in whole.iter_mut().zip(pairs) {
                *to = from[0];
            }
            rest.copy_from_slice(&last[..rest.len()]);
        }
        _ => {
            for (to, from) in packed.iter_mut().zip(line.iter().step_by(stride)) {
                *to = *from;
            }
        }
    }
}
