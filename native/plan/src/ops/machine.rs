//! The register machine: the sampler step, and the statistics of its linear forms.

use scoregraph_kernels::pointwise::block::Strided;
use scoregraph_kernels::pointwise::{Instr, Program};
use serde_json::Value;

use super::elementwise::instruction;
use super::sampling::{Bank, choose_row, one_per_sample, per_sample, per_sample_numbers, whole_below};
use super::{Args, Frame, Kernel, Target};
use crate::fault::{Fault, Result};
use crate::operand::Operand;
use crate::places::TablePlace;
use crate::sampler::linear::{MAX_ANSWERS, MAX_FORMS, MAX_REGISTERS, MAX_RESULTS, MAX_SOURCES, Source};
use crate::sampler::statistics::{
    Forms, MAX_STATISTICS, Statistic, gram as gram_kernel, gram_scratch, quantile as quantile_kernel, quantile_scratch,
};
use crate::sampler::{Coefficients, Columns, Elementwise, MAX_EXTRAS, Noise, Param, Step, step_scratch};

/// Rows `[k B, …]` that may lie apart, each of them dense.
struct Branches {
    operand: Operand,
    /// k.
    count: usize,
    /// Elements from a row to the next one.
    step: usize,
}

impl Branches {
    /// The operand as rows of `elements` elements each.
    fn of(args: &Args<'_>, operand: Operand, role: &str, elements: Option<usize>) -> Result<Branches> {
        operand.expect_plain(role)?;
        let (rows, inner, step) = match (operand.shape(), operand.layout.strides()) {
            (&[rows, ref inner @ ..], &[step, ref strides @ ..]) => {
                let inner = scoregraph_kernels::Layout::new(inner, strides).map_err(Fault::plan)?;
                (rows, inner, step)
            }
            _ => return Err(Fault::plan(format!("{role} has no dimensions"))),
        };
        if !inner.is_dense() {
            return Err(Fault::plan(format!("the rows of {role} must be dense")));
        }
        if !rows.is_multiple_of(args.batch) || elements.is_some_and(|elements| elements != inner.len()) {
            let text = format!("{role} has the shape {:?} for {} samples of", operand.shape(), args.batch);
            return Err(Fault::plan(format!("{text} {} elements", elements.unwrap_or(inner.len()))));
        }
        Ok(Branches { operand, count: rows / args.batch, step })
    }

    /// Appends one source per branch.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn push(&self, frame: &Frame<'_>, to: &mut [Source], at: &mut usize) {
        // SAFETY: promised by the caller.
        let first: *mut f32 = unsafe { frame.address(&self.operand) }.cast();
        for j in 0..self.count {
            to[*at] = Source { ptr: first.wrapping_add(j * self.step), step: self.count * self.step };
            *at += 1;
        }
    }
}

/// The operands r* and p* of a call.
struct Machine {
    registers: Vec<Branches>,
    predictions: Vec<Branches>,
    answers: usize,
    elements: usize,
}

impl Machine {
    fn of(args: &Args<'_>) -> Result<Machine> {
        let mut elements = None;
        let mut take = |prefix: &str| -> Result<Vec<Branches>> {
            let mut found = Vec::new();
            for (i, operand) in args.numbered(prefix).into_iter().enumerate() {
                let role = format!("{prefix}{i}");
                if operand.dtype != crate::schema::DType::F32 {
                    return Err(Fault::plan(format!("{role} is {}, not f32", operand.dtype)));
                }
                let rows = Branches::of(args, operand, &role, elements)?;
                elements = Some(rows.operand.numel() / (rows.count * args.batch));
                found.push(rows);
            }
            Ok(found)
        };
        let (registers, predictions) = (take("r")?, take("p")?);
        for (i, register) in registers.iter().enumerate() {
            one_per_sample(args, &register.operand, &format!("r{i}"))?;
        }
        if registers.len() > MAX_REGISTERS {
            return Err(Fault::plan(format!("{} registers; a step has at most {MAX_REGISTERS}", registers.len())));
        }
        let answers = predictions.iter().map(|p| p.count).sum();
        if answers > MAX_ANSWERS {
            return Err(Fault::plan(format!("{answers} branches; a step has at most {MAX_ANSWERS}")));
        }
        let elements = elements.ok_or_else(|| Fault::plan("it has no registers and no answers"))?;
        Ok(Machine { registers, predictions, answers, elements })
    }

