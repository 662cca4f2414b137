//! What the registers of an instruction set reach at this moment: the clock moves.

use std::hint::black_box;
use std::time::Instant;

use scoregraph_simd::{Isa, Kernel, Simd};

/// Multiply-adds of twelve chains that never leave their registers.
struct Chains(usize);

impl Kernel for Chains {
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

/// Operations a second in float32, over so many steps of each chain.
pub fn peak(isa: Isa, steps: usize) -> f64 {
    let start = Instant::now();
    black_box(isa.dispatch(Chains(steps)));
    (steps * 12 * 2 * isa.lanes()) as f64 / start.elapsed().as_secs_f64()
}
