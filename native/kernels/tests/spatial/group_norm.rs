//! Group norm against its definition in float64.

use proptest::prelude::*;
use scoregraph_kernels::Context;
use scoregraph_kernels::format::Grid;
use scoregraph_kernels::group_norm::{GroupNorm, Normed, group_norm, group_norm_scratch};
use scoregraph_simd::{Act, Isa};

use crate::support::{Images, Threads, act64, bits, float_isas, leading_columns, numbers};

#[derive(Clone)]
struct Case {
    batch: usize,
    channels: usize,
    groups: usize,
    space: usize,
    act: Act,
    x: Vec<f32>,
    /// Weight and bias, `[C]`.
    affine: [Option<Vec<f32>>; 2],
    /// Scale and shift, in rows of `C + 5`.
    modulation: [Option<Vec<f32>>; 2],
    /// Factors of the channels where the result is quantized, `[C]`.
    smooth: Option<Vec<f32>>,
}

impl Case {
    fn new([batch, channels, groups, space]: [usize; 4], operands: [bool; 4], act: Act, seed: u64) -> Self {
        let operand = |index: usize, size: usize| operands[index].then(|| numbers(seed + 1 + index as u64, size));
        let rows = batch * (channels + 5);
        Case {
            batch,
            channels,
            groups,
            space,
            act,
            x: numbers(seed, batch * channels * space),
            affine: [operand(0, channels), operand(1, channels)],
            modulation: [operand(2, rows), operand(3, rows)],
            smooth: None,
        }
    }

    /// Images that are slices of the channels of larger ones.
    fn run(&self, isa: Isa, threads: usize) -> Vec<f32> {
        let images = Images::new([self.batch, self.channels, self.space]);
        let mut y = vec![f32::NAN; images.floats()];
        self.run_into(isa, threads, &images, &mut Normed::F32(images.view_mut(&mut y)));
        images.gather(&y)
    }

    /// The channel quads and the grid: `given`, or `rows` measured ones.
    fn run_quantized(
        &self,
        isa: Isa,
        threads: usize,
        top: u8,
        given: Option<&[f32]>,
        rows: usize,
    ) -> (Vec<u8>, Vec<f32>) {
        let images = Images::new([self.batch, self.channels, self.space]);
        let mut y = vec![0xA5; self.batch * self.channels.next_multiple_of(4) * self.space];
        let mut measured = vec![f32::NAN; 2 * rows];
        let grid = given.map_or_else(|| Grid::Measured(&mut measured), Grid::Given);
        self.run_into(isa, threads, &images, &mut Normed::Bytes { y: &mut y, top, grid });
        (y, measured)
    }

    fn run_into(&self, isa: Isa, threads: usize, images: &Images, y: &mut Normed) {
        let [weight, bias] = self.affine.each_ref().map(|vector| vector.as_deref());
        let [scale, shift] = self
            .modulation
            .each_ref()
            .map(|rows| rows.as_deref().map(|rows| leading_columns(rows, self.batch, self.channels, 5)));
        let op = GroupNorm {
            channels: self.channels,
            groups: self.groups,
            eps: 1e-5,
            weight,
            bias,
            scale,
            shift,
            act: self.act,
            smooth: self.smooth.as_deref().filter(|_| matches!(y, Normed::Bytes { .. })),
        };
        let x = images.spread(&self.x);
        let mut scratch = vec![f32::NAN; group_norm_scratch(self.batch, self.channels)];
        group_norm(&Context { isa, pool: &Threads(threads) }, &op, &images.view(&x), y, &mut scratch);
    }

