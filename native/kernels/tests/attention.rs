//! `attention` against double precision.

mod common;

use common::{Numbers, assert_close, bits, everywhere, everywhere_on};
use proptest::prelude::*;
use scoregraph_kernels::attention::{Attention, Format, attention, attention_scratch};
use scoregraph_kernels::{Context, Isa, Layout, Serial, View, ViewMut};

/// How an operand lies in memory: `[n, H, S, D]`, `[n, S, H, D]`, an image `[n, H, D, S]` whose channels are some elements
/// apart, or with both the elements and the rows apart.
#[derive(Debug, Clone, Copy)]
enum Order {
    Heads,
    Tokens,
    Channels,
    Scattered,
}

const ORDERS: [Order; 4] = [Order::Heads, Order::Tokens, Order::Channels, Order::Scattered];

fn layout([n, h, s, d]: [usize; 4], order: Order) -> (Layout, usize) {
    let strides = match order {
        Order::Heads => [h * s * d, s * d, d, 1],
        Order::Tokens => [s * h * d, d, h * d, 1],
        Order::Channels => [h * d * (s + 3), d * (s + 3), 1, s + 3],
        Order::Scattered => [2 * h * s * d, 2 * s * d, 2, 2 * s],
    };
    (Layout::new(&[n, h, s, d], &strides).unwrap(), strides[0] * n)
}

#[derive(Debug, Clone, Copy)]
enum Mask {
    None,
    Full,
    /// One row for all queries and heads.
    Keys,
    /// As `Full`, where whole blocks of keys are -inf.
    Holes,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    n: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    dim: usize,
    /// Of q, k, v and y.
    orders: [Order; 4],
    mask: Mask,
    /// Multiplies q: large values make one weight take all.
    size: f32,
    format: Format,
}

