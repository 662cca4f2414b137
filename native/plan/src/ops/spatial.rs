//! Ops on NCHW images: convolution, pooling, upsampling.

use std::borrow::Cow;
use std::sync::OnceLock;

use scoregraph_kernels::Act;
use scoregraph_kernels::conv::{
    self, Cells, Conv2d as Conv2dKernel, Conv2dShape, QUAD, Winograd as WinogradKernel, image_strides,
};
use scoregraph_kernels::pool2d::{self, Pool2d as Pool2dArgs};

use super::format::{check_grid, top};
use super::group_norm::{expect_pixels, per_channel};
use super::norm::vector;
use super::{Args, Frame, Kernel, Target};
use crate::fault::{Fault, Result};
use crate::operand::{Operand, Region};
use crate::schema::{DType, Layout as Packing};

/// The four sizes of a dense image operand.
fn image(operand: &Operand, role: &str) -> Result<[usize; 4]> {
    operand.expect_dense(role)?;
    sizes(operand, role)
}

/// The four sizes of an image operand whose samples and channels may be strided.
fn strided_image(operand: &Operand, role: &str) -> Result<[usize; 4]> {
    expect_pixels(operand, role)?;
    sizes(operand, role)
}

fn sizes(operand: &Operand, role: &str) -> Result<[usize; 4]> {
    operand
        .shape()
        .try_into()
        .map_err(|_| Fault::plan(format!("{role} has the shape {:?}, not [n, C, H, W]", operand.shape())))
}

struct Conv2d {
    kernel: Conv2dKernel,
    x: Operand,
    y: Operand,
    w: Operand,
    /// A constant weight in `plain` layout is packed on first use.
    packed: OnceLock<Vec<f32>>,
    epilogue: Epilogue,
}

/// The operands of `conv2d` behind its products.
struct Epilogue {
    bias: Option<Operand>,
    emb: Option<Operand>,
    residual: Option<Operand>,
    act: Act,
}

pub(super) fn conv2d(args: &Args<'_>, target: Target) -> Result<Box<dyn Kernel>> {
    if let Some(outputs) = args.optional_count("winograd")? {
        return if outputs == 2 { winograd(args, target) } else { Err(args.wrong("winograd", "2, or left out")) };
    }
    let (x, w, y) = (args.input_any("x")?, args.input_any("w")?, args.output("y")?);
    let quantized = w.dtype.is_weight();
    let [samples, channels, height, width] = if quantized { quads(&x, w.shape())? } else { strided_image(&x, "x")? };
    let &[filters, depth, kernel_height, kernel_width] = w.shape() else {
        return Err(Fault::plan(format!("w has the shape {:?}, not [O, I, kh, kw]", w.shape())));
    };
    if depth != channels {
        return Err(Fault::plan(format!("x has {channels} channels but w takes {depth}")));
    }
    match (w.dtype, w.packing) {
        (DType::F32, Packing::Oc8) | (DType::I8 | DType::I7 | DType::I6, Packing::Q4oc8) => {}
        (DType::F32, Packing::Plain) => w.expect_dense("w")?,
        (DType::I4 | DType::I2, _) => {
            return Err(Fault::plan(format!("w is {}; convolutions take weights of a byte: i8, i7 or i6", w.dtype)));
        }
        (dtype, packing) => {
            return Err(Fault::plan(format!("w is {dtype} packed as {packing:?}, not f32 as oc8 or i8 as q4oc8")));
        }
    }
    if !quantized && x.dtype != DType::F32 {
        return Err(Fault::plan(format!("x is {}; weights of float32 take f32", x.dtype)));
    }
    let shape = conv_shape(args, [filters, channels, kernel_height, kernel_width], [height, width])?;
    let unfit = || Fault::plan(format!("a kernel of {kernel_height}×{kernel_width} does not fit {shape:?}"));
    let [rows, columns] = shape.output().ok_or_else(unfit)?;
    let epilogue = epilogue(args, &y, [samples, filters, rows, columns])?;
    let cells = if quantized { Cells::Bytes } else { Cells::Floats };
    let kernel = Conv2dKernel::new(shape, cells, target.isa, target.threads).ok_or_else(unfit)?;
    if !quantized {
        return Ok(Box::new(Conv2d { kernel, epilogue, packed: OnceLock::new(), x, y, w }));
    }
    let top = top(x.dtype).ok_or_else(|| Fault::plan(format!("x is {}, not u8 or u7", x.dtype)))?;
    let grid = args.input("grid")?;
    check_grid(&grid, "grid", samples)?;
    let per_filter = |role| -> Result<Operand> {
        let operand = args.input(role)?;
        operand.expect_dense(role)?;
        operand.expect_shape(role, &[filters, 1])?;
        Ok(operand)
    };
    let (weight_scale, weight_sum) = (per_filter("wscale")?, per_filter("wsum")?);
    // That a chain of this length fits 16 bits is proved for the plan, see `products`.
    let chain = args.count("chain")?;
    Ok(Box::new(QuantizedConv2d { kernel, epilogue, x, y, w, top, grid, weight_scale, weight_sum, chain }))
}

