//! Normalisations, and softmax.

use scoregraph_kernels::Act;
use scoregraph_kernels::norm::{
    LayerNorm as LayerNormArgs, layer_norm as layer_norm_kernel, rms_norm as rms_norm_kernel,
};
use scoregraph_kernels::softmax::softmax as softmax_kernel;

use super::{Args, Frame, Kernel, Target};
use crate::fault::{Fault, Result};
use crate::operand::Operand;

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

struct LayerNorm {
    x: Operand,
    y: Operand,
    width: usize,
    weight: Option<Operand>,
    bias: Option<Operand>,
    scale: Option<Operand>,
    shift: Option<Operand>,
    eps: f32,
    act: Act,
}

pub(super) fn layer_norm(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let (x, y, width) = rows_in_and_out(args)?;
    let rows = x.numel() / width;
    Ok(Box::new(LayerNorm {
        width,
        weight: vector(args, "weight", width)?,
        bias: vector(args, "bias", width)?,
        scale: group_rows(args, "scale", rows, width)?,
        shift: group_rows(args, "shift", rows, width)?,
        eps: args.number("eps")?,
        act: args.act()?,
        x,
        y,
    }))
}

impl Kernel for LayerNorm {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`.
        unsafe {
            let op = LayerNormArgs {
                cols: self.width,
                eps: self.eps,
                weight: self.weight.as_ref().map(|weight| frame.slice(weight)),
                bias: self.bias.as_ref().map(|bias| frame.slice(bias)),
                scale: self.scale.as_ref().map(|scale| frame.view(scale)),
                shift: self.shift.as_ref().map(|shift| frame.view(shift)),
                act: self.act,
            };
            layer_norm_kernel(&frame.context(), &op, frame.slice(&self.x), frame.slice_mut(&self.y));
        }
        Ok(())
    }
}

struct RmsNorm {
    x: Operand,
    y: Operand,
    width: usize,
    weight: Option<Operand>,
    eps: f32,
}

pub(super) fn rms_norm(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let (x, y, width) = rows_in_and_out(args)?;
    Ok(Box::new(RmsNorm { width, weight: vector(args, "weight", width)?, eps: args.number("eps")?, x, y }))
}

impl Kernel for RmsNorm {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`.
        unsafe {
            let weight = self.weight.as_ref().map(|weight| frame.slice(weight));
            let (x, y) = (frame.slice(&self.x), frame.slice_mut(&self.y));
            rms_norm_kernel(&frame.context(), self.width, self.eps, weight, x, y);
        }
        Ok(())
    }
}
