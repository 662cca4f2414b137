//! Group norm.

use scoregraph_kernels::Act;
use scoregraph_kernels::conv::{QUAD, image_strides};
use scoregraph_kernels::group_norm::{
    GroupNorm as GroupNormArgs, Normed, group_norm as group_norm_kernel, group_norm_scratch,
};

use super::format::{GridOperand, smooth, top};
use super::norm::vector;
use super::{Args, Frame, Kernel, Target};
use crate::fault::{Fault, Result};
use crate::operand::Operand;
use crate::schema::DType;

struct GroupNorm {
    x: Operand,
    y: Operand,
    /// The largest byte of a quantized result, and its grid.
    format: Option<(u8, GridOperand)>,
    samples: usize,
    channels: usize,
    groups: usize,
    weight: Option<Operand>,
    bias: Option<Operand>,
    scale: Option<Operand>,
    shift: Option<Operand>,
    eps: f32,
    act: Act,
    smooth: Option<Operand>,
}

pub(super) fn group_norm(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let (x, y) = (args.input("x")?, args.output_any("y")?);
    let &[samples, channels, ref pixels @ ..] = x.shape() else {
        return Err(Fault::plan(format!("x has the shape {:?}, not [n, C, …]", x.shape())));
    };
    expect_pixels(&x, "x")?;
    let format = match top(y.dtype) {
        Some(top) => {
            y.expect_dense("y")?;
            y.expect_shape("y", &[&[samples, channels.div_ceil(QUAD)], pixels, &[QUAD]].concat())?;
            Some((top, GridOperand::of(args, samples)?))
        }
        None if y.dtype == DType::F32 => {
            expect_pixels(&y, "y")?;
            y.expect_shape("y", x.shape())?;
            None
        }
        None => return Err(Fault::plan(format!("y is {}, not f32, u8 or u7", y.dtype))),
    };
    let groups = args.count("groups")?;
    if groups == 0 || !channels.is_multiple_of(groups) {
        return Err(Fault::plan(format!("{channels} channels do not make {groups} groups")));
    }
    Ok(Box::new(GroupNorm {
        samples,
        channels,
        groups,
        weight: vector(args, "weight", channels)?,
        bias: vector(args, "bias", channels)?,
        scale: per_channel(args, "scale", samples, channels)?,
        shift: per_channel(args, "shift", samples, channels)?,
        eps: args.number("eps")?,
        act: args.act()?,
        smooth: smooth(args, y.dtype, channels)?,
        format,
        x,
        y,
    }))
}

/// Fails unless the pixels of an image [n, C, …] are dense; samples and channels may be strided.
pub(super) fn expect_pixels(operand: &Operand, role: &str) -> Result<()> {
    operand.expect_plain(role)?;
    match image_strides(&operand.layout) {
        Some(_) => Ok(()),
        None => Err(Fault::plan(format!("the pixels of {role} must be dense"))),
    }
}

/// An optional strided `[n, C]` operand.
pub(super) fn per_channel(args: &Args<'_>, role: &str, samples: usize, channels: usize) -> Result<Option<Operand>> {
    let found = args.optional(role)?;
    if let Some(operand) = &found {
        operand.expect_plain(role)?;
        operand.expect_shape(role, &[samples, channels])?;
    }
    Ok(found)
}

impl Kernel for GroupNorm {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`.
        unsafe {
            let op = GroupNormArgs {
                channels: self.channels,
                groups: self.groups,
                eps: self.eps,
                weight: self.weight.as_ref().map(|weight| frame.slice(weight)),
                bias: self.bias.as_ref().map(|bias| frame.slice(bias)),
                scale: self.scale.as_ref().map(|scale| frame.view(scale)),
                shift: self.shift.as_ref().map(|shift| frame.view(shift)),
                act: self.act,
                smooth: self.smooth.as_ref().map(|smooth| frame.slice(smooth)),
            };
            let mut y = match &self.format {
                Some((top, grid)) => Normed::Bytes { y: frame.slice_mut(&self.y), top: *top, grid: grid.grid(frame) },
                None => Normed::F32(frame.view_mut(&self.y)),
            };
            group_norm_kernel(&frame.context(), &op, &frame.view(&self.x), &mut y, frame.scratch());
        }
        Ok(())
    }

    fn scratch_floats(&self, _: usize) -> usize {
        self.format.as_ref().map_or(0, |_| group_norm_scratch(self.samples, self.channels))
    }
}