    fn reference(&self) -> Vec<f64> {
        let group = self.channels / self.groups * self.space;
        let mut y = Vec::new();
        for (index, x) in self.x.chunks(group).enumerate() {
            let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / group as f64;
            let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / group as f64;
            let sample = index / self.groups;
            for (at, &x) in x.iter().enumerate() {
                let channel = index % self.groups * (self.channels / self.groups) + at / self.space;
                let affine = |which: usize, absent: f64| {
                    self.affine[which].as_ref().map_or(absent, |vector| f64::from(vector[channel]))
                };
                let modulation = |which: usize| {
                    let rows = self.modulation[which].as_ref();
                    rows.map_or(0.0, |rows| f64::from(rows[sample * (self.channels + 5) + channel]))
                };
                let norm = (f64::from(x) - mean) / (variance + f64::from(1e-5f32)).sqrt();
                let affine = norm * affine(0, 1.0) + affine(1, 0.0);
                y.push(act64(self.act, affine * (1.0 + modulation(0)) + modulation(1)));
            }
        }
        y
    }
}

/// Close to float64 on every instruction set, and the same bits on any number of threads.
fn check(case: &Case, tolerance: f64) {
    let reference = case.reference();
    for isa in float_isas() {
        let y = case.run(isa, 1);
        for (index, (&y, &expected)) in y.iter().zip(&reference).enumerate() {
            let error = (f64::from(y) - expected).abs();
            assert!(error <= tolerance * expected.abs().max(1.0), "{isa:?}: y[{index}] = {y}, not {expected}");
        }
        assert_eq!(bits(&case.run(isa, 3)), bits(&y), "{isa:?}: threads");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape(
        batch in 1usize..=3,
        groups in 1usize..=4,
        per_group in 1usize..=5,
        space in 1usize..=70,
        operands in proptest::array::uniform4(any::<bool>()),
        act in proptest::sample::select(vec![Act::None, Act::Silu, Act::Relu, Act::Tanh]),
        seed in any::<u32>(),
    ) {
        // In a group of one element the norm is 0 / sqrt(eps); with few, rounding of x is magnified by up to 1 / sqrt(eps).
        prop_assume!(per_group * space >= 8);
        check(&Case::new([batch, groups * per_group, groups, space], operands, act, u64::from(seed)), 2e-6);
    }
}

#[test]
fn groups_of_many_blocks() {
    for space in [2048, 2049, 128 * 128, 3 * 2048 + 17] {
        check(&Case::new([2, 4, 2, space], [true; 4], Act::Silu, 9), 1e-6);
    }
}

/// Values around 1000 with a deviation of 0.6: a variance from the mean of squares would lose all but two digits.
#[test]
fn a_large_mean_costs_no_digits() {
    let mut case = Case::new([1, 2, 1, 5000], [true; 4], Act::None, 4);
    for x in &mut case.x {
        *x += 1000.0;
    }
    check(&case, 2e-6);
}

#[test]
fn a_drifting_mean_costs_no_digits() {
    let mut case = Case::new([1, 2, 1, 9000], [false; 4], Act::None, 4);
    for (i, x) in case.x.iter_mut().enumerate() {
        *x += (i / 2048) as f32 * 50.0;
    }
    check(&case, 1e-6);
}

/// The shift of a block is what the mean was before it: here it is off by far more than the block's own deviation, in the
/// first block, in a later one, or from channel to channel.
#[test]
fn means_far_apart_cost_no_digits() {
    for (channels, space, first) in
        [(2, 9000, 0), (2, 9000, 2048), (2, 9000, 8192), (8, 2048, 0), (16, 700, 0), (64, 60, 0)]
    {
        for far in [0..first + 60, first..first + space, first + 100..usize::MAX] {
            let mut case = Case::new([1, channels, 1, space], [false; 4], Act::None, 4);
            for (_, x) in case.x.iter_mut().enumerate().filter(|(i, _)| far.contains(i)) {
                *x += 1000.0;
            }
            check(&case, 2e-6);
        }
    }
}

#[test]
fn constant_groups_are_zero() {
    let mut case = Case::new([1, 4, 2, 33], [false; 4], Act::None, 0);
    case.x.fill(7.25);
    for isa in float_isas() {
        assert!(case.run(isa, 1).iter().all(|&y| y == 0.0), "{isa:?}");
    }
}

#[test]
fn a_nan_stays_in_its_group() {
    let mut case = Case::new([2, 4, 2, 50], [true; 4], Act::Silu, 0);
    case.x[130] = f32::NAN;
    for isa in float_isas() {
        for (index, y) in case.run(isa, 2).into_iter().enumerate() {
            assert_eq!(y.is_nan(), (100..200).contains(&index), "{isa:?} y[{index}] = {y}");
        }
    }
}

#[test]
fn a_sample_does_not_know_its_batch() {
    let together = Case::new([4, 6, 3, 37], [true; 4], Act::Silu, 8);
    for isa in float_isas() {
        let y = together.run(isa, 2);
        for sample in 0..4 {
            let alone = Case {
                batch: 1,
                x: together.x[sample * 222..][..222].to_vec(),
                modulation: together.modulation.clone().map(|rows| rows.map(|rows| rows[sample * 11..][..11].to_vec())),
                ..together.clone()
            };
            assert_eq!(bits(&alone.run(isa, 1)), bits(&y[sample * 222..][..222]), "{isa:?} sample {sample}");
        }
    }
}

#[test]
fn nothing_to_do() {
    let case = Case::new([0, 4, 2, 9], [false; 4], Act::None, 0);
    assert!(float_isas().all(|isa| case.run(isa, 2).is_empty()));
}

/// The place and value of an activation's lowest point, by looking: none if it only rises.
fn bottom(act: Act) -> Option<(f64, f64)> {
    let places = (0..300_000).map(|i| -3.0 + 1e-5 * f64::from(i));
    let (place, value) = places.map(|x| (x, act64(act, x))).min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    (value < act64(act, -3.0) - 1e-9).then_some((place, value))
}

/// Bytes and grids of a case on one instruction set.
fn check_quantized(case: &Case, top: u8, rows: usize) {
    let Case { batch, channels, space, .. } = *case;
    let (sample, share, levels) = (channels * space, batch / rows, f64::from(top));
    let lowest = bottom(case.act);
    let factor = |plane: usize| case.smooth.as_ref().map_or(1.0, |factors| factors[plane % channels]);
    for isa in float_isas() {
        let normed = Case { act: Act::None, ..case.clone() }.run(isa, 1);
        // What a plane spans: its values at the ends of the normalised ones, and the lowest point between them.
        let span = |plane: usize| {
            let mut ends = [f64::INFINITY, f64::NEG_INFINITY];
            for &v in &normed[plane * space..][..space] {
                ends = [ends[0].min(f64::from(v)), ends[1].max(f64::from(v))];
            }
            let mut made = ends.map(|v| act64(case.act, v)).to_vec();
            made.extend(lowest.filter(|(place, _)| (ends[0]..=ends[1]).contains(place)).map(|(_, value)| value));
            made.into_iter().map(|y| y * f64::from(factor(plane))).collect::<Vec<_>>()
        };
        let wanted: Vec<[f64; 2]> = (0..rows)
            .map(|row| {
                let planes = row * share * channels..(row + 1) * share * channels;
                let (low, high) = planes.flat_map(span).fold((0f64, 0f64), |(a, b), y| (a.min(y), b.max(y)));
                [(high - low) / levels, if high > low { -low * levels / (high - low) } else { 0.0 }]
            })
            .collect();
        // Every byte is the value's nearest on the grid, which clamps: to rounding, and that of a coarse SiLU.
        let check_bytes = |bytes: &[u8], grid: &[f32]| {
            for n in 0..batch {
                let [scale, zero] = [0, 1].map(|i| f64::from(grid[2 * (n / share) + i]));
                for channel in 0..channels.next_multiple_of(4) {
                    for pixel in 0..space {
                        let quad = (n * channels.div_ceil(4) + channel / 4) * space + pixel;
                        let byte = f64::from(bytes[4 * quad + channel % 4]);
                        if channel >= channels {
                            assert!(byte <= levels);
                            continue;
                        }
                        if scale == 0.0 {
                            assert_eq!(byte, 0.0);
                            continue;
                        }
                        let v = f64::from(normed[n * sample + channel * space + pixel]);
                        let y = act64(case.act, v) * f64::from(factor(channel));
                        let exact = (y / scale + zero).clamp(0.0, levels);
                        let coarse =
                            if case.act == Act::Silu { 1e-5 * f64::from(factor(channel)).abs() / scale } else { 0.0 };
                        assert!((byte - exact).abs() <= 0.502 + coarse, "{isa:?}: {v} became {byte}, not {exact}");
                    }
                }
            }
        };
        let (bytes, grid) = case.run_quantized(isa, 1, top, None, rows);
        for (own, [scale, zero]) in grid.chunks(2).zip(&wanted) {
            assert!((f64::from(own[0]) - scale).abs() <= 2e-6 * scale, "{isa:?}: {own:?}, not {scale}");
            assert!((f64::from(own[1]) - zero).abs() <= 0.501 && own[1].fract() == 0.0, "{isa:?}: {own:?}, not {zero}");
        }
        check_bytes(&bytes, &grid);
        let again = case.run_quantized(isa, 3, top, None, rows);
        assert!(again.0 == bytes && bits(&again.1) == bits(&grid), "{isa:?}: threads");
        // A grid that was chosen before, too narrow for all values.
        let given: Vec<f32> = grid.chunks(2).flat_map(|row| [row[0] * 0.7, row[1]]).collect();
        check_bytes(&case.run_quantized(isa, 2, top, Some(&given), rows).0, &given);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_quantized_shape(
        batch in 1usize..=3,
        groups in 1usize..=4,
        per_group in 1usize..=5,
        space in 1usize..=70,
        act in proptest::sample::select(vec![Act::None, Act::Silu, Act::Relu, Act::Tanh, Act::Sigmoid, Act::QuickGelu, Act::GeluTanh]),
        top in proptest::sample::select(vec![127u8, 255]),
        (shared, smoothed) in any::<(bool, bool)>(),
        seed in any::<u32>(),
    ) {
        let mut case = Case::new([batch, groups * per_group, groups, space], [true; 4], act, u64::from(seed));
        case.smooth = smoothed.then(|| numbers(u64::from(!seed), groups * per_group));
        check_quantized(&case, top, if shared { 1 } else { batch });
    }
}

#[test]
fn quads_of_many_tiles() {
    check_quantized(&Case::new([2, 6, 3, 2 * 2048 + 19], [true; 4], Act::Silu, 3), 255, 2);
}

/// Planes that reach the lowest point of SiLU, stay right or left of it, or have only elements far from it on both sides.
#[test]
fn a_grid_covers_what_silu_makes_of_the_interval() {
    for (seed, gain, offset) in
        [(1, 1.0, 0.0), (2, 0.2, 0.5), (3, 0.2, -3.0), (4, 0.3, -1.2), (5, 3.0, 0.0), (6, 0.01, -1.27)]
    {
        let mut case = Case::new([1, 4, 2, 1500 + seed], [true, true, false, false], Act::Silu, seed as u64);
        case.affine = [Some(vec![gain; 4]), Some(vec![offset; 4])];
        check_quantized(&case, 255, 1);
        for x in &mut case.x {
            *x = x.signum();
        }
        check_quantized(&case, 255, 1);
    }
}

/// Values beyond the range of the coarse SiLU, and means so large that they have to be subtracted first.
#[test]
fn quads_with_values_and_means_far_from_0() {
    for (gain, mean) in [(60.0, 0.0), (-200.0, 3.0), (1.0, 50.0), (1.0, 1000.0), (20.0, -1e4)] {
        let mut case = Case::new([2, 6, 3, 300], [true, true, false, false], Act::Silu, 8);
        case.affine = [Some(vec![1.0, gain, gain, 1.0, 1.0, gain]), Some(vec![0.1; 6])];
        case.x.iter_mut().for_each(|x| *x += mean);
        check_quantized(&case, 255, 2);
    }
}

#[test]
fn a_nan_makes_its_grid_row_nan() {
    let mut case = Case::new([2, 4, 2, 50], [true; 4], Act::Silu, 0);
    for lost in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        case.x[130] = lost;
        for isa in float_isas() {
            let (_, grid) = case.run_quantized(isa, 2, 255, None, 2);
            assert!(grid[0].is_nan() && grid[2].is_finite(), "{isa:?} {grid:?}");
        }
    }
}
