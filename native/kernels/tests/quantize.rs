//! `quantize` against the formula of docs/plan-format.md, byte for byte on every instruction set and number of threads.

mod common;

use common::{Numbers, Threads, isas};
use proptest::prelude::*;
use scoregraph_kernels::format::{Grid, Rows};
use scoregraph_kernels::norm::{Affine, layer_norm, rms_norm};
use scoregraph_kernels::quantize::{quantize, quantize_image, quantize_image_scratch, rows_scratch};
use scoregraph_kernels::{Act, Context, Isa, Layout, Parallel, Serial, View, ViewMut};

/// The grid that spans the values, and the factor that quantizes with it.
fn spanning(values: &[f32], top: f32) -> ([f32; 2], f32) {
    let (low, high) = values.iter().fold((0f32, 0f32), |(low, high), &x| (low.min(x), high.max(x)));
    if values.iter().any(|x| !x.is_finite()) || !(high - low).is_finite() {
        return ([f32::NAN, 0.0], 0.0);
    }
    let inv = top / (high - low);
    if inv.is_infinite() || inv.is_nan() {
        ([0.0; 2], 0.0)
    } else {
        ([(high - low) / top, (-low * inv).round_ties_even()], inv)
    }
}

fn byte(x: f32, inv: f32, zero: f32, top: f32) -> u8 {
    ((x * inv).round_ties_even() + zero).clamp(0.0, top) as u8
}

/// What every instruction set makes on one thread and on three: asserted to be the same, and returned.
fn same_everywhere<T: PartialEq + std::fmt::Debug>(make: impl Fn(&Context) -> T) -> T {
    let first = make(&Context { isa: Isa::Scalar, pool: &Serial });
    for isa in isas() {
        for pool in [&Serial as &dyn Parallel, &Threads(3)] {
            assert_eq!(make(&Context { isa, pool }), first, "{} with {} threads", isa.name(), pool.threads());
        }
    }
    first
}

/// Floats of a size, some of them extreme.
fn values(seed: u64, n: usize, size: f32, kind: u8) -> Vec<f32> {
    let mut numbers = Numbers(seed);
    let mut x: Vec<f32> = (0..n).map(|_| size * numbers.float()).collect();
    match kind {
        0 => x.fill(0.0),
        1 => x.iter_mut().for_each(|x| *x = x.abs()),
        2 => x.iter_mut().for_each(|x| *x = -x.abs()),
        3 => x[numbers.below(n)] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][numbers.below(3)],
        4 => x[numbers.below(n)] = [f32::MAX, f32::MIN, -0.0][numbers.below(3)],
        _ => {}
    }
    x
}

type Norm = fn(&Context, f32, &Affine, &View, &mut Rows, &mut [f32]);

const SIZES: [f32; 6] = [1.0, 1e-3, 300.0, 3.4e38, 1e-37, 1e-42];

