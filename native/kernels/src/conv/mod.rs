//! `conv2d`: `y = residual + act(conv(x, w) + bias + emb)`, as an implicit GEMM over NCHW images of float32, or over images
//! of bytes in channel quads.
//!
//! A tile is a range of output rows and filters of one sample. It packs its input once (see `geometry`) and then runs a register
//! kernel whose vectors lie along the output pixels: a tap of the kernel is one unaligned load per vector and one broadcast
//! weight per filter, with no border to handle. Nothing is reduced across tiles: every output is one chain of multiply-adds,
//! channels outermost, then taps row by row, whatever the tile, the thread or the batch, so its bits depend on none of them.

mod geometry;
mod pack;
mod product;
mod tile;
mod winograd;

pub use geometry::{Conv2dShape, FILTER_BLOCK, QUAD};
pub use winograd::Winograd;

use geometry::Tiling;
use pack::Planes;
use product::{Bytes, Floats};
use scoregraph_simd::{Act, Disjoint, Isa, Parallel};
use tile::{Filters, Pack, Part, Tile};

use crate::per_channel::PerChannel;
use crate::{Layout, View, ViewMut};

/// What a convolution multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cells {
    /// Float32.
    Floats,
    /// Bytes in channel quads, with signed weights.
    Bytes,
}

/// A convolution of a fixed shape, cut for an instruction set and a number of threads; its batch is free.
#[derive(Clone, Debug)]
pub struct Conv2d {
    shape: Conv2dShape,
    isa: Isa,
    tiling: Tiling,
}

/// What follows the products.
#[derive(Clone, Copy)]
pub struct Epilogue<'a> {
    /// \[O\]
    pub bias: Option<&'a [f32]>,
    /// \[n, O\], one addend per sample and filter: the time embedding of a U-Net.
    pub emb: Option<View<'a>>,
    /// \[n, O, OH, OW\], its pixels dense, added after the activation; may be y itself.
    pub residual: Option<View<'a>>,
    /// The activation of `conv + bias + emb`.
    pub act: Act,
}

/// Weights of signed bytes, and the grids of the bytes they multiply: `value = scale * (q - zero)`.
#[derive(Clone, Copy)]
pub struct Quantized<'a> {
    /// Layout `q4oc8`: `[ceil(O/8)][ceil(I/4)][kh][kw][8][4]`, zero where O or I end.
    pub weights: &'a [i8],
    /// \[O\]: what each filter's weights are multiples of.
    pub weight_scale: &'a [f32],
    /// \[O\]: the whole sum of each filter's weights.
    pub weight_sum: &'a [f32],
    /// \[R, 2\], dense: scale and zero of x, where R divides n; sample s has row `s / (n / R)`.
    pub grid: &'a [f32],
    /// The largest byte of x: 255 or 127. A zero that is no whole number of 0 … `top` counts as 0.
    pub top: u8,
    /// How often two products fit 16 bits, by the types of x and of the weights; 0 if never.
    pub chain: usize,
}

/// Distances between samples and between channels of an image, whose pixels (the dimensions from the third on) are dense;
/// `None` if they are not.
#[must_use]
pub fn image_strides(layout: &Layout) -> Option<[usize; 2]> {
    let (shape, strides) = (layout.shape(), layout.strides());
    let pixels = Layout::new(shape.get(2..)?, &strides[2..]).ok()?;
    pixels.is_dense().then(|| [strides[0], strides[1]])
}

impl Conv2d {
    /// Cuts a convolution of `shape`, or returns `None` where the kernel does not fit the input or a size overflows.
    #[must_use]
    pub fn new(shape: Conv2dShape, cells: Cells, isa: Isa, threads: usize) -> Option<Self> {
        let planes = match cells {
            Cells::Floats => shape.channels,
            Cells::Bytes => shape.channels.div_ceil(QUAD),
        };
        Some(Self { tiling: Tiling::new(&shape, planes, isa.lanes(), threads)?, shape, isa })
    }

