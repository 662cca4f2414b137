//! Best-of-N speed of the heavy kernels on one thread, for every instruction set of this machine, beside the rate of
//! multiply-adds that keep to registers. Run: `cargo run --release -p scoregraph-kernels --example speed`.

use std::hint::black_box;
use std::time::Instant;

use scoregraph_kernels::attention::{Attention, attention, attention_scratch};
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

/// Products of the sizes of a DiT block, and of few rows.
fn linears(ctx: &Context, peak: f64) {
    let sizes: [(usize, usize, usize); 7] = [
        (256, 384, 1536),
        (256, 1536, 384),
        (256, 1152, 1152),
        (256, 1152, 4608),
        (64, 384, 384),
        (6, 1152, 1152),
        (1, 1152, 1152),
    ];
    for (m, k, n) in sizes {
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
        let repeats = if ctx.isa == Isa::Scalar { 1 } else { 2_000_000_000 / (m * k * n) };
        let seconds = best(repeats, || linear(ctx, &op, &mut ViewMut::dense(&mut y, &[m, n]).unwrap(), &mut []));
        report(ctx, &format!("linear {m}x{k}x{n}"), (2 * m * k * n) as f64 / seconds / 1e9, peak);
    }
}

/// Heads of the sizes of transformers and of U-Nets.
fn attentions(ctx: &Context, peak: f64) {
    for (heads, tokens, dim) in [(6, 256, 64), (1, 512, 64), (1, 1024, 64), (1, 4096, 64), (8, 256, 16), (8, 64, 32)] {
        let shape = [1, heads, tokens, dim];
        let (q, k, v) = (values(heads * tokens * dim), values(heads * tokens * dim), values(heads * tokens * dim));
        let mut y = vec![0.0; q.len()];
        let mut scratch = vec![0.0; attention_scratch(tokens, dim, 1)];
        let op = Attention {
            q: View::dense(&q, &shape).unwrap(),
            k: View::dense(&k, &shape).unwrap(),
            v: View::dense(&v, &shape).unwrap(),
            mask: None,
            scale: 0.125,
        };
        let work = 4 * heads * tokens * tokens * dim;
        let repeats = if ctx.isa == Isa::Scalar { 1 } else { 3 + 2_000_000_000 / work };
        let seconds = best(repeats, || attention(ctx, &op, &mut ViewMut::dense(&mut y, &shape).unwrap(), &mut scratch));
        report(ctx, &format!("attention {heads} heads, {tokens} tokens of {dim}"), work as f64 / seconds / 1e9, peak);
    }
}

fn report(ctx: &Context, what: &str, rate: f64, peak: f64) {
    println!("{:<7} {what:<38} {rate:6.1} GFLOP/s, {:3.0} %", ctx.isa.name(), 100.0 * rate / peak);
}

fn main() {
    for isa in Isa::FLOAT.into_iter().filter(|isa| isa.supported()) {
        let ctx = Context { isa, pool: &Serial };
        let lanes = isa.lanes();
        let steps = 200_000;
        let seconds = best(20, || {
            black_box(isa.dispatch(Peak(steps)));
        });
        let peak = (steps * 12 * 2 * lanes) as f64 / seconds / 1e9;
        report(&ctx, "registers only", peak, peak);
        linears(&ctx, peak);
        attentions(&ctx, peak);
    }
}