fn bits(grid: &[f32]) -> Vec<u32> {
    grid.iter().map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn rows_are_measured_and_quantized(
        (groups, share, cols, gap) in (1..11usize, 1..4usize, 1..200usize, 0..3usize),
        size in prop::sample::select(&SIZES[..]),
        kind in 0..8u8,
        top in prop::sample::select(&[255u8, 127][..]),
        seed: u64,
    ) {
        let rows = groups * share;
        let data = values(seed, rows * (cols + gap), size, kind);
        let layout = Layout::new(&[groups, share, cols], &[share * (cols + gap), cols + gap, 1]).unwrap();
        let in_rows = layout.span();
        let x = View::new(&data[..in_rows], 0, layout).unwrap();
        let (bytes, grid) = same_everywhere(|ctx| {
            // The result has gaps as well, which stay as they are.
            let (mut bytes, mut grid) = (vec![77u8; in_rows], vec![7.0f32; 2 * groups]);
            let y = ViewMut::new(&mut bytes, 0, layout).unwrap();
            let mut out = Rows::Bytes { y, top, grid: Grid::Measured(&mut grid) };
            quantize(ctx, &x, None, &mut out, &mut vec![f32::NAN; rows_scratch(rows, cols, ctx.pool.threads())]);
            (bytes, bits(&grid))
        });
        for group in 0..groups {
            let row = |m: usize| &data[(group * share + m) * (cols + gap)..][..cols];
            let all: Vec<f32> = (0..share).flat_map(row).copied().collect();
            let (want, inv) = spanning(&all, f32::from(top));
            prop_assert_eq!(&grid[2 * group..2 * group + 2], &bits(&[want[0], want[1] + 0.0])[..]);
            for m in 0..share {
                let start = (group * share + m) * (cols + gap);
                for (i, &x) in row(m).iter().enumerate() {
                    let want_byte = if want[0].is_nan() { 0 } else { byte(x, inv, want[1], f32::from(top)) };
                    prop_assert_eq!(bytes[start + i], want_byte, "{} in {:?}", x, want);
                    // What the bytes mean is the value to half a step, and a step at the ends.
                    if want[0] > f32::MIN_POSITIVE {
                        let value = f64::from(want[0]) * (f64::from(want_byte) - f64::from(want[1]));
                        prop_assert!((value - f64::from(x)).abs() <= 1.001 * f64::from(want[0]), "{} as {}", x, value);
                    }
                }
                if start + cols < in_rows {
                    prop_assert!(bytes[start + cols..start + cols + gap].iter().all(|&b| b == 77));
                }
            }
        }
    }

    #[test]
    fn grids_that_are_given_clamp(
        (groups, share, cols) in (1..4usize, 1..4usize, 1..100usize),
        size in prop::sample::select(&SIZES[..]),
        scale in prop::sample::select(&[0.01f32, 1.0, 0.0, 1e-38, 1e-42, 1e30, f32::NAN, f32::INFINITY][..]),
        zero in prop::sample::select(&[0.0f32, 3.0, 127.0, 255.0, 0.5, -1.0, 1e9, f32::NAN][..]),
        kind in 0..8u8,
        top in prop::sample::select(&[255u8, 127][..]),
        seed: u64,
    ) {
        let rows = groups * share;
        let data = values(seed, rows * cols, size, kind);
        let x = View::dense(&data, &[rows, cols]).unwrap();
        let grid: Vec<f32> = (0..groups).flat_map(|g| [scale * (g + 1) as f32, zero]).collect();
        let bytes = same_everywhere(|ctx| {
            let mut bytes = vec![255u8; rows * cols];
            let y = ViewMut::dense(&mut bytes, &[rows, cols]).unwrap();
            let mut out = Rows::Bytes { y, top, grid: Grid::Given(&grid) };
            quantize(ctx, &x, None, &mut out, &mut vec![f32::NAN; rows_scratch(rows, cols, ctx.pool.threads())]);
            bytes
        });
        // Whatever the grid, a byte of 7 bits is one: kernels that multiply bytes rely on it.
        prop_assert!(bytes.iter().all(|&b| b <= top));
        if zero.fract() == 0.0 && (0.0..=f32::from(top)).contains(&zero) {
            for (i, (&x, &made)) in data.iter().zip(&bytes).enumerate() {
                let inv = 1.0 / grid[2 * (i / (cols * share))];
                let inv = if inv.is_finite() { inv } else { 0.0 };
                if !(x * inv).is_nan() {
                    prop_assert_eq!(made, byte(x, inv, zero, f32::from(top)), "{}", x);
                }
            }
        }
    }

    #[test]
    fn images_become_quads(
        (groups, share, channels, pixels) in (1..3usize, 1..3usize, 1..10usize, prop_oneof![1..40usize, 2040..2060usize]),
        measured: bool,
        kind in 0..8u8,
        top in prop::sample::select(&[255u8, 127][..]),
        seed: u64,
    ) {
        let n = groups * share;
        // The channels are a slice of a larger image's.
        let wide = channels + 2;
        let data = values(seed, n * wide * pixels, 3.0, kind);
        let layout = Layout::new(&[n, channels, pixels], &[wide * pixels, pixels, 1]).unwrap();
        let x = View::new(&data, pixels, layout).unwrap();
        let given: Vec<f32> = (0..groups).flat_map(|g| [0.02 + g as f32 * 0.01, 40.0]).collect();
        let (bytes, grid) = same_everywhere(|ctx| {
            let mut bytes = vec![77u8; n * channels.next_multiple_of(4) * pixels];
            let mut own = given.clone();
            let mut grid = if measured { Grid::Measured(&mut own) } else { Grid::Given(&given) };
            quantize_image(ctx, &x, None, &mut bytes, top, &mut grid, &mut vec![f32::NAN; quantize_image_scratch(n, channels)]);
            (bytes, bits(&own))
        });
        let plane = |image: usize, channel: usize| &data[(image * wide + channel + 1) * pixels..][..pixels];
        for group in 0..groups {
            let all: Vec<f32> = (group * share..(group + 1) * share)
                .flat_map(|image| (0..channels).flat_map(move |channel| plane(image, channel)))
                .copied()
                .collect();
            let (want, inv) = if measured { spanning(&all, f32::from(top)) } else { ([given[2 * group], 40.0], 1.0 / given[2 * group]) };
            prop_assert_eq!(&grid[2 * group..2 * group + 2], &bits(&[want[0], want[1] + 0.0])[..]);
            for image in group * share..(group + 1) * share {
                for channel in 0..channels.next_multiple_of(4) {
                    for pixel in 0..pixels {
                        let made = bytes[((image * channels.div_ceil(4) + channel / 4) * pixels + pixel) * 4 + channel % 4];
                        let x = if channel < channels { plane(image, channel)[pixel] } else { f32::NAN };
                        let lost = x.is_nan() || want[0].is_nan();
                        prop_assert_eq!(made, if lost { 0 } else { byte(x, inv, want[1], f32::from(top)) });
                    }
                }
            }
        }
    }

    /// Factors make of rows and images what they make of values that were multiplied before.
    #[test]
    fn factors_are_multiplied_first(
        (n, channels, pixels) in (1..4usize, 1..40usize, 1..50usize),
        shared: bool,
        measured: bool,
        size in prop::sample::select(&SIZES[..]),
        (kind, factor_kind) in (0..8u8, 0..24u8),
        top in prop::sample::select(&[255u8, 127][..]),
        seed: u64,
    ) {
        let data = values(seed, n * channels * pixels, size, kind);
        let factors = values(!seed, channels, 2.0, factor_kind);
        let grids = if shared { 1 } else { n };
        let given = [0.02 * size, 40.0].repeat(grids);
        let image = |x: &[f32], smooth: Option<&[f32]>| same_everywhere(|ctx| {
            let (mut bytes, mut own) = (vec![77u8; n * channels.next_multiple_of(4) * pixels], vec![7.0; 2 * grids]);
            let mut grid = if measured { Grid::Measured(&mut own) } else { Grid::Given(&given) };
            let x = View::dense(x, &[n, channels, pixels]).unwrap();
            let mut scratch = vec![f32::NAN; quantize_image_scratch(n, channels)];
            quantize_image(ctx, &x, smooth, &mut bytes, top, &mut grid, &mut scratch);
            (bytes, bits(&own))
        });
        let times: Vec<f32> = data.iter().enumerate().map(|(i, x)| x * factors[i / pixels % channels]).collect();
        prop_assert_eq!(image(&data, Some(&factors)), image(&times, None));
        let rows = |x: &[f32], smooth: Option<&[f32]>| same_everywhere(|ctx| {
            let (mut bytes, mut own) = (vec![77u8; x.len()], vec![7.0; 2 * grids]);
            let y = ViewMut::dense(&mut bytes, &[n * pixels, channels]).unwrap();
            let grid = if measured { Grid::Measured(&mut own) } else { Grid::Given(&given) };
            let mut scratch = vec![f32::NAN; rows_scratch(n * pixels, channels, ctx.pool.threads())];
            let x = View::dense(x, &[n * pixels, channels]).unwrap();
            quantize(ctx, &x, smooth, &mut Rows::Bytes { y, top, grid }, &mut scratch);
            (bytes, bits(&own))
        });
        let times: Vec<f32> = data.iter().enumerate().map(|(i, x)| x * factors[i % channels]).collect();
        prop_assert_eq!(rows(&data, Some(&factors)), rows(&times, None));
    }

    /// A norm that quantizes is the norm, then `quantize`.
    #[test]
    fn norms_quantize_what_they_would_write(
        (n, cols) in (1..6usize, 1..70usize),
        shared: bool,
        smoothed: bool,
        top in prop::sample::select(&[255u8, 127][..]),
        seed: u64,
    ) {
        let mut numbers = Numbers(seed);
        let (data, weight, factors) = (numbers.floats(n * cols), numbers.floats(cols), numbers.floats(cols));
        let x = View::dense(&data, &[n, cols]).unwrap();
        let smooth = smoothed.then_some(&factors[..]);
        let grids = if shared { 1 } else { n };
        for (norm, centred) in [(layer_norm as Norm, true), (rms_norm, false)] {
            for isa in isas() {
                let ctx = Context { isa, pool: &Threads(2) };
                let act = if centred { Act::Silu } else { Act::None };
                let plain = Affine { weight: Some(&weight), act, ..Affine::NONE };
                let mut floats = vec![0.0; n * cols];
                norm(&ctx, 1e-5, &plain, &x, &mut Rows::F32(ViewMut::dense(&mut floats, &[n, cols]).unwrap()), &mut []);
                let write = |make: &dyn Fn(&mut Rows, &mut [f32])| {
                    let (mut bytes, mut grid) = (vec![77u8; n * cols], vec![7.0; 2 * grids]);
                    let y = ViewMut::dense(&mut bytes, &[n, cols]).unwrap();
                    let mut y = Rows::Bytes { y, top, grid: Grid::Measured(&mut grid) };
                    make(&mut y, &mut vec![f32::NAN; rows_scratch(n, cols, 2)]);
                    (bytes, bits(&grid))
                };
                let made = write(&|y, scratch| norm(&ctx, 1e-5, &Affine { smooth, ..plain }, &x, y, scratch));
                let floats = View::dense(&floats, &[n, cols]).unwrap();
                prop_assert_eq!(made, write(&|y, scratch| quantize(&ctx, &floats, smooth, y, scratch)), "{}", isa.name());
            }
        }
    }

    #[test]
    fn bf16_is_the_nearest((rows, cols) in (1..5usize, 1..100usize), kind in 0..8u8, seed: u64) {
        let data = values(seed, rows * cols, 10.0, kind);
        let x = View::dense(&data, &[rows, cols]).unwrap();
        let made = same_everywhere(|ctx| {
            let mut y = vec![7u16; rows * cols];
            let mut out = Rows::Bf16(ViewMut::dense(&mut y, &[rows, cols]).unwrap());
            quantize(ctx, &x, None, &mut out, &mut vec![f32::NAN; rows_scratch(rows, cols, ctx.pool.threads())]);
            y
        });
        for (&x, made) in data.iter().zip(made) {
            let value = f32::from_bits(u32::from(made) << 16);
            let close = (f64::from(value) - f64::from(x)).abs() <= f64::from(x.abs()) * 2f64.powi(-8);
            prop_assert!(close || (x.is_nan() && value.is_nan()) || x == value || x.abs() == f32::MAX, "{} as {}", x, value);
        }
    }
}
