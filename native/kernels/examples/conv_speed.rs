//! Best-of-N speed, on one thread, of convolution at the shapes of U-Nets, of 128 x 128 pixels and of Stable
//! Diffusion's widths, and what part that is of the multiply-adds that never leave registers:
//! `cargo run --release --example conv_speed [instruction sets, f32, bytes, cases such as 64,32,128,3,1,1 …]`.

#[path = "common/peak.rs"]
mod peak;

use std::time::{Duration, Instant};

use scoregraph_kernels::conv::{Cells, Conv2d, Conv2dShape, Epilogue, QUAD, Quantized, Winograd};
use scoregraph_kernels::{View, ViewMut};
use scoregraph_simd::{Act, Isa, Serial};

use peak::peak;

/// Input channels, output channels, side, kernel, stride, padding.
const CASES: [[usize; 6]; 22] = [
    [32, 32, 128, 3, 1, 1],
    [64, 32, 128, 3, 1, 1],
    [32, 32, 64, 3, 1, 1],
    [64, 64, 64, 3, 1, 1],
    [64, 64, 32, 3, 1, 1],
    [96, 96, 16, 3, 1, 1],
    [128, 128, 16, 3, 1, 1],
    [128, 128, 8, 3, 1, 1],
    [64, 32, 128, 1, 1, 0],
    [64, 192, 32, 1, 1, 0],
    [128, 384, 16, 1, 1, 0],
    [320, 320, 32, 3, 1, 1],
    [960, 320, 32, 3, 1, 1],
    [640, 640, 16, 3, 1, 1],
    [1280, 1280, 8, 3, 1, 1],
    [320, 320, 32, 3, 2, 1],
    [320, 320, 32, 1, 1, 0],
    [640, 640, 16, 1, 1, 0],
    [1, 32, 128, 3, 1, 1],
    [32, 1, 128, 3, 1, 1],
    [3, 384, 256, 16, 16, 0],
    [48, 48, 20, 3, 1, 1],
];

/// How a convolution is computed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Floats,
    /// Float32 by minimal filtering; its operations are counted as if it were direct.
    Winograd,
    Bytes,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Floats => "f32",
            Way::Winograd => "winograd",
            Way::Bytes => "bytes",
        }
    }
}

/// Weights of a type that allows chains of this length, where there is no VNNI.
const CHAIN: usize = 2;

/// A case by its six numbers.
fn case(word: &str) -> Option<[usize; 6]> {
    let numbers: Vec<usize> = word.split(',').map_while(|number| number.parse().ok()).collect();
    numbers.try_into().ok()
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let chosen: Vec<Isa> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let cases: Vec<[usize; 6]> = words.iter().filter_map(|word| case(word)).collect();
    let whats: Vec<&String> =
        words.iter().filter(|word| word.parse::<Isa>().is_err() && case(word).is_none() && *word != "plain").collect();
    let wants = |what: &str| whats.is_empty() || whats.iter().any(|word| *word == what);
    let isas = || {
        let all = Isa::ALL.into_iter().filter(|isa| *isa != Isa::Scalar && isa.supported());
        all.filter(|isa| chosen.is_empty() || chosen.contains(isa))
    };
    println!(
        "{:>4} {:>4} {:>4} {:>7} {:>8} {:>10} {:>8} {:>8} {:>12}",
        "I", "O", "side", "kernel", "way", "isa", "GOP/s", "ms", "% of f32"
    );
    for [channels, filters, side, kernel, stride, padding] in if cases.is_empty() { CASES.to_vec() } else { cases } {
        let shape = Conv2dShape {
            channels,
            filters,
            input: [side; 2],
            kernel: [kernel; 2],
            stride: [stride; 2],
            padding: [padding; 4],
            up: [1; 2],
        };
        let [rows, columns] = shape.output().expect("the kernel fits");
        let operations = 2.0 * (filters * channels * kernel * kernel * rows * columns) as f64;
        for way in [Way::Floats, Way::Winograd, Way::Bytes].into_iter().filter(|way| wants(way.name())) {
            let name = way.name();
            for isa in isas().filter(|isa| way == Way::Bytes || Isa::FLOAT.contains(isa)) {
                let Some((seconds, share)) = time_conv(shape, way, isa, operations) else { continue };
                println!(
                    "{channels:>4} {filters:>4} {side:>4} {:>7} {name:>8} {:>10} {:>8.1} {:>8.3} {:>12.0}",
                    format!("{kernel}/{stride}"),
                    isa.name(),
                    operations / seconds / 1e9,
                    seconds * 1e3,
                    100.0 * share
                );
            }
        }
    }
}

