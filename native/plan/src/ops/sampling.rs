//! Noise, the loop's clock, and the sampler step.

use scoregraph_simd::Disjoint;

use super::{Args, Frame, Kernel, Target};
use crate::fault::{Fault, Result};
use crate::noise::{Stream, scaled_normals};
use crate::operand::Operand;
use crate::places::TablePlace;
use crate::sampler::{MAX_BRANCHES, MAX_REGISTERS, Rows, Step};

/// Elements of a noise tile; a multiple of 4.
const NOISE_TILE: usize = 8192;

/// Elements of one sample of a dense `[k * B, …]` operand, and k.
fn per_sample(args: &Args<'_>, operand: &Operand, role: &str) -> Result<(usize, usize)> {
    operand.expect_dense(role)?;
    let rows = operand.shape().first().copied().unwrap_or(0);
    if rows == 0 || !rows.is_multiple_of(args.batch) {
        return Err(Fault::plan(format!(
            "{role} of shape {:?} has no row for each of {} samples",
            operand.shape(),
            args.batch
        )));
    }
    Ok((operand.numel() / rows, rows / args.batch))
}

/// Per-sample elements of an operand with exactly one row per sample.
fn one_per_sample(args: &Args<'_>, operand: &Operand, role: &str) -> Result<usize> {
    match per_sample(args, operand, role)? {
        (elements, 1) => Ok(elements),
        (_, branches) => Err(Fault::plan(format!("{role} has {branches} rows for each sample, not 1"))),
    }
}

/// Which row of a table a call reads: a fixed one, or the loop's.
fn choose_row(args: &Args<'_>, table: TablePlace, fixed: Option<usize>) -> Result<Option<usize>> {
    match (fixed, args.loop_table) {
        (Some(row), _) if row < table.rows => Ok(Some(row)),
        (Some(row), _) => Err(Fault::plan(format!("the attribute row is {row} in a table of {} rows", table.rows))),
        (None, Some(clock)) if clock.rows <= table.rows => Ok(None),
        (None, Some(clock)) => {
            Err(Fault::plan(format!("its table has {} rows but the loop makes {} steps", table.rows, clock.rows)))
        }
        (None, None) => Err(Fault::plan("it needs the attribute row, because it is not in a loop")),
    }
}

struct Noise {
    x: Operand,
    elements: usize,
    stream: Stream,
    scale: f32,
}

pub(super) fn noise(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let x = args.output("x")?;
    let elements = one_per_sample(args, &x, "x")?;
    let stream = Stream { seed: 0, micro: args.count("micro")? as u32, site: args.count("site")? as u32 };
    Ok(Box::new(Noise { x, elements, stream, scale: args.number("scale")? }))
}

impl Kernel for Noise {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`.
        let x = Disjoint::new(unsafe { frame.slice_mut::<f32>(&self.x) });
        let (seeds, isa) = (frame.seeds, frame.isa);
        let tiles = self.elements.div_ceil(NOISE_TILE);
        frame.pool.run(seeds.len() * tiles, &|index, _| {
            let (sample, tile) = (index / tiles, index % tiles);
            let first = tile * NOISE_TILE;
            let start = sample * self.elements + first;
            let len = NOISE_TILE.min(self.elements - first);
            let stream = Stream { seed: seeds[sample], ..self.stream };
            // SAFETY: every tile has its own range.
            let part = unsafe { x.part(start..start + len) };
            scaled_normals(isa, stream, (first / 4) as u64, self.scale, part);
        });
        Ok(())
    }
}

struct StepTime {
    t: Operand,
    table: TablePlace,
    column: usize,
    row: Option<usize>,
}

pub(super) fn step_time(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let t = args.output("t")?;
    t.expect_dense("t")?;
    let (table, column) = (args.table()?, args.count("column")?);
    args.check_columns(table, "column", column, 1)?;
    let row = choose_row(args, table, args.optional_count("row")?)?;
    Ok(Box::new(StepTime { t, table, column, row }))
}

impl Kernel for StepTime {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`.
        let (row, t) =
            unsafe { (frame.table_row(self.table, self.row.unwrap_or(frame.row)), frame.slice_mut::<f32>(&self.t)) };
        t.fill(row[self.column]);
        Ok(())
    }
}

struct StepInput {
    x: Operand,
    xin: Operand,
    elements: usize,
    branches: usize,
    table: TablePlace,
    column: usize,
    row: Option<usize>,
}

pub(super) fn step_input(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let (x, xin) = (args.input("x")?, args.output("xin")?);
    let elements = one_per_sample(args, &x, "x")?;
    let (width, branches) = per_sample(args, &xin, "xin")?;
    if width != elements {
        return Err(Fault::plan(format!("xin has {width} elements a row, x {elements}")));
    }
    let (table, column) = (args.table()?, args.count("column")?);
    args.check_columns(table, "column", column, 1)?;
    let row = choose_row(args, table, args.optional_count("row")?)?;
    Ok(Box::new(StepInput { x, xin, elements, branches, table, column, row }))
}

