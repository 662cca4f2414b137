//! `linear` of bytes and of bf16: bit for bit the formulas of docs/plan-format.md, on every instruction set.

mod common;

use common::{Numbers, Threads, bits};
use proptest::prelude::*;
use scoregraph_kernels::linear::{Bits, Input, Integers, Linear, Output, Weights, linear, linear_scratch};
use scoregraph_kernels::{Act, Context, Isa, Layout, Serial, View, ViewMut};

/// A type of weights with one of activations, and a chain that both allow.
#[derive(Debug, Clone, Copy)]
struct Format {
    bits: Bits,
    /// Weights are `low ..= high`.
    low: i64,
    high: i64,
    /// Activations are 0 … `top`.
    top: i64,
    chain: usize,
}

const fn format(bits: Bits, low: i64, high: i64, top: i64, chain: usize) -> Format {
    Format { bits, low, high, top, chain }
}

/// Every format with its longest chain, and some with shorter ones.
const FORMATS: [Format; 14] = [
    format(Bits::Eight, -127, 127, 255, 0),
    format(Bits::Eight, -127, 127, 127, 1),
    format(Bits::Eight, -63, 63, 127, 2),
    format(Bits::Eight, -63, 63, 255, 1),
    format(Bits::Eight, -31, 31, 127, 4),
    format(Bits::Eight, -31, 31, 255, 2),
    format(Bits::Four, -8, 7, 255, 8),
    format(Bits::Four, -8, 7, 127, 16),
    format(Bits::Two, -2, 1, 255, 32),
    format(Bits::Two, -2, 1, 127, 64),
    format(Bits::Four, -8, 7, 255, 0),
    format(Bits::Four, -8, 7, 255, 3),
    format(Bits::Two, -2, 1, 255, 1),
    format(Bits::Eight, -31, 31, 127, 3),
];

impl Format {
    /// Whether the largest sums of a chain fit 16 bits, as a loader proves.
    fn is_proved(&self) -> bool {
        2 * self.chain as i64 * self.top * self.low.abs().max(self.high) <= 32767
    }
}

/// `[N, K]` as `q4n16`: [ceil(N/16)][K/4][16][4], and values of 4 and 2 bits in runs of 64 bytes.
fn pack(w: &[i64], (n, k): (usize, usize), format: Format) -> Vec<u8> {
    let mut values = vec![0i64; n.div_ceil(16) * 16 * k];
    for row in 0..n {
        for col in 0..k {
            values[row / 16 * 16 * k + col / 4 * 64 + row % 16 * 4 + col % 4] = w[row * k + col];
        }
    }
    let share = match format.bits {
        Bits::Eight => return values.into_iter().map(|v| v as i8 as u8).collect(),
        Bits::Four => 2,
        Bits::Two => 4,
    };
    let width = 8 / share;
    let mut bytes = vec![0u8; values.len().div_ceil(64 * share) * 64];
    for (i, v) in values.into_iter().enumerate() {
        let stored = (v + (1 << (width - 1))) as u8;
        bytes[i / (64 * share) * 64 + i % 64] |= stored << (i % (64 * share) / 64 * width);
    }
    bytes
}

/// What the numbers of a case look like.
#[derive(Debug, Clone, Copy)]
enum Fill {
    Largest,
    Smallest,
    Alternating,
    Random,
}

#[derive(Debug, Clone)]
struct Case {
    m: usize,
    k: usize,
    n: usize,
    format: Format,
    /// Rows of the grid.
    grid: usize,
    groups: usize,
    fill: Fill,
    bias: bool,
    gap: usize,
}

