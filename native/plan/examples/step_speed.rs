//! Speed of the fused sampler step: guidance of two branches and DPM-Solver++(2M), for some sizes, instruction sets and
//! threads. Run: `cargo run --release -p scoregraph-plan --example step_speed`.

use std::time::Instant;

use scoregraph_plan::pool::Pool;
use scoregraph_plan::sampler::linear::Source;
use scoregraph_plan::sampler::{Coefficients, Columns, Noise, Step, step_scratch};
use scoregraph_simd::{Isa, Parallel};

/// x' = 0.9 x - 0.2 old - m0 + 2 m1 and old' = 0.5 x - 0.3 m0 + 1.1 m1, with or without noise on x.
fn seconds(isa: Isa, pool: &dyn Parallel, samples: usize, elements: usize, noise: bool) -> f64 {
    let columns = Columns { a: 0, b: 4, c: 8, width: 2, answers: vec![0, 1], ..Columns::default() };
    let row = [0.9, -0.2, 0.5, 0.0, -1.0, 2.0, -0.3, 1.1, if noise { 0.1 } else { 0.0 }, 0.0];
    let mut memory = vec![0.5f32; samples * elements * 6 + 16];
    let start = memory.as_ptr().align_offset(64);
    let at = |n: usize, step: usize| Source { ptr: memory[start..].as_ptr().cast_mut().wrapping_add(n), step };
    let all = samples * elements;
    let registers = [at(0, elements), at(all, elements)];
    let answers = [at(2 * all, 2 * elements), at(2 * all + elements, 2 * elements)];
    let next = [at(4 * all, 2 * elements), at(4 * all + elements, 2 * elements)];
    let mut scratch = vec![0.0; step_scratch(2, &columns, None, pool.threads())];
    let seeds = vec![1; samples];
    let mut best = f64::INFINITY;
    for micro in 0..400 {
        let begin = Instant::now();
        let step = Step {
            registers: &registers,
            answers: &answers,
            next_input: &next,
            factor: 0.7,
            columns: &columns,
            coefficients: Coefficients { values: &row, step: 0 },
            row: &row,
            elementwise: None,
            extras: &[],
            noise: Noise::Drawn { seeds: &seeds, micro, site: 0 },
            samples,
            elements,
        };
        // SAFETY: every source lies inside `memory`, and none overlaps another.
        unsafe { step.run(isa, pool, &mut scratch) };
        best = best.min(begin.elapsed().as_secs_f64());
    }
    memory[0] = 0.0;
    best
}

fn main() {
    println!("{:>8} {:>9} {:>8} {:>8} {:>9} {:>9}", "samples", "elements", "isa", "threads", "us", "us, noise");
    let pools = [1, 2].map(|threads| Pool::new(threads).expect("threads can be started"));
    for (samples, elements) in [(1, 64), (1, 4096), (1, 16384), (1, 65536), (64, 256), (4, 65536)] {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.supported()) {
            for pool in &pools {
                let times = [false, true].map(|noise| seconds(isa, pool, samples, elements, noise) * 1e6);
                let (threads, name) = (pool.threads(), isa.name());
                println!("{samples:>8} {elements:>9} {name:>8} {threads:>8} {:>9.1} {:>9.1}", times[0], times[1]);
            }
        }
    }
}
