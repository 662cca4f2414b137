//! Ops on NCHW images: convolution, pooling, upsampling.

use std::borrow::Cow;
use std::sync::OnceLock;

use scoregraph_kernels::Act;
use scoregraph_kernels::conv::{Conv2d as Conv2dKernel, Conv2dOp, Conv2dShape};
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
    operand
        .shape()
        .try_into()
        .map_err(|_| Fault::plan(format!("{role} has the shape {:?}, not [n, C, H, W]", operand.shape())))
}

struct Conv2d {
    kernel: Conv2dKernel,
    samples: usize,
    x: Operand,
    y: Operand,
    w: Operand,
    /// A constant weight in `plain` layout is packed on first use.
    packed: OnceLock<Vec<f32>>,
    bias: Option<Operand>,
    emb: Option<Operand>,
    residual: Option<Operand>,
    act: Act,
}

pub(super) fn conv2d(args: &Args<'_>, target: Target) -> Result<Box<dyn Kernel>> {
    let (x, w, y) = (args.input("x")?, args.input("w")?, args.output("y")?);
    let [samples, channels, height, width] = image(&x, "x")?;
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
        padding: args.pair("padding")?,
    };
    let unfit = || Fault::plan(format!("a kernel of {kernel_height}×{kernel_width} does not fit {shape:?}"));
    let [rows, columns] = shape.output().ok_or_else(unfit)?;
    let wanted = [samples, filters, rows, columns];
    y.expect_dense("y")?;
    y.expect_shape("y", &wanted)?;
    let residual = args.optional("residual")?;
    if let Some(residual) = &residual {
        residual.expect_dense("residual")?;
        residual.expect_shape("residual", &wanted)?;
    }
    Ok(Box::new(Conv2d {
        kernel: Conv2dKernel::new(shape, target.isa, target.threads).ok_or_else(unfit)?,
        samples,
        bias: vector(args, "bias", filters)?,
        emb: per_channel(args, "emb", samples, filters)?,
        residual,
        act: args.act()?,
        packed: OnceLock::new(),
        x,
        y,
        w,
    }))
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
            let op = Conv2dOp {
                w: &w,
                bias: self.bias.as_ref().map(|bias| frame.slice(bias)),
                emb: self.emb.as_ref().map(|emb| frame.view(emb)),
                residual: self.residual.as_ref().map(|residual| frame.slice(residual)),
                act: self.act,
            };
            let (x, y) = (frame.slice(&self.x), frame.slice_mut(&self.y));
            self.kernel.run(frame.pool, self.samples, &op, x, y, frame.scratch());
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
