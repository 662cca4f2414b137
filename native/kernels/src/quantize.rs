//! `quantize`: rows and images of floats as bytes with a grid, or as bf16.

use scoregraph_simd::{Disjoint, Kernel, Simd};

use crate::format::{Extent, Grid, MakeRow, Quantizer, Rows, span_groups, write_rows};
use crate::rows::{RowStarts, for_row_ranges, map};
use crate::{Context, View};

pub use crate::format::rows_scratch;

/// Pixels of a quad of channels that a tile quantizes.
const TILE_PIXELS: usize = 2048;

/// `x`, of rows of adjacent elements, in the format of `y`; with `smooth` \[cols\], column c is multiplied by its factor
/// first.
///
/// # Panics
/// If the operands do not fit together, or the scratch is shorter than [`rows_scratch`] says.
pub fn quantize(ctx: &Context, x: &View, smooth: Option<&[f32]>, y: &mut Rows, scratch: &mut [f32]) {
    let starts = RowStarts::new(x.layout()).expect("rows of x have adjacent elements");
    assert!(smooth.is_none_or(|factors| factors.len() == starts.cols), "a factor for each column");
    write_rows(ctx, (starts.rows, starts.cols), &ExistingRows { x: *x, starts, smooth }, y, scratch);
}

/// Rows that are there already, but for the factors of their columns.
struct ExistingRows<'a> {
    x: View<'a>,
    starts: RowStarts,
    smooth: Option<&'a [f32]>,
}

impl MakeRow for ExistingRows<'_> {
    #[inline(always)]
    fn row<'r, S: Simd>(&'r self, s: S, m: usize, room: &'r mut [f32]) -> &'r [f32] {
        // SAFETY: row `m` lies in the window.
        let x = unsafe { std::slice::from_raw_parts(self.x.as_ptr().add(self.starts.at(m)), self.starts.cols) };
        let Some(factors) = self.smooth else { return x };
        map(
            s,
            x,
            room,
            #[inline(always)]
            // SAFETY: there are as many factors as elements of a row.
            |at, n, x| s.mul(x, unsafe { s.load_first(factors.as_ptr().add(at), n) }),
        );
        room
    }
}

/// Floats of working memory of [`quantize_image`] for `n` images of `channels`.
pub fn quantize_image_scratch(n: usize, channels: usize) -> usize {
    2 * n * channels
}

/// Images `x` [n, C, pixels], whose pixels are adjacent, as channel quads `y` [n, ceil(C/4), pixels, 4] of bytes 0 … `top`;
/// every image, or `n / R` of them, has its row of the grid. With `smooth` \[C\], channel c is multiplied by its factor first.
/// Bytes of channels beyond C are 0.
///
/// # Panics
/// If the operands do not fit together, or the scratch is shorter than [`quantize_image_scratch`] says.
pub fn quantize_image(
    ctx: &Context,
    x: &View,
    smooth: Option<&[f32]>,
    y: &mut [u8],
    top: u8,
    grid: &mut Grid,
    scratch: &mut [f32],
) {
    let &[n, channels, pixels] = x.shape() else { panic!("x is [n, C, pixels], not {:?}", x.shape()) };
    assert!(smooth.is_none_or(|factors| factors.len() == channels), "a factor for each channel");
    let planes = Planes { x: *x, starts: RowStarts::new(x.layout()).expect("pixels are adjacent"), channels, smooth };
    assert_eq!(y.len(), n * channels.next_multiple_of(4) * pixels, "the size of the result");
    if y.is_empty() {
        return;
    }
    assert!(grid.rows() > 0 && n.is_multiple_of(grid.rows()), "{} grid rows of {n} images", grid.rows());
    let share = n / grid.rows();
    match grid {
        Grid::Given(grid) => {
            let known = |image: usize| {
                let row = image / share;
                Quantizer::of_grid([grid[2 * row], grid[2 * row + 1]], top)
            };
            write_quads(ctx, &planes, n, y, &known);
        }
        Grid::Measured(grid) => {
            let extents = &mut scratch[..quantize_image_scratch(n, channels)];
            let parts = Disjoint::new(extents);
            for_row_ranges(ctx, n * channels, pixels, |range, _| {
                ctx.isa.dispatch(Measure { planes: &planes, range, extents: &parts });
            });
            let known = span_groups(extents, share * channels, top, grid);
            write_quads(ctx, &planes, n, y, &|image| known.get(image / share));
        }
    }
}

