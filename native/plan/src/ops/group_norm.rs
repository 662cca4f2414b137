//! Group norm.

use scoregraph_kernels::Act;
use scoregraph_kernels::group_norm::{GroupNorm as GroupNormArgs, group_norm as group_norm_kernel};

use super::norm::{rows_in_and_out, vector};
use super::{Args, Frame, Kernel, Target};
use crate::fault::{Fault, Result};
use crate::operand::Operand;

struct GroupNorm {
    x: Operand,
    y: Operand,
    samples: usize,
    channels: usize,
    groups: usize,
    weight: Option<Operand>,
    bias: Option<Operand>,
    scale: Option<Operand>,
    shift: Option<Operand>,
    eps: f32,
    act: Act,
}

pub(super) fn group_norm(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let (x, y, _) = rows_in_and_out(args)?;
    let &[samples, channels, ..] = x.shape() else {
        return Err(Fault::plan(format!("x has the shape {:?}, not [n, C, …]", x.shape())));
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
        x,
        y,
    }))
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
            };
            let (x, y) = (frame.slice(&self.x), frame.slice_mut(&self.y));
            group_norm_kernel(&frame.context(), &op, self.samples, x, y);
        }
        Ok(())
    }
}
