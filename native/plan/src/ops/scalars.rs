//! Ops with a few numbers per sample: programs in float64, and interpolation.

use serde_json::Value;

use super::sampling::{choose_row, one_per_sample, per_sample_numbers};
use super::{Args, Frame, Kernel, Target};
use crate::fault::{Fault, Result};
use crate::operand::Operand;
use crate::places::TablePlace;
use crate::sampler::scalars::{MAX_VALUES, Scalar, ScalarProgram, interpolate as interpolate_kernel};

/// Most operands of a program.
const MAX_OPERANDS: usize = 16;

struct Scalars {
    /// Operands, each with its numbers per sample.
    operands: Vec<(Operand, usize)>,
    y: Operand,
    table: Option<TablePlace>,
    row: Option<usize>,
    program: ScalarProgram,
}

pub(super) fn scalars(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let mut operands = Vec::new();
    while let Some(operand) = per_sample_numbers(args, &format!("x{}", operands.len()))? {
        operands.push(operand);
    }
    if operands.len() > MAX_OPERANDS {
        return Err(Fault::plan(format!("{} operands; at most {MAX_OPERANDS}", operands.len())));
    }
    let table = args.optional_count("table")?.map(|_| args.table()).transpose()?;
    let fixed = args.optional_count("row")?;
    let row = match table {
        Some(table) => choose_row(args, table, fixed)?,
        None => None,
    };
    let list = args.list("program")?;
    if list.len() > MAX_VALUES {
        return Err(Fault::plan(format!("{} instructions; at most {MAX_VALUES}", list.len())));
    }
    let mut instrs = Vec::with_capacity(list.len());
    for (i, value) in list.iter().enumerate() {
        let found = scalar(value).filter(|instr| is_valid(instr, i, &operands, table));
        instrs.push(found.ok_or_else(|| Fault::plan(format!("instruction {i} of its program is {value}")))?);
    }
    let results = args.counts("results")?;
    if results.is_empty() || results.iter().any(|&result| result >= instrs.len()) {
        return Err(args.wrong("results", "numbers of values of the program"));
    }
    let y = args.output("y")?;
    if one_per_sample(args, &y, "y")? != results.len() {
        return Err(Fault::plan(format!("y has the shape {:?} for {} results", y.shape(), results.len())));
    }
    Ok(Box::new(Scalars { operands, y, table, row, program: ScalarProgram { instrs, results } }))
}

fn scalar(value: &Value) -> Option<Scalar> {
    let (name, operands) = value.as_array()?.split_first()?;
    let index = |value: &Value| value.as_u64().and_then(|v| u32::try_from(v).ok()).map(|v| v as usize);
    Some(match (name.as_str()?, operands) {
        ("const", [Value::String(name)]) => Scalar::Const(name.parse().ok().filter(|x: &f64| !x.is_finite())?),
        ("const", [number]) => Scalar::Const(number.as_f64()?),
        ("in", [i, j]) => Scalar::In(index(i)?, index(j)?),
        ("row", [column]) => Scalar::Row(index(column)?),
        ("next", [column]) => Scalar::Next(index(column)?),
        ("where", [c, a, b]) => Scalar::Where(index(c)?, index(a)?, index(b)?),
        (unary, [a]) => Scalar::Unary(unary.parse().ok()?, index(a)?),
        (binary, [a, b]) => Scalar::Binary(binary.parse().ok()?, index(a)?, index(b)?),
        _ => return None,
    })
}

/// Whether instruction number `at` names only what exists by then.
fn is_valid(instr: &Scalar, at: usize, operands: &[(Operand, usize)], table: Option<TablePlace>) -> bool {
    match *instr {
        Scalar::Const(_) => true,
        Scalar::In(i, j) => operands.get(i).is_some_and(|(_, count)| j < *count),
        Scalar::Row(column) | Scalar::Next(column) => table.is_some_and(|table| column < table.columns),
        Scalar::Unary(_, a) => a < at,
        Scalar::Binary(_, a, b) => a < at && b < at,
        Scalar::Where(c, a, b) => c < at && a < at && b < at,
    }
}

impl Kernel for Scalars {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        let mut operands = [(&[][..], 0); MAX_OPERANDS];
        for (to, (operand, count)) in operands.iter_mut().zip(&self.operands) {
            // SAFETY: the contract of `run`.
            *to = (unsafe { frame.slice::<f32>(operand) }, *count);
        }
        let (row, next): (&[f32], &[f32]) = match self.table {
            Some(table) => {
                let row = self.row.unwrap_or(frame.row);
                // SAFETY: the contract of `run`.
                unsafe { (frame.table_row(table, row), frame.table_row(table, (row + 1).min(table.rows - 1))) }
            }
            None => (&[], &[]),
        };
        // SAFETY: as above.
        let y = unsafe { frame.slice_mut::<f32>(&self.y) };
        for (sample, y) in y.chunks_exact_mut(self.program.results.len()).enumerate() {
            let input = |i: usize, j: usize| operands[i].0[sample * operands[i].1 + j];
            self.program.run(input, row, next, y);
        }
        Ok(())
    }
}

struct Interpolate {
    x: Operand,
    xs: Operand,
    ys: Operand,
    y: Operand,
}

pub(super) fn interpolate(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let (x, xs, ys, y) = (args.input("x")?, args.input("xs")?, args.input("ys")?, args.output("y")?);
    for (operand, role) in [(&x, "x"), (&xs, "xs"), (&ys, "ys"), (&y, "y")] {
        operand.expect_dense(role)?;
    }
    y.expect_shape("y", x.shape())?;
    if xs.shape().len() != 1 || ys.shape() != xs.shape() {
        return Err(Fault::plan(format!("xs and ys have the shapes {:?} and {:?}, not [n]", xs.shape(), ys.shape())));
    }
    Ok(Box::new(Interpolate { x, xs, ys, y }))
}

impl Kernel for Interpolate {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`.
        let (x, xs, ys, y) = unsafe {
            (
                frame.slice::<f32>(&self.x),
                frame.slice::<f32>(&self.xs),
                frame.slice::<f32>(&self.ys),
                frame.slice_mut::<f32>(&self.y),
            )
        };
        for (y, x) in y.iter_mut().zip(x) {
            *y = interpolate_kernel(*x, xs, ys);
        }
        Ok(())
    }
}
