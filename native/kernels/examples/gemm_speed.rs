//! Best-of-N speed of `linear` on one thread, for every instruction set of this machine, beside the rate of
//! multiply-adds that keep to registers. Run: `cargo run --release --example gemm_speed`.

use std::hint::black_box;
use std::time::Instant;

use scoregraph_kernels::linear::{Linear, Weights, linear};
use scoregraph_kernels::{Act, Context, Isa, Kernel, Serial, Simd, View, ViewMut};

/// Seconds of the fastest of `repeats` calls.
fn best(repeats: usize, mut f: impl FnMut()) -> f64 {
    (0..repeats).fold(f64::INFINITY, |best, _| {
        let start = Instant::now();
        f();
        best.min(start.elapsed().as_secs_f64())
    })
}

/// Multiply-adds of twelve chains that never leave their registers.
struct Peak(usize);

impl Kernel for Peak {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut chains = [s.splat(1.0); 12];
        let (x, y) = (s.splat(black_box(0.999)), s.splat(black_box(1e-3)));
        for _ in 0..self.0 {
            for chain in &mut chains {
                *chain = s.mul_add(*chain, x, y);
            }
        }
        chains.into_iter().fold(0.0, |sum, chain| sum + s.reduce_add(chain))
    }
}

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 1000.0 - 0.5).collect()
}

fn main() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.supported()) {
        let ctx = Context { isa, pool: &Serial };
        let lanes = [1, 8, 16][isa as usize];
        let steps = 200_000;
        let peak = best(20, || {
            black_box(isa.dispatch(Peak(steps)));
        });
        let peak = (steps * 12 * 2 * lanes) as f64 / peak / 1e9;
        println!("{:<7} peak {peak:6.1} GFLOP/s", isa.name());
        for (m, k, n) in [
            (256usize, 384usize, 1536usize),
            (256, 1152, 1152),
            (256, 1152, 4608),
            (64, 384, 384),
            (1, 1152, 1152),
            (6, 1152, 1152),
        ] {
            let (x, w, bias) = (values(m * k), values(n.div_ceil(16) * 16 * k), values(n));
            let mut y = vec![0.0; m * n];
            let op = Linear {
                cols: n,
                x: View::dense(&x, &[m, k]).unwrap(),
                weights: Weights::N16(&w),
                bias: Some(&bias),
                act: Act::None,
                gate: None,
                residual: None,
            };
            let repeats = if isa == Isa::Scalar { 3 } else { 200_000_000 / (m * k * n) + 20 };
            let seconds = best(repeats, || linear(&ctx, &op, &mut ViewMut::dense(&mut y, &[m, n]).unwrap(), &mut []));
            let rate = (2 * m * k * n) as f64 / seconds / 1e9;
            println!("{:<7} linear {m}x{k}x{n}: {rate:6.1} GFLOP/s, {:.0} %", isa.name(), 100.0 * rate / peak);
        }
    }
}