/// Channels of images, each a row of pixels.
struct Planes<'a> {
    x: View<'a>,
    starts: RowStarts,
    channels: usize,
    smooth: Option<&'a [f32]>,
}

impl Planes<'_> {
    /// The pixels of channel `plane % C` of image `plane / C`.
    #[inline(always)]
    fn plane(&self, plane: usize) -> &[f32] {
        // SAFETY: the plane lies in the window.
        unsafe { std::slice::from_raw_parts(self.x.as_ptr().add(self.starts.at(plane)), self.starts.cols) }
    }

    /// What a channel is multiplied by.
    #[inline(always)]
    fn factor(&self, channel: usize) -> f32 {
        self.smooth.map_or(1.0, |factors| factors[channel])
    }
}

struct Measure<'a> {
    planes: &'a Planes<'a>,
    range: std::ops::Range<usize>,
    extents: &'a Disjoint<'a, f32>,
}

impl Kernel for Measure<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for plane in self.range {
            // SAFETY: only this tile touches the extent of this plane.
            let to = unsafe { self.extents.part(2 * plane..2 * plane + 2) };
            let extent = Extent::of(s, self.planes.plane(plane));
            to.copy_from_slice(&extent.times(self.planes.factor(plane % self.planes.channels)).pack());
        }
    }
}

fn write_quads(ctx: &Context, planes: &Planes, n: usize, y: &mut [u8], known: &(dyn Fn(usize) -> Quantizer + Sync)) {
    let (quads, pixels) = (planes.channels.div_ceil(4), planes.starts.cols);
    let pieces = pixels.div_ceil(TILE_PIXELS);
    let y = Disjoint::new(y);
    ctx.pool.run(n * quads * pieces, &|tile, _| {
        let (quad, first) = (tile / pieces, tile % pieces * TILE_PIXELS);
        let last = (first + TILE_PIXELS).min(pixels);
        // SAFETY: tiles are different, so their quads or pixels are.
        let y = unsafe { y.part(4 * (quad * pixels + first)..4 * (quad * pixels + last)) };
        let (image, channel) = (quad / quads, quad % quads * 4);
        let count = (planes.channels - channel).min(4);
        let channels: [(&[f32], f32); 4] = std::array::from_fn(|i| {
            let channel = channel + i.min(count - 1);
            (&planes.plane(image * planes.channels + channel)[first..last], planes.factor(channel))
        });
        ctx.isa.dispatch(WriteQuad { channels: &channels[..count], quantizer: known(image), y });
    });
}

/// Up to four channels, times their factors, side by side: [pixels, 4].
struct WriteQuad<'a> {
    channels: &'a [(&'a [f32], f32)],
    quantizer: Quantizer,
    y: &'a mut [u8],
}

impl Kernel for WriteQuad<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let quantize = self.quantizer.vectors(s);
        let pixels = self.y.len() / 4;
        for at in (0..pixels).step_by(S::LANES) {
            let n = S::LANES.min(pixels - at);
            let mut quads = s.splat_i(0);
            for (i, &(channel, factor)) in self.channels.iter().enumerate() {
                // SAFETY: `at + n` pixels are in the channel.
                let x = s.mul(unsafe { s.load_first(channel.as_ptr().add(at), n) }, s.splat(factor));
                quads = s.or(quads, s.shl(quantize.bytes(s, x), 8 * i as u32));
            }
            // SAFETY: `4 * (at + n)` bytes are in y; a float's lane moves its four bytes as they are.
            unsafe { s.store_first(self.y.as_mut_ptr().add(4 * at).cast(), s.from_bits(quads), n) };
        }
    }
}