    /// The attributes `width` and `answers`, and no columns yet.
    fn columns(&self, args: &Args<'_>) -> Result<Columns> {
        let width = args.optional_count("width")?.unwrap_or(self.answers);
        let answers: Vec<usize> = match args.optional_counts("answers")? {
            Some(answers) => answers,
            None => (0..self.answers).collect(),
        };
        if answers.len() != self.answers || answers.iter().any(|&k| k >= width) {
            let text = format!("the attribute answers is {answers:?}; there are {} answers, of {width}", self.answers);
            return Err(Fault::plan(text));
        }
        Ok(Columns { width, answers, ..Columns::default() })
    }

    /// Entries of a row over registers and answers.
    fn row_len(&self, columns: &Columns) -> usize {
        self.registers.len() + columns.width
    }

    /// The addresses of registers and answers, and their number.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn sources(&self, frame: &Frame<'_>) -> ([Source; MAX_SOURCES], usize) {
        let (mut sources, mut count) = ([Source::NONE; MAX_SOURCES], 0);
        for operand in self.registers.iter().chain(&self.predictions) {
            // SAFETY: promised by the caller; `of` has bounded their number.
            unsafe { operand.push(frame, &mut sources, &mut count) };
        }
        (sources, count)
    }
}

/// Where coefficients come from: the loop's row of a table, or each sample's own numbers.
struct Origin {
    table: Option<TablePlace>,
    own: Option<(Operand, usize)>,
}

impl Origin {
    /// The attribute `table` (needed unless there are own numbers) and the operand `coef`.
    fn of(args: &Args<'_>) -> Result<Origin> {
        let own = per_sample_numbers(args, "coef")?;
        let table = match args.optional_count("table")? {
            None if own.is_some() => None,
            // Outside of loops no row is the current one, and own coefficients need none.
            Some(_) if own.is_some() && args.loop_table.is_none() => None,
            _ => Some(args.table()?),
        };
        if let Some(table) = table
            && choose_row(args, table, None)?.is_some()
        {
            return Err(Fault::plan("it has no fixed row"));
        }
        Ok(Origin { table, own })
    }

    /// Fails unless `len` entries from `first` on exist.
    fn check(&self, args: &Args<'_>, name: &str, first: usize, len: usize) -> Result<()> {
        match (&self.own, self.table) {
            (Some((_, count)), _) if first + len > *count => Err(Fault::plan(format!(
                "the attribute {name} names entries {first}..{} of coef's {count}",
                first + len
            ))),
            (None, Some(table)) => args.check_columns(table, name, first, len),
            _ => Ok(()),
        }
    }

    /// The attribute `name` as the first of `len` entries; it may be left out where there are none.
    fn first(&self, args: &Args<'_>, name: &str, len: usize) -> Result<usize> {
        let first = if len == 0 { args.optional_count(name)?.unwrap_or(0) } else { args.count(name)? };
        if len > 0 {
            self.check(args, name, first, len)?;
        }
        Ok(if len == 0 { 0 } else { first })
    }

    /// The current row of the table; empty without one.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn row<'a>(&self, frame: &Frame<'a>) -> &'a [f32] {
        // SAFETY: promised by the caller.
        self.table.map_or(&[], |table| unsafe { frame.table_row(table, frame.row) })
    }

    /// The coefficients of all samples.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn coefficients<'a>(&self, frame: &Frame<'a>) -> Coefficients<'a> {
        // SAFETY: promised by the caller.
        unsafe {
            match &self.own {
                Some((numbers, count)) => Coefficients { values: frame.slice(numbers), step: *count },
                None => Coefficients { values: self.row(frame), step: 0 },
            }
        }
    }
}

struct SamplerStep {
    machine: Machine,
    columns: Columns,
    origin: Origin,
    elementwise: Option<Elementwise>,
    extras: Vec<Operand>,
    /// The network inputs by variant, and the column of their factor.
    next_inputs: Vec<(usize, Branches)>,
    cin: usize,
    bank: Option<(Bank, usize)>,
    site: u32,
}

