//! Normalisations, and softmax.

use scoregraph_kernels::Act;
use scoregraph_kernels::format::rows_scratch;
use scoregraph_kernels::norm::{Affine as AffineArgs, layer_norm as layer_norm_kernel, rms_norm as rms_norm_kernel};
use scoregraph_kernels::softmax::softmax as softmax_kernel;

use super::format::{RowsOperand, expect_rows, smooth};
use super::{Args, Frame, Kernel, Target};
use crate::fault::{Fault, Result};
use crate::operand::Operand;
use crate::schema::DType;

/// x and y, dense and of one shape, and the length of their rows.
pub(super) fn rows_in_and_out(args: &Args<'_>) -> Result<(Operand, Operand, usize)> {
    let (x, y) = (args.input("x")?, args.output("y")?);
    x.expect_dense("x")?;
    y.expect_dense("y")?;
    y.expect_shape("y", x.shape())?;
    let Some(&width) = x.shape().last() else { return Err(Fault::plan("x has no dimension")) };
    Ok((x, y, width))
}

/// An optional dense vector of `len` elements.
pub(super) fn vector(args: &Args<'_>, role: &str, len: usize) -> Result<Option<Operand>> {
    let found = args.optional(role)?;
    if let Some(operand) = &found {
        operand.expect_dense(role)?;
        operand.expect_shape(role, &[len])?;
    }
    Ok(found)
}

/// An optional `[G, width]` operand of strided rows whose G divides `rows`; shown to kernels as two dimensions.
pub(super) fn group_rows(args: &Args<'_>, role: &str, rows: usize, width: usize) -> Result<Option<Operand>> {
    let Some(mut operand) = args.optional(role)? else { return Ok(None) };
    operand.expect_plain(role)?;
    let found = operand.layout.as_rows().filter(|&(groups, cols, _)| cols == width && rows.is_multiple_of(groups));
    let Some((groups, _, stride)) = found else {
        return Err(Fault::plan(format!(
            "{role} of shape {:?} is not rows of {width} whose number divides {rows}",
            operand.shape()
        )));
    };
    operand.layout = scoregraph_kernels::Layout::new(&[groups, width], &[stride, 1]).map_err(Fault::plan)?;
    Ok(Some(operand))
}

struct Softmax {
    x: Operand,
    y: Operand,
    width: usize,
}

pub(super) fn softmax(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let (x, y, width) = rows_in_and_out(args)?;
    Ok(Box::new(Softmax { x, y, width }))
}

impl Kernel for Softmax {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`.
        let (x, y) = unsafe { (frame.slice(&self.x), frame.slice_mut(&self.y)) };
        softmax_kernel(&frame.context(), self.width, x, y);
        Ok(())
    }
}

/// What a norm does to normalised rows.
struct Affine {
    weight: Option<Operand>,
    bias: Option<Operand>,
    scale: Option<Operand>,
    shift: Option<Operand>,
    act: Act,
    smooth: Option<Operand>,
}

impl Affine {
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn of<'a>(&self, frame: &Frame<'a>) -> AffineArgs<'a> {
        // SAFETY: promised by the caller.
        unsafe {
            AffineArgs {
                weight: self.weight.as_ref().map(|weight| frame.slice(weight)),
                bias: self.bias.as_ref().map(|bias| frame.slice(bias)),
                scale: self.scale.as_ref().map(|scale| frame.view(scale)),
                shift: self.shift.as_ref().map(|shift| frame.view(shift)),
                act: self.act,
                smooth: self.smooth.as_ref().map(|smooth| frame.slice(smooth)),
            }
        }
    }
}

/// `layer_norm`, or `rms_norm`.
struct Norm {
    centred: bool,
    x: Operand,
    y: RowsOperand,
    rows: usize,
    width: usize,
    affine: Affine,
    eps: f32,
}

pub(super) fn layer_norm(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    norm(args, true)
}

pub(super) fn rms_norm(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    norm(args, false)
}

fn norm(args: &Args<'_>, centred: bool) -> Result<Box<dyn Kernel>> {
    let x = args.input("x")?;
    let (rows, width) = expect_rows(&x, "x")?;
    let y = RowsOperand::of(args, x.shape())?;
    let affine = Affine {
        weight: vector(args, "weight", width)?,
        bias: if centred { vector(args, "bias", width)? } else { None },
        scale: group_rows(args, "scale", rows, width)?,
        shift: group_rows(args, "shift", rows, width)?,
        act: if centred { args.act()? } else { Act::None },
        smooth: smooth(args, y.dtype(), width)?,
    };
    Ok(Box::new(Norm { centred, x, y, rows, width, affine, eps: args.number("eps")? }))
}

impl Kernel for Norm {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`.
        let (affine, x, mut y, scratch) =
            unsafe { (self.affine.of(frame), frame.view(&self.x), self.y.rows(frame), frame.scratch()) };
        let kernel = if self.centred { layer_norm_kernel } else { rms_norm_kernel };
        kernel(&frame.context(), self.eps, &affine, &x, &mut y, scratch);
        Ok(())
    }

    fn scratch_floats(&self, threads: usize) -> usize {
        if self.y.dtype() == DType::F32 { 0 } else { rows_scratch(self.rows, self.width, threads) }
    }
}