    /// The shape this convolution was cut for.
    #[must_use]
    pub fn shape(&self) -> &Conv2dShape {
        &self.shape
    }

    /// Floats of scratch that a run needs with `threads` threads; it does not depend on the batch. Saturates on overflow.
    #[must_use]
    pub fn scratch_floats(&self, threads: usize) -> usize {
        self.tiling.scratch.saturating_mul(threads)
    }

    /// Convolves `x` \[n, I, H, W\] with `weights` (layout `oc8`, see [`Conv2dShape::pack_weight`]) into `y`
    /// \[n, O, OH, OW\]; the pixels of both are dense.
    ///
    /// # Panics
    /// If this was cut for [`Cells::Bytes`], the operands do not fit together, or `scratch` is shorter than
    /// [`Conv2d::scratch_floats`].
    pub fn run(
        &self,
        pool: &dyn Parallel,
        weights: &[f32],
        x: &View,
        epilogue: &Epilogue,
        y: &mut ViewMut,
        scratch: &mut [f32],
    ) {
        let Conv2dShape { channels, input: [height, width], .. } = self.shape;
        assert_eq!(x.shape(), [y.shape()[0], channels, height, width], "conv2d of {:?}", self.shape);
        assert_eq!((self.tiling.planes, Some(weights.len())), (channels, self.shape.weight_elements()));
        let [sample, plane] = dense_image(x.layout(), "x");
        let x = Image { first: x.as_ptr().cast(), sample, plane };
        // SAFETY: x and the weights have what the shape says, as asserted.
        unsafe { self.tiles(pool, weights.as_ptr().cast(), x, |_| (0f32.to_bits(), Floats), epilogue, y, scratch) }
    }

    /// Convolves the quantized image `x` \[n, ceil(I/4), H, W, 4\] with `op` into `y` \[n, O, OH, OW\]; the pixels of both
    /// are dense. Sums of products are exact.
    ///
    /// # Panics
    /// If this was cut for [`Cells::Floats`], the operands do not fit together, or `scratch` is shorter than
    /// [`Conv2d::scratch_floats`].
    pub fn run_quantized(
        &self,
        pool: &dyn Parallel,
        op: &Quantized,
        x: &View<u8>,
        epilogue: &Epilogue,
        y: &mut ViewMut,
        scratch: &mut [f32],
    ) {
        // One instruction multiplies any bytes where there is VNNI; else as many are summed in 16 bits as the types allow.
        // `Filters` has no other kernels.
        let run = match op.chain {
            _ if matches!(self.isa, Isa::Scalar | Isa::AvxVnni | Isa::Avx512Vnni) => Self::run_chained::<0>,
            0 => Self::run_chained::<0>,
            1 => Self::run_chained::<1>,
            2..4 => Self::run_chained::<2>,
            _ => Self::run_chained::<4>,
        };
        run(self, pool, op, x, epilogue, y, scratch);
    }

