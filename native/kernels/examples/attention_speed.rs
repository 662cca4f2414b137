//! Best-of-N speed of attention on one thread, q, k and v taken from one merged buffer as a network's are: rows of tokens,
//! or an image of channels. Run:
//! `cargo run --release -p scoregraph-kernels --example attention_speed [SIZE or all [f32, bf16 or i8 [tokens or channels]]]`.

use std::time::Instant;

use scoregraph_kernels::attention::{Attention, Format, attention, attention_scratch};
use scoregraph_kernels::{Context, Layout, Serial, View, ViewMut};

/// Heads, queries, keys, width of a head: a DiT of width 384, larger ones, U-Nets, one query, a head of 8.
const SIZES: [(usize, usize, usize, usize); 9] = [
    (6, 256, 256, 64),
    (1, 1024, 1024, 32),
    (8, 256, 256, 32),
    (1, 1024, 1024, 40),
    (2, 256, 256, 160),
    (4, 256, 256, 72),
    (12, 64, 64, 64),
    (8, 1, 256, 64),
    (8, 256, 77, 8),
];

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 250.0 - 2.0).collect()
}

fn main() {
    let ctx = Context { isa: scoregraph_simd::isa(), pool: &Serial };
    let format = match std::env::args().nth(2).as_deref() {
        Some("i8") => Format::I8,
        Some("bf16") => Format::Bf16,
        _ => Format::F32,
    };
    let only: Option<usize> = std::env::args().nth(1).and_then(|n| n.parse().ok());
    let channels = std::env::args().nth(3).as_deref() == Some("channels");
    for (i, (heads, queries, keys, dim)) in SIZES.into_iter().enumerate() {
        if only.is_some_and(|only| only != i) {
            continue;
        }
        let width = 3 * heads * dim;
        let most = queries.max(keys);
        let merged = values(most * width);
        let window = |part: usize, tokens: usize| {
            let strides = if channels { [0, dim * most, 1, most] } else { [0, dim, width, 1] };
            let layout = Layout::new(&[1, heads, tokens, dim], &strides).unwrap();
            View::new(&merged, part * heads * dim * if channels { most } else { 1 }, layout).unwrap()
        };
        let mut y = vec![0.0; heads * queries * dim];
        let strides = if channels { [0, dim * queries, 1, queries] } else { [0, dim, heads * dim, 1] };
        let to = Layout::new(&[1, heads, queries, dim], &strides).unwrap();
        let mut scratch = vec![0.0; attention_scratch(keys, dim, format, 1)];
        let op = Attention {
            q: window(0, queries),
            k: window(1, keys),
            v: window(2, keys),
            mask: None,
            scale: 1.0 / (dim as f32).sqrt(),
            format,
        };
        let work = (4 * heads * queries * keys * dim) as f64;
        let mut best = f64::INFINITY;
        for _ in 0..(1e10 / work) as usize + 3 {
            let start = Instant::now();
            attention(&ctx, &op, &mut ViewMut::new(&mut y, 0, to).unwrap(), &mut scratch);
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!(
            "{:<7} {heads:2} heads, {queries:4} x {keys:4} of {dim:3}: {:8.1} us {:6.1} GFLOP/s",
            ctx.isa.name(),
            best * 1e6,
            work / best / 1e9
        );
    }
}
