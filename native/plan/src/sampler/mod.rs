//! The fused sampler pass: all registers, all branches, the noise, what is not linear, and the next network input, in
//! one walk over memory. The formulas are in docs/plan-format.md, "The sampler step".
//!
//! A tile of a sample goes through the step a block at a time: the estimates, the program over them, and the new values
//! of a block all stay in the first-level cache, so each register and each answer that the step needs is read from
//! memory once and each register that changes is written once. Everything is plain float32 in a fixed order: the bits
//! are the same for every instruction set, tile, number of threads and place in the batch.

pub mod linear;
pub mod scalars;
pub mod statistics;
#[cfg(test)]
mod tests;

use scoregraph_kernels::pointwise::Program;
use scoregraph_kernels::pointwise::block::{self, Strided};
use scoregraph_simd::{Disjoint, Isa, Kernel, Parallel, Serial, Simd, Unfused};

use crate::noise::{self, Stream};
use linear::{BLOCK, MAX_REGISTERS, MAX_RESULTS, MAX_SOURCES, Source, Sums, TILE, Term, combine};

/// Most extra operands of a step's program.
pub const MAX_EXTRAS: usize = 8;

/// A step of fewer elements than this is done by the calling thread: waking another takes longer.
const WORTH_SHARING: usize = 16384;

/// Who runs the tiles of a call that looks at that many elements.
pub(crate) fn workers(pool: &dyn Parallel, elements: usize) -> &dyn Parallel {
    if elements < WORTH_SHARING { &Serial } else { pool }
}

/// Where a step finds its coefficients in a row of them.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    /// First entry of A [R, R].
    pub a: usize,
    /// First entry of B [R, width].
    pub b: usize,
    /// First entry of C [R].
    pub c: usize,
    /// First entry of E [estimates, R + width].
    pub e: usize,
    /// First entry of H [R, Y].
    pub h: usize,
    /// Rows of E.
    pub estimates: usize,
    /// Answers the columns speak of.
    pub width: usize,
    /// The number among them of each answer that is there.
    pub answers: Vec<usize>,
}

impl Columns {
    /// Row i of a matrix over registers and answers, `[…, R + width]` from `first` on: its terms, by source.
    fn form<'a>(
        &'a self,
        q: &'a [f32],
        first: usize,
        i: usize,
        registers: usize,
    ) -> impl Iterator<Item = (f32, usize)> {
        let row = &q[first + i * (registers + self.width)..][..registers + self.width];
        let answers = self.answers.iter().enumerate();
        let state = row[..registers].iter().copied().enumerate().map(|(l, q)| (q, l));
        state.chain(answers.map(move |(k, &number)| (row[registers + number], registers + k)))
    }
}

/// Rows of coefficients: one for all samples, or one for each.
#[derive(Clone, Copy, Debug)]
pub struct Coefficients<'a> {
    /// The rows.
    pub values: &'a [f32],
    /// Entries from a sample's row to the next one's: 0 if all have the same.
    pub step: usize,
}

impl<'a> Coefficients<'a> {
    /// The row of a sample.
    fn of(self, sample: usize) -> &'a [f32] {
        &self.values[sample * self.step..]
    }
}

/// What a parameter of a step's program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Param {
    /// The entry of the table's current row in that column.
    Row(usize),
    /// That entry of the sample's coefficients.
    Coefficient(usize),
}

/// What a step computes element by element: a program over the estimates, the noise and extra operands.
#[derive(Clone, Debug)]
pub struct Elementwise {
    /// Inputs: the estimates, z, the extras.
    pub program: Program,
    /// Its parameters.
    pub params: Vec<Param>,
    /// Whether it reads z.
    pub draws: bool,
}

/// Where z comes from.
#[derive(Clone, Copy, Debug)]
pub enum Noise<'a> {
    /// The normals of each sample's own stream.
    Drawn {
        /// The seed of each sample.
        seeds: &'a [u64],
        /// The micro-step.
        micro: u32,
        /// The site.
        site: u32,
    },
    /// A bank `[samples, draws, elements]`: one run of it per sample.
    Bank(Source),
}