struct Operands {
    x: Vec<i64>,
    w: Vec<i64>,
    grid: Vec<f32>,
    scale: Vec<f32>,
    sum: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Case {
    fn operands(&self, seed: u64) -> Operands {
        let Case { m, k, n, format, .. } = *self;
        let mut numbers = Numbers(seed);
        let span = |numbers: &mut Numbers, low: i64, high: i64| low + numbers.below((high - low + 1) as usize) as i64;
        let x = (0..m * k)
            .map(|i| match self.fill {
                Fill::Random => span(&mut numbers, 0, format.top),
                Fill::Alternating if i % 2 == 1 => 0,
                _ => format.top,
            })
            .collect();
        let w: Vec<i64> = (0..n * k)
            .map(|i| match self.fill {
                Fill::Largest => format.high,
                Fill::Smallest => format.low,
                Fill::Alternating => [format.high, format.low][i / 3 % 2],
                Fill::Random => span(&mut numbers, format.low, format.high),
            })
            .collect();
        let grid =
            (0..self.grid).flat_map(|_| [numbers.float() * 0.1, span(&mut numbers, 0, format.top) as f32]).collect();
        let share = k / self.groups;
        let sum = w.chunks(share).map(|group| group.iter().sum::<i64>() as f32).collect();
        let scale = numbers.floats(n * self.groups);
        let bias = self.bias.then(|| numbers.floats(n));
        Operands { x, w, grid, scale, sum, bias }
    }

    /// The formula, in whole numbers as far as they go and in float32 from there.
    fn want(&self, o: &Operands) -> Vec<f32> {
        let Case { m, k, n, .. } = *self;
        let share = k / self.groups;
        let value = |row: usize, col: usize| {
            let at = 2 * (row / (m / self.grid));
            let (scale, zero) = (o.grid[at], o.grid[at + 1] as i64);
            let mut total = 0.0;
            for group in 0..self.groups {
                let range = group * share..(group + 1) * share;
                let dot: i64 = range.clone().map(|i| o.w[col * k + i] * o.x[row * k + i]).sum();
                let weights: i64 = range.map(|i| o.w[col * k + i]).sum();
                assert!(i32::try_from(dot).is_ok());
                let factor = scale * o.scale[col * self.groups + group];
                let part = (dot - zero * weights) as i32 as f32 * factor;
                total = if group == 0 { part } else { total + part };
            }
            o.bias.as_ref().map_or(total, |bias| total + bias[col])
        };
        (0..m * n).map(|i| value(i / n, i % n)).collect()
    }

    fn check(&self, seed: u64) {
        let Case { m, k, n, format, .. } = *self;
        assert!(format.is_proved());
        let o = self.operands(seed);
        let stored = pack(&o.w, (n, k), format);
        let stride = k + self.gap;
        let mut x = vec![0u8; m * stride];
        for (i, &value) in o.x.iter().enumerate() {
            x[i / k * stride + i % k] = value as u8;
        }
        let want = self.want(&o);
        for isa in isas() {
            for threads in [1, 3] {
                let pool = Threads(threads);
                let ctx = Context { isa, pool: if threads == 1 { &Serial } else { &pool } };
                let q = View::new(&x, 0, Layout::new(&[m, k], &[stride, 1]).unwrap()).unwrap();
                let weights = Integers {
                    stored: &stored,
                    bits: format.bits,
                    scale: &o.scale,
                    sum: &o.sum,
                    groups: self.groups,
                    chain: format.chain,
                };
                let op = Linear {
                    cols: n,
                    x: Input::Bytes { q, grid: &o.grid },
                    weights: Weights::Integers(weights),
                    bias: o.bias.as_deref(),
                    act: Act::None,
                    gate: None,
                    residual: None,
                };
                let mut y = vec![f32::NAN; m * n];
                linear(&ctx, &op, Output::F32(ViewMut::dense(&mut y, &[m, n]).unwrap()), &mut []);
                assert_eq!(bits(&y), bits(&want), "{} on {threads} threads: {self:?}", isa.name());
            }
        }
    }
}

fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.supported())
}

#[test]
fn extremes_of_every_format_are_exact() {
    for format in FORMATS {
        for fill in [Fill::Largest, Fill::Smallest, Fill::Alternating] {
            // Whole chains and a rest, one pass and several, every row and panel of a tile.
            for (m, k, n) in [(1, 516, 17), (9, 260, 49), (7, 1100, 33), (16, 2200, 33), (31, 2200, 33)] {
                Case { m, k, n, format, grid: 1, groups: 1, fill, bias: false, gap: 0 }.check(1);
            }
        }
    }
}

/// The largest sum that 32 bits hold.
#[test]
fn long_rows_fill_32_bits() {
    let format = FORMATS[0];
    let k = (i32::MAX as usize / (255 * 127)) / 4 * 4;
    for fill in [Fill::Largest, Fill::Smallest] {
        Case { m: 2, k, n: 3, format, grid: 1, groups: 1, fill, bias: false, gap: 0 }.check(2);
    }
}

