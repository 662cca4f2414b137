//! What the kernel tests share: numbers, instruction sets, a pool of real threads, and error measures.

#![allow(dead_code, reason = "every test binary uses a part of it")]

use std::sync::atomic::{AtomicUsize, Ordering};

use scoregraph_kernels::{Context, Isa, Parallel, Serial};

/// Numbers that look random and are the same in every run (splitmix64).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// In -1..1.
    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

/// A pool that runs tiles on its own threads, in whatever order they come.
pub struct Threads(pub usize);

impl Parallel for Threads {
    fn threads(&self) -> usize {
        self.0
    }

    fn run(&self, tiles: usize, f: &(dyn Fn(usize, usize) + Sync)) {
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
                        // Backwards, so that an order that matters shows.
                        f(tiles - 1 - tile, thread);
                    }
                });
            }
        });
    }
}

pub fn isas() -> impl Iterator<Item = Isa> {
    Isa::FLOAT.into_iter().filter(|isa| isa.supported())
}

/// Runs `f` with every instruction set on one thread and on three, and asserts that threads change no bits. Returns the
/// results of the instruction sets.
pub fn everywhere(f: impl Fn(&Context) -> Vec<f32>) -> Vec<(Isa, Vec<f32>)> {
    everywhere_on(isas(), f)
}

/// The same with the given instruction sets.
pub fn everywhere_on(isas: impl Iterator<Item = Isa>, f: impl Fn(&Context) -> Vec<f32>) -> Vec<(Isa, Vec<f32>)> {
    isas.map(|isa| {
        let serial = f(&Context { isa, pool: &Serial });
        let parallel = f(&Context { isa, pool: &Threads(3) });
        assert_eq!(bits(&serial), bits(&parallel), "{}: threads change the result", isa.name());
        (isa, serial)
    })
    .collect()
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Asserts that every result is within `bound` of `want`, relative to `magnitude(i)`.
pub fn assert_close(results: &[(Isa, Vec<f32>)], want: &[f64], bound: f64, magnitude: impl Fn(usize) -> f64) {
    for (isa, got) in results {
        assert_eq!(got.len(), want.len());
        for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
            let error = (f64::from(got) - want).abs() / magnitude(i);
            assert!(error <= bound, "{} [{i}]: {got} instead of {want}: error {error:.2e} > {bound:.1e}", isa.name());
        }
    }
}

pub fn gelu(x: f64) -> f64 {
    x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
}
