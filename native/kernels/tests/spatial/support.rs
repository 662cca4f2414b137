//! What the tests share: numbers, instruction sets, threads and comparisons.

use std::sync::atomic::{AtomicUsize, Ordering};

use scoregraph_kernels::{Layout, View};
use scoregraph_simd::{Act, Isa, Parallel, Serial};

/// `count` numbers in `[-1, 1)`, the same for the same seed (a linear congruential generator, upper bits).
pub fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// The instruction sets of this machine.
pub fn isas() -> impl Iterator<Item = Isa> {
    Isa::FLOAT.into_iter().filter(|isa| isa.supported())
}

/// Threads that live for one `run`, each taking the next tile: any tile may meet any thread.
pub struct Threads(pub usize);

impl Parallel for Threads {
    fn threads(&self) -> usize {
        self.0
    }

    fn run(&self, tiles: usize, f: &(dyn Fn(usize, usize) + Sync)) {
        if self.0 == 1 {
            return Serial.run(tiles, f);
        }
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..self.0 {
                let next = &next;
                scope.spawn(move || {
                    loop {
                        let tile = next.fetch_add(1, Ordering::Relaxed);
                        if tile >= tiles {
                            break;
                        }
                        f(tile, thread);
                    }
                });
            }
        });
    }
}

/// The activations that the references know, in float64.
pub fn act64(act: Act, x: f64) -> f64 {
    match act {
        Act::None => x,
        Act::Silu => x / (1.0 + (-x).exp()),
        Act::Relu => x.max(0.0),
        Act::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Act::Tanh => x.tanh(),
        Act::GeluTanh | Act::GeluErf => unreachable!("the references have no {act:?}"),
    }
}

/// The first `columns` of each of `rows` rows that are `beyond` longer.
pub fn leading_columns(data: &[f32], rows: usize, columns: usize, beyond: usize) -> View<'_> {
    View::new(data, 0, Layout::new(&[rows, columns], &[columns + beyond, 1]).unwrap()).unwrap()
}

/// The bits, so that a comparison tells 0 from -0 and finds a NaN equal to itself.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
