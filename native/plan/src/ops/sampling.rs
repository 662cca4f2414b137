//! Noise, the loop's clock, and what else moves whole samples about.

use scoregraph_simd::Disjoint;

use super::{Args, Frame, Kernel, Target};
use crate::fault::{Code, Fault, Result};
use crate::noise::{Stream, scaled_normals};
use crate::operand::Operand;
use crate::places::TablePlace;
use crate::sampler::workers;

/// Elements of a noise tile; a multiple of 4.
const NOISE_TILE: usize = 8192;

/// Elements of one sample of a dense `[k * B, …]` operand, and k.
pub(super) fn per_sample(args: &Args<'_>, operand: &Operand, role: &str) -> Result<(usize, usize)> {
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
pub(super) fn one_per_sample(args: &Args<'_>, operand: &Operand, role: &str) -> Result<usize> {
    match per_sample(args, operand, role)? {
        (elements, 1) => Ok(elements),
        (_, branches) => Err(Fault::plan(format!("{role} has {branches} rows for each sample, not 1"))),
    }
}

/// Which row of a table a call reads: a fixed one, or the loop's.
pub(super) fn choose_row(args: &Args<'_>, table: TablePlace, fixed: Option<usize>) -> Result<Option<usize>> {
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

/// An entry of a table in a column: in a fixed row, or in the loop's current one.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    table: TablePlace,
    column: usize,
    row: Option<usize>,
}

impl Entry {
    /// The attributes `table`, `column` and `row`.
    pub(super) fn of(args: &Args<'_>) -> Result<Entry> {
        let (table, column) = (args.table()?, args.count("column")?);
        args.check_columns(table, "column", column, 1)?;
        let row = choose_row(args, table, args.optional_count("row")?)?;
        Ok(Entry { table, column, row })
    }

    /// # Safety
    /// As [`Kernel::run`].
    pub(super) unsafe fn get(&self, frame: &Frame<'_>) -> f32 {
        // SAFETY: promised by the caller.
        let row = unsafe { frame.table_row(self.table, self.row.unwrap_or(frame.row)) };
        row[self.column]
    }
}

/// Rows of per-sample numbers: a dense `[B, n]` (or `[B]`) operand, and n.
pub(super) fn per_sample_numbers(args: &Args<'_>, role: &str) -> Result<Option<(Operand, usize)>> {
    let Some(operand) = args.optional(role)? else { return Ok(None) };
    let count = one_per_sample(args, &operand, role)?;
    Ok(Some((operand, count)))
}

/// A bank of noise, `[B, draws, …]` with the elements of a sample in the dots.
pub(super) struct Bank {
    pub(super) operand: Operand,
    pub(super) draws: usize,
}

impl Bank {
    /// The operand `bank`, if there is one.
    pub(super) fn of(args: &Args<'_>, elements: usize) -> Result<Option<Bank>> {
        let Some(operand) = args.optional("bank")? else { return Ok(None) };
        let all = one_per_sample(args, &operand, "bank")?;
        let draws = operand.shape().get(1).copied().unwrap_or(0);
        if draws == 0 || all != draws * elements {
            return Err(Fault::plan(format!(
                "bank has the shape {:?}, not {} samples of draws of {elements} elements",
                operand.shape(),
                args.batch
            )));
        }
        Ok(Some(Bank { operand, draws }))
    }
}

struct Noise {
    x: Operand,
    bank: Option<(Bank, usize)>,
    elements: usize,
    stream: Stream,
    scale: f32,
}

pub(super) fn noise(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let x = args.output("x")?;
    let elements = one_per_sample(args, &x, "x")?;
    let stream = Stream { seed: 0, micro: args.count("micro")? as u32, site: args.count("site")? as u32 };
    let draw = args.count_or_none("draw")?;
    let bank = match (Bank::of(args, elements)?, draw) {
        (Some(bank), Some(draw)) if draw < bank.draws => Some((bank, draw)),
        (Some(bank), _) => return Err(args.wrong("draw", &format!("one of the bank's {} draws", bank.draws))),
        (None, _) => None,
    };
    Ok(Box::new(Noise { x, bank, elements, stream, scale: args.number("scale")? }))
}

impl Kernel for Noise {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`.
        let x = Disjoint::new(unsafe { frame.slice_mut::<f32>(&self.x) });
        let bank = self.bank.as_ref().map(|(bank, draw)| {
            // SAFETY: as above.
            (unsafe { frame.slice::<f32>(&bank.operand) }, bank.draws, *draw)
        });
        let (seeds, isa) = (frame.seeds, frame.isa);
        let tiles = self.elements.div_ceil(NOISE_TILE);
        frame.pool.run(seeds.len() * tiles, &|index, _| {
            let (sample, tile) = (index / tiles, index % tiles);
            let first = tile * NOISE_TILE;
            let start = sample * self.elements + first;
            let len = NOISE_TILE.min(self.elements - first);
            // SAFETY: every tile has its own range.
            let part = unsafe { x.part(start..start + len) };
            if let Some((bank, draws, draw)) = bank {
                let from = &bank[(sample * draws + draw) * self.elements + first..][..len];
                for (x, z) in part.iter_mut().zip(from) {
                    *x = self.scale * z;
                }
            } else {
                let stream = Stream { seed: seeds[sample], ..self.stream };
                scaled_normals(isa, stream, (first / 4) as u64, self.scale, part);
            }
        });
        Ok(())
    }
}

/// What all branches of a sample are told: an entry of a table, or a number of the sample's own.
enum Told {
    Entry(Entry),
    Own { numbers: Operand, count: usize, index: usize },
}

impl Told {
    /// `told(sample)` for every sample.
    ///
    /// # Safety
    /// As [`Kernel::run`]; nothing writes the numbers while the function lives.
    unsafe fn values<'a>(&self, frame: &Frame<'a>) -> impl Fn(usize) -> f32 + use<'a> {
        // SAFETY: promised by the caller.
        let (values, step): (&[f32], usize) = unsafe {
            match self {
                Told::Entry(Entry { table, column, row }) => {
                    (&frame.table_row(*table, row.unwrap_or(frame.row))[*column..], 0)
                }
                Told::Own { numbers, count, index } => (&frame.slice(numbers)[*index..], *count),
            }
        };
        move |sample| values[sample * step]
    }
}

struct StepTime {
    t: Operand,
    told: Told,
}

pub(super) fn step_time(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let t = args.output("t")?;
    let told = match per_sample_numbers(args, "time")? {
        Some((numbers, 1)) => {
            per_sample(args, &t, "t")?;
            // A table may be named all the same; nothing is read from it.
            let _ = (args.optional_count("table")?, args.optional_count("column")?, args.optional_count("row")?);
            Told::Own { numbers, count: 1, index: 0 }
        }
        Some((_, count)) => return Err(Fault::plan(format!("time has {count} numbers for each sample, not 1"))),
        None => Told::Entry(Entry::of(args)?),
    };
    t.expect_dense("t")?;
    Ok(Box::new(StepTime { t, told }))
}

impl Kernel for StepTime {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`.
        let (told, t) = unsafe { (self.told.values(frame), frame.slice_mut::<f32>(&self.t)) };
        // Of a table's entry it is the same for all, and t may have any shape.
        let rows = t.len().div_ceil(frame.seeds.len());
        for (sample, t) in t.chunks_mut(rows).enumerate() {
            t.fill(told(sample));
        }
        Ok(())
    }
}

