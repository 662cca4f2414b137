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

/// Scale, zero and inverse of the grid row that spans `values` (docs/plan-format.md, Formats).
fn spanning(values: &[f32], top: f32) -> [f32; 3] {
    let low = values.iter().copied().fold(0.0, f32::min);
    let high = values.iter().copied().fold(0.0, f32::max);
    if high == low {
        return [0.0; 3];
    }
    let inv = top / (high - low);
    [(high - low) / top, (-low * inv).round_ties_even() + 0.0, inv]
}

/// The bytes are those of the very floats that the same call writes as float32, times the factors of their channels, and so
/// is the grid that it measures.
fn check_quantized(case: &Case, top: u8, rows: usize) {
    let Case { batch, channels, space, .. } = *case;
    let (sample, share) = (channels * space, batch / rows);
    for isa in float_isas() {
        let mut values = case.run(isa, 1);
        if let Some(factors) = &case.smooth {
            for (channel, plane) in values.chunks_mut(space).enumerate() {
                plane.iter_mut().for_each(|value| *value *= factors[channel % channels]);
            }
        }
        let spans: Vec<_> = values.chunks(share * sample).map(|values| spanning(values, f32::from(top))).collect();
        let expected = |spans: &[[f32; 3]]| {
            let mut bytes = vec![0; batch * channels.next_multiple_of(4) * space];
            for (i, &value) in values.iter().enumerate() {
                let (n, channel, pixel) = (i / sample, i / space % channels, i % space);
                let [_, zero, inv] = spans[n / share];
                let quad = (n * channels.div_ceil(4) + channel / 4) * space + pixel;
                let byte = ((value * inv).round_ties_even() + zero).clamp(0.0, f32::from(top));
                bytes[4 * quad + channel % 4] = byte as u8;
            }
            bytes
        };
        let grid: Vec<f32> = spans.iter().flat_map(|[scale, zero, _]| [*scale, *zero]).collect();
        for threads in [1, 3] {
            let (bytes, measured) = case.run_quantized(isa, threads, top, None, rows);
            assert_eq!(bits(&measured), bits(&grid), "{isa:?}");
            assert_eq!(bytes, expected(&spans), "{isa:?} {top}");
        }
        // A grid that was chosen before, too narrow for all values.
        let narrow: Vec<_> = spans.iter().map(|[scale, zero, _]| [scale * 0.7, *zero, 1.0 / (scale * 0.7)]).collect();
        let given: Vec<f32> = narrow.iter().flat_map(|[scale, zero, _]| [*scale, *zero]).collect();
        if narrow.iter().all(|[scale, ..]| *scale > 0.0) {
            assert_eq!(case.run_quantized(isa, 2, top, Some(&given), rows).0, expected(&narrow), "{isa:?} given");
        }
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
        act in proptest::sample::select(vec![Act::None, Act::Silu, Act::Relu, Act::Tanh]),
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

/// The extremes of SiLU: rows that reach its bottom, stay right or left of it, or have only elements far from it on both sides.
#[test]
fn extremes_of_silu_are_those_of_all_values() {
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

#[test]
fn a_nan_makes_its_grid_row_nan() {
    let mut case = Case::new([2, 4, 2, 50], [true; 4], Act::Silu, 0);
    case.x[130] = f32::NAN;
    for isa in float_isas() {
        let (_, grid) = case.run_quantized(isa, 2, 255, None, 2);
        assert!(grid[0].is_nan() && grid[2].is_finite(), "{isa:?} {grid:?}");
    }
}