    fn run_chained<const CHAIN: usize>(
        &self,
        pool: &dyn Parallel,
        op: &Quantized,
        x: &View<u8>,
        epilogue: &Epilogue,
        y: &mut ViewMut,
        scratch: &mut [f32],
    ) {
        let Conv2dShape { channels, filters, input: [height, width], .. } = self.shape;
        let Quantized { weights, weight_scale, weight_sum, grid, top, .. } = *op;
        let (n, quads) = (y.shape()[0], channels.div_ceil(QUAD));
        assert_eq!(x.shape(), [n, quads, height, width, QUAD], "conv2d of {:?}", self.shape);
        assert_eq!((self.tiling.planes, Some(weights.len())), (quads, self.shape.quantized_weight_bytes()));
        assert_eq!([weight_scale.len(), weight_sum.len()], [filters; 2]);
        let (rows, rest) = grid.as_chunks::<2>();
        assert!(rest.is_empty() && !rows.is_empty() && n.is_multiple_of(rows.len()), "{} grids", rows.len());
        let [sample, plane] = dense_image(x.layout(), "x");
        let aligned = [x.as_ptr().cast::<u32>(), weights.as_ptr().cast()].iter().all(|pointer| pointer.is_aligned());
        let even = sample.is_multiple_of(QUAD) && plane.is_multiple_of(QUAD);
        assert!(weights.is_empty() || (aligned && even), "quads lie at multiples of four bytes");
        let x = Image { first: x.as_ptr().cast(), sample: sample / QUAD, plane: plane / QUAD };
        let product = |sample: usize| {
            let [scale, zero] = rows[sample / (n / rows.len())];
            // The padding is a value as any other: chains count on what it can be.
            let zero = if zero.fract() == 0.0 && (0.0..=f32::from(top)).contains(&zero) { zero as u8 } else { 0 };
            (u32::from_ne_bytes([zero; QUAD]), Bytes::<CHAIN> { scale, zero: zero.into(), weight_scale, weight_sum })
        };
        // SAFETY: x and the weights have what the shape says, as asserted.
        unsafe { self.tiles(pool, weights.as_ptr().cast(), x, product, epilogue, y, scratch) }
    }

    /// Runs all tiles; `product` tells a sample's padding, and how it is multiplied.
    ///
    /// # Safety
    /// `x` and `weights` have the cells that the shape says.
    #[allow(clippy::too_many_arguments, reason = "the operands of a call")]
    unsafe fn tiles<P: Dispatch>(
        &self,
        pool: &dyn Parallel,
        weights: *const u32,
        x: Image,
        product: impl Fn(usize) -> (u32, P) + Sync,
        epilogue: &Epilogue,
        y: &mut ViewMut,
        scratch: &mut [f32],
    ) {
        let (n, filters) = (y.shape()[0], self.shape.filters);
        assert!(scratch.len() >= self.scratch_floats(pool.threads()));
        let Some(ends) = Ends::new(epilogue, y, filters, self.tiling.output) else { return };
        // SAFETY: every bit pattern is a cell and a float; the borrow ends with this call.
        let scratch = unsafe { std::slice::from_raw_parts_mut(scratch.as_mut_ptr().cast::<u32>(), scratch.len()) };
        let scratch = Disjoint::new(scratch);
        let tiles = self.tiling.tiles();
        let pointers = Shared((weights, x, ends));
        pool.run(n * tiles, &|index, thread| {
            let &Shared((weights, x, ends)) = &pointers;
            let (sample, tile) = (index / tiles, index % tiles);
            let (row_tile, filter_tile) = (tile / self.tiling.filter_tiles, tile % self.tiling.filter_tiles);
            let (padding, product) = product(sample);
            let first = thread * self.tiling.scratch;
            // SAFETY: tiles that run at the same time have different threads, so nobody else holds this part.
            let packed = unsafe { scratch.part(first..first + self.tiling.scratch) };
            let x = Planes { first: x.first.wrapping_add(sample * x.sample), pitch: x.plane };
            let tile = Tile::new(&self.shape, &self.tiling, row_tile);
            self.isa.dispatch(Pack { tile, x, padding, scratch: packed });

            let first = filter_tile * self.tiling.blocks * FILTER_BLOCK;
            let end = (first + self.tiling.blocks * FILTER_BLOCK).min(filters);
            let (y, residual) = ends.of_sample(sample);
            let part = Part { tile, packed, product, weights, epilogue, emb: ends.emb, sample, y, residual };
            // Most filters go eight at a time where vectors are wide, and four where they are not; a few left over by
            // themselves, unless they nearly fill the last turn.
            let wide = self.isa.lanes() == geometry::LINE;
            let left = (end - first) % if wide { 8 } else { 4 };
            let cut = end - if left == 1 || (wide && left <= 4) { left } else { 0 };
            if wide {
                P::dispatch::<8>(self.isa, Filters { part: &part, first, end: cut });
            } else {
                P::dispatch::<4>(self.isa, Filters { part: &part, first, end: cut });
            }
            match end - cut {
                0 => {}
                1 => P::dispatch_last(self.isa, Filters { part: &part, first: cut, end }),
                _ => P::dispatch::<4>(self.isa, Filters { part: &part, first: cut, end }),
            }
        });
    }
}

