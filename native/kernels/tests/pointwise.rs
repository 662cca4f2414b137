//! `pointwise`, `copy` and `fill`: strided operands against their definition, element by element.

mod common;

use common::{Numbers, assert_close, everywhere, gelu, isas};
use proptest::prelude::*;
use scoregraph_kernels::copy::copy;
use scoregraph_kernels::fill::fill;
use scoregraph_kernels::pointwise::{Binary, Instr, Operand, Program, Unary, pointwise, pointwise_scratch};
use scoregraph_kernels::{Context, Isa, Layout, Serial, View, ViewMut};

/// A layout of `shape` in a permuted order with gaps, some dimensions repeated, and how much memory it spans.
fn scrambled(shape: &[usize], numbers: &mut Numbers, repeats: bool) -> (Layout, usize) {
    let mut order: Vec<usize> = (0..shape.len()).collect();
    if numbers.below(3) > 0 {
        for i in (1..order.len()).rev() {
            order.swap(i, numbers.below(i + 1));
        }
    }
    let mut strides = vec![0; shape.len()];
    let mut stride = 1 + numbers.below(4) / 3;
    for &d in order.iter().rev() {
        if !(repeats && numbers.below(4) == 0) {
            strides[d] = stride;
            stride *= shape[d] + numbers.below(4) / 3;
        }
    }
    let layout = Layout::new(shape, &strides).unwrap();
    (layout, layout.span())
}

fn shapes() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1..9usize, 0..5).prop_flat_map(|small| {
        (Just(small), prop::sample::select(vec![1usize, 2, 7, 16, 33, 300])).prop_map(|(mut shape, last)| {
            shape.push(last);
            shape
        })
    })
}

