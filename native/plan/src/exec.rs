//! A plan made runnable: proved once, bound to a batch size when one comes, and run whole in one call.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use scoregraph_kernels::Isa;

use crate::arena::Arena;
use crate::concurrent;
use crate::fault::{Code, Fault, Result};
use crate::liveness;
use crate::machine::{human_bytes, physical_memory, with_ieee_floats};
use crate::operand::Operand;
use crate::ops::{self, Frame, Kernel, Target};
use crate::places::Places;
use crate::pool::{Pool, thread_count};
use crate::products;
use crate::schema::{self, Call, DType, Dim, PlanFile, Ref, Segment};
use crate::turns::Turns;

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

    fn bytes(&self) -> &[u8] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: readable for as long as the owner lives, which is as long as `self`.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }

    /// A copy of `count` floats from `byte` on.
    fn floats(&self, byte: usize, count: usize) -> Vec<f32> {
        let words = self.bytes()[byte..byte + 4 * count].chunks_exact(4);
        words.map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect()
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
    /// Rows of loops; a loop without a table has one a round.
    pub steps: u64,
    /// Kernel calls.
    pub calls: u64,
    /// Evaluations of networks, as the segments list them.
    pub network_calls: u64,
    /// The same, times their branches.
    pub branch_evaluations: u64,
    /// Rounds of segments that repeat.
    pub rounds: u64,
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

/// The time of one call at one row of its segment's table, over all rounds. Calls that run at the same time are each
/// measured on their own thread.
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
    kernels: Vec<Box<dyn Kernel>>,
    /// Which of them run at the same time.
    groups: Vec<Range<usize>>,
    /// Whether there is another round, for a segment that repeats.
    active: Option<Operand>,
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
    /// One for each segment.
    turns: Vec<Turns>,
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
        products::check(&plan, constants.bytes())?;
        check_names(&plan)?;
        check_bank(&plan)?;
        let turns = plan.segments.iter().map(|segment| {
            Turns::new(segment, &places, |byte, count| constants.floats(byte, count))
                .map_err(|f| f.at(format!("segment {}", segment.name)))
        });
        let turns = turns.collect::<Result<Vec<_>>>()?;
        liveness::check(&plan, &places, &turns)?;
        let (target, state) = (Target { isa, threads }, Mutex::new(State::default()));
        let program = Program { plan, places, turns, constants, target, state };
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
        for (segment, turns) in self.plan.segments.iter().zip(&self.turns) {
            let mut kernels = Vec::with_capacity(segment.calls.len());
            for (number, call) in segment.calls.iter().enumerate() {
                let kernel = ops::bind(call, &self.places, turns.table, batch, self.target);
                kernels.push(kernel.map_err(|f| f.at(place(segment, number, call)))?);
            }
            let threads = self.target.threads;
            let groups = concurrent::groups(&segment.calls, &kernels, &self.places, batch, threads)
                .map_err(|f| f.at(format!("segment {}", segment.name)))?;
            for group in &groups {
                scratch = scratch.max(concurrent::scratch_floats(&kernels[group.clone()], threads));
            }
            let active = turns.rounds.map(|rounds| self.places.operand(Ref::Buffer(rounds.active), batch)).transpose();
            let active = active.and_then(|found| match found {
                Some(active) if active.dtype != DType::F32 => {
                    Err(Fault::plan(format!("{} says whether it is active and is {}", active.name, active.dtype)))
                }
                found => Ok(found),
            });
            let active = active.map_err(|f| f.at(format!("segment {}", segment.name)))?;
            segments.push(BoundSegment { kernels, groups, active, nanoseconds: Vec::new() });
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
        for (segment, turns) in bound.segments.iter_mut().zip(&self.turns) {
            let cells = if *timing { turns.rows.saturating_mul(segment.kernels.len()) } else { 0 };
            segment.nanoseconds.clear();
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
            next_variant: None,
            pool: &*pool,
            isa: self.target.isa,
        };
        let steps = |turns: &Turns| if turns.is_loop() { turns.rows * turns.most_rounds() } else { 0 };
        let mut progress = Progress { done: 0, total: self.turns.iter().map(steps).sum() };
        for (index, (turns, spec)) in self.turns.iter().zip(&self.plan.segments).enumerate() {
            // A segment that does not repeat has one round.
            let mut active = bound.unfinished(index).unwrap_or(1);
            let mut round = 0;
            let skip = |round: usize| (turns.most_rounds() - round) * turns.rows;
            if active == 0 {
                progress.total -= skip(0);
            }
            while active > 0 && round < turns.most_rounds() {
                for row in 0..turns.rows {
                    frame.row = row;
                    frame.micro = (round * turns.rows + row) as u32;
                    frame.next_variant = turns.next_variant(row);
                    bound.segments[index].run_row(turns, spec, &frame, stats, &progress, monitor)?;
                    if row + 1 == turns.rows {
                        active = bound.unfinished(index).unwrap_or(0);
                        if active == 0 {
                            progress.total -= skip(round + 1);
                        }
                    }
                    if turns.is_loop() {
                        progress.done += 1;
                        stats.steps += 1;
                        monitor.step(progress.done, progress.total);
                    }
                }
                round += 1;
                stats.rounds += u64::from(turns.rounds.is_some());
            }
            if active > 0 && turns.rounds.is_some_and(|rounds| rounds.strict) {
                let text = format!("{active} of {} samples are not done after {round} rounds", seeds.len());
                let numbers = [round, active, seeds.len()].map(|n| n as i64);
                return Err(Fault::new(Code::Unfinished, text).about(&spec.name, numbers));
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
            for (cell, &nanoseconds) in spec.nanoseconds.iter().enumerate().filter(|(_, ns)| **ns > 0) {
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

/// Steps done and steps of the whole run, with the most rounds of every loop that has not ended.
struct Progress {
    done: usize,
    total: usize,
}

impl BoundSegment {
    /// Runs the calls of one row; allocates nothing.
    fn run_row(
        &mut self,
        turns: &Turns,
        spec: &Segment,
        frame: &Frame<'_>,
        stats: &mut Stats,
        progress: &Progress,
        monitor: &mut dyn Monitor,
    ) -> Result<()> {
        let stop = || {
            let text = format!("cancelled after {} of {} steps", progress.done, progress.total);
            Fault::new(Code::Cancelled, text).about("", [progress.done as i64, progress.total as i64])
        };
        // Also asked in a row of no calls, so that a loop of nothing can be ended.
        if monitor.cancelled() {
            return Err(stop());
        }
        let variant = turns.variant(frame.row);
        for group in &self.groups {
            // Calls of a group run in the same variants.
            if !turns.runs(group.start, variant) {
                continue;
            }
            if monitor.cancelled() {
                return Err(stop());
            }
            let times = match self.nanoseconds.is_empty() {
                true => &mut [][..],
                false => &mut self.nanoseconds[frame.row * self.kernels.len()..][group.clone()],
            };
            // SAFETY: `bind` resolved all operands for this batch and made the arenas for it; the lock on the state
            // keeps every other run out; the scratch is the largest any group asked for.
            let outcome = unsafe { concurrent::run(&self.kernels[group.clone()], frame, times) };
            outcome.map_err(|(failed, f)| {
                let number = group.start + failed;
                f.at(place(spec, number, &spec.calls[number]))
            })?;
            stats.calls += group.len() as u64;
        }
        let evaluations = turns.evaluations(variant);
        stats.network_calls = stats.network_calls.saturating_add(evaluations.calls);
        stats.branch_evaluations = stats.branch_evaluations.saturating_add(evaluations.branches);
        Ok(())
    }
}

impl Bound {
    /// In how many samples some element is active (of a buffer that all samples share: how many elements); none for a
    /// segment that does not repeat.
    fn unfinished(&self, segment: usize) -> Option<usize> {
        let active = self.segments[segment].active.as_ref()?;
        let (from, count) = (self.address(active).cast::<f32>(), active.numel());
        // SAFETY: `Places::operand` has proved the element to lie in its arena and aligned, `bind_calls` its type; no
        // kernel runs now.
        let is_active = |&index: &usize| unsafe { *from.add(active.layout.offset(index)) } != 0.0;
        let samples = self.batch as usize;
        if !count.is_multiple_of(samples) {
            return Some((0..count).filter(is_active).count());
        }
        let each = count / samples;
        Some((0..samples).filter(|sample| (sample * each..(sample + 1) * each).any(|i| is_active(&i))).count())
    }

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

/// The bank is an input [B, draws, …] of f32.
fn check_bank(plan: &PlanFile) -> Result<()> {
    let Some(id) = plan.bank else { return Ok(()) };
    let fault = |text: &str| Err(Fault::plan(format!("the noise bank b{id} {text}")));
    if plan.inputs.iter().all(|input| input.buffer != id) {
        return fault("is not an input");
    }
    match plan.buffers.iter().find(|buffer| buffer.id == id) {
        Some(bank) if bank.dtype == DType::F32 && bank.shape.len() >= 2 && bank.shape[0] == Dim::Batch(1) => Ok(()),
        _ => fault("is not f32 [B, draws, …]"),
    }
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
