//! Matrix products.

use scoregraph_kernels::Act;
use scoregraph_kernels::linear::{
    Bits, Input, Integers, Kind, Linear as LinearArgs, Measured, Output, Weights, linear as linear_kernel,
    linear_measured, measured_scratch, scratch_floats,
};
use scoregraph_kernels::matmul::{matmul as matmul_kernel, matmul_scratch};

use super::format::{GridOperand, check_grid, expect_rows, smooth, top};
use super::norm::{group_rows, vector};
use super::{Args, Frame, Kernel, Target};
use crate::fault::{Fault, Result};
use crate::operand::Operand;
use crate::schema::{DType, Layout as Packing};

struct Linear {
    cols: usize,
    x: Operand,
    w: Operand,
    kind: Kind,
    integers: Option<IntegerOperands>,
    bias: Option<Operand>,
    gate: Option<Operand>,
    residual: Option<Operand>,
    y: Operand,
    /// The grid of y and its largest byte.
    y_grid: Option<(GridOperand, u8)>,
    smooth: Option<Operand>,
    act: Act,
    scratch: usize,
}

/// What comes with quantized operands. `products` has proved the chain, and that sums fit.
struct IntegerOperands {
    grid: Operand,
    scale: Operand,
    sum: Operand,
    groups: usize,
    bits: Bits,
    chain: usize,
}

impl IntegerOperands {
    fn of(args: &Args<'_>, weights: DType, rows: usize, [cols, depth]: [usize; 2]) -> Result<IntegerOperands> {
        let grid = args.input("grid")?;
        check_grid(&grid, "grid", rows)?;
        let (scale, sum) = (args.input("wscale")?, args.input("wsum")?);
        scale.expect_dense("wscale")?;
        let &[outputs, groups] = scale.shape() else {
            return Err(Fault::plan(format!("wscale has the shape {:?}, not [N, groups]", scale.shape())));
        };
        if outputs != cols || !depth.is_multiple_of(4 * groups) {
            return Err(Fault::plan(format!(
                "wscale of {:?} does not fit weights of {:?}",
                scale.shape(),
                [cols, depth]
            )));
        }
        sum.expect_dense("wsum")?;
        sum.expect_shape("wsum", scale.shape())?;
        let bits = match weights {
            DType::I4 => Bits::Four,
            DType::I2 => Bits::Two,
            _ => Bits::Eight,
        };
        Ok(IntegerOperands { grid, scale, sum, groups, bits, chain: args.count("chain")? })
    }
}

pub(super) fn linear(args: &Args<'_>, target: Target) -> Result<Box<dyn Kernel>> {
    let (x, w, y) = (args.input_any("x")?, args.input_any("w")?, args.output_any("y")?);
    let &[cols, depth] = w.shape() else {
        return Err(Fault::plan(format!("w has the shape {:?}, not [N, K]", w.shape())));
    };
    let kind = match (w.dtype, w.packing, x.dtype) {
        (DType::F32, Packing::N16, DType::F32) => Kind::N16,
        (DType::F32, Packing::Plain, DType::F32) => {
            w.expect_dense("w")?;
            Kind::Plain
        }
        (DType::Bf16, Packing::K2n16, DType::F32) => Kind::Bf16 { x: false },
        (DType::Bf16, Packing::K2n16, DType::Bf16) => Kind::Bf16 { x: true },
        (weights, Packing::Q4n16, DType::U8 | DType::U7) if weights.is_weight() => Kind::Integers,
        (weights, packing, x) => {
            return Err(Fault::plan(format!(
                "w is {weights} packed as {packing:?} and x is {x}: no product is made of that"
            )));
        }
    };
    let (rows, width) = expect_rows(&x, "x")?;
    if width != depth {
        return Err(Fault::plan(format!("x has rows of {width} elements but w takes {depth}")));
    }
    let results = |operand: &Operand, role: &str| -> Result<()> {
        if expect_rows(operand, role)? == (rows, cols) {
            return Ok(());
        }
        Err(Fault::plan(format!("{role} has the shape {:?}, not {rows} rows of {cols}", operand.shape())))
    };
    results(&y, "y")?;
    let y_grid = match (top(y.dtype), y.dtype) {
        (Some(top), _) => Some((GridOperand::of(args, rows)?, top)),
        (None, DType::F32 | DType::Bf16) => None,
        (None, other) => return Err(Fault::plan(format!("y is {other}, not f32, bf16, u8 or u7"))),
    };
    let residual = args.optional("residual")?;
    if let Some(residual) = &residual {
        results(residual, "residual")?;
        args.allow_in_place("y", "residual");
    }
    let gate = group_rows(args, "gate", rows, cols)?;
    let smooth = match &y_grid {
        Some((GridOperand::Measured(grid), _)) => {
            if kind != Kind::Integers || gate.is_some() || residual.is_some() || grid.shape()[0] != rows {
                return Err(Fault::plan(format!(
                    "ygrid {:?} is a result; that takes integer weights, no gate, no residual, and a grid row for each of {rows}",
                    grid.shape()
                )));
            }
            smooth(args, y.dtype, cols)?
        }
        _ => None,
    };
    let integers =
        (kind == Kind::Integers).then(|| IntegerOperands::of(args, w.dtype, rows, [cols, depth])).transpose()?;
    Ok(Box::new(Linear {
        integers,
        bias: vector(args, "bias", cols)?,
        gate,
        act: args.act()?,
        scratch: scratch_floats(kind, &x.layout, cols, target.isa),
        cols,
        x,
        w,
        kind,
        residual,
        y,
        y_grid,
        smooth,
    }))
}

