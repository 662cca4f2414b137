//! What a second thread is worth on this machine: the cost of handing a call out and waiting for its end, and how much
//! faster arithmetic in registers is on all threads than on one (the clock falls when more cores work).
//! Best of many. Run: `cargo run --release -p scoregraph-plan --example threads_speed [threads]`.

#[path = "../../kernels/examples/common/peak.rs"]
mod peak;

use std::hint::black_box;
use std::time::{Duration, Instant};

use scoregraph_kernels::Parallel;
use scoregraph_plan::pool::Pool;
use scoregraph_simd::detect;

use peak::peak;

/// The shortest of many times that `work` takes.
fn best(repetitions: usize, mut work: impl FnMut()) -> Duration {
    let time = |()| {
        let begun = Instant::now();
        work();
        begun.elapsed()
    };
    std::iter::repeat_n((), repetitions).map(time).min().unwrap_or_default()
}

fn main() {
    let threads = std::env::args().nth(1).map_or(2, |n| n.parse().expect("a number of threads"));
    let isa = detect().expect("an instruction set");
    let pool = Pool::new(threads).expect("a pool");
    let calls = 100;
    for tiles in [1, threads, 8 * threads] {
        let time = best(3000, || {
            (0..calls).for_each(|_| {
                pool.run(tiles, &|tile, _| {
                    black_box(tile);
                })
            })
        });
        println!("a call of {tiles:3} empty tiles: {:6.0} ns", time.as_nanos() as f64 / calls as f64);
    }
    for rounds in [30, 100, 300, 1000, 30_000] {
        let work = || {
            peak(isa, rounds);
        };
        let alone = best(3000, || (0..threads).for_each(|_| work()));
        let together = best(3000, || pool.run(threads, &|_, _| work()));
        let flops = (threads * rounds * 12 * isa.lanes() * 2) as f64;
        println!(
            "{:8.1} us of work on one thread, {:7.1} GFLOP/s; on {threads} {:.2} times as fast",
            alone.as_secs_f64() * 1e6,
            flops / alone.as_secs_f64() * 1e-9,
            alone.as_secs_f64() / together.as_secs_f64()
        );
    }
}
