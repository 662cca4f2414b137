//! Speed of what lies between network calls: guidance of two branches and DPM-Solver++(2M) in one step, the same with
//! noise, with x0 clamped to a quantile, and the statistics that per-sample guidance needs. Best of many, microseconds.
//! Run: `cargo run --release -p scoregraph-plan --example step_speed`.

use std::time::Instant;

use scoregraph_kernels::pointwise::{Binary, Instr, Program, Unary};
use scoregraph_kernels::{Context, Isa, Parallel};
use scoregraph_plan::pool::Pool;
use scoregraph_plan::sampler::linear::Source;
use scoregraph_plan::sampler::statistics::{Forms, Statistic, gram, gram_scratch, quantile, quantile_scratch};
use scoregraph_plan::sampler::{Coefficients, Columns, Elementwise, Noise, Step, step_scratch};

/// A latent with its answers.
struct Case {
    memory: Vec<f32>,
    samples: usize,
    elements: usize,
}

impl Case {
    fn new(samples: usize, elements: usize) -> Case {
        let numbers = (0..samples * elements * 6 + 16).map(|i| ((i * 7919) % 1009) as f32 / 500.0 - 1.0);
        Case { memory: numbers.collect(), samples, elements }
    }

    /// Registers x and old, answers m0 and m1, two branches of the next input.
    fn sources(&mut self) -> [Source; 6] {
        let (all, n) = (self.samples * self.elements, self.elements);
        let start = self.memory.as_ptr().align_offset(64);
        let ptr = self.memory[start..].as_mut_ptr();
        [(0, n), (all, n), (2 * all, 2 * n), (2 * all + n, 2 * n), (4 * all, 2 * n), (4 * all + n, 2 * n)]
            .map(|(at, step)| Source { ptr: ptr.wrapping_add(at), step })
    }

    /// x' = 0.9 x - 0.2 old - m0 + 2 m1 (+ 0.1 z) and old' = 0.5 x - 0.3 m0 + 1.1 m1, which may be clamped first.
    fn step(&mut self, ctx: &Context, noise: bool, clamps: bool) -> f64 {
        let columns =
            Columns { a: 0, b: 4, c: 8, e: 10, h: 14, estimates: usize::from(clamps), width: 2, answers: vec![0, 1] };
        let (c, gained) = (if noise { 0.1 } else { 0.0 }, if clamps { 1.0 } else { 0.0 });
        let old = if clamps { [0.0; 3] } else { [0.5, -0.3, 1.1] };
        let row = [0.9, -0.2, old[0], 0.0, -1.0, 2.0, old[1], old[2], c, 0.0, 0.5, 0.0, -0.3, 1.1, 0.0, gained];
        let instrs = vec![
            Instr::Const(0.7),
            Instr::Unary(Unary::Neg, 2),
            Instr::Binary(Binary::Max, 0, 3),
            Instr::Binary(Binary::Min, 4, 2),
        ];
        let program = Program::with_results(2, instrs, vec![5]).expect("it is a program");
        let elementwise = clamps.then(|| Elementwise { program, params: vec![], draws: false });
        let sources = self.sources();
        let mut scratch = vec![0.0; step_scratch(2, &columns, elementwise.as_ref(), ctx.pool.threads())];
        let seeds = vec![1; self.samples];
        best(|micro| {
            let step = Step {
                registers: &sources[..2],
                answers: &sources[2..4],
                next_input: &sources[4..],
                factor: 0.7,
                columns: &columns,
                coefficients: Coefficients { values: &row, step: 0 },
                row: &row,
                elementwise: elementwise.as_ref(),
                extras: &[],
                noise: Noise::Drawn { seeds: &seeds, micro, site: 0 },
                samples: self.samples,
                elements: self.elements,
            };
            // SAFETY: every source lies inside the memory, and none overlaps another.
            unsafe { step.run(ctx.isa, ctx.pool, &mut scratch) };
        })
    }

    /// |m0|², |m1|² and m0 m1, then the 0.995-quantile of |x + m0|.
    fn statistics(&mut self, ctx: &Context) -> [f64; 2] {
        let columns = Columns { estimates: 2, width: 2, answers: vec![0, 1], ..Columns::default() };
        let statistics = [(0, 0), (1, 1), (0, 1)].map(|(i, j)| Statistic { form: i, with: Some(j) });
        let (samples, elements, threads) = (self.samples, self.elements, ctx.pool.threads());
        let sources = self.sources();
        let forms = Forms { sources: &sources[..4], registers: 2, samples, elements };
        let mut scratch = vec![0.0; gram_scratch(samples, elements, 2, 3, threads)];
        let mut out = vec![0.0; 3 * samples];
        let row = [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0];
        // SAFETY: the sources lie inside the memory and the row has two forms of two registers and two answers.
        let products = best(|_| unsafe { gram(ctx, forms, &columns, &row, &statistics, &mut out, &mut scratch) });
        let mut scratch = vec![0.0; quantile_scratch(elements, threads)];
        let coefficients = Coefficients { values: &[1.0, 0.0, 1.0, 0.0], step: 0 };
        let out = &mut out[..samples];
        // SAFETY: as above.
        let order = best(|_| unsafe { quantile(ctx, forms, &columns, coefficients, 0.995, out, &mut scratch) });
        [products, order]
    }
}

/// Microseconds of the fastest of some hundred calls.
fn best(mut f: impl FnMut(u32)) -> f64 {
    (0..300).fold(f64::INFINITY, |best, i| {
        let start = Instant::now();
        f(i);
        best.min(start.elapsed().as_secs_f64() * 1e6)
    })
}

fn main() {
    let names = ["samples", "elements", "isa", "threads", "step", "noise", "clamp", "gram", "quantile"];
    println!("{}", names.map(|name| format!("{name:>8}")).join(" "));
    let pools = [1, 2].map(|threads| Pool::new(threads).expect("threads can be started"));
    for (samples, elements) in [(1, 64), (1, 4096), (1, 16384), (1, 65536), (64, 256), (4, 65536)] {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.supported()) {
            for pool in &pools {
                let (ctx, mut case) = (Context { isa, pool }, Case::new(samples, elements));
                let [products, order] = case.statistics(&ctx);
                let [plain, noise, clamp] = [(false, false), (true, false), (false, true)]
                    .map(|(noise, clamps)| case.step(&ctx, noise, clamps));
                let times = [plain, noise, clamp, products, order].map(|us| format!("{us:>8.1}")).join(" ");
                println!("{samples:>8} {elements:>8} {:>8} {:>8} {times}", isa.name(), pool.threads());
            }
        }
    }
}
