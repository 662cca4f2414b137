//! `pointwise`: an expression over strided operands, interpreted a block of elements at a time.
//!
//! An instruction runs over a block of [`BLOCK`] elements before the next one starts, so that interpreting costs little
//! and all values of a block stay in the first-level cache.

pub mod block;
mod program;

pub use program::{Binary, Instr, Program, Unary};
use scoregraph_simd::{Disjoint, Kernel, Simd};

use crate::{Context, Layout, View, ViewMut};

/// Elements that an instruction goes through at once.
const BLOCK: usize = 512;
/// The largest number of operands.
pub const MAX_OPERANDS: usize = 8;
/// Blocks a tile has: constants and repeated operands are spread out once for all of them.
const BLOCKS_PER_TILE: usize = 8;

/// An operand of `pointwise`, of the result's shape.
#[derive(Clone, Copy)]
pub enum Operand<'a> {
    /// Floats.
    F32(View<'a, f32>),
    /// Integers, which enter as `f32`.
    I64(View<'a, i64>),
}

impl Operand<'_> {
    fn layout(&self) -> &Layout {
        match self {
            Operand::F32(view) => view.layout(),
            Operand::I64(view) => view.layout(),
        }
    }
}

/// How many floats of scratch [`pointwise`] needs.
pub fn pointwise_scratch(program: &Program, threads: usize) -> usize {
    program.values() * BLOCK * threads
}

/// Computes `program` for every element of `y`, which may be the same dense window as an operand.
///
/// # Panics
/// If the operands do not have the shape of `y`, or the scratch is too small.
pub fn pointwise(ctx: &Context, program: &Program, operands: &[Operand], y: &mut ViewMut, scratch: &mut [f32]) {
    assert_eq!(operands.len(), program.inputs());
    assert!(operands.len() <= MAX_OPERANDS && program.params() == 0);
    assert_eq!(program.results(), [program.values() - 1], "the result is the last value");
    assert!(operands.iter().all(|operand| operand.layout().shape() == y.shape()), "operands have the result's shape");
    let per_thread = pointwise_scratch(program, 1);
    assert!(scratch.len() >= pointwise_scratch(program, ctx.pool.threads()));
    let elements = y.layout().len();
    let scratch = Disjoint::new(scratch);
    let mut inputs = [None; MAX_OPERANDS];
    for (input, operand) in inputs.iter_mut().zip(operands) {
        let [merged] = Layout::merge([*operand.layout()]);
        *input = Some((*operand, merged));
    }
    let [y_layout] = Layout::merge([*y.layout()]);
    let y: &ViewMut = y;
    let tile_elements = BLOCK * BLOCKS_PER_TILE;
    ctx.pool.run(elements.div_ceil(tile_elements), &|tile, thread| {
        // SAFETY: a thread runs one tile at a time, and its part of the scratch is its own.
        let scratch = unsafe { scratch.part(thread * per_thread..(thread + 1) * per_thread) };
        let start = tile * tile_elements;
        let end = (start + tile_elements).min(elements);
        ctx.isa.dispatch(Tile { program, inputs: &inputs, y, y_layout, scratch, start, end });
    });
}

/// Elements `start..end` of the result. Layouts are merged ones.
struct Tile<'a> {
    program: &'a Program,
    inputs: &'a [Option<(Operand<'a>, Layout)>; MAX_OPERANDS],
    y: &'a ViewMut<'a>,
    y_layout: Layout,
    scratch: &'a mut [f32],
    start: usize,
    end: usize,
}

/// Whether a merged layout is one run of adjacent elements.
fn is_run(layout: &Layout) -> bool {
    layout.rank() == 1 && layout.strides()[0] == 1
}

/// Whether a merged layout repeats one element.
fn is_repeated(layout: &Layout) -> bool {
    layout.rank() == 1 && layout.strides()[0] == 0
}

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let program = self.program;
        let mut rows: [*mut f32; Program::MAX_VALUES] =
            std::array::from_fn(|value| self.scratch.as_mut_ptr().wrapping_add(value * BLOCK));
        let mut inputs = [std::ptr::null(); MAX_OPERANDS];
        for (value, input) in self.inputs.iter().enumerate() {
            inputs[value] = rows[value].cast_const();
            if let Some((operand, layout)) = input
                && is_repeated(layout)
            {
                gather(operand, layout, 0, BLOCK.min(layout.len()), rows[value]);
            }
        }
        // SAFETY: every row of the scratch has BLOCK elements.
        unsafe { block::fill_constants(program, &[], &rows, BLOCK) };
        let result = program.results()[0];
        let in_place = is_run(&self.y_layout) && result >= program.inputs() && !program.is_constant(result);
        for start in (self.start..self.end).step_by(BLOCK) {
            let len = BLOCK.min(self.end - start);
            for (value, input) in self.inputs.iter().enumerate() {
                match input {
                    Some((Operand::F32(view), layout)) if is_run(layout) => {
                        inputs[value] = view.as_ptr().wrapping_add(start);
                    }
                    Some((operand, layout)) if !is_repeated(layout) => gather(operand, layout, start, len, rows[value]),
                    _ => {}
                }
            }
            if in_place {
                rows[result] = self.y.as_mut_ptr().wrapping_add(start);
            }
            // SAFETY: inputs are rows of the scratch or parts of dense views; every other value has a row of its own,
            // and the last one, which nothing reads, perhaps the part of y that only this block writes.
            unsafe { block::run(s, program, &inputs, &rows, len) };
            if !in_place {
                let value = if result < program.inputs() { inputs[result] } else { rows[result].cast_const() };
                self.y_layout.runs(start, len, |offset, done, n| {
                    let step = self.y_layout.strides()[self.y_layout.rank() - 1];
                    for i in 0..n {
                        // SAFETY: `runs` gives elements of the view; the value has `len` elements.
                        unsafe { self.y.as_mut_ptr().add(offset + i * step).write(*value.add(done + i)) };
                    }
                });
            }
        }
    }
}

/// Copies the elements `start..start + len` of an operand to `row`, which has room for them.
fn gather(operand: &Operand, layout: &Layout, start: usize, len: usize, row: *mut f32) {
    let step = layout.strides()[layout.rank() - 1];
    layout.runs(start, len, |offset, done, n| {
        // SAFETY: `runs` gives elements of the view, and `done + n <= len`, which the row has room for.
        unsafe {
            match operand {
                Operand::F32(view) if step == 1 => {
                    std::ptr::copy_nonoverlapping(view.as_ptr().add(offset), row.add(done), n);
                }
                Operand::F32(view) => {
                    (0..n).for_each(|i| row.add(done + i).write(*view.as_ptr().add(offset + i * step)));
                }
                Operand::I64(view) => {
                    (0..n).for_each(|i| row.add(done + i).write(*view.as_ptr().add(offset + i * step) as f32));
                }
            }
        }
    });
    // A repeated operand is gathered once, from however many elements there are: fill the block.
    if step == 0 && layout.rank() == 1 && len < BLOCK && len > 0 {
        // SAFETY: the row has BLOCK elements, the first of which was written above.
        unsafe { (len..BLOCK).for_each(|i| row.add(i).write(*row)) };
    }
}