/// One step for a whole batch.
#[derive(Clone, Copy)]
pub struct Step<'a> {
    /// R registers.
    pub registers: &'a [Source],
    /// The answers that are there, one source each.
    pub answers: &'a [Source],
    /// Every branch of the next network input.
    pub next_input: &'a [Source],
    /// Its factor.
    pub factor: f32,
    /// Where the coefficients are.
    pub columns: &'a Columns,
    /// The coefficients.
    pub coefficients: Coefficients<'a>,
    /// The table's current row, for the program; empty without a table.
    pub row: &'a [f32],
    /// What is not linear.
    pub elementwise: Option<&'a Elementwise>,
    /// The program's extra operands, of the registers' shape.
    pub extras: &'a [Option<Strided<'a>>],
    /// z.
    pub noise: Noise<'a>,
    /// B.
    pub samples: usize,
    /// Elements of a sample.
    pub elements: usize,
}

// SAFETY: the pointers are to buffers of the caller, who lends them for the call; tiles touch disjoint elements.
unsafe impl Sync for Step<'_> {}

/// What becomes of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Write {
    /// Nothing: its row is that of the identity.
    Keep,
    /// The sum goes to its place at once: no later sum reads it.
    Direct,
    /// The sum waits in scratch until all sums are done.
    Later,
}

/// A step's sums for one row of coefficients.
struct Recipe {
    /// The new values of the registers, then the estimates.
    sums: Sums,
    writes: [Write; MAX_REGISTERS],
    /// Whether the program runs: some register gains one of its results.
    computes: bool,
    /// Whether z is read.
    draws: bool,
}

/// Floats of scratch that a step needs with that many threads.
pub fn step_scratch(registers: usize, columns: &Columns, elementwise: Option<&Elementwise>, threads: usize) -> usize {
    let values = elementwise.map_or(0, |e| e.program.values());
    (1 + registers + columns.estimates + values) * BLOCK * threads
}

