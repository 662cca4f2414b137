//! A program run over one block of adjacent elements: the inner loop of `pointwise`, and of whoever has its elements at
//! hand already.

use scoregraph_simd::{Simd, math};

use super::program::{Binary, Instr, Program, Unary};
use crate::{Layout, View};

/// Writes the values that do not change from block to block, constants and parameters, to their rows.
///
/// # Safety
/// The row of every such value has room for `len` elements, and `params` are as many as the program has.
pub unsafe fn fill_constants(program: &Program, params: &[f32], rows: &[*mut f32; Program::MAX_VALUES], len: usize) {
    for (i, instr) in program.instrs().iter().enumerate() {
        let value = match *instr {
            Instr::Const(value) => value,
            Instr::Param(index) => params[index],
            _ => continue,
        };
        // SAFETY: the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(rows[program.inputs() + i], len) }.fill(value);
    }
}

/// Computes every value of the program for `len` elements: value v, an instruction's, into `rows[v]`.
///
/// # Safety
/// `inputs` point to `len` elements each, as many inputs as the program has; the row of an instruction has room for
/// `len`, and [`fill_constants`] has filled those it fills. A row overlaps no other row, and an input only if it is the
/// same memory and no instruction after that of the row reads the input.
#[inline(always)]
pub unsafe fn run<S: Simd>(
    s: S,
    program: &Program,
    inputs: &[*const f32],
    rows: &[*mut f32; Program::MAX_VALUES],
    len: usize,
) {
    let count = program.inputs();
    let operand = |value: usize| if value < count { inputs[value] } else { rows[value].cast_const() };
    for (i, instr) in program.instrs().iter().enumerate() {
        let to = rows[count + i];
        // SAFETY: `Program` has proved that operands come before, so they hold `len` elements by now.
        unsafe {
            match *instr {
                Instr::Const(_) | Instr::Param(_) => {}
                Instr::Unary(function, a) => unary(s, function, operand(a), to, len),
                Instr::Binary(function, a, b) => binary(s, function, operand(a), operand(b), to, len),
                Instr::Where(c, a, b) => choose(s, operand(c), operand(a), operand(b), to, len),
            }
        }
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
        Binary::Less => map!(|x, y| s.select(s.lt(x, y), s.splat(1.0), s.splat(0.0))),
        // Rare, and exp(y log x) would lose digits with the size of y: the library's function.
        Binary::Pow => {
            for i in 0..len {
                // SAFETY: the caller's contract.
                unsafe { to.add(i).write((*a.add(i)).powf(*b.add(i))) };
            }
        }
    }
}

/// `to[i] = a[i]` where `c[i]` is not 0 (NaN is not), else `b[i]`.
///
/// # Safety
/// As [`unary`], for all operands.
#[inline(always)]
unsafe fn choose<S: Simd>(s: S, c: *const f32, a: *const f32, b: *const f32, to: *mut f32, len: usize) {
    for at in (0..len).step_by(S::LANES) {
        let n = S::LANES.min(len - at);
        // SAFETY: the caller's contract; `load_first` and `store_first` touch the first n elements only.
        unsafe {
            if n == S::LANES {
                let zero = s.eq(s.load(c.add(at)), s.splat(0.0));
                s.store(to.add(at), s.select(zero, s.load(b.add(at)), s.load(a.add(at))));
            } else {
                let zero = s.eq(s.load_first(c.add(at), n), s.splat(0.0));
                let value = s.select(zero, s.load_first(b.add(at), n), s.load_first(a.add(at), n));
                s.store_first(to.add(at), value, n);
            }
        }
    }
}

/// A strided operand that is read block by block.
#[derive(Clone, Copy)]
pub struct Strided<'a> {
    view: View<'a, f32>,
    merged: Layout,
}

impl<'a> Strided<'a> {
    /// The elements of `view` in row-major order.
    pub fn new(view: View<'a, f32>) -> Self {
        let [merged] = Layout::merge([*view.layout()]);
        Strided { view, merged }
    }

    /// Where the elements `start .. start + len` are: in place if they are adjacent, else copied to `row`.
    ///
    /// # Safety
    /// They are elements of the view, and `row` has room for `len`.
    pub unsafe fn block(&self, start: usize, len: usize, row: *mut f32) -> *const f32 {
        if super::is_run(&self.merged) {
            return self.view.as_ptr().wrapping_add(start);
        }
        let step = self.merged.strides()[self.merged.rank() - 1];
        self.merged.runs(start, len, |offset, done, n| {
            // SAFETY: `runs` gives elements of the view, and `done + n <= len`, which the row has room for.
            unsafe {
                let (from, to) = (self.view.as_ptr().add(offset), row.add(done));
                match step {
                    0 => std::slice::from_raw_parts_mut(to, n).fill(*from),
                    1 => std::ptr::copy_nonoverlapping(from, to, n),
                    _ => (0..n).for_each(|i| to.add(i).write(*from.add(i * step))),
                }
            }
        });
        row
    }
}