fn exact_unary(function: Unary, x: f64) -> f64 {
    match function {
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Exp => x.exp(),
        Unary::Sqrt => x.sqrt(),
        Unary::Square => x * x,
        Unary::GeluTanh => gelu(x),
        Unary::Cos => x.cos(),
        Unary::Floor => x.floor(),
        _ => unreachable!(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// `floor(index) * gelu(x) + |y| - 0.25`, every operand strided its own way.
    #[test]
    fn strided_operands(shape in shapes(), seed: u64) {
        let mut numbers = Numbers(seed);
        let ((xl, xn), (yl, yn), (il, indices), (zl, zn)) = (
            scrambled(&shape, &mut numbers, true),
            scrambled(&shape, &mut numbers, true),
            scrambled(&shape, &mut numbers, true),
            scrambled(&shape, &mut numbers, false),
        );
        let (x, y) = (numbers.floats(xn), numbers.floats(yn));
        let index: Vec<i64> = (0..indices).map(|_| numbers.below(9) as i64 - 4).collect();
        let program = Program::new(3, vec![
            Instr::Unary(Unary::Floor, 2),
            Instr::Unary(Unary::GeluTanh, 0),
            Instr::Binary(Binary::Mul, 3, 4),
            Instr::Unary(Unary::Abs, 1),
            Instr::Binary(Binary::Add, 5, 6),
            Instr::Const(0.25),
            Instr::Binary(Binary::Sub, 7, 8),
        ]).unwrap();
        let results = everywhere(|ctx| {
            let operands = [
                Operand::F32(View::new(&x, 0, xl).unwrap()),
                Operand::F32(View::new(&y, 0, yl).unwrap()),
                Operand::I64(View::new(&index, 0, il).unwrap()),
            ];
            let mut z = vec![f32::NAN; zn];
            let mut scratch = vec![f32::NAN; pointwise_scratch(&program, ctx.pool.threads())];
            pointwise(ctx, &program, &operands, &mut ViewMut::new(&mut z, 0, zl).unwrap(), &mut scratch);
            (0..zl.len()).map(|i| z[zl.offset(i)]).collect()
        });
        let want: Vec<f64> = (0..zl.len()).map(|i| {
            let (x, y) = (f64::from(x[xl.offset(i)]), f64::from(y[yl.offset(i)]));
            index[il.offset(i)] as f64 * exact_unary(Unary::GeluTanh, x) + y.abs() - 0.25
        }).collect();
        assert_close(&results, &want, 2e-6, |_| 1.0);
    }

    #[test]
    fn copies_of_every_kind(shape in shapes(), seed: u64) {
        let mut numbers = Numbers(seed);
        let ((xl, xn), (yl, yn)) = (scrambled(&shape, &mut numbers, true), scrambled(&shape, &mut numbers, false));
        let x = numbers.floats(xn);
        for (isa, got) in everywhere(|ctx| {
            let mut y = vec![7.0; yn];
            copy(ctx, &View::new(&x, 0, xl).unwrap(), &mut ViewMut::new(&mut y, 0, yl).unwrap());
            y
        }) {
            let mut want = vec![7.0; yn];
            (0..xl.len()).for_each(|i| want[yl.offset(i)] = x[xl.offset(i)]);
            prop_assert_eq!(got, want, "{}", isa.name());
        }
    }

    /// Rows that become columns, from either side, in squares of registers and what is left of them.
    #[test]
    fn transpositions(
        (rows, cols) in (1..70usize, 1..700usize),
        planes in 1..3usize,
        gaps in (0..2usize, 0..2usize),
        written_by_columns: bool,
        seed: u64,
    ) {
        let shape = [planes, rows, cols];
        let by_rows = Layout::new(&shape, &[rows * (cols + gaps.0), cols + gaps.0, 1]).unwrap();
        let by_columns = Layout::new(&shape, &[cols * (rows + gaps.1), 1, rows + gaps.1]).unwrap();
        let (xl, yl) = if written_by_columns { (by_rows, by_columns) } else { (by_columns, by_rows) };
        let x = Numbers(seed).floats(xl.span());
        let mut want = vec![7.0; yl.span()];
        (0..xl.len()).for_each(|i| want[yl.offset(i)] = x[xl.offset(i)]);
        for (isa, got) in everywhere(|ctx| {
            let mut y = vec![7.0; yl.span()];
            copy(ctx, &View::new(&x, 0, xl).unwrap(), &mut ViewMut::new(&mut y, 0, yl).unwrap());
            y
        }) {
            prop_assert!(got == want, "{} {rows} x {cols}", isa.name());
        }
    }

    #[test]
    fn fill_writes_the_window_only(shape in shapes(), seed: u64) {
        let (layout, n) = scrambled(&shape, &mut Numbers(seed), false);
        for (_, got) in everywhere(|ctx| {
            let mut y = vec![7.0; n + 3];
            fill(ctx, -1.5, &mut ViewMut::new(&mut y, 0, layout).unwrap());
            y
        }) {
            let mut want = vec![7.0; n + 3];
            (0..layout.len()).for_each(|i| want[layout.offset(i)] = -1.5);
            prop_assert_eq!(got, want);
        }
    }
}

fn run(isa: Isa, program: &Program, operands: &[&[f32]]) -> Vec<f32> {
    let shape = [operands[0].len()];
    let operands: Vec<Operand> = operands.iter().map(|x| Operand::F32(View::dense(x, &shape).unwrap())).collect();
    let mut y = vec![f32::NAN; shape[0]];
    let mut scratch = vec![f32::NAN; pointwise_scratch(program, 1)];
    let ctx = Context { isa, pool: &Serial };
    pointwise(&ctx, program, &operands, &mut ViewMut::dense(&mut y, &shape).unwrap(), &mut scratch);
    y
}

#[test]
fn every_length_and_function() {
    let functions = [Unary::Neg, Unary::Abs, Unary::Exp, Unary::Square, Unary::GeluTanh, Unary::Cos, Unary::Floor];
    for n in (0..70).chain([511, 512, 513, 4096, 4097, 10_000]) {
        let x = Numbers(n as u64).floats(n);
        for function in functions {
            let program = Program::new(1, vec![Instr::Unary(function, 0)]).unwrap();
            for isa in isas() {
                for (x, y) in x.iter().zip(run(isa, &program, &[&x])) {
                    let want = exact_unary(function, f64::from(*x));
                    assert!((f64::from(y) - want).abs() < 5e-7, "{} {function:?}({x}) = {y}", isa.name());
                }
            }
        }
    }
}

#[test]
fn names_are_those_of_the_plan() {
    let unary =
        "neg abs exp log sin cos sqrt rsqrt reciprocal square tanh sigmoid silu gelu_tanh gelu_erf relu erf floor";
    assert!(unary.split(' ').all(|name| name.parse::<Unary>().is_ok()));
    assert!("add sub mul div pow min max less".split(' ').all(|name| name.parse::<Binary>().is_ok()));
    assert!("add".parse::<Unary>().is_err() && "mod".parse::<Binary>().is_err());
}

#[test]
fn minimum_maximum_and_power_as_torch_has_them() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let a = [1.0, nan, 2.0, nan, -inf, 2.0, -8.0, 0.0];
    let b = [2.0, 1.0, nan, nan, 3.0, 10.0, 3.0, 0.0];
    let cases = [
        (Binary::Min, [1.0, nan, nan, nan, -inf, 2.0, -8.0, 0.0]),
        (Binary::Max, [2.0, nan, nan, nan, 3.0, 10.0, 3.0, 0.0]),
        (Binary::Pow, [1.0, nan, nan, nan, -inf, 1024.0, -512.0, 1.0]),
    ];
    for isa in isas() {
        for (function, want) in cases {
            let program = Program::new(2, vec![Instr::Binary(function, 0, 1)]).unwrap();
            for (got, want) in run(isa, &program, &[&a, &b]).into_iter().zip(want) {
                assert!(got == want || (got.is_nan() && want.is_nan()), "{} {function:?}: {got} {want}", isa.name());
            }
        }
    }
}

#[test]
fn less_and_where_as_torch_has_them() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let a = [1.0, 2.0, nan, 1.0, -inf, 0.0, 3.0, -0.0, 5.0];
    let b = [2.0, 1.0, 1.0, nan, 3.0, -0.0, 3.0, 7.0, 6.0];
    let less = Program::new(2, vec![Instr::Binary(Binary::Less, 0, 1)]).unwrap();
    // a where a is not 0, else b: NaN is not 0, and -0 is.
    let either = Program::new(2, vec![Instr::Where(0, 0, 1)]).unwrap();
    for isa in isas() {
        assert_eq!(run(isa, &less, &[&a, &b]), [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0]);
        let want = [1.0, 2.0, nan, 1.0, -inf, 0.0, 3.0, 7.0, 5.0];
        for (got, want) in run(isa, &either, &[&a, &b]).into_iter().zip(want) {
            assert!(got == want || (got.is_nan() && want.is_nan()), "{}: {got} {want}", isa.name());
        }
    }
}

