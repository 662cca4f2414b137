//! Nanoseconds an element of every activation, from the first-level cache, one thread. Run:
//! `cargo run --release -p scoregraph-simd --example activation_speed`.

use std::time::Instant;

use scoregraph_simd::{Act, Kernel, Simd};

struct Apply<'a>(Act, &'a mut [f32]);

impl Kernel for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // One loop for each activation, as in an epilogue that knows its own.
        for (act, _) in Act::ALL {
            if act == self.0 {
                for chunk in self.1.chunks_exact_mut(S::LANES) {
                    // SAFETY: the chunk is a vector.
                    unsafe { s.store(chunk.as_mut_ptr(), act.apply(s, s.load(chunk.as_ptr()))) };
                }
            }
        }
    }
}

fn main() {
    let isa = scoregraph_simd::isa();
    for (act, name) in Act::ALL {
        let mut best = f64::INFINITY;
        for _ in 0..3000 {
            let mut x: [f32; 4096] = std::array::from_fn(|i| (i as f32 - 2048.0) / 512.0);
            let start = Instant::now();
            isa.dispatch(Apply(act, &mut x));
            best = best.min(start.elapsed().as_secs_f64());
            std::hint::black_box(&x);
        }
        println!("{:<10} {name:<10} {:.3} ns", isa.name(), best / 4096.0 * 1e9);
    }
}
