//! Matrix products.

use scoregraph_kernels::Act;
use scoregraph_kernels::linear::{Input, Linear as LinearArgs, Output, Weights, linear as linear_kernel};
use scoregraph_kernels::matmul::{matmul as matmul_kernel, matmul_scratch};

use super::norm::{group_rows, vector};
use super::{Args, Frame, Kernel, Target};
use crate::fault::{Fault, Result};
use crate::operand::Operand;
use crate::schema::Layout as Packing;

/// Columns of a panel of packed weights.
const PANEL: usize = 16;

struct Linear {
    cols: usize,
    x: Operand,
    w: Operand,
    bias: Option<Operand>,
    gate: Option<Operand>,
    residual: Option<Operand>,
    y: Operand,
    act: Act,
    scratch: usize,
}

pub(super) fn linear(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let (x, w, y) = (args.input("x")?, args.input("w")?, args.output("y")?);
    x.expect_plain("x")?;
    let &[cols, depth] = w.shape() else {
        return Err(Fault::plan(format!("w has the shape {:?}, not [N, K]", w.shape())));
    };
    let packed = match w.packing {
        Packing::N16 => 0,
        Packing::Plain => {
            w.expect_dense("w")?;
            cols.next_multiple_of(PANEL) * depth
        }
        other => return Err(Fault::plan(format!("w is packed as {other:?}, not n16"))),
    };
    if x.shape().last() != Some(&depth) {
        return Err(Fault::plan(format!("x has rows of {:?} elements but w takes {depth}", x.shape().last())));
    }
    let rows = x.numel() / depth;
    let results = |operand: &Operand, role: &str| -> Result<()> {
        operand.expect_dense(role)?;
        if operand.shape().last() == Some(&cols) && operand.numel() == rows * cols {
            return Ok(());
        }
        Err(Fault::plan(format!("{role} has the shape {:?}, not {rows} rows of {cols}", operand.shape())))
    };
    results(&y, "y")?;
    let residual = args.optional("residual")?;
    if let Some(residual) = &residual {
        results(residual, "residual")?;
        args.allow_in_place("y", "residual");
    }
    let gathered = if x.layout.as_rows().is_none() { x.numel() } else { 0 };
    Ok(Box::new(Linear {
        bias: vector(args, "bias", cols)?,
        gate: group_rows(args, "gate", rows, cols)?,
        act: args.act()?,
        scratch: packed + gathered,
        cols,
        x,
        w,
        residual,
        y,
    }))
}

impl Kernel for Linear {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`; the residual may be y itself, which the kernel allows.
        unsafe {
            let w = frame.slice(&self.w);
            let op = LinearArgs {
                cols: self.cols,
                x: Input::F32(frame.view(&self.x)),
                weights: if self.w.packing == Packing::N16 { Weights::N16(w) } else { Weights::Plain(w) },
                bias: self.bias.as_ref().map(|bias| frame.slice(bias)),
                act: self.act,
                gate: self.gate.as_ref().map(|gate| frame.view(gate)),
                residual: self.residual.as_ref().map(|residual| frame.view(residual)),
            };
            linear_kernel(&frame.context(), &op, Output::F32(frame.view_mut(&self.y)), frame.scratch());
        }
        Ok(())
    }

    fn scratch_floats(&self, _: usize) -> usize {
        self.scratch
    }
}

struct Matmul {
    x: Operand,
    y: Operand,
    z: Operand,
    depth: usize,
    scale: f32,
}

pub(super) fn matmul(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let (x, y, z) = (args.input("x")?, args.input("y")?, args.output("z")?);
    for (operand, role) in [(&x, "x"), (&y, "y")] {
        operand.expect_plain(role)?;
    }
    z.expect_dense("z")?;
    let fits = match (x.shape(), y.shape(), z.shape()) {
        ([x_lead @ .., m, k], [y_lead @ .., depth, n], [z_lead @ .., rows, cols]) => {
            x_lead == y_lead && x_lead == z_lead && k == depth && m == rows && n == cols
        }
        _ => false,
    };
    if !fits {
        return Err(Fault::plan(format!("{:?} by {:?} does not make {:?}", x.shape(), y.shape(), z.shape())));
    }
    let depth = x.shape()[x.shape().len() - 1];
    Ok(Box::new(Matmul { depth, scale: args.number("scale")?, x, y, z }))
}

impl Kernel for Matmul {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`.
        unsafe {
            let (x, y, mut z) = (frame.view(&self.x), frame.view(&self.y), frame.view_mut(&self.z));
            matmul_kernel(&frame.context(), self.scale, &x, &y, &mut z, frame.scratch());
        }
        Ok(())
    }

    fn scratch_floats(&self, threads: usize) -> usize {
        matmul_scratch(self.depth, threads)
    }
}