/// The checked operands that a result is made of and goes to: of images the first element, and the elements between samples and
/// between channels.
#[derive(Clone, Copy)]
struct Ends<'a> {
    y: (*mut f32, [usize; 2]),
    residual: Option<(*const f32, [usize; 2])>,
    emb: Option<PerChannel<'a>>,
}

impl<'a> Ends<'a> {
    /// Of `y` \[n, filters, rows, columns\]; `None` if it is empty.
    ///
    /// # Panics
    /// If the operands do not fit together, or the pixels of an image are not dense.
    fn new(epilogue: &Epilogue<'a>, y: &mut ViewMut, filters: usize, [rows, columns]: [usize; 2]) -> Option<Self> {
        let n = y.shape()[0];
        assert_eq!(y.shape(), [n, filters, rows, columns], "the shape of y");
        assert!(epilogue.bias.is_none_or(|bias| bias.len() == filters));
        assert!(epilogue.residual.is_none_or(|residual| residual.shape() == y.shape()));
        if y.layout().len() == 0 {
            return None;
        }
        Some(Self {
            y: (y.as_mut_ptr(), dense_image(y.layout(), "y")),
            residual: epilogue.residual.map(|view| (view.as_ptr(), dense_image(view.layout(), "the residual"))),
            emb: epilogue.emb.map(|view| PerChannel::new(view, n, filters)),
        })
    }

    /// The first element of a sample of y, and elements from one channel to the next; the same of the residual.
    fn of_sample(&self, sample: usize) -> ((*mut f32, usize), Option<(*const f32, usize)>) {
        let (y, [pitch, plane]) = self.y;
        let residual = self.residual.map(|(first, [pitch, plane])| (first.wrapping_add(sample * pitch), plane));
        ((y.wrapping_add(sample * pitch), plane), residual)
    }
}

/// [`image_strides`] of an operand.
///
/// # Panics
/// If its pixels are not dense.
fn dense_image(layout: &Layout, name: &str) -> [usize; 2] {
    image_strides(layout).unwrap_or_else(|| panic!("the pixels of {name} are dense"))
}

/// The first cell of an image, and the cells between its samples and between its planes.
#[derive(Clone, Copy)]
struct Image {
    first: *const u32,
    sample: usize,
    plane: usize,
}

/// How a product's kernels are run.
trait Dispatch: Copy + Sized {
    fn dispatch<const FILTERS: usize>(isa: Isa, filters: Filters<Self, FILTERS>);

    /// For a single filter that is left over.
    fn dispatch_last(isa: Isa, filters: Filters<Self, 1>);
}

impl Dispatch for Floats {
    fn dispatch<const FILTERS: usize>(isa: Isa, filters: Filters<Self, FILTERS>) {
        isa.dispatch(filters);
    }

    fn dispatch_last(isa: Isa, filters: Filters<Self, 1>) {
        isa.dispatch(filters);
    }
}

impl<const CHAIN: usize> Dispatch for Bytes<'_, CHAIN> {
    fn dispatch<const FILTERS: usize>(isa: Isa, filters: Filters<Self, FILTERS>) {
        isa.dispatch_dots(filters);
    }

    /// Filters of bytes are fast, and their kernels many: one is not worth its own.
    fn dispatch_last(isa: Isa, Filters { part, first, end }: Filters<Self, 1>) {
        isa.dispatch_dots(Filters::<Self, 4> { part, first, end });
    }
}

/// Lets threads share pointers.
struct Shared<T>(T);

// SAFETY: made by `Conv2d::tiles` alone, of pointers to operands that tiles read, and to y, of which each writes its own.
unsafe impl<T> Sync for Shared<T> {}
