//! A product of bytes whose result is quantized row by row: in the same call, and in two. One thread, milliseconds, least of
//! many; the two alternate. Run: `cargo run --release -p scoregraph-kernels --example measured_speed`; arguments choose
//! sizes such as `256x384x1536`.
//!
//! A second product with its own weights reads the bytes, as in a transformer, so that caches are as they are there.

use std::time::Instant;

use scoregraph_kernels::format::{Grid, Rows};
use scoregraph_kernels::linear::{
    Bits, Input, Integers, Linear, Measured, Output, Weights, linear, linear_measured, linear_scratch, measured_scratch,
};
use scoregraph_kernels::quantize::{quantize, rows_scratch};
use scoregraph_kernels::{Act, Context, Isa, Layout, Serial, View, ViewMut};

/// M, K and N.
const SIZES: [(usize, usize, usize); 7] = [
    (256, 384, 1536),
    (64, 384, 1536),
    (16, 256, 1024),
    (256, 768, 3072),
    (256, 1152, 4608),
    (4096, 384, 1536),
    (128, 384, 1536),
];

/// Memory from the start of a cache line, as that of a plan.
struct Lines<T>(Vec<T>, usize);

impl<T: Clone> Lines<T> {
    fn new(n: usize, of: T) -> Lines<T> {
        let memory = vec![of; n + 64];
        let first = memory.as_ptr().align_offset(64);
        Lines(memory, first)
    }
}

impl<T> std::ops::Deref for Lines<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0[self.1..self.0.len() - 64 + self.1]
    }
}

impl<T> std::ops::DerefMut for Lines<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let end = self.0.len() - 64 + self.1;
        &mut self.0[self.1..end]
    }
}

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 1000.0 - 0.5).collect()
}

/// Weights of [n, k], with what belongs to them.
struct Layer {
    stored: Lines<u8>,
    scale: Vec<f32>,
    sum: Vec<f32>,
    bias: Vec<f32>,
}

impl Layer {
    fn new(n: usize, k: usize) -> Layer {
        let stored = Lines::new(n.div_ceil(16) * 16 * k, 2u8);
        Layer { stored, scale: values(n), sum: vec![0.0; n], bias: values(n) }
    }

    fn op<'a>(&'a self, act: Act, q: View<'a, u8>, grid: &'a [f32]) -> Linear<'a> {
        let (scale, sum) = (&self.scale[..], &self.sum[..]);
        let weights = Integers { stored: &self.stored, bits: Bits::Eight, scale, sum, groups: 1, chain: 0 };
        Linear {
            cols: scale.len(),
            x: Input::Bytes { q, grid },
            weights: Weights::Integers(weights),
            bias: Some(&self.bias),
            act,
            gate: None,
            residual: None,
        }
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let ctx = Context { isa: Isa::best(), pool: &Serial };
    for (m, k, n) in SIZES {
        let size = format!("{m}x{k}x{n}");
        if !words.is_empty() && !words.contains(&size) {
            continue;
        }
        let (first, second) = (Layer::new(n, k), Layer::new(k, n));
        let (x, grid) = (Lines::new(m * k, 7u8), values(2 * m));
        let (mut wide, mut narrow) = (Lines::new(m * n, 0.0), Lines::new(m * k, 0.0));
        let (mut q, mut spans) = (Lines::new(m * n, 0u8), vec![0.0; 2 * m]);
        let mut scratch = {
            let layout = |cols| Layout::dense(&[m, cols]).unwrap();
            let floats = measured_scratch(&layout(k), m, &layout(n), 1);
            Lines::new(floats.max(rows_scratch(m, n, 1)), 0.0)
        };
        let mut best = [[f64::MAX; 2]; 2];
        for turn in 0..(20_000_000_000 / (m * n * k)).clamp(20, 400) {
            let op = first.op(Act::GeluTanh, View::dense(&x, &[m, k]).unwrap(), &grid);
            let start = Instant::now();
            let y = ViewMut::dense(&mut q, &[m, n]).unwrap();
            if turn % 2 == 0 {
                linear(&ctx, &op, Output::F32(ViewMut::dense(&mut wide, &[m, n]).unwrap()), &mut scratch);
                let wide = View::dense(&wide, &[m, n]).unwrap();
                let mut y = Rows::Bytes { y, top: 255, grid: Grid::Measured(&mut spans) };
                quantize(&ctx, &wide, None, &mut y, &mut scratch);
            } else {
                assert_eq!(linear_scratch(&op, ctx.isa), 0);
                let y = Measured { q: y, grid: &mut spans, top: 255, smooth: None };
                linear_measured(&ctx, &op, y, &mut scratch);
            }
            let middle = start.elapsed().as_secs_f64();
            let op = second.op(Act::None, View::dense(&q, &[m, n]).unwrap(), &spans);
            linear(&ctx, &op, Output::F32(ViewMut::dense(&mut narrow, &[m, k]).unwrap()), &mut []);
            let whole = start.elapsed().as_secs_f64();
            let own = &mut best[turn % 2];
            *own = [own[0].min(middle), own[1].min(whole)];
        }
        let [two, one] = best.map(|times| times.map(|t| 1e3 * t));
        println!(
            "{size:<16} two calls {:.3}, one {:.3}; with the next product {:.3}, {:.3}",
            two[0], one[0], two[1], one[1]
        );
    }
}