#[test]
fn every_tail() {
    for size in 1..34 {
        let case = Case {
            m: size,
            k: 12,
            n: 20,
            format: FORMATS[size % FORMATS.len()],
            grid: 1,
            groups: 1,
            fill: Fill::Random,
            bias: true,
            gap: 0,
        };
        case.check(1);
        Case { m: 3, n: size, ..case.clone() }.check(2);
        Case { m: 9, n: 100, k: 4 * size, ..case }.check(3);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn integers_are_the_formula(
        (m, n) in (1..40usize, 1..120usize),
        (share, groups) in (1..6usize, 1..4usize),
        quads in 1..60usize,
        format in prop::sample::select(FORMATS.to_vec()),
        per_token: bool,
        bias: bool,
        gap in 0..5usize,
        seed: u64,
    ) {
        let k = if groups == 1 { 4 * quads } else { 32 * share * groups };
        let grid = if per_token { m } else { 1 };
        Case { m, k, n, format, grid, groups, fill: Fill::Random, bias, gap }.check(seed);
    }
}

/// What is written: bytes on a grid, bf16 and float32 are roundings of the same numbers, in rows with gaps.
#[test]
fn results_come_in_every_format() {
    let case =
        Case { m: 12, k: 64, n: 50, format: FORMATS[0], grid: 12, groups: 2, fill: Fill::Random, bias: true, gap: 0 };
    let (o, (m, n)) = (case.operands(5), (case.m, case.n));
    let stored = pack(&o.w, (n, case.k), case.format);
    let x: Vec<u8> = o.x.iter().map(|&v| v as u8).collect();
    let mut numbers = Numbers(6);
    let (gate, residual) = (numbers.floats(3 * n), numbers.floats(m * 60));
    let wide = Layout::new(&[m, n], &[60, 1]).unwrap();
    let grid = [0.37, 100.0, 0.21, 3.0, 0.0, 0.0, f32::NAN, 9.0];
    for isa in isas() {
        let ctx = Context { isa, pool: &Threads(2) };
        let weights = Integers {
            stored: &stored,
            bits: case.format.bits,
            scale: &o.scale,
            sum: &o.sum,
            groups: case.groups,
            chain: case.format.chain,
        };
        let op = Linear {
            cols: n,
            x: Input::Bytes { q: View::dense(&x, &[m, case.k]).unwrap(), grid: &o.grid },
            weights: Weights::Integers(weights),
            bias: o.bias.as_deref(),
            act: Act::Relu,
            gate: Some(View::dense(&gate, &[3, n]).unwrap()),
            residual: Some(View::new(&residual, 4, Layout::new(&[m, n], &[60, 1]).unwrap()).unwrap()),
        };
        let (mut exact, mut halves, mut bytes) = (vec![0.0f32; m * 60], vec![0u16; m * 60], vec![7u8; m * 60]);
        linear(&ctx, &op, Output::F32(ViewMut::new(&mut exact, 3, wide).unwrap()), &mut []);
        linear(&ctx, &op, Output::Bf16(ViewMut::new(&mut halves, 3, wide).unwrap()), &mut []);
        for top in [255, 127] {
            let q = ViewMut::new(&mut bytes, 3, wide).unwrap();
            linear(&ctx, &op, Output::Bytes { q, grid: &grid, top }, &mut []);
            for at in 0..m * 60 {
                let (row, col) = (at / 60, (at % 60).wrapping_sub(3));
                if col >= n {
                    assert_eq!((exact[at], halves[at], bytes[at]), (0.0, 0, 7), "gaps are left alone");
                    continue;
                }
                let rounded = f32::from_bits(u32::from(halves[at]) << 16);
                assert!((rounded - exact[at]).abs() <= exact[at].abs() / 256.0);
                // A grid row serves 3 rows.
                let (scale, zero) = (grid[2 * (row / 3)], grid[2 * (row / 3) + 1]);
                let inv = if (1.0 / scale).is_finite() { 1.0 / scale } else { 0.0 };
                let q = ((exact[at] * inv).round_ties_even() + zero).clamp(0.0, f32::from(top));
                assert_eq!(bytes[at], q as u8, "{} at {row}, {col} up to {top}", isa.name());
            }
        }
    }
}

/// A float as bf16 bits, to nearest even.
fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16
}

/// The number of bf16 bits; subnormal ones count as 0.
fn value(half: u16) -> f32 {
    let value = f32::from_bits(u32::from(half) << 16);
    if value.is_subnormal() { 0.0 } else { value }
}