#[test]
fn programs_without_functions() {
    for isa in isas() {
        let identity = Program::new(1, vec![]).unwrap();
        assert_eq!(run(isa, &identity, &[&[1.0, 2.0, 3.0]]), [1.0, 2.0, 3.0]);
        let constant = Program::new(1, vec![Instr::Const(4.5)]).unwrap();
        assert_eq!(run(isa, &constant, &[&[1.0; 600]]), [4.5; 600]);
    }
}

#[test]
fn in_place() {
    let program = Program::new(1, vec![Instr::Unary(Unary::Square, 0), Instr::Binary(Binary::Add, 1, 0)]).unwrap();
    for isa in isas() {
        let mut x: Vec<f32> = (0..5000).map(|i| (i % 100) as f32).collect();
        let layout = Layout::dense(&[5000]).unwrap();
        let mut scratch = vec![0.0; pointwise_scratch(&program, 1)];
        let ptr = x.as_mut_ptr();
        // SAFETY: `pointwise` works in place where an operand is the same dense window as the result.
        let (from, mut to) = unsafe { (View::from_raw(ptr.cast_const(), layout), ViewMut::from_raw(ptr, layout)) };
        pointwise(&Context { isa, pool: &Serial }, &program, &[Operand::F32(from)], &mut to, &mut scratch);
        for (i, x) in x.iter().enumerate() {
            assert_eq!(*x, ((i % 100) * (i % 100) + i % 100) as f32);
        }
    }
}

#[test]
fn programs_are_checked() {
    let bad = [
        (0, vec![]),
        (129, vec![]),
        (2, vec![Instr::Where(0, 1, 2)]),
        (1, vec![Instr::Unary(Unary::Exp, 1)]),
        (1, vec![Instr::Binary(Binary::Add, 0, 2), Instr::Const(1.0)]),
        (2, vec![Instr::Unary(Unary::Exp, usize::MAX)]),
        (1, vec![Instr::Const(0.0); 128]),
    ];
    for (inputs, instrs) in bad {
        assert!(Program::new(inputs, instrs.clone()).is_err(), "{inputs} {instrs:?}");
    }
}
