//! `Program`, `CancelFlag` and `NativeError`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use scoregraph_plan::{Constants, Fault, Given, Monitor, Wanted, listing};
use scoregraph_simd::Isa;

use crate::buffers::Bytes;

pyo3::create_exception!(
    _native,
    NativeError,
    PyException,
    "A bad plan or a failed run: args are (code, place, text, subject, numbers); `scoregraph.backends.cpu` turns it into an error with a cure."
);

/// How often Python is asked for signals during a run.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

pub fn to_python(fault: Fault) -> PyErr {
    NativeError::new_err((fault.code.name(), fault.place, fault.text, fault.subject, fault.numbers))
}

/// The instruction set of that name, if one is named.
pub fn parse_isa(name: Option<&str>) -> PyResult<Option<Isa>> {
    name.map(str::parse).transpose().map_err(PyValueError::new_err)
}

/// A flag that ends a run before its next kernel call. May be set from any thread.
#[pyclass(frozen, module = "scoregraph._native")]
pub struct CancelFlag(Arc<AtomicBool>);

#[pymethods]
impl CancelFlag {
    #[new]
    fn new() -> Self {
        CancelFlag(Arc::default())
    }

    /// Ends the runs that watch this flag.
    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Lets new runs go on.
    fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Whether the flag is set.
    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What Python may do to a running trajectory: raise a flag, answer `is_set`, interrupt, or raise from `progress`.
struct PythonMonitor {
    flag: Option<Arc<AtomicBool>>,
    event: Option<Py<PyAny>>,
    progress: Option<Py<PyAny>>,
    asked: Instant,
    error: Option<PyErr>,
}

impl PythonMonitor {
    fn ask(&mut self, py: Python<'_>) -> PyResult<bool> {
        self.asked = Instant::now();
        py.check_signals()?;
        match &self.event {
            Some(event) => event.call_method0(py, "is_set")?.is_truthy(py),
            None => Ok(false),
        }
    }
}

impl Monitor for PythonMonitor {
    fn cancelled(&mut self) -> bool {
        if self.error.is_some() || self.flag.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed)) {
            return true;
        }
        if self.asked.elapsed() < SIGNAL_INTERVAL {
            return false;
        }
        Python::attach(|py| self.ask(py)).unwrap_or_else(|error| {
            self.error = Some(error);
            true
        })
    }

    fn step(&mut self, done: usize, total: usize) {
        if self.progress.is_none() && self.event.is_none() {
            return;
        }
        let told = Python::attach(|py| -> PyResult<()> {
            if let Some(progress) = &self.progress {
                progress.call1(py, (done, total))?;
            }
            // An event is asked once a step even where steps are short, so that cancelling is exact.
            if self.event.is_some() && self.ask(py)? {
                self.flag.get_or_insert_default().store(true, Ordering::Relaxed);
            }
            Ok(())
        });
        if let Err(error) = told {
            self.error = Some(error);
        }
    }
}

/// A plan, proved and ready to run for any batch.
///
/// Args:
///     plan: the bytes of plan.json.
///     constants: a buffer with the constants' bytes; held, never copied.
///     threads: how many threads; None takes SCOREGRAPH_THREADS or all cores.
///     isa: "scalar", "avx2" or "avx512"; None takes SCOREGRAPH_ISA or the best.
///
/// Raises NativeError(code, place, text, subject, numbers).
#[pyclass(frozen, module = "scoregraph._native")]
pub struct Program {
    inner: scoregraph_plan::Program,
}

#[pymethods]
impl Program {
    #[new]
    #[pyo3(signature = (plan, constants, threads=None, isa=None))]
    fn new(
        py: Python<'_>,
        plan: &[u8],
        constants: &Bound<'_, PyAny>,
        threads: Option<usize>,
        isa: Option<&str>,
    ) -> PyResult<Self> {
        let constants = Bytes::of(constants, "constants", false)?;
        let (ptr, len) = constants.raw();
        let isa = parse_isa(isa)?;
        // SAFETY: the buffer is held by `constants`, so Python neither frees nor moves it. That nobody writes to it is
        // part of the contract of this class; a violation can spoil numbers but no bounds, which do not depend on them.
        let constants = unsafe { Constants::from_raw(ptr, len, Box::new(constants)) };
        let inner = py.detach(|| scoregraph_plan::Program::new(plan, constants, threads, isa)).map_err(to_python)?;
        Ok(Program { inner })
    }