fn check_bf16((m, k, n): (usize, usize, usize), gap: usize, rounded: bool, seed: u64) {
    let mut numbers = Numbers(seed);
    let stride = k + gap;
    let mut x = numbers.floats(m * stride);
    // Subnormal numbers, and numbers that become so when they are rounded or not at all.
    for i in (0..x.len()).step_by(37) {
        x[i] = [1e-40, -1e-45, 1.17e-38, 0.0][i % 4];
    }
    let halves: Vec<u16> = x.iter().map(|&x| bf16(x)).collect();
    let mut w: Vec<u16> = numbers.floats(n * k).into_iter().map(bf16).collect();
    for i in (0..w.len()).step_by(41) {
        w[i] = [0x0001, 0x8040, 0x0000, 0x8000][i % 4];
    }
    let mut packed = vec![0u16; n.div_ceil(16) * 16 * k];
    for row in 0..n {
        for col in 0..k {
            packed[row / 16 * 16 * k + col / 2 * 32 + row % 16 * 2 + col % 2] = w[row * k + col];
        }
    }
    let want: Vec<f32> = (0..m * n)
        .map(|i| {
            let (row, col) = (i / n, i % n);
            let term = |sum: f32, at: usize| value(halves[row * stride + at]).mul_add(value(w[col * k + at]), sum);
            (0..k / 2).fold(0.0, |sum, pair| term(term(sum, 2 * pair + 1), 2 * pair))
        })
        .collect();
    for isa in isas() {
        let pool = Threads(2);
        let ctx = Context { isa, pool: if m % 2 == 0 { &Serial } else { &pool } };
        let layout = Layout::new(&[m, k], &[stride, 1]).unwrap();
        let op = Linear {
            cols: n,
            x: if rounded {
                Input::Bf16(View::new(&halves, 0, layout).unwrap())
            } else {
                Input::F32(View::new(&x, 0, layout).unwrap())
            },
            weights: Weights::Bf16(&packed),
            bias: None,
            act: Act::None,
            gate: None,
            residual: None,
        };
        let mut y = vec![f32::NAN; m * n];
        let mut scratch = vec![f32::NAN; linear_scratch(&op, isa)];
        linear(&ctx, &op, Output::F32(ViewMut::dense(&mut y, &[m, n]).unwrap()), &mut scratch);
        assert_eq!(bits(&y), bits(&want), "{} {m}x{k}x{n}", isa.name());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn bf16_rounds_as_the_page_says(
        (m, pairs, n) in (1..40usize, 1..180usize, 1..120usize),
        gap in 0..3usize,
        rounded: bool,
        seed: u64,
    ) {
        check_bf16((m, 2 * pairs, n), gap, rounded, seed);
    }
}

#[test]
fn bf16_of_many_tiles_and_passes() {
    check_bf16((150, 300, 210), 5, false, 4);
    check_bf16((77, 258, 97), 0, true, 5);
}

/// Rows of leading dimensions that are not evenly spaced, in every type.
#[test]
fn uneven_rows_are_found() {
    let (b, t, k, n) = (3, 4, 8, 9);
    let layout = Layout::new(&[b, t, k], &[7 * k, k, 1]).unwrap();
    let shape = [b, t, n];
    let bytes: Vec<u8> = (0..b * 7 * k).map(|i| (i * 37 % 256) as u8).collect();
    let floats: Vec<f32> = bytes.iter().map(|&v| f32::from(v)).collect();
    let halves: Vec<u16> = floats.iter().map(|&x| bf16(x)).collect();
    let w: Vec<i64> = (0..n * k).map(|i| (i * 29 % 255) as i64 - 127).collect();
    let stored = pack(&w, (n, k), FORMATS[0]);
    let mut pairs = vec![0u16; 16 * k];
    for (i, &w) in w.iter().enumerate() {
        pairs[i % k / 2 * 32 + i / k * 2 + i % 2] = bf16(w as f32);
    }
    let (scale, sum) = (vec![1.0; n], vec![0.0; n]);
    let integers = Integers { stored: &stored, bits: Bits::Eight, scale: &scale, sum: &sum, groups: 1, chain: 0 };
    let want: Vec<f32> = (0..b * t * n)
        .map(|i| {
            let start = i / n / t * 7 * k + i / n % t * k;
            (0..k).map(|j| i64::from(bytes[start + j]) * w[i % n * k + j]).sum::<i64>() as f32
        })
        .collect();
    let inputs = [
        (Input::Bytes { q: View::new(&bytes, 0, layout).unwrap(), grid: &[1.0, 0.0] }, Weights::Integers(integers)),
        (Input::F32(View::new(&floats, 0, layout).unwrap()), Weights::Bf16(&pairs)),
        (Input::Bf16(View::new(&halves, 0, layout).unwrap()), Weights::Bf16(&pairs)),
    ];
    for isa in isas() {
        for (x, weights) in inputs {
            let op = Linear { cols: n, x, weights, bias: None, act: Act::None, gate: None, residual: None };
            let mut scratch = vec![f32::NAN; linear_scratch(&op, isa)];
            let target = Layout::new(&shape, &[5 * n, n, 1]).unwrap();
            let mut y = vec![0.0; b * 5 * n];
            let ctx = Context { isa, pool: &Serial };
            linear(&ctx, &op, Output::F32(ViewMut::new(&mut y, 0, target).unwrap()), &mut scratch);
            let got: Vec<f32> = (0..b * t * n).map(|i| y[target.offset(i)]).collect();
            assert_eq!(got, want, "{}", isa.name());
        }
    }
}
