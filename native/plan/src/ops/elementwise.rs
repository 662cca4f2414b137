//! Ops that look at one element at a time, copies, lookups and reductions.

use scoregraph_kernels::embedding::embedding as embedding_kernel;
use scoregraph_kernels::pointwise::{self as expression, Instr, MAX_OPERANDS, Program, pointwise_scratch};
use scoregraph_kernels::reduce::{Reduction, reduce as reduce_kernel};
use scoregraph_kernels::{copy as copying, fill as filling};
use serde_json::Value;

use super::{Args, Frame, Kernel, Target};
use crate::fault::{Code, Fault, Result};
use crate::operand::Operand;
use crate::schema::DType;

struct Fill {
    x: Operand,
    value: f32,
}

pub(super) fn fill(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    Ok(Box::new(Fill {
        x: args.output("x")?,
        value: constant(args.value("value")?).ok_or_else(|| args.wrong("value", "a number"))?,
    }))
}

impl Kernel for Fill {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`.
        filling::fill(&frame.context(), self.value, &mut unsafe { frame.view_mut(&self.x) });
        Ok(())
    }
}

struct Copy {
    x: Operand,
    y: Operand,
}

pub(super) fn copy(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let (x, y) = (args.input_any("x")?, args.output_any("y")?);
    x.expect_plain("x")?;
    x.expect_shape("x", y.shape())?;
    if x.dtype != y.dtype {
        return Err(Fault::plan(format!("x is {} but y is {}", x.dtype, y.dtype)));
    }
    Ok(Box::new(Copy { x, y }))
}

impl Kernel for Copy {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`; `finish` has proved that x and y do not overlap.
        unsafe fn copy_as<T: std::marker::Copy + Send + Sync>(frame: &Frame<'_>, x: &Operand, y: &Operand) {
            // SAFETY: promised by the caller.
            let (x, mut y) = unsafe { (frame.view::<T>(x), frame.view_mut::<T>(y)) };
            copying::copy(&frame.context(), &x, &mut y);
        }
        // SAFETY: as above, and each type has the size the operand's dtype says.
        unsafe {
            match self.x.dtype {
                DType::F32 => copy_as::<f32>(frame, &self.x, &self.y),
                DType::I64 => copy_as::<i64>(frame, &self.x, &self.y),
                DType::U8 | DType::U7 => copy_as::<u8>(frame, &self.x, &self.y),
                DType::Bf16 => copy_as::<u16>(frame, &self.x, &self.y),
                other => unreachable!("a buffer of {other}"),
            }
        }
        Ok(())
    }
}

/// Multiply-adds of a product that take as long as an expression of one element.
const PER_ELEMENT: usize = 8;

struct Pointwise {
    operands: Vec<Operand>,
    y: Operand,
    program: Program,
}

pub(super) fn pointwise(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let (operands, y) = (args.numbered("x"), args.output("y")?);
    if operands.len() > MAX_OPERANDS {
        return Err(Fault::plan(format!("{} operands; at most {}", operands.len(), MAX_OPERANDS)));
    }
    for (i, operand) in operands.iter().enumerate() {
        let role = format!("x{i}");
        operand.expect_plain(&role)?;
        operand.expect_shape(&role, y.shape())?;
        if operand.dtype == DType::U8 {
            return Err(Fault::plan(format!("{role} is u8; pointwise takes f32 and i64")));
        }
        if operand.layout.is_dense() {
            args.allow_in_place("y", &role);
        }
    }
    let instructions = args.list("program")?.iter().enumerate().map(|(i, value)| {
        instruction(value).ok_or_else(|| Fault::plan(format!("instruction {i} of its program is {value}")))
    });
    let program = Program::new(operands.len(), instructions.collect::<Result<_>>()?).map_err(Fault::plan)?;
    Ok(Box::new(Pointwise { operands, y, program }))
}

/// An instruction as docs/plan-format.md writes it.
pub(super) fn instruction(value: &Value) -> Option<Instr> {
    let (name, operands) = value.as_array()?.split_first()?;
    let index = |value: &Value| usize::try_from(value.as_u64()?).ok();
    match (name.as_str()?, operands) {
        ("const", [number]) => constant(number).map(Instr::Const),
        ("where", [c, a, b]) => Some(Instr::Where(index(c)?, index(a)?, index(b)?)),
        (unary, [a]) => Some(Instr::Unary(unary.parse().ok()?, index(a)?)),
        (binary, [a, b]) => Some(Instr::Binary(binary.parse().ok()?, index(a)?, index(b)?)),
        _ => None,
    }
}

