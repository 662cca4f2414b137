//! One rule per op of docs/plan-format.md: it proves a call for one batch size and returns what runs it.

mod args;
mod attention;
mod elementwise;
mod format;
mod group_norm;
mod linear;
mod machine;
mod norm;
mod quantize;
mod sampling;
mod scalars;
mod select_row;
mod spatial;

use scoregraph_kernels::{Context, Isa, Parallel, View, ViewMut};

use crate::fault::{Fault, Result};
use crate::operand::{Operand, Region};
use crate::places::{Places, TablePlace};
use crate::schema::Call;

pub use args::Args;

/// Memory and progress of a run, as a kernel sees them.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    /// First byte of the batch arena.
    pub batch: *mut u8,
    /// First byte of the fixed arena.
    pub fixed: *mut u8,
    /// First byte of the constants.
    pub constants: *const u8,
    /// Working memory for the current call: at least the floats its kernel asked for.
    pub scratch: *mut f32,
    /// Length of `scratch`.
    pub scratch_floats: usize,
    /// The key of each sample's noise.
    pub seeds: &'a [u64],
    /// The row of the segment's table.
    pub row: usize,
    /// The micro-step, which numbers the noise: `round * rows + row`.
    pub micro: u32,
    /// The variant of the next row of the segment's table; none after the last row.
    pub next_variant: Option<usize>,
    /// The threads.
    pub pool: &'a dyn Parallel,
    /// The instruction set.
    pub isa: Isa,
}

/// A call, proved and bound to a batch size.
pub trait Kernel: Send + Sync {
    /// Runs it once.
    ///
    /// # Safety
    /// The frame's regions are those for which the operands were resolved (`Places::arena_bytes` long, the constants
    /// file whole), nobody else accesses the arenas during the call, and `scratch` is as long as asked for.
    unsafe fn run(&self, frame: &Frame<'_>) -> Result<()>;

    /// The work it is, in multiply-adds, if it may run on one thread while calls of other operands run on others: all
    /// that it touches are its operands and its scratch. None for a call that runs alone.
    fn work(&self) -> Option<usize> {
        None
    }

    /// Floats of working memory it needs with that many threads.
    fn scratch_floats(&self, _threads: usize) -> usize {
        0
    }
}

/// Everything a rule may depend on besides the call.
#[derive(Clone, Copy)]
pub struct Target {
    /// The instruction set the kernel will run with.
    pub isa: Isa,
    /// The number of threads.
    pub threads: usize,
}

type Rule = fn(&Args<'_>, Target) -> Result<Box<dyn Kernel>>;

/// Every op with its rule.
const RULES: &[(&str, Rule)] = &[
    ("noise", sampling::noise),
    ("step_time", sampling::step_time),
    ("step_input", sampling::step_input),
    ("sampler_step", machine::sampler_step),
    ("gram", machine::gram),
    ("quantile", machine::quantile),
    ("scalars", scalars::scalars),
    ("record", sampling::record),
    ("interpolate", scalars::interpolate),
    ("fill", elementwise::fill),
    ("pointwise", elementwise::pointwise),
    ("copy", elementwise::copy),
    ("reduce", elementwise::reduce),
    ("embedding", elementwise::embedding),
    ("quantize", quantize::quantize),
    ("select_row", select_row::select_row),
    ("linear", linear::linear),
    ("matmul", linear::matmul),
    ("attention", attention::attention),
    ("softmax", norm::softmax),
    ("group_norm", group_norm::group_norm),
    ("layer_norm", norm::layer_norm),
    ("rms_norm", norm::rms_norm),
    ("conv2d", spatial::conv2d),
    ("avg_pool2d", spatial::avg_pool2d),
    ("max_pool2d", spatial::max_pool2d),
    ("upsample_nearest", spatial::upsample_nearest),
];

/// The names of all ops.
pub fn names() -> impl Iterator<Item = &'static str> {
    RULES.iter().map(|(name, _)| *name)
}

/// Proves `call` for `batch` samples and binds it.
pub fn bind(
    call: &Call,
    places: &Places,
    loop_table: Option<TablePlace>,
    batch: u64,
    target: Target,
) -> Result<Box<dyn Kernel>> {
    let Some((_, rule)) = RULES.iter().find(|(name, _)| *name == call.op) else {
        return Err(Fault::plan(format!("there is no op named {:?}", call.op)));
    };
    let args = Args::new(call, places, loop_table, batch)?;
    let kernel = rule(&args, target)?;
    args.finish()?;
    Ok(kernel)
}

impl<'a> Frame<'a> {
    /// How kernels of the kernel crate are to run.
    pub fn context(&self) -> Context<'a> {
        Context { isa: self.isa, pool: self.pool }
    }

    /// The address of an operand's first element.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn address(&self, operand: &Operand) -> *mut u8 {
        let region = match operand.region {
            Region::Batch => self.batch,
            Region::Fixed => self.fixed,
            Region::Constants => self.constants.cast_mut(),
        };
        // SAFETY: the operand was proved to lie inside its region.
        unsafe { region.add(operand.byte) }
    }

    /// All elements an operand reaches; of a dense one, exactly its elements.
    ///
    /// # Safety
    /// As [`Kernel::run`]; nothing writes the operand while the slice lives, and `T` is its type.
    unsafe fn slice<T>(&self, operand: &Operand) -> &'a [T] {
        // SAFETY: in range and aligned by `Places::operand`; regions are initialised memory, and every bit pattern is
        // a value of f32, i64 and u8.
        unsafe { std::slice::from_raw_parts(self.address(operand).cast(), operand.extent) }
    }

    /// The elements of a dense result.
    ///
    /// # Safety
    /// As [`Frame::slice`], and nobody else accesses the result while the slice lives.
    unsafe fn slice_mut<T>(&self, operand: &Operand) -> &'a mut [T] {
        // SAFETY: as in `slice`; `Args::finish` has proved that no operand of the call overlaps a result.
        unsafe { std::slice::from_raw_parts_mut(self.address(operand).cast(), operand.extent) }
    }

    /// A readable window.
    ///
    /// # Safety
    /// As [`Frame::slice`], except that a kernel that works in place may write it through its result.
    unsafe fn view<T>(&self, operand: &Operand) -> View<'a, T> {
        // SAFETY: promised by the caller.
        unsafe { View::from_raw(self.address(operand).cast(), operand.layout) }
    }

    /// A writable window.
    ///
    /// # Safety
    /// As [`Frame::slice_mut`]; an operand of a kernel that works in place may be the same memory.
    unsafe fn view_mut<T>(&self, operand: &Operand) -> ViewMut<'a, T> {
        // SAFETY: promised by the caller; `Args::output` has proved the elements distinct.
        unsafe { ViewMut::from_raw(self.address(operand).cast(), operand.layout) }
    }

    /// Working memory.
    ///
    /// # Safety
    /// As [`Kernel::run`]; one slice at a time.
    unsafe fn scratch(&self) -> &'a mut [f32] {
        // SAFETY: the executor lends this many floats to one call at a time.
        unsafe { std::slice::from_raw_parts_mut(self.scratch, self.scratch_floats) }
    }

    /// One row of a table.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn table_row(&self, table: TablePlace, row: usize) -> &'a [f32] {
        assert!(row < table.rows, "row {row} of a table of {}", table.rows);
        // SAFETY: the table was proved to lie inside the constants, and the row inside the table.
        unsafe {
            let first = self.constants.add(table.byte).cast::<f32>().add(row * table.columns);
            std::slice::from_raw_parts(first, table.columns)
        }
    }
}
