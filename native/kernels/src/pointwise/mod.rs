//! `pointwise`: an expression over strided operands, interpreted a block of elements at a time.
//!
//! An instruction runs over a block of [`BLOCK`] elements before the next one starts, so that interpreting costs little
//! and all values of a block stay in the first-level cache.

mod program;

pub use program::{Binary, Instr, Program, Unary};
use scoregraph_simd::{Disjoint, Kernel, Simd, math};

use crate::{Context, Layout, View, ViewMut};

/// Elements that an instruction goes through at once.
const BLOCK: usize = 512;
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
    assert!(operands.iter().all(|operand| operand.layout().shape() == y.shape()), "operands have the result's shape");
    let per_thread = pointwise_scratch(program, 1);
    assert!(scratch.len() >= pointwise_scratch(program, ctx.pool.threads()));
    let elements = y.layout().len();
    let scratch = Disjoint::new(scratch);
    let mut inputs = [None; Program::MAX_INPUTS];
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
    inputs: &'a [Option<(Operand<'a>, Layout)>; Program::MAX_INPUTS],
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
        let rows: [*mut f32; Program::MAX_VALUES] =
            std::array::from_fn(|value| self.scratch.as_mut_ptr().wrapping_add(value * BLOCK));
        let mut values: [*const f32; Program::MAX_VALUES] = rows.map(|row| row.cast_const());
        for (row, input) in rows.iter().zip(self.inputs) {
            if let Some((operand, layout)) = input
                && is_repeated(layout)
            {
                gather(operand, layout, 0, BLOCK.min(layout.len()), *row);
            }
        }
        for (i, instr) in program.instrs().iter().enumerate() {
            if let Instr::Const(value) = instr {
                // SAFETY: a row of the scratch has BLOCK elements.
                unsafe { std::slice::from_raw_parts_mut(rows[program.inputs() + i], BLOCK) }.fill(*value);
            }
        }
        let result = program.values() - 1;
        let in_place =
            is_run(&self.y_layout) && matches!(program.instrs().last(), Some(Instr::Unary(..) | Instr::Binary(..)));
        for start in (self.start..self.end).step_by(BLOCK) {
            let len = BLOCK.min(self.end - start);
            for (value, input) in self.inputs.iter().enumerate() {
                match input {
                    Some((Operand::F32(view), layout)) if is_run(layout) => {
                        values[value] = view.as_ptr().wrapping_add(start);
                    }
                    Some((operand, layout)) if !is_repeated(layout) => gather(operand, layout, start, len, rows[value]),
                    _ => {}
                }
            }
            for (i, instr) in program.instrs().iter().enumerate() {
                let value = program.inputs() + i;
                let to =
                    if in_place && value == result { self.y.as_mut_ptr().wrapping_add(start) } else { rows[value] };
                // SAFETY: operands come before, so they hold `len` elements: a row of the scratch, or of a dense view.
                // `to` is another row, or the part of y that only this block writes.
                unsafe {
                    match *instr {
                        Instr::Const(_) => {}
                        Instr::Unary(function, a) => unary(s, function, values[a], to, len),
                        Instr::Binary(function, a, b) => binary(s, function, values[a], values[b], to, len),
                    }
                }
            }
            if !in_place {
                self.y_layout.runs(start, len, |offset, done, n| {
                    let step = self.y_layout.strides()[self.y_layout.rank() - 1];
                    for i in 0..n {
                        // SAFETY: `runs` gives elements of the view; the value has `len` elements.
                        unsafe { self.y.as_mut_ptr().add(offset + i * step).write(*values[result].add(done + i)) };
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

/// `to[i] = f(a[i])`
///
/// # Safety
/// `a` and `to` have `len` elements; they are the same memory or do not overlap.
#[inline(always)]
unsafe fn unary<S: Simd>(s: S, function: Unary, a: *const f32, to: *mut f32, len: usize) {
    // A loop for each function, and a macro rather than closures: those might be compiled on their own, without the
    // features of the instruction set.
    macro_rules! map {
        (|$x:ident| $value:expr) => {
            for at in (0..len).step_by(S::LANES) {
                let n = S::LANES.min(len - at);
                // SAFETY: the caller's contract; whole vectors are read and written only where `n` is a whole one.
                unsafe {
                    let $x = if n == S::LANES { s.load(a.add(at)) } else { s.load_first(a.add(at), n) };
                    let value = $value;
                    if n == S::LANES { s.store(to.add(at), value) } else { s.store_first(to.add(at), value, n) }
                }
            }
        };
    }
    let one = s.splat(1.0);
    match function {
        Unary::Neg => map!(|x| s.neg(x)),
        Unary::Abs => map!(|x| s.abs(x)),
        Unary::Exp => map!(|x| math::exp(s, x)),
        Unary::Log => map!(|x| math::log(s, x)),
        Unary::Sin => map!(|x| math::sin(s, x)),
        Unary::Cos => map!(|x| math::cos(s, x)),
        Unary::Sqrt => map!(|x| s.sqrt(x)),
        Unary::Rsqrt => map!(|x| s.div(one, s.sqrt(x))),
        Unary::Reciprocal => map!(|x| s.div(one, x)),
        Unary::Square => map!(|x| s.mul(x, x)),
        Unary::Tanh => map!(|x| math::tanh(s, x)),
        Unary::Sigmoid => map!(|x| math::sigmoid(s, x)),
        Unary::Silu => map!(|x| math::silu(s, x)),
        Unary::GeluTanh => map!(|x| math::gelu_tanh(s, x)),
        Unary::GeluErf => map!(|x| math::gelu_erf(s, x)),
        Unary::Relu => map!(|x| math::relu(s, x)),
        Unary::Erf => map!(|x| math::erf(s, x)),
        Unary::Floor => map!(|x| s.floor(x)),
    }
}

/// `to[i] = f(a[i], b[i])`
///
/// # Safety
/// As [`unary`], for both operands.
#[inline(always)]
unsafe fn binary<S: Simd>(s: S, function: Binary, a: *const f32, b: *const f32, to: *mut f32, len: usize) {
    macro_rules! map {
        (|$x:ident, $y:ident| $value:expr) => {
            for at in (0..len).step_by(S::LANES) {
                let n = S::LANES.min(len - at);
                // SAFETY: the caller's contract; whole vectors are read and written only where `n` is a whole one.
                unsafe {
                    let $x = if n == S::LANES { s.load(a.add(at)) } else { s.load_first(a.add(at), n) };
                    let $y = if n == S::LANES { s.load(b.add(at)) } else { s.load_first(b.add(at), n) };
                    let value = $value;
                    if n == S::LANES { s.store(to.add(at), value) } else { s.store_first(to.add(at), value, n) }
                }
            }
        };
    }
    match function {
        Binary::Add => map!(|x, y| s.add(x, y)),
        Binary::Sub => map!(|x, y| s.sub(x, y)),
        Binary::Mul => map!(|x, y| s.mul(x, y)),
        Binary::Div => map!(|x, y| s.div(x, y)),
        // `min` and `max` give y where x is NaN.
        Binary::Min => map!(|x, y| s.select(s.is_nan(x), x, s.min(x, y))),
        Binary::Max => map!(|x, y| s.select(s.is_nan(x), x, s.max(x, y))),
        // Rare, and exp(y log x) would lose digits with the size of y: the library's function.
        Binary::Pow => {
            for i in 0..len {
                // SAFETY: the caller's contract.
                unsafe { to.add(i).write((*a.add(i)).powf(*b.add(i))) };
            }
        }
    }
}
