//! A plan made runnable: proved once, bound to a batch size when one comes, and run whole in one call.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use scoregraph_kernels::Isa;

use crate::arena::Arena;
use crate::fault::{Code, Fault, Result};
use crate::liveness;
use crate::machine::{human_bytes, physical_memory, with_ieee_floats};
use crate::operand::Operand;
use crate::ops::{self, Frame, Kernel, Target};
use crate::places::Places;
use crate::pool::{Pool, thread_count};
use crate::schema::{self, Call, DType, PlanFile, Ref, Segment};

/// Alignment that the constants' first byte must have: that of the widest element type.
const CONSTANTS_ALIGN: usize = 8;

/// Bytes that are read but never copied, with whatever keeps them alive (a mapped file, a buffer of Python).
pub struct Constants {
    ptr: *const u8,
    len: usize,
    _owner: Box<dyn Any + Send + Sync>,
}

// SAFETY: the bytes are only read, and the owner may move and be shared.
unsafe impl Send for Constants {}
// SAFETY: as above.
unsafe impl Sync for Constants {}

impl Constants {
    /// # Safety
    /// `owner` keeps `ptr .. ptr + len` readable, initialised and unchanged for as long as it lives.
    pub unsafe fn from_raw(ptr: *const u8, len: usize, owner: Box<dyn Any + Send + Sync>) -> Self {
        Constants { ptr, len, _owner: owner }
    }

    /// Owned words; for tests and small plans.
    pub fn from_words(words: Vec<u64>) -> Self {
        let (ptr, len) = (words.as_ptr().cast(), words.len() * 8);
        // SAFETY: the heap block of the vector does not move with it, and nobody changes it.
        unsafe { Constants::from_raw(ptr, len, Box::new(words)) }
    }
}

/// Told about a running trajectory, between calls and between steps.
pub trait Monitor {
    /// Asked before every call; true ends the run with [`Code::Cancelled`].
    fn cancelled(&mut self) -> bool {
        false
    }

    /// Told after every step of every loop: steps done, and steps of the whole run.
    fn step(&mut self, _done: usize, _total: usize) {}
}

/// Does not look.
pub struct Unwatched;

impl Monitor for Unwatched {}

/// An input as the caller has it.
pub struct Given<'a> {
    /// Its name in the plan.
    pub name: &'a str,
    /// Its element type.
    pub dtype: DType,
    /// Its elements, row-major.
    pub bytes: &'a [u8],
}

/// Room for an output.
pub struct Wanted<'a> {
    /// Its name in the plan.
    pub name: &'a str,
    /// Its element type.
    pub dtype: DType,
    /// Where its elements go, row-major.
    pub bytes: &'a mut [u8],
}

/// What a program has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Finished trajectories, each of them one call into this library.
    pub runs: u64,
    /// Steps of loops: one evaluation of the network, over all its branches, each.
    pub steps: u64,
    /// Kernel calls.
    pub calls: u64,
    /// Times that memory was allocated and calls bound, for a new batch size.
    pub binds: u64,
}

/// Bytes a run needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Values that grow with the batch.
    pub batch: usize,
    /// Values that do not.
    pub fixed: usize,
    /// Working memory of kernels.
    pub scratch: usize,
    /// The constants file.
    pub constants: usize,
}

/// The time of one call at one row of its segment's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Index of the segment.
    pub segment: usize,
    /// Index of the call in it.
    pub call: usize,
    /// The row; 0 outside loops.
    pub row: usize,
    /// Duration.
    pub nanoseconds: u64,
}

struct BoundSegment {
    rows: usize,
    is_loop: bool,
    kernels: Vec<Box<dyn Kernel>>,
    /// Nanoseconds of the last run, [rows, calls]; empty unless timing is on.
    nanoseconds: Vec<u64>,
}