impl Step<'_> {
    /// The number of z among the sources; the program's results follow it.
    fn z(&self) -> usize {
        self.registers.len() + self.answers.len()
    }

    fn recipe(&self, sample: usize) -> Recipe {
        let (columns, q, count) = (self.columns, self.coefficients.of(sample), self.registers.len());
        let (z, gained) = (self.z(), self.elementwise.map_or(0, |e| e.program.results().len()));
        let mut sums = Sums::EMPTY;
        for j in 0..count {
            let state = (0..count).map(|l| (q[columns.a + j * count + l], l));
            let answers = columns.answers.iter().enumerate();
            let answers = answers.map(|(k, number)| (q[columns.b + j * columns.width + number], count + k));
            let noise = (q[columns.c + j], z);
            let results = (0..gained).map(|i| (q[columns.h + j * gained + i], z + 1 + i));
            sums.push(state.chain(answers).chain([noise]).chain(results));
        }
        let reads = |sum: usize, source: usize| sums.terms(sum).iter().any(|term| usize::from(term.source) == source);
        let mut writes = [Write::Keep; MAX_REGISTERS];
        for (j, write) in writes.iter_mut().enumerate().take(count) {
            let identity = matches!(sums.terms(j), [Term { coefficient: 1.0, source }] if usize::from(*source) == j);
            let direct = (j + 1..count).all(|later| !reads(later, j));
            *write = match (identity, direct) {
                (true, _) => Write::Keep,
                (_, true) => Write::Direct,
                _ => Write::Later,
            };
        }
        let computes = (0..count).any(|j| (0..gained).any(|i| reads(j, z + 1 + i)));
        let draws = (0..count).any(|j| reads(j, z)) || (computes && self.elementwise.is_some_and(|e| e.draws));
        if computes {
            for i in 0..columns.estimates {
                sums.push(columns.form(q, columns.e, i, count));
            }
        }
        Recipe { sums, writes, computes, draws }
    }

    /// Whether any sample's step reads z.
    pub fn draws(&self) -> bool {
        let rows = if self.coefficients.step == 0 { 1 } else { self.samples };
        (0..rows).any(|sample| self.recipe(sample).draws)
    }

    /// Moves every sample one step.
    ///
    /// # Safety
    /// Every source has `elements` elements for each of `samples`; registers and next inputs are writable and nothing
    /// else accesses them during the call; the extras have `samples * elements` elements; and apart from registers that
    /// are read and written, no written source overlaps any other operand. There are at most as many of everything as
    /// the constants of this module and of [`linear`] say; the coefficients have all columns, and the program inputs for
    /// all estimates, z and the extras. `scratch` is as long as [`step_scratch`] says for this pool.
    pub unsafe fn run(&self, isa: Isa, pool: &dyn Parallel, scratch: &mut [f32]) {
        let shared = (self.coefficients.step == 0).then(|| self.recipe(0));
        if let Some(recipe) = &shared
            && self.next_input.is_empty()
            && recipe.writes[..self.registers.len()].iter().all(|write| *write == Write::Keep)
        {
            return;
        }
        let per_thread = step_scratch(self.registers.len(), self.columns, self.elementwise, 1);
        assert!(scratch.len() >= per_thread * pool.threads());
        let scratch = Disjoint::new(scratch);
        // A piece of work is a tile of a sample, or several samples that are smaller than one.
        let tiles = self.elements.div_ceil(TILE);
        let together = (TILE / self.elements).max(1);
        let pieces = self.samples.div_ceil(together) * tiles;
        workers(pool, self.samples * self.elements).run(pieces, &|piece, thread| {
            let (first, start) = (piece / tiles * together, piece % tiles * TILE);
            let end = (start + TILE).min(self.elements);
            for sample in first..(first + together).min(self.samples) {
                // SAFETY: a thread runs one piece at a time, and its part of the scratch is its own.
                let scratch = unsafe { scratch.part(thread * per_thread..(thread + 1) * per_thread) };
                let own;
                let recipe = match &shared {
                    Some(recipe) => recipe,
                    None => {
                        own = self.recipe(sample);
                        &own
                    }
                };
                isa.dispatch(Tile { step: self, recipe, sample, start, end, scratch });
            }
        });
    }
}

/// Elements `start..end` of a sample.
struct Tile<'a> {
    step: &'a Step<'a>,
    recipe: &'a Recipe,
    sample: usize,
    start: usize,
    end: usize,
    scratch: &'a mut [f32],
}

/// The scratch of a thread, in rows of [`BLOCK`].
struct Rows {
    z: *mut f32,
    /// Sums that wait, one row a register.
    new: *mut f32,
    estimates: *mut f32,
    /// The program's values: inputs (where extras are gathered) and instructions.
    values: *mut f32,
}

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let s = Unfused(simd);
        let step = self.step;
        let z = self.scratch.as_mut_ptr();
        let new = z.wrapping_add(BLOCK);
        let estimates = new.wrapping_add(step.registers.len() * BLOCK);
        let values = estimates.wrapping_add(step.columns.estimates * BLOCK);
        let rows = Rows { z, new, estimates, values };
        let mut program_rows = [std::ptr::null_mut(); Program::MAX_VALUES];
        if let (true, Some(elementwise)) = (self.recipe.computes, step.elementwise) {
            for (value, row) in program_rows[..elementwise.program.values()].iter_mut().enumerate() {
                *row = rows.values.wrapping_add(value * BLOCK);
            }
            let q = step.coefficients.of(self.sample);
            let mut params = [0.0; Program::MAX_VALUES];
            for (to, param) in params.iter_mut().zip(&elementwise.params) {
                *to = match *param {
                    Param::Row(column) => step.row[column],
                    Param::Coefficient(index) => q[index],
                };
            }
            // SAFETY: every row of the scratch has BLOCK elements, and there is one for each value.
            unsafe { block::fill_constants(&elementwise.program, &params, &program_rows, BLOCK) };
        }
        for first in (self.start..self.end).step_by(BLOCK) {
            let len = BLOCK.min(self.end - first);
            // SAFETY: the elements are the sample's, and the contract of `Step::run`.
            unsafe { self.block(s, first, len, &rows, &program_rows) };
        }
    }
}

