//! Times of group norms with SiLU on one thread: `cargo run --release --example norm_speed [ISA]`.

use std::time::Instant;

use scoregraph_kernels::format::Grid;
use scoregraph_kernels::group_norm::{GroupNorm, Normed, group_norm, group_norm_scratch};
use scoregraph_kernels::{Act, Context, Isa, Serial, View, ViewMut};

/// Channels and side of images that U-Nets of 32 groups have.
const SHAPES: [(usize, usize); 8] = [(32, 128), (64, 128), (32, 64), (64, 64), (64, 32), (128, 32), (96, 16), (128, 8)];

/// Seconds of calls that are made one after the other before a pause, so that a busy machine does not count.
const BURST: f64 = 1e-3;

fn main() {
    let named = std::env::args().nth(1);
    let isas =
        Isa::FLOAT.into_iter().filter(|isa| isa.supported() && named.as_ref().is_none_or(|name| name == isa.name()));
    for isa in isas {
        for act in [Act::Silu, Act::None] {
            for (channels, side) in SHAPES {
                let seconds = time(channels, side * side, act, isa);
                let nanos = seconds.map(|seconds| seconds * 1e9 / (channels * side * side) as f64);
                println!(
                    "{:>8} {act:?} {channels:>4} x {side:>3} x {side:>3}: {:.3} ns an element to floats, {:.3} to bytes of a given grid, {:.3} of a measured one",
                    isa.name(),
                    nanos[0],
                    nanos[1],
                    nanos[2],
                );
            }
        }
    }
}

/// The best times of a call: to floats, to bytes of a given grid, to bytes of a grid that it measures.
fn time(channels: usize, space: usize, act: Act, isa: Isa) -> [f64; 3] {
    let ramp = |n: usize| (0..n).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect::<Vec<_>>();
    let (x, bias) = (ramp(channels * space), ramp(channels));
    let x = View::dense(&x, &[1, channels, space]).unwrap();
    let bias = Some(&bias[..]);
    let op =
        GroupNorm { channels, groups: 32, eps: 1e-5, weight: bias, bias, scale: None, shift: None, act, smooth: None };
    let (mut floats, mut bytes) = (vec![0.0; channels * space], vec![0; channels * space]);
    let (mut grid, mut scratch) = ([0.0; 2], vec![0.0; group_norm_scratch(1, channels)]);
    let mut run = |kind: usize| {
        let mut y = match kind {
            0 => Normed::F32(ViewMut::dense(&mut floats, &[1, channels, space]).unwrap()),
            1 => Normed::Bytes { y: &mut bytes, top: 255, grid: Grid::Given(&[0.02, 10.0]) },
            _ => Normed::Bytes { y: &mut bytes, top: 255, grid: Grid::Measured(&mut grid) },
        };
        group_norm(&Context { isa, pool: &Serial }, &op, &x, &mut y, &mut scratch);
    };
    let mut best = [f64::INFINITY; 3];
    for round in 0..300 {
        let kind = round % 3;
        let (start, mut calls) = (Instant::now(), 0);
        loop {
            run(kind);
            calls += 1;
            let passed = start.elapsed().as_secs_f64();
            if passed > BURST {
                best[kind] = best[kind].min(passed / f64::from(calls));
                break;
            }
        }
    }
    best
}