pub(super) fn sampler_step(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let machine = Machine::of(args)?;
    let (count, elements) = (machine.registers.len(), machine.elements);
    if count == 0 {
        return Err(Fault::plan("it has no registers"));
    }
    for (i, register) in machine.registers.iter().enumerate() {
        let role = format!("r{i}");
        if !register.operand.is_same_view(&args.output(&role)?) {
            return Err(Fault::memory(format!("{role} must be the same buffer as operand and as result")));
        }
        args.allow_in_place(&role, &role);
    }
    let origin = Origin::of(args)?;
    let mut columns = machine.columns(args)?;
    columns.a = origin.first(args, "a", count * count)?;
    columns.b = origin.first(args, "b", count * columns.width)?;
    columns.c = origin.first(args, "c", count)?;
    columns.estimates = args.optional_count("estimates")?.unwrap_or(0);
    if columns.estimates > MAX_FORMS {
        return Err(args.wrong("estimates", &format!("at most {MAX_FORMS}")));
    }
    columns.e = origin.first(args, "e", columns.estimates * machine.row_len(&columns))?;
    let extras = extras(args, &machine)?;
    let elementwise = elementwise(args, &origin, columns.estimates, extras.len())?;
    let gained = elementwise.as_ref().map_or(0, |e| e.program.results().len());
    columns.h = origin.first(args, "h", count * gained)?;
    let cin = args.count_or_none("cin")?;
    let mut next_inputs = Vec::new();
    for (variant, xin) in args.numbered_outputs("xin")? {
        let role = format!("xin{variant}");
        let xin = super::args::typed(xin, &role, crate::schema::DType::F32)?;
        per_sample(args, &xin, &role)?;
        next_inputs.push((variant, Branches::of(args, xin, &role, Some(elements))?));
    }
    match (origin.table, cin) {
        (Some(table), Some(cin)) => args.check_columns(table, "cin", cin, 1)?,
        _ if next_inputs.is_empty() => {}
        _ => return Err(Fault::plan("a next input is given without the attribute cin and a table to look it up in")),
    }
    if next_inputs.iter().map(|(_, xin)| xin.count).max() > Some(MAX_ANSWERS) {
        return Err(Fault::plan(format!("a network input has more than {MAX_ANSWERS} branches")));
    }
    // The executor knows the variants; the column stands here for readers.
    let names = [("variant", args.count_or_none("variant")?), ("draw", args.count_or_none("draw")?)];
    for (name, column) in names {
        match (column, origin.table) {
            (Some(column), Some(table)) => args.check_columns(table, name, column, 1)?,
            (Some(_), None) => return Err(Fault::plan(format!("the attribute {name} names a column of no table"))),
            (None, _) => {}
        }
    }
    let bank = match (Bank::of(args, elements)?, names[1].1) {
        (Some(bank), Some(draw)) => Some((bank, draw)),
        (Some(_), None) => return Err(Fault::plan("a bank is given without the attribute draw")),
        (None, _) => None,
    };
    let site = args.count("site")? as u32;
    let cin = cin.unwrap_or(0);
    Ok(Box::new(SamplerStep { machine, columns, origin, elementwise, extras, next_inputs, cin, bank, site }))
}

/// The operands x0, x1, … of the registers' shape.
fn extras(args: &Args<'_>, machine: &Machine) -> Result<Vec<Operand>> {
    let extras = args.numbered("x");
    if extras.len() > MAX_EXTRAS {
        return Err(Fault::plan(format!("{} extra operands; at most {MAX_EXTRAS}", extras.len())));
    }
    for (i, extra) in extras.iter().enumerate() {
        let role = format!("x{i}");
        extra.expect_plain(&role)?;
        extra.expect_shape(&role, machine.registers[0].operand.shape())?;
        if extra.dtype != crate::schema::DType::F32 {
            return Err(Fault::plan(format!("{role} is {}, not f32", extra.dtype)));
        }
    }
    Ok(extras)
}

