//! Minimal filtering against the same seven loops in float64 as the direct convolution.

use proptest::prelude::*;
use scoregraph_kernels::conv::{Conv2dShape, Winograd};
use scoregraph_simd::{Act, Isa};

use crate::conv2d::{Case, check_run, square};
use crate::support::{Threads, bits, float_isas, indices};

/// The output, from a convolution cut for `cut` threads and run on `threads`.
fn run(case: &Case, isa: Isa, cut: usize, threads: usize) -> Vec<f32> {
    let conv = Winograd::new(case.shape, isa, cut).unwrap();
    let w = conv.transform_weight(&case.weight);
    case.call(conv.scratch_floats(threads), |x, epilogue, y, scratch| {
        conv.run(&Threads(threads), &w, x, epilogue, y, scratch);
    })
}

/// Every instruction set is close to the reference.
///
/// The bound is not of each output's own terms: what the other three outputs of a tile read is added and taken away again. It is
/// the largest of the sums of absolute terms, which bounds all of them.
fn check(case: &Case) {
    let most = case.reference().iter().map(|&(_, size)| size).fold(1.0, f64::max);
    check_run(case, |isa, cut, threads| run(case, isa, cut, threads), &|_| 2e-6 * most);
}

fn upsampled(channels: usize, filters: usize, side: usize) -> Conv2dShape {
    Conv2dShape { up: [2; 2], ..square(channels, filters, side, 3, 1, 1) }
}

fn shapes() -> impl Strategy<Value = Conv2dShape> {
    let input = || proptest::array::uniform2(1usize..=70);
    let padding = proptest::array::uniform4(0usize..=2);
    let plain = (0usize..=9, 1usize..=33, input(), padding)
        .prop_map(|(channels, filters, input, padding)| Conv2dShape {
            input,
            padding,
            ..square(channels, filters, 1, 3, 1, 0)
        })
        .prop_filter("the kernel fits", |shape| shape.output().is_some());
    let twice = (0usize..=9, 1usize..=33, input())
        .prop_map(|(channels, filters, input)| Conv2dShape { input, ..upsampled(channels, filters, 1) });
    prop_oneof![2 => plain, 1 => twice]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape(
        shape in shapes(),
        batch in 1usize..=2,
        operands in proptest::array::uniform3(any::<bool>()),
        act in proptest::sample::select(vec![Act::None, Act::Silu, Act::Relu]),
        seed in any::<u32>(),
    ) {
        check(&Case::new(shape, batch, operands, act, u64::from(seed)));
    }
}

#[test]
fn shapes_of_real_networks() {
    for shape in [
        square(24, 40, 64, 3, 1, 1),
        square(96, 33, 16, 3, 1, 1),
        square(40, 75, 8, 3, 1, 1),
        square(17, 16, 34, 3, 1, 0),
        upsampled(24, 40, 16),
        upsampled(33, 16, 8),
    ] {
        check(&Case::new(shape, 2, [true; 3], Act::Silu, 7));
    }
}

#[test]
fn every_width_and_filter_tail() {
    for side in 1..=35 {
        check(&Case::new(square(2, side, side, 3, 1, 1), 1, [true, false, false], Act::None, side as u64));
        check(&Case::new(upsampled(2, side, side), 1, [true, false, false], Act::None, side as u64));
    }
}

#[test]
fn a_sample_does_not_know_its_batch() {
    for shape in [square(5, 31, 13, 3, 1, 1), upsampled(5, 31, 9)] {
        let batch = Case::new(shape, 4, [true; 3], Act::Silu, 3);
        for isa in float_isas() {
            let together = run(&batch, isa, 2, 2);
            let alone: Vec<f32> = (0..batch.batch).flat_map(|sample| run(&batch.sample(sample), isa, 1, 1)).collect();
            assert_eq!(bits(&alone), bits(&together), "{isa:?}");
        }
    }
}