/// A number, or the name of one that JSON cannot write: `Infinity`, `-Infinity`, `NaN`.
fn constant(value: &Value) -> Option<f32> {
    match value {
        Value::String(name) => name.parse().ok().filter(|number: &f32| !number.is_finite()),
        other => other.as_f64().map(|number| number as f32),
    }
}

impl Kernel for Pointwise {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        let nothing: [f32; 0] = [];
        let empty = scoregraph_kernels::View::dense(&nothing, &[0]).map_err(|e| Fault::new(Code::Internal, e))?;
        let mut operands = [expression::Operand::F32(empty); MAX_OPERANDS];
        for (to, operand) in operands.iter_mut().zip(&self.operands) {
            // SAFETY: the contract of `run`; the types are those of the dtype.
            *to = unsafe {
                match operand.dtype {
                    DType::I64 => expression::Operand::I64(frame.view(operand)),
                    _ => expression::Operand::F32(frame.view(operand)),
                }
            };
        }
        // SAFETY: as above; y is either apart from the operands or the same dense window, which the kernel allows.
        let (mut y, scratch) = unsafe { (frame.view_mut(&self.y), frame.scratch()) };
        let operands = &operands[..self.operands.len()];
        expression::pointwise(&frame.context(), &self.program, operands, &mut y, scratch);
        Ok(())
    }

    fn work(&self) -> Option<usize> {
        Some(self.y.numel().saturating_mul(PER_ELEMENT))
    }

    fn scratch_floats(&self, threads: usize) -> usize {
        pointwise_scratch(&self.program, threads)
    }
}

struct Embedding {
    index: Operand,
    w: Operand,
    y: Operand,
    width: usize,
    site: String,
}

pub(super) fn embedding(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let (index, w, y) = (args.input_any("index")?, args.input("w")?, args.output("y")?);
    if index.dtype != DType::I64 {
        return Err(Fault::plan(format!("index is {}, not i64", index.dtype)));
    }
    index.expect_dense("index")?;
    w.expect_dense("w")?;
    y.expect_dense("y")?;
    let &[_, width] = w.shape() else {
        return Err(Fault::plan(format!("w has the shape {:?}, not [N, D]", w.shape())));
    };
    let mut wanted = index.shape().to_vec();
    wanted.push(width);
    y.expect_shape("y", &wanted)?;
    Ok(Box::new(Embedding { index, w, y, width, site: args.site().into() }))
}

impl Kernel for Embedding {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`.
        let (index, w, y) =
            unsafe { (frame.slice(&self.index), frame.slice(&self.w), frame.slice_mut::<f32>(&self.y)) };
        embedding_kernel(&frame.context(), self.width, w, index, y).map_err(|e| {
            let text = format!("index {} at position {} is not below {}", e.index, e.position, e.rows);
            Fault::new(Code::Index, text).about(&self.site, [e.index, e.rows as i64])
        })
    }

    fn work(&self) -> Option<usize> {
        Some(self.y.numel())
    }
}

struct Reduce {
    x: Operand,
    y: Operand,
    kind: Reduction,
    width: usize,
}

pub(super) fn reduce(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let (x, y) = (args.input("x")?, args.output("y")?);
    x.expect_dense("x")?;
    y.expect_dense("y")?;
    let kind = args.text("kind")?.parse().map_err(Fault::plan)?;
    let mut axes = args.counts("axes")?;
    axes.sort_unstable();
    let lead = x.shape().len().saturating_sub(axes.len());
    if axes.is_empty() || !axes.iter().copied().eq(lead..x.shape().len()) {
        return Err(Fault::plan(format!("axes {axes:?} are not the last ones of {:?}", x.shape())));
    }
    y.expect_shape("y", &x.shape()[..lead])?;
    let width = x.shape()[lead..].iter().product();
    Ok(Box::new(Reduce { x, y, kind, width }))
}

impl Kernel for Reduce {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`.
        let (x, y) = unsafe { (frame.slice(&self.x), frame.slice_mut(&self.y)) };
        reduce_kernel(&frame.context(), self.kind, self.width, x, y);
        Ok(())
    }
}