    /// Runs the whole trajectory of `len(seeds)` samples in one call, without the interpreter lock.
    ///
    /// Args:
    ///     inputs: contiguous arrays by name; f32, i64 or u8 as the plan says.
    ///     outputs: writable contiguous arrays by name.
    ///     seeds: a contiguous buffer of uint64, one per sample.
    ///     progress: called as progress(done, total) after each step; the total falls when a loop ends early.
    ///     cancel: a CancelFlag, or anything with is_set().
    #[pyo3(signature = (inputs, outputs, seeds, progress=None, cancel=None))]
    fn run(
        &self,
        py: Python<'_>,
        inputs: &Bound<'_, PyDict>,
        outputs: &Bound<'_, PyDict>,
        seeds: &Bound<'_, PyAny>,
        progress: Option<Py<PyAny>>,
        cancel: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let inputs = named(inputs, "input", false)?;
        let outputs = named(outputs, "output", true)?;
        let seeds = pyo3::buffer::PyBuffer::<u64>::get(seeds)
            .map_err(|_| PyValueError::new_err("seeds must be a buffer of uint64"))?
            .to_vec(py)?;
        let (flag, event) = match cancel {
            None => (None, None),
            Some(cancel) => match cancel.cast::<CancelFlag>() {
                Ok(flag) => (Some(Arc::clone(&flag.get().0)), None),
                Err(_) => (None, Some(cancel.unbind())),
            },
        };
        let mut monitor = PythonMonitor { flag, event, progress, asked: Instant::now(), error: None };
        let outcome = py.detach(|| {
            // SAFETY: the buffers are held until the end of this function. Callers do not touch them during a run, as
            // for every function of Python that fills a buffer without the lock.
            let given: Vec<Given<'_>> = inputs
                .iter()
                // SAFETY: as above.
                .map(|(name, bytes)| Given { name, dtype: bytes.dtype, bytes: unsafe { bytes.as_slice() } })
                .collect();
            let mut wanted: Vec<Wanted<'_>> = outputs
                .iter()
                // SAFETY: as above; writability was checked.
                .map(|(name, bytes)| Wanted { name, dtype: bytes.dtype, bytes: unsafe { bytes.as_mut_slice() } })
                .collect();
            self.inner.run(&given, &mut wanted, &seeds, &mut monitor)
        });
        if let Some(error) = monitor.error {
            return Err(error);
        }
        outcome.map_err(to_python)
    }

    /// Bytes that a run of `batch` samples needs, by use.
    fn memory(&self, batch: u64) -> PyResult<BTreeMap<&'static str, usize>> {
        let memory = self.inner.memory(batch).map_err(to_python)?;
        Ok(BTreeMap::from([
            ("batch", memory.batch),
            ("fixed", memory.fixed),
            ("scratch", memory.scratch),
            ("constants", memory.constants),
        ]))
    }

    /// Counters since the program was made.
    fn stats(&self) -> BTreeMap<&'static str, u64> {
        let stats = self.inner.stats();
        BTreeMap::from([
            ("runs", stats.runs),
            ("steps", stats.steps),
            ("calls", stats.calls),
            ("network_calls", stats.network_calls),
            ("branch_evaluations", stats.branch_evaluations),
            ("rounds", stats.rounds),
            ("binds", stats.binds),
        ])
    }

    /// Turns the timing of every call on or off, from the next run on.
    fn set_timing(&self, on: bool) {
        self.inner.set_timing(on);
    }

    /// The last run's calls as (segment, call, row, nanoseconds over all rounds); empty unless timing was on.
    fn timings(&self) -> Vec<(usize, usize, usize, u64)> {
        self.inner.timings().into_iter().map(|t| (t.segment, t.call, t.row, t.nanoseconds)).collect()
    }

    /// The instruction set and the number of threads.
    fn target(&self) -> (&'static str, usize) {
        let target = self.inner.target();
        (target.isa.name(), target.threads)
    }

    /// What runs, one call a line.
    fn source(&self) -> String {
        listing::listing(&self.inner)
    }
}

fn named(objects: &Bound<'_, PyDict>, what: &str, write: bool) -> PyResult<Vec<(String, Bytes)>> {
    let mut found: Vec<(String, Bytes)> = Vec::with_capacity(objects.len());
    for (name, object) in objects {
        let name: String = name.extract()?;
        let bytes = Bytes::of(&object, &format!("{what} {name:?}"), write)?;
        if write && found.iter().any(|(_, other)| overlap(other.raw(), bytes.raw())) {
            return Err(PyValueError::new_err(format!("{what} {name:?} shares memory with another one")));
        }
        found.push((name, bytes));
    }
    Ok(found)
}

fn overlap((a, a_len): (*mut u8, usize), (b, b_len): (*mut u8, usize)) -> bool {
    (a as usize) < b as usize + b_len && (b as usize) < a as usize + a_len
}