impl Case {
    fn check(self, seed: u64) {
        let Case { n, heads, queries, keys, dim, .. } = self;
        let [q_order, k_order, v_order, y_order] = self.orders;
        let (ql, qn) = layout([n, heads, queries, dim], q_order);
        let (kl, kn) = layout([n, heads, keys, dim], k_order);
        let (vl, vn) = layout([n, heads, keys, dim], v_order);
        let (yl, yn) = layout([n, heads, queries, dim], y_order);
        let mut numbers = Numbers(seed);
        let q: Vec<f32> = numbers.floats(qn).into_iter().map(|q| q * self.size).collect();
        let (k, v) = (numbers.floats(kn), numbers.floats(vn));
        let (ml, mut mask) = match self.mask {
            Mask::Keys => {
                (Layout::new(&[n, heads, queries, keys], &[keys, 0, 0, 1]).unwrap(), numbers.floats(n * keys))
            }
            _ => {
                let shape = [n, heads, queries, keys];
                (Layout::dense(&shape).unwrap(), numbers.floats(n * heads * queries * keys))
            }
        };
        if let Mask::Holes = self.mask {
            // Every row keeps its last key.
            for (i, value) in mask.iter_mut().enumerate() {
                if i % keys < keys - 1 && (i % keys < 300 || i % 3 == 0) {
                    *value = f32::NEG_INFINITY;
                }
            }
        }
        let scale = 1.0 / (dim as f32).sqrt();
        let results = everywhere_on(isas_of(self.format), |ctx| {
            let op = Attention {
                q: View::new(&q, 0, ql).unwrap(),
                k: View::new(&k, 0, kl).unwrap(),
                v: View::new(&v, 0, vl).unwrap(),
                mask: (!matches!(self.mask, Mask::None)).then(|| View::new(&mask, 0, ml).unwrap()),
                scale,
                format: self.format,
            };
            const UNTOUCHED: f32 = 3.5e33;
            let mut y = vec![UNTOUCHED; yn];
            let mut scratch = vec![f32::NAN; attention_scratch(keys, dim, self.format, ctx.pool.threads())];
            attention(ctx, &op, &mut ViewMut::new(&mut y, 0, yl).unwrap(), &mut scratch);
            let elements = yl.len();
            let written = (0..elements).map(|i| std::mem::replace(&mut y[yl.offset(i)], UNTOUCHED)).collect();
            assert!(y.iter().all(|&y| y == UNTOUCHED), "{} wrote between the elements of y", ctx.isa.name());
            written
        });
        let mut want = Vec::with_capacity(qn);
        for row in 0..n * heads * queries {
            let head = row / queries;
            let element = |data: &[f32], layout: &Layout, index| f64::from(data[layout.offset(index)]);
            let scores: Vec<f64> = (0..keys)
                .map(|key| {
                    let products = (0..dim)
                        .map(|d| element(&q, &ql, row * dim + d) * element(&k, &kl, (head * keys + key) * dim + d));
                    let masked = if let Mask::None = self.mask { 0.0 } else { element(&mask, &ml, row * keys + key) };
                    f64::from(scale) * products.sum::<f64>() + masked
                })
                .collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            want.extend((0..dim).map(|d| {
                (0..keys).map(|key| weights[key] * element(&v, &vl, (head * keys + key) * dim + d)).sum::<f64>() / total
            }));
        }
        // Scores are rounded relative to their size, which the exponential turns into an error of the weights.
        let unit = match self.format {
            Format::F32 => 1e-6,
            Format::Bf16 => 1e-2,
            Format::I8 => 2.5e-2,
        };
        assert_close(&results, &want, unit * (1.0 + f64::from(self.size)), |_| 1.0);
        // Everything but the scalar twin fuses multiply-adds, and whole numbers are summed exactly.
        for pair in results[1..].windows(2) {
            let same = self.format != Format::I8 || bits(&pair[0].1) == bits(&pair[1].1);
            assert!(same, "{} and {} differ", pair[0].0.name(), pair[1].0.name());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn attention_is_the_weighted_mean(
        (n, heads) in (1..3usize, 1..4usize),
        (queries, keys, dim) in (1..70usize, 1..70usize, 1..50usize),
        orders in [ORDERS; 4].map(|orders| prop::sample::select(orders.to_vec())),
        mask in prop::sample::select(vec![Mask::None, Mask::Full, Mask::Keys, Mask::Holes]),
        format in prop::sample::select(vec![Format::F32, Format::Bf16, Format::I8]),
        seed: u64,
    ) {
        Case { n, heads, queries, keys, dim, orders, mask, size: 1.0, format }.check(seed);
    }
}

#[test]
fn several_blocks_of_keys() {
    for format in [Format::F32, Format::Bf16, Format::I8] {
        let shape = Case {
            n: 1,
            heads: 2,
            queries: 100,
            keys: 700,
            dim: 16,
            orders: [Order::Tokens; 4],
            mask: Mask::None,
            size: 1.0,
            format,
        };
        for mask in [Mask::None, Mask::Full, Mask::Keys, Mask::Holes] {
            Case { mask, ..shape }.check(1);
        }
        for orders in [[Order::Channels; 4], [Order::Scattered; 4]] {
            Case { orders, queries: 250, dim: 40, ..shape }.check(2);
        }
        Case { keys: 257, queries: 1, dim: 80, ..shape }.check(3);
        Case { keys: 77, queries: 230, dim: 160, ..shape }.check(4);
        Case { keys: 1, queries: 3, dim: 8, ..shape }.check(5);
    }
    let format = Format::F32;
    let (orders, mask) = ([Order::Tokens; 4], Mask::None);
    Case { n: 1, heads: 2, queries: 100, keys: 512, dim: 64, orders, mask, size: 40.0, format }.check(2);
}

/// Instruction sets with kernels of their own.
fn isas_of(format: Format) -> impl Iterator<Item = Isa> {
    let all = if format == Format::I8 { &Isa::ALL[..] } else { &Isa::FLOAT };
    all.iter().copied().filter(|isa| isa.supported())
}

const FORMATS: [Format; 3] = [Format::F32, Format::Bf16, Format::I8];

/// Attention of one head of `dim` on dense rows, on every instruction set.
fn head(format: Format, dim: usize, [q, k, v]: [&[f32]; 3], mask: Option<&[f32]>) -> Vec<(Isa, Vec<f32>)> {
    let (queries, keys) = (q.len() / dim, k.len() / dim);
    everywhere_on(isas_of(format), |ctx| {
        let op = Attention {
            q: View::dense(q, &[1, 1, queries, dim]).unwrap(),
            k: View::dense(k, &[1, 1, keys, dim]).unwrap(),
            v: View::dense(v, &[1, 1, keys, dim]).unwrap(),
            mask: mask.map(|mask| View::dense(mask, &[1, 1, queries, keys]).unwrap()),
            scale: 1.0,
            format,
        };
        let mut y = vec![0.0; q.len()];
        let mut scratch = vec![f32::NAN; attention_scratch(keys, dim, format, ctx.pool.threads())];
        attention(ctx, &op, &mut ViewMut::dense(&mut y, &[1, 1, queries, dim]).unwrap(), &mut scratch);
        y
    })
}

/// Scores as large as these leave one weight: the result is a row of v. The largest comes in the last block of keys.
#[test]
fn scores_without_bounds() {
    let (keys, dim) = (600, 16);
    let mut numbers = Numbers(7);
    let v = numbers.floats(keys * dim);
    for size in [1e2, 1e4, 1e8, 1e18] {
        let k: Vec<f32> = (0..keys * dim).map(|i| (i / dim) as f32 * size / keys as f32).collect();
        for (sign, kept) in [(1.0, keys - 1), (-1.0, 0)] {
            let q = vec![sign * size; dim];
            // In bf16 neighbouring keys are one.
            for (format, unit) in [(Format::F32, 1e-6), (Format::I8, 8e-3)] {
                for (isa, y) in head(format, dim, [&q, &k, &v], None) {
                    for (got, want) in y.iter().zip(&v[kept * dim..]) {
                        assert!((got - want).abs() <= unit, "{} {format:?} {size:e}: {got}, not {want}", isa.name());
                    }
                }
            }
        }
    }
}

/// Scores of one magnitude, below and above where it is small enough to need no largest score: those of the odd queries and
/// keys are negative. What values of any size make of them stays exact: nothing over- or underflows on the way.
#[test]
fn scores_around_the_bound() {
    let (queries, keys, dim) = (50, 270, 16);
    let directions = Numbers(11).floats(keys * dim);
    for (score, alike) in
        [59.0, 59.9, 60.1, 61.0, 90.0, 200.0].into_iter().flat_map(|score| [(score, false), (score, true)])
    {
        let length = (score * std::f32::consts::LN_2 / dim as f32).sqrt();
        let sign = |row: usize| if row.is_multiple_of(2) { length } else { -length };
        let q: Vec<f32> = (0..queries * dim).map(|i| sign(i / dim)).collect();
        let k: Vec<f32> = (0..keys * dim).map(|i| if alike { length } else { sign(i / dim) }).collect();
        for size in [1.0, 1e-37, 1e-30, 1e-12, 1.1e12, 1e30, 1e35] {
            let v: Vec<f32> = directions.iter().map(|direction| direction * size).collect();
            for format in [Format::F32, Format::Bf16] {
                for (isa, y) in head(format, dim, [&q, &k, &v], None) {
                    for (i, got) in y.iter().enumerate() {
                        let kept = |key: &usize| alike || key % 2 == i / dim % 2;
                        let sum: f64 = (0..keys).filter(kept).map(|key| f64::from(v[key * dim + i % dim])).sum();
                        let want = sum / (0..keys).filter(kept).count() as f64;
                        let unit = if format == Format::F32 { 1e-6 } else { 1e-2 };
                        let close = (f64::from(*got) - want).abs() <= unit * f64::from(size);
                        assert!(close, "{} {format:?} {score} {size:e}: {got:e}, not {want:e}", isa.name());
                    }
                }
            }
        }
    }
}

/// Keys of ±size in turn, less their mean of 0: every byte is at an end of its range, and sums are as large as they get, below
/// and above the width at which they no longer fit a float's rounding. Weights are 255 and a fifth of it.
#[test]
fn bytes_at_the_ends_of_their_range() {
    let keys = 130;
    for (dim, size) in [(4, 1.0), (4, 1e-30), (4, 4e33), (256, 1.0), (260, 1.0), (261, 1.0), (512, 1.0)] {
        let k: Vec<f32> = (0..keys * dim).map(|i| if i / dim % 2 == 0 { size } else { -size }).collect();
        let v = Numbers(dim as u64).floats(keys * dim);
        for sign in [1.0, -1.0] {
            let q = vec![sign * 5f32.ln() / 2.0 / dim as f32 / size; 3 * dim];
            for (isa, y) in head(Format::I8, dim, [&q, &k, &v], None) {
                for (i, got) in y.iter().enumerate() {
                    let weight = |key: usize| if key.is_multiple_of(2) == (sign > 0.0) { 1.0 } else { 0.2 };
                    let want = (0..keys).map(|key| weight(key) * f64::from(v[key * dim + i % dim])).sum::<f64>();
                    let want = want / (0.6 * keys as f64);
                    assert!((f64::from(*got) - want).abs() <= 2e-3, "{} {dim} of {size}: {got}, {want}", isa.name());
                }
            }
        }
    }
}

/// Equal scores, also of -inf elsewhere or of 0 vectors, make the mean.
#[test]
fn equal_scores_make_the_mean() {
    let (keys, dim) = (300, 24);
    let mut numbers = Numbers(8);
    let v = numbers.floats(keys * dim);
    let mask: Vec<f32> = (0..keys).map(|key| if key % 2 == 0 { 3.0 } else { f32::NEG_INFINITY }).collect();
    let zeros = vec![0.0; keys * dim];
    for format in FORMATS {
        for (q, mask, step) in [(1.0, None, 1), (0.0, None, 1), (-2.0, Some(&mask[..]), 2)] {
            for (isa, y) in head(format, dim, [&vec![q; dim], &zeros, &v], mask) {
                for (d, got) in y.iter().enumerate() {
                    let mean = (0..keys).step_by(step).map(|key| f64::from(v[key * dim + d])).sum::<f64>();
                    let mean = mean / (keys / step) as f64;
                    let unit = if format == Format::F32 { 1e-6 } else { 4e-3 };
                    assert!((f64::from(*got) - mean).abs() <= unit, "{} {format:?}: {got}, not {mean}", isa.name());
                }
            }
        }
    }
}

/// A NaN or an infinity reaches what depends on it and nothing else.
#[test]
fn what_is_not_finite_is_not_lost() {
    let (queries, keys, dim) = (30, 270, 20);
    let mut numbers = Numbers(9);
    let [q, k, v] = [queries, keys, keys].map(|rows| numbers.floats(rows * dim));
    for format in FORMATS {
        for bad in [f32::NAN, f32::INFINITY] {
            let spoilt = |data: &[f32], at: usize| {
                let mut data = data.to_vec();
                data[at] = bad;
                data
            };
            let of_query = head(format, dim, [&spoilt(&q, 3 * dim + 1), &k, &v], None);
            for (isa, y) in of_query {
                for (i, y) in y.iter().enumerate() {
                    assert_eq!(y.is_nan(), i / dim == 3, "{} {format:?} q {bad}", isa.name());
                }
            }
            for (isa, y) in head(format, dim, [&q, &k, &spoilt(&v, 5 * dim + 7)], None) {
                for (i, y) in y.iter().enumerate() {
                    assert_eq!(!y.is_finite(), i % dim == 7, "{} {format:?} v {bad}", isa.name());
                }
            }
        }
        let mut mask = vec![0.0; queries * keys];
        mask[4 * keys + 260] = f32::NAN;
        for (isa, y) in head(format, dim, [&q, &k, &v], Some(&mask)) {
            for (i, y) in y.iter().enumerate() {
                assert_eq!(y.is_nan(), i / dim == 4, "{} {format:?} mask", isa.name());
            }
        }
        let mut spoilt = k.clone();
        spoilt[269 * dim] = f32::NAN;
        for (isa, y) in head(format, dim, [&q, &spoilt, &v], None) {
            assert!(y.iter().all(|y| y.is_nan()), "{} {format:?} k", isa.name());
        }
    }
}

/// What integers and bf16 lose on normal numbers, in decibels.
#[test]
fn signal_to_noise_of_the_formats() {
    let (tokens, dim) = (256, 64);
    let mut numbers = Numbers(10);
    // Sums of twelve uniform numbers are normal enough.
    let mut normal = || (0..12).map(|_| numbers.float()).sum::<f32>() / 2.0;
    let mut rows = |scale: f32| (0..tokens * dim).map(|_| normal() * scale).collect::<Vec<f32>>();
    // Scores of standard deviation 1.
    let (q, k, v) = (rows(1.0 / (dim as f32).sqrt()), rows(1.0), rows(1.0));
    let want = head(Format::F32, dim, [&q, &k, &v], None).swap_remove(0).1;
    for (format, least) in [(Format::Bf16, 45.0), (Format::I8, 35.0)] {
        for (isa, y) in head(format, dim, [&q, &k, &v], None) {
            let power = |x: f64| x * x;
            let signal: f64 = want.iter().map(|&x| power(x.into())).sum();
            let noise: f64 = want.iter().zip(&y).map(|(&x, &y)| power(f64::from(x) - f64::from(y))).sum();
            let ratio = 10.0 * (signal / noise).log10();
            println!("{:<10} {format:?}: {ratio:.1} dB", isa.name());
            assert!(ratio >= least, "{} {format:?}: {ratio} dB", isa.name());
        }
    }
}

#[test]
fn a_row_whose_keys_are_all_masked_is_nan_and_others_are_not() {
    let (queries, keys, dim) = (5, 300, 8);
    let mut numbers = Numbers(4);
    let (q, k) = (numbers.floats(queries * dim), numbers.floats(keys * dim));
    let mut mask = vec![0.0; queries * keys];
    mask[2 * keys..3 * keys].fill(f32::NEG_INFINITY);
    let shape = |rows| [1, 1, rows, dim];
    for (isa, y) in everywhere(|ctx| {
        let op = Attention {
            q: View::dense(&q, &shape(queries)).unwrap(),
            k: View::dense(&k, &shape(keys)).unwrap(),
            v: View::dense(&k, &shape(keys)).unwrap(),
            mask: Some(View::dense(&mask, &[1, 1, queries, keys]).unwrap()),
            scale: 1.0,
            format: Format::F32,
        };
        let mut y = vec![0.0; queries * dim];
        let mut scratch = vec![0.0; attention_scratch(keys, dim, Format::F32, ctx.pool.threads())];
        attention(ctx, &op, &mut ViewMut::dense(&mut y, &shape(queries)).unwrap(), &mut scratch);
        y
    }) {
        for (i, v) in y.iter().enumerate() {
            assert_eq!(v.is_nan(), i / dim == 2, "{} [{i}] = {v}", isa.name());
        }
    }
}

/// A sample gives the same bits alone and in a batch.
#[test]
fn samples_do_not_depend_on_their_neighbours() {
    let (n, heads, tokens, dim) = (4, 3, 130, 24);
    let mut numbers = Numbers(5);
    let size = heads * tokens * dim;
    let (q, k, v) = (numbers.floats(n * size), numbers.floats(n * size), numbers.floats(n * size));
    let run = |isa, first: usize, count: usize| {
        let range = first * size..(first + count) * size;
        let shape = [count, heads, tokens, dim];
        let op = Attention {
            q: View::dense(&q[range.clone()], &shape).unwrap(),
            k: View::dense(&k[range.clone()], &shape).unwrap(),
            v: View::dense(&v[range], &shape).unwrap(),
            mask: None,
            scale: 0.3,
            format: Format::F32,
        };
        let mut y = vec![0.0; count * size];
        let mut scratch = vec![0.0; attention_scratch(tokens, dim, Format::F32, 1)];
        let ctx = Context { isa, pool: &Serial };
        attention(&ctx, &op, &mut ViewMut::dense(&mut y, &shape).unwrap(), &mut scratch);
        y
    };
    for isa in common::isas() {
        let all = run(isa, 0, n);
        for sample in 0..n {
            assert_eq!(bits(&run(isa, sample, 1)), bits(&all[sample * size..(sample + 1) * size]), "{}", isa.name());
        }
    }
}