impl Linear {
    /// x and the weights.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn factors<'a>(&self, frame: &Frame<'a>) -> (Input<'a>, Weights<'a>) {
        // SAFETY: promised by the caller; the types are those of the dtypes, which `linear` has matched.
        unsafe {
            let x = match (&self.integers, self.kind) {
                (Some(integers), _) => Input::Bytes { q: frame.view(&self.x), grid: frame.slice(&integers.grid) },
                (None, Kind::Bf16 { x: true }) => Input::Bf16(frame.view(&self.x)),
                (None, _) => Input::F32(frame.view(&self.x)),
            };
            let weights = match (&self.integers, self.kind) {
                (Some(integers), _) => Weights::Integers(Integers {
                    stored: frame.slice(&self.w),
                    bits: integers.bits,
                    scale: frame.slice(&integers.scale),
                    sum: frame.slice(&integers.sum),
                    groups: integers.groups,
                    chain: integers.chain,
                }),
                (None, Kind::Bf16 { .. }) => Weights::Bf16(frame.slice(&self.w)),
                (None, Kind::Plain) => Weights::Plain(frame.slice(&self.w)),
                (None, _) => Weights::N16(frame.slice(&self.w)),
            };
            (x, weights)
        }
    }
}

impl Kernel for Linear {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`; the residual may be y itself, which the kernel allows.
        unsafe {
            let (x, weights) = self.factors(frame);
            let op = LinearArgs {
                cols: self.cols,
                x,
                weights,
                bias: self.bias.as_ref().map(|bias| frame.slice(bias)),
                act: self.act,
                gate: self.gate.as_ref().map(|gate| frame.view(gate)),
                residual: self.residual.as_ref().map(|residual| frame.view(residual)),
            };
            let (context, scratch) = (frame.context(), frame.scratch());
            let y = match &self.y_grid {
                Some((GridOperand::Measured(grid), top)) => {
                    let y = Measured {
                        q: frame.view_mut(&self.y),
                        grid: frame.slice_mut(grid),
                        top: *top,
                        smooth: self.smooth.as_ref().map(|smooth| frame.slice(smooth)),
                    };
                    linear_measured(&context, &op, y, scratch);
                    return Ok(());
                }
                Some((GridOperand::Given(grid), top)) => {
                    Output::Bytes { q: frame.view_mut(&self.y), grid: frame.slice(grid), top: *top }
                }
                None if self.y.dtype == DType::Bf16 => Output::Bf16(frame.view_mut(&self.y)),
                None => Output::F32(frame.view_mut(&self.y)),
            };
            linear_kernel(&context, &op, y, scratch);
        }
        Ok(())
    }

    fn work(&self) -> Option<usize> {
        Some(self.x.numel().saturating_mul(self.cols))
    }

    fn scratch_floats(&self, threads: usize) -> usize {
        match (&self.y_grid, &self.integers) {
            (Some((GridOperand::Measured(_), _)), Some(integers)) => {
                self.scratch + measured_scratch(&self.x.layout, integers.grid.shape()[0], &self.y.layout, threads)
            }
            _ => self.scratch,
        }
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
