//! `attention` against double precision.

mod common;

use common::{Numbers, assert_close, bits, everywhere};
use proptest::prelude::*;
use scoregraph_kernels::attention::{Attention, Format, attention, attention_scratch};
use scoregraph_kernels::{Context, Layout, Serial, View, ViewMut};

/// How an operand lies in memory: `[n, H, S, D]`, `[n, S, H, D]` or with the elements of a row apart.
#[derive(Debug, Clone, Copy)]
enum Order {
    Heads,
    Tokens,
    Scattered,
}

fn layout([n, h, s, d]: [usize; 4], order: Order) -> (Layout, usize) {
    let strides = match order {
        Order::Heads => [h * s * d, s * d, d, 1],
        Order::Tokens => [s * h * d, d, h * d, 1],
        Order::Scattered => [h * s * d, s * d, 1, s],
    };
    (Layout::new(&[n, h, s, d], &strides).unwrap(), n * h * s * d)
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
    order: Order,
    mask: Mask,
    /// Multiplies q: large values make one weight take all.
    size: f32,
}

impl Case {
    fn check(self, seed: u64) {
        let Case { n, heads, queries, keys, dim, .. } = self;
        let (ql, qn) = layout([n, heads, queries, dim], self.order);
        let (kl, kn) = layout([n, heads, keys, dim], self.order);
        let mut numbers = Numbers(seed);
        let q: Vec<f32> = numbers.floats(qn).into_iter().map(|q| q * self.size).collect();
        let (k, v) = (numbers.floats(kn), numbers.floats(kn));
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
        let results = everywhere(|ctx| {
            let op = Attention {
                q: View::new(&q, 0, ql).unwrap(),
                k: View::new(&k, 0, kl).unwrap(),
                v: View::new(&v, 0, kl).unwrap(),
                mask: (!matches!(self.mask, Mask::None)).then(|| View::new(&mask, 0, ml).unwrap()),
                scale,
                format: Format::F32,
            };
            let mut y = vec![f32::NAN; qn];
            let mut scratch = vec![f32::NAN; attention_scratch(keys, dim, Format::F32, ctx.pool.threads())];
            attention(ctx, &op, &mut ViewMut::new(&mut y, 0, ql).unwrap(), &mut scratch);
            (0..qn).map(|i| y[ql.offset(i)]).collect()
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
                (0..keys).map(|key| weights[key] * element(&v, &kl, (head * keys + key) * dim + d)).sum::<f64>() / total
            }));
        }
        // Scores are rounded relative to their size, which the exponential turns into an error of the weights.
        let bound = 1e-6 * (1.0 + f64::from(self.size));
        assert_close(&results, &want, bound, |_| 1.0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn attention_is_the_weighted_mean(
        (n, heads) in (1..3usize, 1..4usize),
        (queries, keys, dim) in (1..70usize, 1..70usize, 1..50usize),
        order in prop::sample::select(vec![Order::Heads, Order::Tokens, Order::Scattered]),
        mask in prop::sample::select(vec![Mask::None, Mask::Full, Mask::Keys, Mask::Holes]),
        seed: u64,
    ) {
        Case { n, heads, queries, keys, dim, order, mask, size: 1.0 }.check(seed);
    }
}

#[test]
fn several_blocks_of_keys() {
    let case =
        Case { n: 1, heads: 2, queries: 100, keys: 700, dim: 16, order: Order::Tokens, mask: Mask::None, size: 1.0 };
    for mask in [Mask::None, Mask::Full, Mask::Keys, Mask::Holes] {
        Case { mask, ..case }.check(1);
    }
    Case { keys: 512, dim: 64, size: 40.0, ..case }.check(2);
    Case { keys: 257, queries: 1, dim: 80, ..case }.check(3);
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