/// The attributes `program`, `results` and `draws`; nothing if there are no results.
fn elementwise(args: &Args<'_>, origin: &Origin, estimates: usize, extras: usize) -> Result<Option<Elementwise>> {
    let results = args.optional_counts("results")?.unwrap_or_default();
    let draws = args.flag("draws")?;
    let Some(list) = args.optional_list("program")? else {
        return if results.is_empty() {
            Ok(None)
        } else {
            Err(args.wrong("program", "given, since there are results"))
        };
    };
    if results.len() > MAX_RESULTS {
        return Err(Fault::plan(format!("{} results; at most {MAX_RESULTS}", results.len())));
    }
    let (inputs, z) = (estimates + 1 + extras, estimates);
    let mut params = Vec::new();
    let mut instrs = Vec::with_capacity(list.len());
    for (i, value) in list.iter().enumerate() {
        let wrong = || Fault::plan(format!("instruction {i} of its program is {value}"));
        let instr = match param(value) {
            Some(param) => {
                match (param, origin.table, &origin.own) {
                    (Param::Row(column), Some(table), _) => args.check_columns(table, "program", column, 1)?,
                    (Param::Coefficient(index), _, Some((_, count))) if index < *count => {}
                    _ => return Err(wrong()),
                }
                params.push(param);
                Instr::Param(params.len() - 1)
            }
            None => instruction(value).ok_or_else(wrong)?,
        };
        let reads_z = match instr {
            Instr::Const(_) | Instr::Param(_) => false,
            Instr::Unary(_, a) => a == z,
            Instr::Binary(_, a, b) => a == z || b == z,
            Instr::Where(c, a, b) => c == z || a == z || b == z,
        };
        if reads_z && !draws {
            return Err(Fault::plan(format!("instruction {i} of its program reads z, but draws is not true")));
        }
        instrs.push(instr);
    }
    if results.contains(&z) && !draws {
        return Err(Fault::plan("a result of its program is z, but draws is not true"));
    }
    let program = Program::with_results(inputs, instrs, results).map_err(Fault::plan)?;
    Ok((!program.results().is_empty()).then_some(Elementwise { program, params, draws }))
}

fn param(value: &Value) -> Option<Param> {
    let [name, index] = value.as_array()?.as_slice() else { return None };
    let index = usize::try_from(index.as_u64()?).ok().filter(|&index| index <= u32::MAX as usize)?;
    match name.as_str()? {
        "row" => Some(Param::Row(index)),
        "coef" => Some(Param::Coefficient(index)),
        _ => None,
    }
}

