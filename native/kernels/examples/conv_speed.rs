//! Best-of-N speed of the convolution at the shapes of a 128 x 128 U-Net: `cargo run --release --example conv_speed`.

use std::time::Instant;

use scoregraph_kernels::conv::{Cells, Conv2d, Conv2dShape, Epilogue};
use scoregraph_kernels::{View, ViewMut};
use scoregraph_simd::{Act, Isa, Serial};

/// Input channels, output channels, side, kernel, stride, padding.
const CASES: [[usize; 6]; 12] = [
    [32, 32, 128, 3, 1, 1],
    [64, 32, 128, 3, 1, 1],
    [64, 64, 64, 3, 1, 1],
    [96, 96, 32, 3, 1, 1],
    [128, 128, 16, 3, 1, 1],
    [128, 128, 8, 3, 1, 1],
    [64, 64, 64, 1, 1, 0],
    [128, 384, 16, 1, 1, 0],
    [64, 64, 64, 3, 2, 1],
    [1, 32, 128, 3, 1, 1],
    [32, 1, 128, 3, 1, 1],
    [3, 384, 256, 16, 16, 0],
];

fn main() {
    println!("{:>4} {:>4} {:>4} {:>7}  {:>8} {:>10} {:>9}", "I", "O", "side", "kernel", "isa", "GFLOP/s", "ms");
    for [channels, filters, side, kernel, stride, padding] in CASES {
        let shape = Conv2dShape {
            channels,
            filters,
            input: [side; 2],
            kernel: [kernel; 2],
            stride: [stride; 2],
            padding: [padding; 4],
            up: [1; 2],
        };
        for isa in Isa::FLOAT.into_iter().filter(|isa| *isa != Isa::Scalar && isa.supported()) {
            let (seconds, flops) = time(shape, isa);
            println!(
                "{channels:>4} {filters:>4} {side:>4} {:>7}  {:>8} {:>10.1} {:>9.3}",
                format!("{kernel}/{stride}"),
                isa.name(),
                flops / seconds / 1e9,
                seconds * 1e3
            );
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

/// The best time of a call with bias and residual, in seconds, and the multiply-adds it does, times two.
fn time(shape: Conv2dShape, isa: Isa) -> (f64, f64) {
    let conv = Conv2d::new(shape, Cells::Floats, isa, 1).expect("the kernel fits");
    let [rows, columns] = shape.output().expect("the kernel fits");
    let ramp = |size: usize| (0..size).map(|i| (i % 251) as f32 / 251.0 - 0.5).collect::<Vec<f32>>();
    let x = ramp(shape.channels * shape.input[0] * shape.input[1]);
    let per_filter = shape.channels * shape.kernel[0] * shape.kernel[1];
    let w = shape.pack_weight(&ramp(shape.filters * per_filter));
    let bias = ramp(shape.filters);
    let mut y = vec![0.0; shape.filters * rows * columns + LINE];
    let residual = y.clone();
    let (y, residual) = (aligned(&mut y), &residual[LINE..]);
    let mut scratch = vec![0.0; conv.scratch_floats(1) + LINE];
    let flops = 2.0 * (shape.filters * per_filter * rows * columns) as f64;
    let (x_shape, y_shape) = ([1, shape.channels, shape.input[0], shape.input[1]], [1, shape.filters, rows, columns]);
    let x = View::dense(&x, &x_shape).unwrap();
    let residual = Some(View::dense(residual, &y_shape).unwrap());
    let mut y = ViewMut::dense(y, &y_shape).unwrap();
    let epilogue = Epilogue { bias: Some(&bias), emb: None, residual, act: Act::None };
    let scratch = aligned(&mut scratch);
    let mut best = f64::INFINITY;
    for _ in 0..((2e9 / flops) as usize).clamp(5, 200) {
        let start = Instant::now();
        conv.run(&Serial, &w, &x, &epilogue, &mut y, scratch);
        best = best.min(start.elapsed().as_secs_f64());
    }
    (best, flops)
}
