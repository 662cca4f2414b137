//! The transformed input Bᵀ d B of a block of tiles.

use std::ops::Range;

use scoregraph_simd::{Kernel, Simd};

use super::cut::{Cut, SPAN};
use crate::conv::geometry::{Conv2dShape, LINE};

/// Channels ahead of their use that rows of the image are asked for.
const AHEAD: usize = 2;

/// Transforms the input of some tiles of a sample, into spans \[tiles / 32\]\[point, point\]\[I\]\[32\].
///
/// Rows are combined first, along the image, into *lines* that hold the padding, too, and the even and the odd columns apart where
/// tiles begin at every second one. Then columns are, in vectors of tiles. The lines of a channel are written while those of the
/// one before are read: a load of what two stores have just written would wait for them.
pub(super) struct Input<'a> {
    pub shape: &'a Conv2dShape,
    pub cut: &'a Cut,
    /// No more than a block.
    pub tiles: Range<usize>,
    /// The sample, which has the channels and pixels that `shape` says, and floats from one channel to the next.
    pub x: *const f32,
    pub plane: usize,
    /// Room for the lines of two channels, and for one of zeros.
    pub lines: &'a mut [f32],
    pub input: &'a mut [f32],
}

impl Kernel for Input<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        match self.cut.points {
            4 => self.transform::<S, 4>(s),
            _ => self.transform::<S, 3>(s),
        }
    }
}

/// Bᵀ d along one axis: of four inputs, or of three of which the middle one stands for two.
#[inline(always)]
fn combine<S: Simd, const POINTS: usize>(s: S, d: [S::F; POINTS]) -> [S::F; POINTS] {
    let mut combined = d;
    match d[..] {
        [a, b, c, d] => combined.copy_from_slice(&[s.sub(a, c), s.add(b, c), s.sub(c, b), s.sub(b, d)]),
        [a, b, c] => combined.copy_from_slice(&[s.sub(a, b), b, s.sub(b, c)]),
        _ => unreachable!("4 or 3 points"),
    }
    combined
}

impl Input<'_> {
    #[inline(always)]
    fn transform<S: Simd, const POINTS: usize>(&mut self, s: S) {
        let Cut { step, columns, block, line_pitch, input_pitch, .. } = *self.cut;
        let Conv2dShape { channels, input: [height, width], padding: [top, left, ..], .. } = *self.shape;
        let tiles = self.tiles.clone();
        assert!(tiles.len() <= block && self.lines.len() >= self.cut.lines() && self.input.len() >= self.cut.input());
        if !tiles.len().is_multiple_of(SPAN) {
            // What lies in lanes without a tile could be numbers that are slow.
            let last = tiles.len() / SPAN * POINTS * POINTS * input_pitch;
            self.input[last..][..POINTS * POINTS * input_pitch].fill(0.0);
        }
        let mut first = tiles.start;
        while first < tiles.end {
            let (row, column) = (first / columns, first % columns);
            let count = (columns - column).min(tiles.end - first);
            // The columns of the image that these tiles see, and how many are padding before them.
            let window = column * step..(column + count) * step + 2;
            let inside = window.start.saturating_sub(left)..(window.end - left).min(width);
            let before = inside.start + left - window.start;
            self.lines.fill(0.0);
            let lines = self.lines.as_mut_ptr();
            let zeros = self.lines[2 * POINTS * line_pitch..].as_ptr();
            // Where the first tile's first two columns lie, if those of the image begin behind a cache line.
            let (even, odd) = (LINE - before / step, line_pitch / step + LINE - before.div_ceil(step));
            let starts = if before.is_multiple_of(step) { [even, odd] } else { [odd, even] };
            for channel in 0..=channels {
                // SAFETY: the rows have `inside.len()` floats, for which a line has room behind its first cache line, rounded up to
                // vectors; behind them there is room for the vectors that the last tile reads. A span has `channels` rows of
                // `SPAN` floats for each position, and the tiles of a vector are in one span.
                unsafe {
                    if channel < channels {
                        let plane = self.x.wrapping_add(channel * self.plane);
                        let mut rows = [zeros; POINTS];
                        for (y, from) in rows.iter_mut().enumerate() {
                            let y = (row * step + y).wrapping_sub(top);
                            if y < height {
                                *from = plane.wrapping_add(y * width + inside.start);
                            }
                        }
                        let to = lines.add(channel % 2 * POINTS * line_pitch + LINE);
                        combine_rows(s, rows, inside.len(), AHEAD * self.plane, to, line_pitch);
                    }
                    let Some(channel) = channel.checked_sub(1) else { continue };
                    let from = lines.add(channel % 2 * POINTS * line_pitch);
                    let to = self.input.as_mut_ptr().add(channel * SPAN);
                    let mut at = 0;
                    while at < count {
                        let tile = first - tiles.start + at;
                        let to = to.add(tile / SPAN * POINTS * POINTS * input_pitch + tile % SPAN);
                        let from = starts.map(
                            #[inline(always)]
                            |start| from.add(start + at).cast_const(),
                        );
                        let lanes = S::LANES - tile % S::LANES;
                        combine_columns::<S, POINTS>(s, from, line_pitch, to, input_pitch, lanes);
                        at += lanes;
                    }
                }
            }
            first += count;
        }
    }
}

