//! Best-of-N speed of transposing copies, on one thread, beside that of a plain one.

use std::time::Instant;

use scoregraph_kernels::copy::copy;
use scoregraph_kernels::{Context, Isa, Layout, Serial, View, ViewMut};

/// Rows and columns of what is transposed.
const CASES: [[usize; 2]; 6] = [[1024, 320], [320, 1024], [256, 640], [640, 256], [1000, 37], [64, 16384]];

fn main() {
    for [rows, cols] in CASES {
        let x: Vec<f32> = (0..rows * cols).map(|i| i as f32).collect();
        let mut y = vec![0.0; rows * cols];
        for isa in Isa::FLOAT.into_iter().filter(|isa| isa.supported()) {
            let ctx = Context { isa, pool: &Serial };
            for (what, strides) in [("plain", [cols, 1]), ("transposed", [1, rows])] {
                let from = Layout::new(&[rows, cols], &strides).unwrap();
                let best = (0..300).map(|_| {
                    let start = Instant::now();
                    copy(&ctx, &View::new(&x, 0, from).unwrap(), &mut ViewMut::dense(&mut y, &[rows, cols]).unwrap());
                    start.elapsed().as_secs_f64()
                });
                let seconds = best.fold(f64::INFINITY, f64::min);
                let rate = (2 * 4 * rows * cols) as f64 / seconds / 1e9;
                println!("{rows} x {cols} {what:<10} {:<8} {:.3} ms, {rate:.1} GB/s", isa.name(), seconds * 1e3);
            }
        }
    }
}