struct StepInput {
    x: Operand,
    xin: Operand,
    elements: usize,
    branches: usize,
    told: Told,
}

pub(super) fn step_input(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let (x, xin) = (args.input("x")?, args.output("xin")?);
    let elements = one_per_sample(args, &x, "x")?;
    let (width, branches) = per_sample(args, &xin, "xin")?;
    if width != elements {
        return Err(Fault::plan(format!("xin has {width} elements a row, x {elements}")));
    }
    let told = match per_sample_numbers(args, "coef")? {
        Some((numbers, count)) => {
            let _ = (args.optional_count("table")?, args.optional_count("row")?);
            let index = args.count("column")?;
            if index >= count {
                return Err(args.wrong("column", &format!("one of coef's {count}")));
            }
            Told::Own { numbers, count, index }
        }
        None => Told::Entry(Entry::of(args)?),
    };
    Ok(Box::new(StepInput { x, xin, elements, branches, told }))
}

impl Kernel for StepInput {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`.
        let (factor, x, xin) = unsafe {
            (self.told.values(frame), frame.slice::<f32>(&self.x), Disjoint::new(frame.slice_mut::<f32>(&self.xin)))
        };
        let all = frame.seeds.len() * self.branches;
        workers(frame.pool, all * self.elements).run(all, &|index, _| {
            let sample = index / self.branches;
            let factor = factor(sample);
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

struct Record {
    x: Operand,
    y: Operand,
    elements: usize,
    slots: usize,
    slot: Entry,
}

pub(super) fn record(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let (x, y) = (args.input("x")?, args.output("y")?);
    let (elements, all) = (one_per_sample(args, &x, "x")?, one_per_sample(args, &y, "y")?);
    let slots = y.shape().get(1).copied().unwrap_or(0);
    if slots == 0 || all != slots * elements {
        return Err(Fault::plan(format!("y has the shape {:?}; x, of {:?}, has no slots in it", y.shape(), x.shape())));
    }
    Ok(Box::new(Record { x, y, elements, slots, slot: Entry::of(args)? }))
}

impl Kernel for Record {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`.
        let (slot, x, y) =
            unsafe { (self.slot.get(frame), frame.slice::<f32>(&self.x), frame.slice_mut::<f32>(&self.y)) };
        if slot < 0.0 {
            return Ok(());
        }
        let slot = whole_below(slot, self.slots, "slot")?;
        for (sample, x) in x.chunks_exact(self.elements).enumerate() {
            y[(sample * self.slots + slot) * self.elements..][..self.elements].copy_from_slice(x);
        }
        Ok(())
    }
}

/// A table's entry as an index; the table is data, and only looked at when it is used.
pub(super) fn whole_below(value: f32, limit: usize, what: &str) -> Result<usize> {
    if value >= 0.0 && value.fract() == 0.0 && (value as usize) < limit {
        return Ok(value as usize);
    }
    Err(Fault::new(Code::Plan, format!("the table says {what} {value}; there are {limit}")))
}