/// Combines `count` floats of some rows, and writes a line of each combination: with four points, the even ones in its first half
/// and the odd ones in its second.
///
/// # Safety
/// The rows have them, and the lines at `to`, `pitch` floats apart, room for them, rounded up to vectors.
#[inline(always)]
unsafe fn combine_rows<S: Simd, const POINTS: usize>(
    s: S,
    rows: [*const f32; POINTS],
    count: usize,
    ahead: usize,
    to: *mut f32,
    pitch: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        if POINTS == 4 {
            for at in (0..count).step_by(2 * S::LANES) {
                let pairs = combine_at(s, rows, count, ahead, at).into_iter().zip(combine_at(
                    s,
                    rows,
                    count,
                    ahead,
                    at + S::LANES,
                ));
                for (line, (low, high)) in pairs.enumerate() {
                    let (even, odd) = s.deinterleave(low, high);
                    let to = to.add(line * pitch + at / 2);
                    s.store(to, even);
                    s.store(to.add(pitch / 2), odd);
                }
            }
        } else {
            for at in (0..count).step_by(S::LANES) {
                for (line, value) in combine_at(s, rows, count, ahead, at).into_iter().enumerate() {
                    s.store(to.add(line * pitch + at), value);
                }
            }
        }
    }
}

/// Combines a vector of some rows, from column `at` on; columns from `count` on are 0. Asks for what lies `ahead` of them.
///
/// # Safety
/// The rows have `count` floats.
#[inline(always)]
unsafe fn combine_at<S: Simd, const POINTS: usize>(
    s: S,
    rows: [*const f32; POINTS],
    count: usize,
    ahead: usize,
    at: usize,
) -> [S::F; POINTS] {
    // The first two rows are the last ones of the tiles above.
    for row in &rows[2..] {
        s.prefetch(row.wrapping_add(at + ahead));
    }
    let left = count.saturating_sub(at);
    let seen = rows.map(
        #[inline(always)]
        // SAFETY: the caller's contract.
        |row| unsafe {
            let from = row.wrapping_add(at);
            if left >= S::LANES { s.load(from) } else { s.load_first(from, left) }
        },
    );
    combine(s, seen)
}

/// Combines the columns of `LANES` tiles, of which the first two are at `from`, and writes the first `count` tiles for every
/// position, to a whole vector if they are all.
///
/// # Safety
/// The lines, `line_pitch` floats apart, have what a vector of tiles reads, and the positions at `to`, `input_pitch` floats apart,
/// room for the tiles.
#[inline(always)]
unsafe fn combine_columns<S: Simd, const POINTS: usize>(
    s: S,
    from: [*const f32; 2],
    line_pitch: usize,
    to: *mut f32,
    input_pitch: usize,
    count: usize,
) {
    for line in 0..POINTS {
        // SAFETY: the caller's contract.
        unsafe {
            let mut seen = [s.splat(0.0); POINTS];
            for (x, seen) in seen.iter_mut().enumerate() {
                let column = if POINTS == 4 { from[x % 2].add(x / 2) } else { from[0].add(x) };
                *seen = s.load(column.add(line * line_pitch));
            }
            for (point, value) in combine(s, seen).into_iter().enumerate() {
                let to = to.add((line * POINTS + point) * input_pitch);
                if count == S::LANES { s.store(to, value) } else { s.store_first(to, value, count) }
            }
        }
    }
}