/// What is not a number, or infinite, is seen by the outputs that read it and by no other; there it is not a number.
#[test]
fn a_nan_stays_in_its_window() {
    for up in [1, 2] {
        for (row, column, value) in
            (5..9).flat_map(|y| (5..9).map(move |x| (y, x, f32::NAN))).chain([(0, 0, f32::INFINITY)])
        {
            let mut case =
                Case::new(Conv2dShape { up: [up; 2], ..square(3, 8, 20, 3, 1, 1) }, 1, [false; 3], Act::None, 5);
            case.x[(20 + row) * 20 + column] = value;
            let seen = |at: usize, from: usize| ((from * up).saturating_sub(1)..=from * up + up).contains(&at);
            for isa in float_isas() {
                let y = run(&case, isa, 1, 1);
                for (_, o, y_row, y_column) in indices([1, 8, 20 * up, 20 * up]) {
                    let near = seen(y_row, row) && seen(y_column, column);
                    let y = y[(o * 20 * up + y_row) * 20 * up + y_column];
                    assert_eq!(!y.is_finite(), near, "{isa:?} at {y_row}, {y_column}");
                }
            }
        }
    }
}

/// The errors of minimal filtering beside those of the direct sums, in units of the largest output's terms: of the same order,
/// also where neighbouring pixels are of very different size.
#[test]
fn errors_are_of_the_order_of_direct_sums() {
    for spread in [0, 24] {
        let mut case = Case::new(square(64, 16, 24, 3, 1, 1), 1, [false; 3], Act::None, 11);
        for (index, x) in case.x.iter_mut().enumerate() {
            *x *= 2f32.powi((index * 7 % (spread + 1)) as i32 - spread as i32 / 2);
        }
        let reference = case.reference();
        let most = reference.iter().map(|&(_, size)| size).fold(0.0, f64::max);
        let worst = |y: &[f32]| {
            let errors = y.iter().zip(&reference).map(|(&y, &(exact, _))| (f64::from(y) - exact).abs() / most);
            errors.fold(0.0, f64::max)
        };
        for isa in float_isas() {
            let (fast, direct) = (worst(&run(&case, isa, 1, 1)), worst(&case.run(isa, 1, 1)));
            assert!(fast <= 4.0 * direct, "{isa:?}: {fast:e}, direct {direct:e}");
        }
    }
}

#[test]
fn nothing_to_do() {
    for isa in float_isas() {
        assert!(run(&Case::new(square(3, 5, 6, 3, 1, 1), 0, [true; 3], Act::None, 0), isa, 2, 2).is_empty());
        assert!(run(&Case::new(square(3, 0, 6, 3, 1, 1), 2, [true; 3], Act::None, 0), isa, 2, 2).is_empty());
    }
}

#[test]
fn other_convolutions_are_refused() {
    for shape in [
        square(1, 1, 8, 1, 1, 0),
        square(1, 1, 8, 3, 2, 1),
        square(1, 1, 8, 3, 1, 3),
        square(1, 1, 2, 3, 1, 0),
        Conv2dShape { up: [2; 2], ..square(1, 1, 4, 3, 1, 0) },
        Conv2dShape { up: [2, 1], ..square(1, 1, 4, 3, 1, 1) },
        Conv2dShape { up: [3; 2], ..square(1, 1, 4, 3, 1, 1) },
        Conv2dShape { up: [usize::MAX; 2], ..square(1, 1, 4, 3, 1, 1) },
        square(1, 1, usize::MAX / 2, 3, 1, 1),
        square(usize::MAX / 8, 1, 64, 3, 1, 1),
        square(1, usize::MAX / 8, 64, 3, 1, 1),
    ] {
        for isa in [Isa::Scalar, Isa::Avx512] {
            if let Some(conv) = Winograd::new(shape, isa, 1) {
                // So many filters fit an address; their group is what scratch holds.
                assert!(shape.filters > 1 && conv.scratch_floats(1) < 1 << 30, "{shape:?}");
            }
        }
    }
}