struct Bound {
    batch: u64,
    segments: Vec<BoundSegment>,
    inputs: Vec<Operand>,
    outputs: Vec<Operand>,
    batch_arena: Arena,
    fixed_arena: Arena,
    scratch: Arena,
}

/// A proved plan over its constants.
pub struct Program {
    plan: PlanFile,
    places: Places,
    constants: Constants,
    target: Target,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bound: Option<Bound>,
    stats: Stats,
    timing: bool,
}

fn place(segment: &Segment, number: usize, call: &Call) -> String {
    format!("segment {}, call {number} ({} at {})", segment.name, call.op, call.site)
}

impl Program {
    /// Reads and proves a plan. `threads` and `isa` default to the environment and the machine.
    pub fn new(json: &[u8], constants: Constants, threads: Option<usize>, isa: Option<Isa>) -> Result<Program> {
        let machine = |text: String| Fault::new(Code::Machine, text);
        let isa = match isa {
            Some(isa) if isa.supported() => isa,
            Some(isa) => return Err(machine(format!("this processor does not support {}", isa.name()))),
            None => scoregraph_simd::detect().map_err(machine)?,
        };
        let threads = thread_count(threads)?;
        if !(constants.ptr as usize).is_multiple_of(CONSTANTS_ALIGN) {
            return Err(Fault::new(
                Code::Constants,
                format!("the constants do not begin at a multiple of {CONSTANTS_ALIGN}"),
            ));
        }
        let plan = schema::read(json)?;
        let places = Places::new(&plan, constants.len)?;
        check_names(&plan)?;
        liveness::check(&plan, &places)?;
        let program =
            Program { plan, places, constants, target: Target { isa, threads }, state: Mutex::new(State::default()) };
        // Every rule is proved for the batch of a run when that comes; two sizes now find nearly all mistakes early.
        for batch in [1, 2] {
            program.bind_calls(batch)?;
            program.bind_ends(batch)?;
        }
        Ok(program)
    }

    fn bind_calls(&self, batch: u64) -> Result<(Vec<BoundSegment>, usize)> {
        let mut scratch = 0;
        let mut segments = Vec::with_capacity(self.plan.segments.len());
        for segment in &self.plan.segments {
            let table = segment.table.map(|id| self.places.table(id)).transpose();
            let table = table.map_err(|f| f.at(format!("segment {}", segment.name)))?;
            let mut kernels = Vec::with_capacity(segment.calls.len());
            for (number, call) in segment.calls.iter().enumerate() {
                let kernel = ops::bind(call, &self.places, table, batch, self.target);
                let kernel = kernel.map_err(|f| f.at(place(segment, number, call)))?;
                scratch = scratch.max(kernel.scratch_floats(self.target.threads));
                kernels.push(kernel);
            }
            let rows = table.map_or(1, |table| table.rows);
            segments.push(BoundSegment { rows, is_loop: table.is_some(), kernels, nanoseconds: Vec::new() });
        }
        Ok((segments, scratch))
    }

    fn memory_of(&self, batch: u64, scratch_floats: usize) -> Result<Memory> {
        let (batch_bytes, fixed) = self.places.arena_bytes(batch)?;
        let too_much =
            |bytes: u64| Fault::new(Code::TooLarge, format!("{batch} samples need {} of memory", human_bytes(bytes)));
        let scratch = scratch_floats.checked_mul(4).ok_or_else(|| too_much(u64::MAX))?;
        let total = batch_bytes as u64 + fixed as u64 + (scratch as u64).min(1 << 62);
        if let Some(physical) = physical_memory()
            && total > physical
        {
            let mut fault = too_much(total);
            fault.text.push_str(&format!("; this machine has {}", human_bytes(physical)));
            return Err(fault);
        }
        Ok(Memory { batch: batch_bytes, fixed, scratch, constants: self.constants.len })
    }

    /// What a run of `batch` samples needs.
    pub fn memory(&self, batch: u64) -> Result<Memory> {
        let (_, scratch) = self.bind_calls(positive(batch)?)?;
        self.memory_of(batch, scratch)
    }