/// Floats in a cache line.
const LINE: usize = 16;

/// All but `LINE` elements, from the start of a cache line on, as the buffers of a plan lie.
fn aligned(buffer: &mut [f32]) -> &mut [f32] {
    let (start, size) = (buffer.as_ptr().align_offset(LINE * size_of::<f32>()), buffer.len() - LINE);
    &mut buffer[start..start + size]
}

fn ramp(size: usize) -> Vec<f32> {
    (0..size).map(|i| (i % 251) as f32 / 251.0 - 0.5).collect()
}

/// The best of some times, in seconds.
fn best(calls: usize, mut time: impl FnMut() -> Duration) -> f64 {
    (0..calls.clamp(20, 300)).map(|_| time().as_secs_f64()).fold(f64::INFINITY, f64::min)
}

/// The best time of a convolution with bias and residual, in seconds, and its usual part of what registers reach at the time;
/// `None` where the way does not lead there.
fn time_conv(shape: Conv2dShape, way: Way, isa: Isa, operations: f64) -> Option<(f64, f64)> {
    let mut shares = Vec::new();
    let calls = (4e9 / operations) as usize;
    let mut measured = |call: &mut dyn FnMut()| {
        let seconds = best(calls, || {
            let peak = peak(isa, 10_000);
            let start = Instant::now();
            call();
            shares.push(operations / start.elapsed().as_secs_f64() / peak);
            start.elapsed()
        });
        // Calls that were interrupted are below the upper third, peaks that were are above it.
        shares.sort_by(f64::total_cmp);
        (seconds, shares[shares.len() * 2 / 3])
    };
    let Conv2dShape { channels, filters, input: [height, width], kernel: [kh, kw], .. } = shape;
    let [rows, columns] = shape.output().expect("the kernel fits");
    let y_shape = [1, filters, rows, columns];
    let mut y = vec![0.0; filters * rows * columns + LINE];
    let (bias, residual) = (ramp(filters), y.clone());
    let residual =
        (!std::env::args().any(|word| word == "plain")).then(|| View::dense(&residual[LINE..], &y_shape).unwrap());
    let mut y = ViewMut::dense(aligned(&mut y), &y_shape).unwrap();
    let epilogue = Epilogue { bias: Some(&bias), emb: None, residual, act: Act::None };
    let pixels = ramp(channels * height * width);
    let x = View::dense(&pixels, &[1, channels, height, width]).unwrap();
    let plain = ramp(filters * channels * kh * kw);
    Some(match way {
        Way::Floats => {
            let conv = Conv2d::new(shape, Cells::Floats, isa, 1)?;
            let mut scratch = vec![0.0; conv.scratch_floats(1) + LINE];
            let scratch = aligned(&mut scratch);
            let w = shape.pack_weight(&plain);
            measured(&mut || conv.run(&Serial, &w, &x, &epilogue, &mut y, scratch))
        }
        Way::Winograd => {
            let conv = Winograd::new(shape, isa, 1)?;
            let mut scratch = vec![0.0; conv.scratch_floats(1) + LINE];
            let scratch = aligned(&mut scratch);
            let w = conv.transform_weight(&plain);
            measured(&mut || conv.run(&Serial, &w, &x, &epilogue, &mut y, scratch))
        }
        Way::Bytes => {
            let conv = Conv2d::new(shape, Cells::Bytes, isa, 1)?;
            let mut scratch = vec![0.0; conv.scratch_floats(1) + LINE];
            let scratch = aligned(&mut scratch);
            let quads = channels.div_ceil(QUAD);
            let x: Vec<u8> = (0..quads * height * width * QUAD).map(|i| (i % 127) as u8).collect();
            let x = View::dense(&x, &[1, quads, height, width, QUAD]).unwrap();
            let weights = vec![-3; shape.quantized_weight_bytes()?];
            let (weight_scale, weight_sum) = (vec![0.01; filters], vec![100.0; filters]);
            let op = Quantized {
                weights: &weights,
                weight_scale: &weight_scale,
                weight_sum: &weight_sum,
                grid: &[0.1, 64.0],
                top: 127,
                chain: CHAIN,
            };
            measured(&mut || conv.run_quantized(&Serial, &op, &x, &epilogue, &mut y, scratch))
        }
    })
}