/// The shape of a convolution with a weight [O, I, kh, kw].
fn conv_shape(
    args: &Args<'_>,
    [filters, channels, kernel_height, kernel_width]: [usize; 4],
    input: [usize; 2],
) -> Result<Conv2dShape> {
    Ok(Conv2dShape {
        channels,
        filters,
        input,
        kernel: [kernel_height, kernel_width],
        stride: args.pair("stride")?,
        padding: args.counts("padding")?.try_into().map_err(|_| args.wrong("padding", "top, left, bottom, right"))?,
        up: args.pair("up")?,
    })
}

/// A convolution of 3×3 whose weight is transformed already.
fn winograd(args: &Args<'_>, target: Target) -> Result<Box<dyn Kernel>> {
    let (x, w, y) = (args.input("x")?, args.input("w")?, args.output("y")?);
    let [samples, channels, height, width] = strided_image(&x, "x")?;
    w.expect_dense("w")?;
    let &[_, _, filters, _] = w.shape() else {
        return Err(Fault::plan(format!("w has the shape {:?}, not [points, points, O, I]", w.shape())));
    };
    let shape = conv_shape(args, [filters, channels, 3, 3], [height, width])?;
    let unfit = || Fault::plan(format!("minimal filtering does not apply to {shape:?}"));
    let kernel = WinogradKernel::new(shape, target.isa, target.threads).ok_or_else(unfit)?;
    let points = kernel.points();
    w.expect_shape("w", &[points, points, filters, channels])?;
    let [rows, columns] = shape.output().ok_or_else(unfit)?;
    let epilogue = epilogue(args, &y, [samples, filters, rows, columns])?;
    Ok(Box::new(Winograd { kernel, epilogue, x, y, w }))
}

struct Winograd {
    kernel: WinogradKernel,
    epilogue: Epilogue,
    x: Operand,
    y: Operand,
    w: Operand,
}

impl Kernel for Winograd {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`.
        unsafe {
            let (w, x, mut y) = (frame.slice(&self.w), frame.view(&self.x), frame.view_mut(&self.y));
            self.kernel.run(frame.pool, w, &x, &self.epilogue.of(frame), &mut y, frame.scratch());
        }
        Ok(())
    }

    fn scratch_floats(&self, threads: usize) -> usize {
        self.kernel.scratch_floats(threads)
    }
}

/// The sizes [n, I, H, W] of an image in channel quads \[n, ceil(I/4), H, W, 4\], whose samples and quads may be strided;
/// `weight` is [O, I, kh, kw].
fn quads(x: &Operand, weight: &[usize]) -> Result<[usize; 4]> {
    expect_pixels(x, "x")?;
    match (x.shape(), weight) {
        (&[n, quads, height, width, QUAD], &[_, channels, ..]) if quads == channels.div_ceil(QUAD) => {
            let [sample, quad] = image_strides(&x.layout).unwrap_or_default();
            if !x.byte.is_multiple_of(QUAD) || !sample.is_multiple_of(QUAD) || !quad.is_multiple_of(QUAD) {
                return Err(Fault::plan("quads of x must lie at multiples of four bytes"));
            }
            Ok([n, channels, height, width])
        }
        (shape, _) => Err(Fault::plan(format!("x has the shape {shape:?}, not [n, ceil(I/4), H, W, 4]"))),
    }
}

struct QuantizedConv2d {
    kernel: Conv2dKernel,
    epilogue: Epilogue,
    x: Operand,
    y: Operand,
    w: Operand,
    top: u8,
    grid: Operand,
    weight_scale: Operand,
    weight_sum: Operand,
    chain: usize,
}

impl Kernel for QuantizedConv2d {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`.
        unsafe {
            let op = conv::Quantized {
                weights: frame.slice(&self.w),
                weight_scale: frame.slice(&self.weight_scale),
                weight_sum: frame.slice(&self.weight_sum),
                grid: frame.slice(&self.grid),
                top: self.top,
                chain: self.chain,
            };
            let (x, mut y) = (frame.view(&self.x), frame.view_mut(&self.y));
            self.kernel.run_quantized(frame.pool, &op, &x, &self.epilogue.of(frame), &mut y, frame.scratch());
        }
        Ok(())
    }

    fn scratch_floats(&self, threads: usize) -> usize {
        self.kernel.scratch_floats(threads)
    }
}

