//! What the tests share: numbers, instruction sets, threads and comparisons.

use std::sync::atomic::{AtomicUsize, Ordering};

use scoregraph_kernels::{Layout, View, ViewMut};
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

/// The instruction sets of this machine that differ in float32.
pub fn float_isas() -> impl Iterator<Item = Isa> {
    Isa::FLOAT.into_iter().filter(|isa| isa.supported())
}

/// Every index of four nested loops.
pub fn indices([a, b, c, d]: [usize; 4]) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    (0..a * b * c * d).map(move |i| (i / (b * c * d), i / (c * d) % b, i / d % c, i % d))
}

/// Images \[n, C, …\] that are a slice of the channels of larger ones: one channel in front, two behind.
pub struct Images {
    layout: Layout,
    channels: usize,
    pixels: usize,
}

impl Images {
    pub fn new<const RANK: usize>(shape: [usize; RANK]) -> Self {
        let pixels = shape[2..].iter().product();
        let dense = Layout::dense(&shape).unwrap();
        let mut strides = [0; RANK];
        strides.copy_from_slice(dense.strides());
        (strides[0], strides[1]) = ((shape[1] + 3) * pixels, pixels);
        Self { layout: Layout::new(&shape, &strides).unwrap(), channels: shape[1], pixels }
    }

    /// Elements of the larger images.
    pub fn floats(&self) -> usize {
        self.layout.shape()[0] * (self.channels + 3) * self.pixels
    }

    /// Dense images where they lie in the larger ones; what is around them must not be read, and is NaN, or any byte.
    pub fn spread<T: Copy + Outside>(&self, dense: &[T]) -> Vec<T> {
        let mut larger = vec![T::OUTSIDE; self.floats()];
        for (plane, from) in dense.chunks(self.pixels.max(1)).enumerate() {
            larger[self.plane(plane)..][..self.pixels].copy_from_slice(from);
        }
        larger
    }

    /// The dense images; asserts that nothing around them was written.
    pub fn gather<T: Copy + Outside>(&self, larger: &[T]) -> Vec<T> {
        let planes = self.layout.shape()[0] * self.channels;
        let mut outside = larger.to_vec();
        let mut dense = Vec::new();
        for plane in 0..planes {
            let pixels = self.plane(plane)..self.plane(plane) + self.pixels;
            dense.extend_from_slice(&larger[pixels.clone()]);
            outside[pixels].fill(T::OUTSIDE);
        }
        assert!(outside.into_iter().all(T::outside), "written outside of the image");
        dense
    }

    fn plane(&self, plane: usize) -> usize {
        (plane / self.channels * (self.channels + 3) + plane % self.channels + 1) * self.pixels
    }

    fn first(&self, larger: usize) -> usize {
        if larger == 0 { 0 } else { self.pixels }
    }

    pub fn view<'a, T>(&self, larger: &'a [T]) -> View<'a, T> {
        View::new(larger, self.first(larger.len()), self.layout).unwrap()
    }

    pub fn view_mut<'a, T>(&self, larger: &'a mut [T]) -> ViewMut<'a, T> {
        ViewMut::new(larger, self.first(larger.len()), self.layout).unwrap()
    }
}

/// What lies around images.
pub trait Outside {
    const OUTSIDE: Self;

    fn outside(self) -> bool;
}

impl Outside for f32 {
    const OUTSIDE: f32 = f32::NAN;

    fn outside(self) -> bool {
        self.is_nan()
    }
}

impl Outside for u8 {
    const OUTSIDE: u8 = 0xA5;

    fn outside(self) -> bool {
        self == Self::OUTSIDE
    }
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
        Act::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        Act::GeluTanh => x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
        Act::GeluErf => unreachable!("the references have no {act:?}"),
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