impl Kernel for SamplerStep {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`.
        let (sources, row, coefficients) =
            unsafe { (self.machine.sources(frame), self.origin.row(frame), self.origin.coefficients(frame)) };
        let (registers, answers) = sources.0[..sources.1].split_at(self.machine.registers.len());
        let (mut next, mut branches, mut factor) = ([Source::NONE; MAX_ANSWERS], 0, 0.0);
        let wanted = frame.next_variant.and_then(|v| self.next_inputs.iter().find(|(variant, _)| *variant == v));
        if let (Some((_, xin)), Some(table)) = (wanted, self.origin.table)
            && frame.row + 1 < table.rows
        {
            // SAFETY: the contract of `run`; the next row exists.
            unsafe {
                xin.push(frame, &mut next, &mut branches);
                factor = frame.table_row(table, frame.row + 1)[self.cin];
            }
        }
        let mut extras = [const { None }; MAX_EXTRAS];
        for (to, extra) in extras.iter_mut().zip(&self.extras) {
            // SAFETY: the contract of `run`.
            *to = Some(Strided::new(unsafe { frame.view(extra) }));
        }
        let mut step = Step {
            registers,
            answers,
            next_input: &next[..branches],
            factor,
            columns: &self.columns,
            coefficients,
            row,
            elementwise: self.elementwise.as_ref(),
            extras: &extras,
            noise: Noise::Drawn { seeds: frame.seeds, micro: frame.micro, site: self.site },
            samples: frame.seeds.len(),
            elements: self.machine.elements,
        };
        if let Some((bank, column)) = &self.bank
            && step.draws()
        {
            let draw = whole_below(row[*column], bank.draws, "draw")?;
            // SAFETY: the contract of `run`; the draw is one of the bank's.
            let first: *mut f32 = unsafe { frame.address(&bank.operand) }.cast();
            let elements = self.machine.elements;
            step.noise = Noise::Bank(Source { ptr: first.wrapping_add(draw * elements), step: bank.draws * elements });
        }
        // SAFETY: the rule has proved shapes and sizes, and `Args::finish` that no result overlaps an operand.
        unsafe { step.run(frame.isa, frame.pool, frame.scratch()) };
        Ok(())
    }

    fn scratch_floats(&self, threads: usize) -> usize {
        step_scratch(self.machine.registers.len(), &self.columns, self.elementwise.as_ref(), threads)
    }
}

struct Gram {
    machine: Machine,
    columns: Columns,
    origin: Origin,
    statistics: Vec<Statistic>,
    out: Operand,
}

pub(super) fn gram(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let machine = Machine::of(args)?;
    let origin = Origin { table: Some(args.table()?), own: None };
    if let Some(table) = origin.table
        && choose_row(args, table, None)?.is_some()
    {
        return Err(Fault::plan("it has no fixed row"));
    }
    let mut columns = machine.columns(args)?;
    columns.estimates = args.count("forms")?;
    if columns.estimates > MAX_FORMS {
        return Err(args.wrong("forms", &format!("at most {MAX_FORMS}")));
    }
    columns.e = origin.first(args, "f", columns.estimates * machine.row_len(&columns))?;
    let form = |value: &Value| value.as_u64().map(|i| i as usize).filter(|&i| i < columns.estimates);
    let statistics = args.list("stats")?.iter().map(|entry| match entry.as_array().map(Vec::as_slice) {
        Some([i]) => Some(Statistic { form: form(i)?, with: None }),
        Some([i, j]) => Some(Statistic { form: form(i)?, with: Some(form(j)?) }),
        _ => None,
    });
    let statistics: Option<Vec<Statistic>> = statistics.collect();
    let statistics = statistics.filter(|found| (1..=MAX_STATISTICS).contains(&found.len()));
    let text = format!("1 to {MAX_STATISTICS} pairs of the {} forms", columns.estimates);
    let statistics = statistics.ok_or_else(|| args.wrong("stats", &text))?;
    let out = args.output("g")?;
    if one_per_sample(args, &out, "g")? != statistics.len() {
        return Err(Fault::plan(format!("g has the shape {:?} for {} statistics", out.shape(), statistics.len())));
    }
    Ok(Box::new(Gram { machine, columns, origin, statistics, out }))
}

impl Machine {
    /// The sources as the operands of a statistic.
    fn forms<'a>(&self, sources: &'a [Source], frame: &Frame<'_>) -> Forms<'a> {
        Forms { sources, registers: self.registers.len(), samples: frame.seeds.len(), elements: self.elements }
    }
}

impl Kernel for Gram {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`; the rule has proved columns and shapes.
        unsafe {
            let (sources, count) = self.machine.sources(frame);
            let (row, out) = (self.origin.row(frame), frame.slice_mut(&self.out));
            let forms = self.machine.forms(&sources[..count], frame);
            gram_kernel(&frame.context(), forms, &self.columns, row, &self.statistics, out, frame.scratch());
        }
        Ok(())
    }

    fn scratch_floats(&self, threads: usize) -> usize {
        let samples = self.out.numel() / self.statistics.len();
        gram_scratch(samples, self.machine.elements, self.columns.estimates, self.statistics.len(), threads)
    }
}

struct Quantile {
    machine: Machine,
    columns: Columns,
    origin: Origin,
    q: f64,
    out: Operand,
}

pub(super) fn quantile(args: &Args<'_>, _: Target) -> Result<Box<dyn Kernel>> {
    let machine = Machine::of(args)?;
    let origin = Origin::of(args)?;
    let mut columns = machine.columns(args)?;
    columns.estimates = 1;
    columns.e = origin.first(args, "e", machine.row_len(&columns))?;
    let q = args.value("q")?.as_f64().filter(|q| (0.0..=1.0).contains(q));
    let q = q.ok_or_else(|| args.wrong("q", "a number from 0 to 1"))?;
    let out = args.output("y")?;
    if one_per_sample(args, &out, "y")? != 1 {
        return Err(Fault::plan(format!("y has the shape {:?}, not [B, 1]", out.shape())));
    }
    Ok(Box::new(Quantile { machine, columns, origin, q, out }))
}

impl Kernel for Quantile {
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()> {
        // SAFETY: the contract of `run`; the rule has proved columns and shapes.
        unsafe {
            let (sources, count) = self.machine.sources(frame);
            let (coefficients, out) = (self.origin.coefficients(frame), frame.slice_mut(&self.out));
            let forms = self.machine.forms(&sources[..count], frame);
            quantile_kernel(&frame.context(), forms, &self.columns, coefficients, self.q, out, frame.scratch());
        }
        Ok(())
    }

    fn scratch_floats(&self, threads: usize) -> usize {
        quantile_scratch(self.machine.elements, threads)
    }
}
