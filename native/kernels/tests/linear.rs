//! `linear` and `matmul` against sums in double precision.

mod common;

use common::{Numbers, assert_close, bits, everywhere, gelu};
use proptest::prelude::*;
use scoregraph_kernels::linear::{Input, Linear, Output, Weights, linear, linear_scratch};
use scoregraph_kernels::matmul::{matmul, matmul_scratch};
use scoregraph_kernels::{Act, Context, Layout, View, ViewMut};

/// `[N, K]` as `[ceil(N / 16)][K][16]`.
fn n16(w: &[f32], n: usize, k: usize) -> Vec<f32> {
    let mut packed = vec![0.0; n.div_ceil(16) * 16 * k];
    for col in 0..n {
        for i in 0..k {
            packed[col / 16 * 16 * k + i * 16 + col % 16] = w[col * k + i];
        }
    }
    packed
}

/// A call of `linear` with everything optional on or off.
#[derive(Debug, Clone)]
struct Case {
    m: usize,
    k: usize,
    n: usize,
    packed: bool,
    bias: bool,
    act: Act,
    groups: Option<usize>,
    residual: bool,
    gap: usize,
}

impl Case {
    fn check(&self, seed: u64) {
        let Case { m, k, n, .. } = *self;
        let mut numbers = Numbers(seed);
        let x_stride = k + self.gap;
        let x = numbers.floats(m * x_stride);
        let w = numbers.floats(n * k);
        let packed = n16(&w, n, k);
        let bias = self.bias.then(|| numbers.floats(n));
        let gate_stride = n + self.gap;
        let gate = self.groups.map(|groups| numbers.floats(groups * gate_stride));
        let residual = self.residual.then(|| numbers.floats(m * n));

        let call = |ctx: &Context| {
            let mut y = residual.clone().unwrap_or(vec![f32::NAN; m * n]);
            let y_ptr = y.as_mut_ptr();
            let dense = Layout::dense(&[m, n]).unwrap();
            let op = Linear {
                cols: n,
                x: Input::F32(View::new(&x, 0, Layout::new(&[m, k], &[x_stride, 1]).unwrap()).unwrap()),
                weights: if self.packed { Weights::N16(&packed) } else { Weights::Plain(&w) },
                bias: bias.as_deref(),
                act: self.act,
                gate: self.groups.map(|groups| {
                    let layout = Layout::new(&[groups, n], &[gate_stride, 1]).unwrap();
                    View::new(gate.as_ref().unwrap(), 0, layout).unwrap()
                }),
                // SAFETY: `linear` works in place where the residual is y.
                residual: self.residual.then(|| unsafe { View::from_raw(y_ptr.cast_const(), dense) }),
            };
            let mut scratch = vec![f32::NAN; linear_scratch(&op, ctx.isa)];
            // SAFETY: y lives through the call, and only the residual shares it.
            let out = unsafe { ViewMut::from_raw(y_ptr, dense) };
            linear(ctx, &op, Output::F32(out), &mut scratch);
            y
        };
        let mut want = vec![0.0; m * n];
        let mut magnitude = vec![0.0; m * n];
        for row in 0..m {
            for col in 0..n {
                let products = (0..k).map(|i| f64::from(x[row * x_stride + i]) * f64::from(w[col * k + i]));
                let (sum, size) = products.fold((0.0, 1.0), |(sum, size), p| (sum + p, size + p.abs()));
                let sum = sum + bias.as_ref().map_or(0.0, |bias| f64::from(bias[col]));
                let value = match self.act {
                    Act::None => sum,
                    Act::Silu => sum / (1.0 + (-sum).exp()),
                    Act::GeluTanh => gelu(sum),
                    Act::Relu => sum.max(0.0),
                    Act::Tanh => sum.tanh(),
                    _ => unreachable!(),
                };
                let gate = self
                    .groups
                    .map_or(1.0, |groups| f64::from(gate.as_ref().unwrap()[row / (m / groups) * gate_stride + col]));
                let residual = residual.as_ref().map_or(0.0, |residual| f64::from(residual[row * n + col]));
                want[row * n + col] = residual + gate * value;
                magnitude[row * n + col] = size;
            }
        }
        assert_close(&everywhere(call), &want, 1e-6, |i| magnitude[i]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn linear_is_the_product(
        (m, k, n) in (1..34usize, 0..70usize, 1..130usize),
        packed: bool,
        bias: bool,
        act in prop::sample::select(vec![Act::None, Act::Silu, Act::GeluTanh, Act::Relu, Act::Tanh]),
        grouped: bool,
        residual: bool,
        gap in 0..3usize,
        seed: u64,
    ) {
        let groups = grouped.then_some(if m % 3 == 0 { 3 } else { 1 });
        Case { m, k, n, packed, bias, act, groups, residual, gap }.check(seed);
    }
}

#[test]
fn every_tail() {
    for size in 1..34 {
        let plain = Case {
            m: size,
            k: 7,
            n: 20,
            packed: true,
            bias: true,
            act: Act::None,
            groups: None,
            residual: false,
            gap: 0,
        };
        plain.check(1);
        Case { m: 3, n: size, ..plain.clone() }.check(2);
        Case { m: 9, k: size, n: 100, ..plain.clone() }.check(3);
    }
}

#[test]
fn many_tiles_and_passes() {
    let case = Case {
        m: 150,
        k: 300,
        n: 210,
        packed: true,
        bias: true,
        act: Act::Silu,
        groups: Some(3),
        residual: true,
        gap: 5,
    };
    case.check(4);
    Case { m: 77, packed: false, groups: Some(1), ..case.clone() }.check(5);
    // More words than a pass goes through, for tiles of many rows and of few.
    Case { m: 31, k: 2100, n: 40, groups: None, ..case.clone() }.check(6);
    Case { m: 7, k: 4200, n: 50, groups: None, ..case }.check(7);
}

/// A row gives the same bits alone and among others.
#[test]
fn rows_do_not_depend_on_their_neighbours() {
    for k in [200, 2100] {
        check_neighbours(k);
    }
}

fn check_neighbours(k: usize) {
    let (m, n) = (40, 50);
    let mut numbers = Numbers(6);
    let (x, packed) = (numbers.floats(m * k), n16(&numbers.floats(n * k), n, k));
    for isa in common::isas() {
        let ctx = Context { isa, pool: &scoregraph_kernels::Serial };
        let run = |x: &[f32]| {
            let rows = x.len() / k;
            let mut y = vec![0.0; rows * n];
            let op = Linear {
                cols: n,
                x: Input::F32(View::dense(x, &[rows, k]).unwrap()),
                weights: Weights::N16(&packed),
                bias: None,
                act: Act::GeluErf,
                gate: None,
                residual: None,
            };
            linear(&ctx, &op, Output::F32(ViewMut::dense(&mut y, &[rows, n]).unwrap()), &mut []);
            y
        };
        let all = run(&x);
        for rows in [1, 2, 3, 5, 7, 11, 13] {
            for first in (0..m - rows).step_by(9) {
                let some = run(&x[first * k..(first + rows) * k]);
                assert_eq!(bits(&some), bits(&all[first * n..(first + rows) * n]), "{} {first}+{rows}", isa.name());
            }
        }
    }
}

#[test]
fn rows_in_leading_dimensions_may_be_uneven() {
    let (b, t, k, n) = (3, 5, 12, 9);
    let mut numbers = Numbers(7);
    let (x, w) = (numbers.floats(b * 8 * k), numbers.floats(n * k));
    let packed = n16(&w, n, k);
    let results = everywhere(|ctx| {
        let op = Linear {
            cols: n,
            x: Input::F32(View::new(&x, 2 * k, Layout::new(&[b, t, k], &[8 * k, k, 1]).unwrap()).unwrap()),
            weights: Weights::N16(&packed),
            bias: None,
            act: Act::None,
            gate: None,
            residual: None,
        };
        let mut y = vec![0.0; b * t * n];
        let mut scratch = vec![0.0; linear_scratch(&op, ctx.isa)];
        linear(ctx, &op, Output::F32(ViewMut::dense(&mut y, &[b, t, n]).unwrap()), &mut scratch);
        y
    });
    let mut want = Vec::new();
    for row in (0..b).flat_map(|b| (0..t).map(move |t| b * 8 + t + 2)) {
        want.extend((0..n).map(|n| (0..k).map(|i| f64::from(x[row * k + i]) * f64::from(w[n * k + i])).sum::<f64>()));
    }
    assert_close(&results, &want, 1e-6, |_| 1.0);
}

#[test]
fn nan_and_infinity_stay_in_their_rows() {
    let (m, k, n) = (9, 20, 17);
    let mut x = Numbers(8).floats(m * k);
    x[3 * k + 5] = f32::NAN;
    x[6 * k] = f32::INFINITY;
    let w = n16(&vec![1.0; n * k], n, k);
    for (isa, y) in everywhere(|ctx| {
        let op = Linear {
            cols: n,
            x: Input::F32(View::dense(&x, &[m, k]).unwrap()),
            weights: Weights::N16(&w),
            bias: None,
            act: Act::Silu,
            gate: None,
            residual: None,
        };
        let mut y = vec![0.0; m * n];
        linear(ctx, &op, Output::F32(ViewMut::dense(&mut y, &[m, n]).unwrap()), &mut []);
        y
    }) {
        for (i, v) in y.iter().enumerate() {
            let right = match i / n {
                3 => v.is_nan(),
                6 => *v == f32::INFINITY,
                _ => v.is_finite(),
            };
            assert!(right, "{} row {}: {v}", isa.name(), i / n);
        }
    }
}

/// A matrix stored row-major, or transposed, in a buffer with a gap.
fn layout(batch: usize, rows: usize, cols: usize, transposed: bool) -> (Layout, usize) {
    let (outer, inner) = if transposed { (cols, rows) } else { (rows, cols) };
    let strides = if transposed { [outer * inner + 3, 1, inner] } else { [outer * inner + 3, inner, 1] };
    (Layout::new(&[batch, rows, cols], &strides).unwrap(), batch * (outer * inner + 3))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn matmul_is_the_product(
        (b, m, k, n) in (1..4usize, 1..90usize, 0..40usize, 1..110usize),
        transposed in (any::<bool>(), any::<bool>(), any::<bool>()),
        seed: u64,
    ) {
        let ((xl, xn), (yl, yn), (zl, zn)) =
            (layout(b, m, k, transposed.0), layout(b, k, n, transposed.1), layout(b, m, n, transposed.2));
        let mut numbers = Numbers(seed);
        let (x, y) = (numbers.floats(xn), numbers.floats(yn));
        let results = everywhere(|ctx| {
            let mut z = vec![0.0; zn];
            let mut scratch = vec![f32::NAN; matmul_scratch(k, ctx.pool.threads())];
            let mut out = ViewMut::new(&mut z, 0, zl).unwrap();
            matmul(ctx, 0.5, &View::new(&x, 0, xl).unwrap(), &View::new(&y, 0, yl).unwrap(), &mut out, &mut scratch);
            (0..b * m * n).map(|i| z[zl.offset(i)]).collect()
        });
        let element = |data: &[f32], layout: &Layout, index: usize| f64::from(data[layout.offset(index)]);
        let want: Vec<f64> = (0..b * m * n)
            .map(|i| {
                let (item, row, col) = (i / (m * n), i / n % m, i % n);
                let products = (0..k).map(|j| {
                    element(&x, &xl, (item * m + row) * k + j) * element(&y, &yl, (item * k + j) * n + col)
                });
                0.5 * products.sum::<f64>()
            })
            .collect();
        assert_close(&results, &want, 1e-6, |_| (k as f64).sqrt().max(1.0));
    }
}