impl Tile<'_> {
    /// Elements `first .. first + len`, at most [`BLOCK`].
    ///
    /// # Safety
    /// They are elements of the sample, and the contract of [`Step::run`].
    #[inline(always)]
    unsafe fn block<S: Simd>(
        &self,
        s: S,
        first: usize,
        len: usize,
        rows: &Rows,
        program_rows: &[*mut f32; Program::MAX_VALUES],
    ) {
        let (step, recipe, sample) = (self.step, self.recipe, self.sample);
        let count = step.registers.len();
        let mut sources = [std::ptr::null::<f32>(); MAX_SOURCES + 1 + MAX_RESULTS];
        for (at, source) in sources.iter_mut().zip(step.registers.iter().chain(step.answers)) {
            *at = source.at(sample, first);
        }
        if recipe.draws {
            sources[step.z()] = match step.noise {
                Noise::Drawn { seeds, micro, site } => {
                    // SAFETY: the row has BLOCK elements, and this thread alone uses it.
                    let z = unsafe { std::slice::from_raw_parts_mut(rows.z, len) };
                    noise::fill(s, Stream { seed: seeds[sample], micro, site }, (first / 4) as u64, z);
                    rows.z
                }
                Noise::Bank(bank) => bank.at(sample, first),
            };
        }
        if let (true, Some(elementwise)) = (recipe.computes, step.elementwise) {
            let program = &elementwise.program;
            let estimates = step.columns.estimates;
            let mut inputs = [std::ptr::null::<f32>(); MAX_INPUTS];
            for (i, input) in inputs[..estimates].iter_mut().enumerate() {
                let row = rows.estimates.wrapping_add(i * BLOCK);
                // SAFETY: sources hold `len` elements from here on, and the row has BLOCK elements of its own.
                unsafe { combine(s, recipe.sums.terms(count + i), |source| sources[source], row, len) };
                *input = row;
            }
            inputs[estimates] = sources[step.z()];
            for (i, extra) in step.extras.iter().flatten().enumerate() {
                let value = estimates + 1 + i;
                // SAFETY: the extra has these elements by the contract; the row is one of the scratch.
                inputs[value] = unsafe { extra.block(sample * step.elements + first, len, program_rows[value]) };
            }
            // SAFETY: inputs hold `len` elements (z only if it is drawn, and else the program does not read it), and
            // every value has a row of its own, whose constants are filled.
            unsafe { block::run(s, program, &inputs, program_rows, len) };
            for (i, &value) in program.results().iter().enumerate() {
                sources[step.z() + 1 + i] =
                    if value < program.inputs() { inputs[value] } else { program_rows[value].cast_const() };
            }
        }
        for (j, register) in step.registers.iter().enumerate() {
            let to = match recipe.writes[j] {
                Write::Keep => continue,
                Write::Direct => register.at(sample, first),
                Write::Later => rows.new.wrapping_add(j * BLOCK),
            };
            // SAFETY: as for the estimates; a register is written at once only where no later sum reads it, its own
            // reads it among the first GROUP terms, and this tile alone writes these elements.
            unsafe { combine(s, recipe.sums.terms(j), |source| sources[source], to, len) };
        }
        for (j, register) in step.registers.iter().enumerate().filter(|(j, _)| recipe.writes[*j] == Write::Later) {
            // SAFETY: the sum waits in its row; `len` elements of the register from here on are this tile's.
            unsafe {
                std::ptr::copy_nonoverlapping(rows.new.wrapping_add(j * BLOCK), register.at(sample, first), len);
            }
        }
        let scaled = [Term { coefficient: step.factor, source: 0 }];
        for branch in step.next_input {
            // SAFETY: the state and the branch have these elements and do not overlap.
            unsafe { combine(s, &scaled, |source| sources[source], branch.at(sample, first), len) };
        }
    }
}

/// Most inputs of a step's program.
const MAX_INPUTS: usize = linear::MAX_FORMS + 1 + MAX_EXTRAS;
