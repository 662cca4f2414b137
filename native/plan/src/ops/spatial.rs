//! Ops on NCHW images: convolution, pooling, upsampling.

use std::borrow::Cow;
use std::sync::OnceLock;

use scoregraph_kernels::Act;
use scoregraph_kernels::conv::{self, Cells, Conv2d as Conv2dKernel, Conv2dShape, image_strides};
use scoregraph_kernels::pool2d::{self, Pool2d as Pool2dArgs};

use super::group_norm::per_channel;
use super::norm::vector;
use super::{Args, Frame, Kernel, Target};
use crate::fault::{Fault, Result};
use crate::operand::{Operand, Region};
use crate::schema::Layout as Packing;

/// The four sizes of a dense image operand.
fn image(operand: &Operand, role: &str) -> Result<[usize; 4]> {
    operand.expect_dense(role)?;
    sizes(operand, role)
}

/// The four sizes of an image operand whose samples and channels may be strided.
fn strided_image(operand: &Operand, role: &str) -> Result<[usize; 4]> {
    operand.expect_plain(role)?;
    let sizes = sizes(operand, role)?;
    match image_strides(&operand.layout) {
        Some(_) => Ok(sizes),
        None => Err(Fault::plan(format!("the pixels of {role} must be dense"))),
    }
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
    let (x, w, y) = (args.input("x")?, args.input("w")?, args.output("y")?);
    let [samples, channels, height, width] = strided_image(&x, "x")?;
    let &[filters, depth, kernel_height, kernel_width] = w.shape() else {
        return Err(Fault::plan(format!("w has the shape {:?}, not [O, I, kh, kw]", w.shape())));
    };
    if depth != channels {
        return Err(Fault::plan(format!("x has {channels} channels but w takes {depth}")));
    }
    match w.packing {
        Packing::Oc8 => {}
        Packing::Plain => w.expect_dense("w")?,
        other => return Err(Fault::plan(format!("w is packed as {other:?}, not oc8"))),
    }
    let shape = Conv2dShape {
        channels,
        filters,
        input: [height, width],
        kernel: [kernel_height, kernel_width],
        stride: args.pair("stride")?,
        padding: args.counts("padding")?.try_into().map_err(|_| args.wrong("padding", "top, left, bottom, right"))?,
        up: args.pair("up")?,
    };
    let unfit = || Fault::plan(format!("a kernel of {kernel_height}×{kernel_width} does not fit {shape:?}"));
    let [rows, columns] = shape.output().ok_or_else(unfit)?;
    let epilogue = epilogue(args, &y, [samples, filters, rows, columns])?;
    let kernel = Conv2dKernel::new(shape, Cells::Floats, target.isa, target.threads).ok_or_else(unfit)?;
    Ok(Box::new(Conv2d { kernel, epilogue, packed: OnceLock::new(), x, y, w }))
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