    /// The operands of the inputs and of the outputs.
    fn bind_ends(&self, batch: u64) -> Result<(Vec<Operand>, Vec<Operand>)> {
        let operand = |buffer, name: &str| {
            self.places.operand(Ref::Buffer(buffer), batch).map_err(|fault| fault.at(format!("{name:?}")))
        };
        let inputs = self.plan.inputs.iter().map(|input| operand(input.buffer, &input.name)).collect::<Result<_>>()?;
        let outputs =
            self.plan.outputs.iter().map(|output| operand(output.buffer, &output.name)).collect::<Result<_>>()?;
        Ok((inputs, outputs))
    }

    fn bind(&self, batch: u64) -> Result<Bound> {
        let (segments, scratch) = self.bind_calls(batch)?;
        let memory = self.memory_of(batch, scratch)?;
        let (inputs, outputs) = self.bind_ends(batch)?;
        Ok(Bound {
            batch,
            segments,
            inputs,
            outputs,
            batch_arena: Arena::new(memory.batch)?,
            fixed_arena: Arena::new(memory.fixed)?,
            scratch: Arena::new(memory.scratch)?,
        })
    }

    /// Runs the whole trajectory of `seeds.len()` samples.
    ///
    /// Concurrent calls on one program take turns. A panic of a kernel is caught here and is an internal fault.
    pub fn run(
        &self,
        inputs: &[Given<'_>],
        outputs: &mut [Wanted<'_>],
        seeds: &[u64],
        monitor: &mut dyn Monitor,
    ) -> Result<()> {
        let batch = positive(seeds.len() as u64)?;
        let mut state = self.state();
        let State { bound, stats, timing } = &mut *state;
        if bound.as_ref().is_none_or(|bound| bound.batch != batch) {
            // The old memory goes first, so that both need never fit at the same time.
            *bound = None;
            *bound = Some(self.bind(batch)?);
            stats.binds += 1;
        }
        let Some(bound) = bound.as_mut() else { return Err(Fault::new(Code::Internal, "nothing is bound")) };
        for segment in &mut bound.segments {
            let cells = if *timing { segment.rows.saturating_mul(segment.kernels.len()) } else { 0 };
            segment.nanoseconds.resize(cells, 0);
        }
        let outcome = with_ieee_floats(|| {
            catch_unwind(AssertUnwindSafe(|| {
                self.load_inputs(bound, inputs)?;
                self.check_outputs(bound, outputs)?;
                self.run_segments(bound, seeds, stats, monitor)?;
                self.store_outputs(bound, outputs);
                Ok(())
            }))
        });
        match outcome {
            Ok(result) => {
                if result.is_ok() {
                    stats.runs += 1;
                }
                result
            }
            Err(panic) => {
                let text = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("a kernel panicked");
                Err(Fault::new(Code::Internal, text))
            }
        }
    }

    fn run_segments(
        &self,
        bound: &mut Bound,
        seeds: &[u64],
        stats: &mut Stats,
        monitor: &mut dyn Monitor,
    ) -> Result<()> {
        let pool = Pool::shared(self.target.threads)?;
        let mut frame = Frame {
            batch: bound.batch_arena.as_ptr(),
            fixed: bound.fixed_arena.as_ptr(),
            constants: self.constants.ptr,
            scratch: bound.scratch.as_ptr().cast(),
            scratch_floats: bound.scratch.len() / 4,
            seeds,
            row: 0,
            micro: 0,
            pool: &*pool,
            isa: self.target.isa,
        };
        let total = bound.segments.iter().filter(|s| s.is_loop).map(|s| s.rows).sum();
        let mut done = 0;
        for (segment, spec) in bound.segments.iter_mut().zip(&self.plan.segments) {
            let timed = !segment.nanoseconds.is_empty();
            for row in 0..segment.rows {
                frame.row = row;
                frame.micro = row as u32;
                for (number, kernel) in segment.kernels.iter().enumerate() {
                    if monitor.cancelled() {
                        let text = format!("cancelled after {done} of {total} steps");
                        return Err(Fault::new(Code::Cancelled, text).about("", [done as i64, total as i64]));
                    }
                    let start = timed.then(Instant::now);
                    // SAFETY: `bind` resolved all operands for this batch and made the arenas for it; the lock on the
                    // state keeps every other run out; the scratch is the largest any kernel asked for.
                    let outcome = unsafe { kernel.run(&frame) };
                    outcome.map_err(|f| f.at(place(spec, number, &spec.calls[number])))?;
                    if let Some(start) = start {
                        segment.nanoseconds[row * segment.kernels.len() + number] = start.elapsed().as_nanos() as u64;
                    }
                    stats.calls += 1;
                }
                if segment.is_loop {
                    done += 1;
                    stats.steps += 1;
                    monitor.step(done, total);
                }
            }
        }
        Ok(())
    }

    fn load_inputs(&self, bound: &Bound, inputs: &[Given<'_>]) -> Result<()> {
        if let Some(extra) = inputs.iter().find(|g| self.plan.inputs.iter().all(|spec| spec.name != g.name)) {
            return Err(
                Fault::new(Code::Input, format!("the plan has no input named {:?}", extra.name)).about(extra.name, [])
            );
        }
        for (spec, operand) in self.plan.inputs.iter().zip(&bound.inputs) {
            let fault =
                |code, text: String| Fault::new(code, text).about(&spec.name, []).at(format!("input {:?}", spec.name));
            let Some(given) = inputs.iter().find(|g| g.name == spec.name) else {
                return Err(fault(Code::Input, "no value is given".into()));
            };
            if given.dtype != operand.dtype || given.bytes.len() != operand.extent * operand.dtype.size() {
                return Err(fault(
                    Code::Input,
                    format!(
                        "{} bytes of {} are given for {:?} of {}",
                        given.bytes.len(),
                        given.dtype,
                        operand.shape(),
                        operand.dtype
                    ),
                ));
            }
            let to = bound.address(operand);
            // SAFETY: the operand lies inside its arena and is dense (`check_names`); the lengths are equal, and the
            // caller's bytes cannot overlap an arena.
            unsafe { std::ptr::copy_nonoverlapping(given.bytes.as_ptr(), to, given.bytes.len()) };
            if operand.dtype != DType::F32 {
                continue;
            }
            // SAFETY: just written, aligned by the slot, and nobody else is running.
            let values = unsafe { std::slice::from_raw_parts(to.cast::<f32>(), operand.extent) };
            if let Some(index) = values.iter().position(|v| !v.is_finite()) {
                return Err(fault(Code::NotFinite, format!("element {index} is {}", values[index])));
            }
            let low = spec.low.map_or(f32::NEG_INFINITY, |low| low as f32);
            let high = spec.high.map_or(f32::INFINITY, |high| high as f32);
            if let Some(value) = values.iter().find(|&&v| v < low || v > high) {
                return Err(fault(Code::Range, format!("{value} is not in {low} … {high}")));
            }
        }
        Ok(())
    }

    fn check_outputs(&self, bound: &Bound, outputs: &[Wanted<'_>]) -> Result<()> {
        for wanted in outputs {
            let fault = |text: String| {
                Fault::new(Code::Input, text).about(wanted.name, []).at(format!("output {:?}", wanted.name))
            };
            let found = self.plan.outputs.iter().zip(&bound.outputs).find(|(spec, _)| spec.name == wanted.name);
            let Some((_, operand)) = found else { return Err(fault("the plan has no such output".into())) };
            if wanted.dtype != operand.dtype || wanted.bytes.len() != operand.numel() * operand.dtype.size() {
                return Err(fault(format!(
                    "{} bytes of {} for {:?} of {}",
                    wanted.bytes.len(),
                    wanted.dtype,
                    operand.shape(),
                    operand.dtype
                )));
            }
        }
        Ok(())
    }

    fn store_outputs(&self, bound: &Bound, outputs: &mut [Wanted<'_>]) {
        for wanted in outputs {
            let found = self.plan.outputs.iter().zip(&bound.outputs).find(|(spec, _)| spec.name == wanted.name);
            let Some((_, operand)) = found else { continue };
            let (from, size) = (bound.address(operand), operand.dtype.size());
            if operand.layout.is_dense() {
                // SAFETY: `check_outputs` has compared the lengths; the arena is not written now.
                unsafe { std::ptr::copy_nonoverlapping(from, wanted.bytes.as_mut_ptr(), wanted.bytes.len()) };
                continue;
            }
            for (index, to) in wanted.bytes.chunks_exact_mut(size).enumerate() {
                // SAFETY: the element lies inside the operand's extent.
                unsafe {
                    let element = from.add(operand.layout.offset(index) * size);
                    std::ptr::copy_nonoverlapping(element, to.as_mut_ptr(), size);
                }
            }
        }
    }

    /// What the program has done.
    pub fn stats(&self) -> Stats {
        self.state().stats
    }

    /// Turns the measuring of every call on or off; the next run obeys.
    pub fn set_timing(&self, on: bool) {
        self.state().timing = on;
    }

    /// The durations of the last run's calls; empty unless timing was on.
    pub fn timings(&self) -> Vec<Timing> {
        let state = self.state();
        let Some(bound) = &state.bound else { return Vec::new() };
        let mut found = Vec::new();
        for (segment, spec) in bound.segments.iter().enumerate() {
            let calls = spec.kernels.len().max(1);
            for (cell, &nanoseconds) in spec.nanoseconds.iter().enumerate() {
                found.push(Timing { segment, call: cell % calls, row: cell / calls, nanoseconds });
            }
        }
        found
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic inside a run is caught inside it, so the state is consistent even if the lock says otherwise.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The plan.
    pub fn plan(&self) -> &PlanFile {
        &self.plan
    }

    /// The instruction set and the number of threads it runs with.
    pub fn target(&self) -> Target {
        self.target
    }
}

impl Bound {
    fn address(&self, operand: &Operand) -> *mut u8 {
        let arena = match operand.region {
            crate::operand::Region::Batch => &self.batch_arena,
            crate::operand::Region::Fixed | crate::operand::Region::Constants => &self.fixed_arena,
        };
        arena.as_ptr().wrapping_add(operand.byte)
    }
}

fn positive(batch: u64) -> Result<u64> {
    if batch == 0 { Err(Fault::new(Code::Batch, "a run has at least one sample")) } else { Ok(batch) }
}

/// Inputs own their memory, and no name is used twice.
fn check_names(plan: &PlanFile) -> Result<()> {
    for (i, input) in plan.inputs.iter().enumerate() {
        let fault = |text: String| Fault::plan(text).at(format!("input {:?}", input.name));
        if plan.inputs[..i].iter().any(|other| other.name == input.name) {
            return Err(fault("the name is used twice".into()));
        }
        if plan.buffers.iter().any(|b| b.id == input.buffer && b.view.is_some()) {
            return Err(fault(format!("b{} is a view; an input has memory of its own", input.buffer)));
        }
        if [input.low, input.high, input.default].into_iter().flatten().any(f64::is_nan) {
            return Err(fault("its range is not a number".into()));
        }
    }
    for (i, output) in plan.outputs.iter().enumerate() {
        if plan.outputs[..i].iter().any(|other| other.name == output.name) {
            return Err(Fault::plan("the name is used twice").at(format!("output {:?}", output.name)));
        }
    }
    Ok(())
}