/// The operands behind the products, for a result `y` that must be of the shape `wanted`.
fn epilogue(args: &Args<'_>, y: &Operand, wanted: [usize; 4]) -> Result<Epilogue> {
    let [samples, filters, ..] = wanted;
    strided_image(y, "y")?;
    y.expect_shape("y", &wanted)?;
    let residual = args.optional("residual")?;
    if let Some(residual) = &residual {
        strided_image(residual, "residual")?;
        residual.expect_shape("residual", &wanted)?;
        args.allow_in_place("y", "residual");
    }
    Ok(Epilogue {
        bias: vector(args, "bias", filters)?,
        emb: per_channel(args, "emb", samples, filters)?,
        residual,
        act: args.act()?,
    })
}

impl Epilogue {
    /// The operands where they lie.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn of<'a>(&self, frame: &Frame<'a>) -> conv::Epilogue<'a> {
        // SAFETY: the contract of `run`.
        unsafe {
            conv::Epilogue {
                bias: self.bias.as_ref().map(|bias| frame.slice(bias)),
                emb: self.emb.as_ref().map(|emb| frame.view(emb)),
                residual: self.residual.as_ref().map(|residual| frame.view(residual)),
                act: self.act,
            }
        }
    }
}

impl Kernel for Conv2d {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`.
        unsafe {
            let w = frame.slice::<f32>(&self.w);
            let pack = || self.kernel.shape().pack_weight(w);
            let w = match (self.w.packing, self.w.region) {
                (Packing::Plain, Region::Constants) => Cow::Borrowed(self.packed.get_or_init(pack).as_slice()),
                (Packing::Plain, _) => Cow::Owned(pack()),
                _ => Cow::Borrowed(w),
            };
            let (x, mut y) = (frame.view(&self.x), frame.view_mut(&self.y));
            self.kernel.run(frame.pool, &w, &x, &self.epilogue.of(frame), &mut y, frame.scratch());
        }
        Ok(())
    }

    fn scratch_floats(&self, threads: usize) -> usize {
        self.kernel.scratch_floats(threads)
    }
}

struct Pool2d {
    args: Pool2dArgs,
    max: bool,
    x: Operand,
    y: Operand,
}

fn pool(args: &Args<'_>, max: bool) -> Result<Box<dyn Kernel>> {
    let (x, y) = (args.input("x")?, args.output("y")?);
    let [samples, channels, height, width] = image(&x, "x")?;
    let windows = Pool2dArgs { input: [height, width], kernel: args.pair("kernel")?, stride: args.pair("stride")? };
    let [rows, columns] = windows.output().ok_or_else(|| Fault::plan(format!("no window fits: {windows:?}")))?;
    y.expect_dense("y")?;
    y.expect_shape("y", &[samples, channels, rows, columns])?;
    Ok(Box::new(Pool2d { args: windows, max, x, y }))
}

pub(super) fn avg_pool2d(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    pool(args, false)
}

pub(super) fn max_pool2d(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    pool(args, true)
}

impl Kernel for Pool2d {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`.
        let (x, y) = unsafe { (frame.slice(&self.x), frame.slice_mut(&self.y)) };
        let kernel = if self.max { pool2d::max_pool2d } else { pool2d::avg_pool2d };
        kernel(&frame.context(), &self.args, x, y);
        Ok(())
    }
}

struct UpsampleNearest {
    x: Operand,
    y: Operand,
    width: usize,
    factor: [usize; 2],
}

pub(super) fn upsample_nearest(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let (x, y, factor) = (args.input("x")?, args.output("y")?, args.pair("factor")?);
    let [samples, channels, height, width] = image(&x, "x")?;
    let grown = [height.checked_mul(factor[0]), width.checked_mul(factor[1])];
    let [Some(rows), Some(columns)] = grown else { return Err(Fault::plan("factor is too large")) };
    y.expect_dense("y")?;
    y.expect_shape("y", &[samples, channels, rows, columns])?;
    Ok(Box::new(UpsampleNearest { x, y, width, factor }))
}

impl Kernel for UpsampleNearest {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`.
        let (x, y) = unsafe { (frame.slice(&self.x), frame.slice_mut(&self.y)) };
        pool2d::upsample_nearest(&frame.context(), self.width, self.factor, x, y);
        Ok(())
    }
}
