//! What follows the products of a block of tiles: Y = Aᵀ M A, and the epilogue.

use std::ops::Range;

use scoregraph_simd::{Act, Kernel, Simd};

use super::cut::{Cut, SPAN, row_pitch};
use crate::conv::Epilogue;
use crate::per_channel::PerChannel;

/// Makes the outputs of some tiles and filters of a sample from their products \[tiles / 32\]\[filter\]\[point, point\]\[32\].
pub(super) struct Output<'a> {
    pub cut: &'a Cut,
    /// No more than a block.
    pub tiles: Range<usize>,
    /// No more than a group.
    pub filters: Range<usize>,
    pub products: &'a [f32],
    pub epilogue: &'a Epilogue<'a>,
    pub emb: Option<PerChannel<'a>>,
    pub sample: usize,
    /// The filters' planes of this sample, and elements from one to the next; nobody else writes the tiles of these filters.
    pub y: (*mut f32, usize),
    pub residual: Option<(*const f32, usize)>,
}

impl Kernel for Output<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match (self.cut.points, self.epilogue.act) {
            // The most frequent case in a loop of its own: it keeps its constants in registers.
            (4, Act::None) => self.transform::<S, 4>(s, Act::None),
            (4, act) => self.transform::<S, 4>(s, act),
            (_, act) => self.transform::<S, 3>(s, act),
        }
    }
}

/// Aᵀ m along one axis: two outputs of four products, or of three.
#[inline(always)]
fn sum<S: Simd, const POINTS: usize>(s: S, m: [S::F; POINTS]) -> [S::F; 2] {
    match m[..] {
        [a, b, c, d] => [s.add(s.add(a, b), c), s.sub(s.sub(b, c), d)],
        [a, b, c] => [s.add(a, b), s.sub(b, c)],
        _ => unreachable!("4 or 3 points"),
    }
}

impl Output<'_> {
    #[inline(always)]
    fn transform<S: Simd, const POINTS: usize>(&self, s: S, act: Act) {
        let Cut { columns, block, group, output: [height, width], .. } = *self.cut;
        assert!(self.products.len() >= self.cut.products());
        assert!(self.tiles.len() <= block && self.filters.len() <= group);
        for filter in self.filters.clone() {
            let bias = self.epilogue.bias.map_or(0.0, |bias| bias[filter]);
            let shift = s.splat(bias + self.emb.map_or(0.0, |emb| emb.at(self.sample, filter)));
            let y = self.y.0.wrapping_add(filter * self.y.1);
            let residual = self.residual.map(|(first, pitch)| first.wrapping_add(filter * pitch));
            let products = self.products[(filter - self.filters.start) * row_pitch(POINTS)..].as_ptr();
            let mut first = self.tiles.start;
            while first < self.tiles.end {
                let (row, column) = (first / columns, first % columns);
                let count = (columns - column).min(self.tiles.end - first);
                let mut at = 0;
                while at < count {
                    // The tiles of a vector are in one span.
                    let tile = first - self.tiles.start + at;
                    let lanes = (S::LANES - tile % S::LANES).min(count - at);
                    let pixel = 2 * row * width + 2 * (column + at);
                    let pixels = (2 * lanes).min(width - 2 * (column + at));
                    // SAFETY: behind a row of products there is a cache line; the pixels are in the rows of these tiles,
                    // which no other block writes, and which y and the residual have; what is read of the residual is
                    // written after, so it may be y.
                    unsafe {
                        let products = products.add(tile / SPAN * group * row_pitch(POINTS) + tile % SPAN);
                        // Of each column of positions the sums of both output rows.
                        let mut sums = [[s.splat(0.0); 2]; POINTS];
                        for (point, sums) in sums.iter_mut().enumerate() {
                            let mut m = [s.splat(0.0); POINTS];
                            for (line, m) in m.iter_mut().enumerate() {
                                *m = s.load(products.add((line * POINTS + point) * SPAN));
                            }
                            *sums = sum(s, m);
                        }
                        for line in 0..(height - 2 * row).min(2) {
                            let row = sums.map(
                                #[inline(always)]
                                |sums| sums[line],
                            );
                            let [even, odd] = sum(s, row);
                            let even = act.apply(s, s.add(even, shift));
                            let odd = act.apply(s, s.add(odd, shift));
                            let values = s.interleave(even, odd);
                            let pixel = pixel + line * width;
                            let residual = residual.map(|residual| residual.add(pixel));
                            store(s, y.add(pixel), residual, [values.0, values.1], pixels);
                        }
                    }
                    at += lanes;
                }
                first += count;
            }
        }
    }
}

/// Writes the first `pixels` of two vectors, after the residual is added.
///
/// # Safety
/// So many are writable at `y`, and readable at `residual`.
#[inline(always)]
unsafe fn store<S: Simd>(s: S, y: *mut f32, residual: Option<*const f32>, values: [S::F; 2], pixels: usize) {
    for (at, value) in values.into_iter().enumerate() {
        let at = at * S::LANES;
        // SAFETY: the caller's contract.
        unsafe {
            if pixels >= at + S::LANES {
                let value = residual.map_or(
                    value,
                    #[inline(always)]
                    |from| s.add(s.load(from.add(at)), value),
                );
                s.store(y.add(at), value);
            } else if pixels > at {
                let left = pixels - at;
                let value = residual.map_or(
                    value,
                    #[inline(always)]
                    |from| s.add(s.load_first(from.add(at), left), value),
                );
                s.store_first(y.add(at), value, left);
            }
        }
    }
}