impl Kernel for StepInput {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`.
        let (row, x, xin) = unsafe {
            (
                frame.table_row(self.table, self.row.unwrap_or(frame.row)),
                frame.slice::<f32>(&self.x),
                Disjoint::new(frame.slice_mut::<f32>(&self.xin)),
            )
        };
        let factor = row[self.column];
        frame.pool.run(frame.seeds.len() * self.branches, &|index, _| {
            let sample = index / self.branches;
            let from = &x[sample * self.elements..][..self.elements];
            // SAFETY: every tile has its own row.
            let to = unsafe { xin.part(index * self.elements..(index + 1) * self.elements) };
            for (to, from) in to.iter_mut().zip(from) {
                *to = factor * from;
            }
        });
        Ok(())
    }
}

struct SamplerStep {
    registers: Vec<Operand>,
    predictions: Vec<(Operand, usize)>,
    next_input: Option<(Operand, usize, usize)>,
    elements: usize,
    table: TablePlace,
    a: usize,
    b: usize,
    c: usize,
    branches: usize,
    site: u32,
}

pub(super) fn sampler_step(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let registers = args.numbered("r");
    if registers.is_empty() || registers.len() > MAX_REGISTERS {
        return Err(Fault::plan(format!("{} registers; a step has 1 to {MAX_REGISTERS}", registers.len())));
    }
    let elements = one_per_sample(args, &registers[0], "r0")?;
    for (i, register) in registers.iter().enumerate() {
        let role = format!("r{i}");
        let out = args.output(&role)?;
        if register.dtype != out.dtype || !register.is_same_view(&out) {
            return Err(Fault::memory(format!("{role} must be the same buffer as operand and as result")));
        }
        args.allow_in_place(&role, &role);
        if one_per_sample(args, register, &role)? != elements {
            return Err(Fault::plan(format!("{role} is not of the shape of r0")));
        }
    }
    let mut predictions = Vec::new();
    for (i, operand) in args.numbered("p").into_iter().enumerate() {
        let role = format!("p{i}");
        let (width, branches) = per_sample(args, &operand, &role)?;
        if width != elements || operand.dtype != registers[0].dtype {
            return Err(Fault::plan(format!("{role} has {width} elements a row, the registers {elements}")));
        }
        predictions.push((operand, branches));
    }
    let branches = predictions.iter().map(|(_, k)| k).sum();
    if branches > MAX_BRANCHES {
        return Err(Fault::plan(format!("{branches} branches; a step has at most {MAX_BRANCHES}")));
    }
    let table = args.table()?;
    if choose_row(args, table, None)?.is_some() {
        return Err(Fault::plan("a sampler step has no fixed row"));
    }
    let (a, b, c) = (args.count("a")?, args.count("b")?, args.count("c")?);
    args.check_columns(table, "a", a, registers.len() * registers.len())?;
    args.check_columns(table, "b", b, registers.len() * branches)?;
    args.check_columns(table, "c", c, registers.len())?;
    let cin = args.count_or_none("cin")?;
    let next_input = match (args.optional_output("xin")?, cin) {
        (Some(xin), Some(cin)) => {
            args.check_columns(table, "cin", cin, 1)?;
            let (width, rows) = per_sample(args, &xin, "xin")?;
            if width != elements || xin.dtype != registers[0].dtype {
                return Err(Fault::plan(format!("xin has {width} elements a row, the registers {elements}")));
            }
            Some((xin, rows, cin))
        }
        (Some(_), None) => return Err(Fault::plan("xin is given without the attribute cin")),
        (None, _) => None,
    };
    let site = args.count("site")? as u32;
    Ok(Box::new(SamplerStep { registers, predictions, next_input, elements, table, a, b, c, branches, site }))
}

impl Kernel for SamplerStep {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        let row = frame.row;
        // SAFETY: the contract of `run`.
        let table = unsafe { frame.table_row(self.table, row) };
        let rows = |operand: &Operand, branches| {
            // SAFETY: the contract of `run`.
            Rows { ptr: unsafe { frame.address(operand) }.cast(), branches }
        };
        let mut registers = [Rows::NONE; MAX_REGISTERS];
        for (to, register) in registers.iter_mut().zip(&self.registers) {
            *to = rows(register, 1);
        }
        let mut predictions = [Rows::NONE; MAX_BRANCHES];
        for (to, (prediction, branches)) in predictions.iter_mut().zip(&self.predictions) {
            *to = rows(prediction, *branches);
        }
        let count = self.registers.len();
        let next_input = self.next_input.as_ref().filter(|_| row + 1 < self.table.rows).map(|(xin, branches, cin)| {
            // SAFETY: the contract of `run`; the next row exists.
            let next = unsafe { frame.table_row(self.table, row + 1) };
            (rows(xin, *branches), next[*cin])
        });
        let step = Step {
            registers: &registers[..count],
            predictions: &predictions[..self.predictions.len()],
            next_input,
            a: &table[self.a..][..count * count],
            b: &table[self.b..][..count * self.branches],
            c: &table[self.c..][..count],
            seeds: frame.seeds,
            micro: frame.micro,
            site: self.site,
            elements: self.elements,
        };
        // SAFETY: the rule has proved shapes and sizes, and `Args::finish` that no result overlaps an operand.
        unsafe { step.run(frame.isa, frame.pool) };
        Ok(())
    }
}
