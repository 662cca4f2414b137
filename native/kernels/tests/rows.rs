//! Kernels over rows against double precision: `layer_norm`, `rms_norm`, `softmax`, `reduce`, `embedding`.

mod common;

use common::{Numbers, Threads, assert_close, bits, everywhere, isas};
use proptest::prelude::*;
use scoregraph_kernels::embedding::{OutOfRange, embedding};
use scoregraph_kernels::format::Rows;
use scoregraph_kernels::norm::{Affine, layer_norm, rms_norm};
use scoregraph_kernels::reduce::{Reduction, reduce};
use scoregraph_kernels::softmax::softmax;
use scoregraph_kernels::{Act, Context, Isa, Layout, Serial, View, ViewMut};

/// Floats of a given mean and size, with as many rows of `cols`.
fn rows(seed: u64, rows: usize, cols: usize, mean: f32, size: f32) -> Vec<f32> {
    Numbers(seed).floats(rows * cols).into_iter().map(|x| mean + size * x).collect()
}

/// The rows that `make` writes in float32 from those of `x`, of the same shape; where it writes nothing there is NaN.
fn floats(shape: &[usize], x: &[f32], make: impl Fn(&View, &mut Rows)) -> Vec<f32> {
    let mut y = vec![f32::NAN; x.len()];
    make(&View::dense(x, shape).unwrap(), &mut Rows::F32(ViewMut::dense(&mut y, shape).unwrap()));
    y
}

fn moments(row: &[f32]) -> (f64, f64) {
    let n = row.len() as f64;
    let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    (mean, row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn layer_norm_is_its_formula(
        (groups, share, cols) in (1..4usize, 1..6usize, 1..200usize),
        affine: bool,
        modulated: bool,
        silu: bool,
        (mean, size) in prop::sample::select(vec![(0.0f32, 1.0f32), (3.0, 1.0), (1000.0, 1.0), (0.0, 1e-3), (0.0, 1e15)]),
        seed: u64,
    ) {
        let m = groups * share;
        let x = rows(seed, m, cols, mean, size);
        let mut numbers = Numbers(!seed);
        let (weight, bias) = (numbers.floats(cols), numbers.floats(cols));
        // Scale and shift are windows of one wider buffer, as AdaLN has them.
        let wide = numbers.floats(groups * cols * 6);
        let layout = Layout::new(&[groups, cols], &[6 * cols, 1]).unwrap();
        let eps = 1e-5f32;
        let results = everywhere(|ctx| {
            let op = Affine {
                weight: affine.then_some(&weight),
                bias: affine.then_some(&bias),
                scale: modulated.then(|| View::new(&wide, cols, layout).unwrap()),
                shift: modulated.then(|| View::new(&wide, 3 * cols, layout).unwrap()),
                act: if silu { Act::Silu } else { Act::None },
                smooth: None,
            };
            floats(&[m, cols], &x, |x, y| layer_norm(ctx, eps, &op, x, y, &mut []))
        });
        let mut want = Vec::new();
        for (row, x) in x.chunks(cols).enumerate() {
            let (mean, variance) = moments(x);
            for (col, &x) in x.iter().enumerate() {
                let mut v = (f64::from(x) - mean) / (variance + f64::from(eps)).sqrt();
                if affine {
                    v = v * f64::from(weight[col]) + f64::from(bias[col]);
                }
                if modulated {
                    let at = row / share * cols * 6 + col;
                    v = v * (1.0 + f64::from(wide[cols + at])) + f64::from(wide[3 * cols + at]);
                }
                want.push(if silu { v / (1.0 + (-v).exp()) } else { v });
            }
        }
        assert_close(&results, &want, 2e-6, |i| want[i].abs().max(1.0));
    }

    #[test]
    fn rms_norm_is_its_formula((m, cols) in (1..9usize, 1..200usize), affine: bool, modulated: bool, seed: u64) {
        let x = rows(seed, m, cols, 0.5, 3.0);
        let (weight, scale, shift) = (Numbers(!seed).floats(cols), Numbers(seed ^ 1).floats(cols), Numbers(seed ^ 2).floats(cols));
        let results = everywhere(|ctx| {
            let op = Affine {
                weight: affine.then_some(&weight[..]),
                scale: modulated.then(|| View::dense(&scale, &[1, cols]).unwrap()),
                shift: modulated.then(|| View::dense(&shift, &[1, cols]).unwrap()),
                ..Affine::NONE
            };
            floats(&[m, cols], &x, |x, y| rms_norm(ctx, 1e-6, &op, x, y, &mut []))
        });
        let mut want = Vec::new();
        for x in x.chunks(cols) {
            let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / cols as f64;
            want.extend(x.iter().enumerate().map(|(col, &x)| {
                let v = f64::from(x) / (mean + 1e-6f64).sqrt() * if affine { f64::from(weight[col]) } else { 1.0 };
                if modulated { v * (1.0 + f64::from(scale[col])) + f64::from(shift[col]) } else { v }
            }));
        }
        assert_close(&results, &want, 1e-6, |i| want[i].abs().max(1.0));
    }

    #[test]
    fn softmax_is_its_formula((m, cols) in (1..9usize, 1..200usize), size in 0.1..90f32, seed: u64) {
        let x = rows(seed, m, cols, size, size);
        let results = everywhere(|ctx| {
            let mut y = vec![f32::NAN; m * cols];
            softmax(ctx, cols, &x, &mut y);
            y
        });
        let mut want = Vec::new();
        for x in x.chunks(cols) {
            let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weights: Vec<f64> = x.iter().map(|&x| (f64::from(x) - f64::from(largest)).exp()).collect();
            let total: f64 = weights.iter().sum();
            want.extend(weights.iter().map(|weight| weight / total));
        }
        // The difference to the largest is rounded; the exponential makes that an error relative to the difference.
        assert_close(&results, &want, 3e-7, |i| want[i].max(1e-30) * (1.0 + 2.0 * f64::from(size)));
    }

    #[test]
    fn reduce_is_its_formula((m, cols) in (1..9usize, 1..3000usize), seed: u64) {
        let x = rows(seed, m, cols, 0.3, 1.0);
        let wide = |row: &[f32]| row.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        for (kind, name) in [(Reduction::Sum, "sum"), (Reduction::Mean, "mean"), (Reduction::Min, "min"), (Reduction::Max, "max")] {
            prop_assert_eq!(name.parse(), Ok(kind));
            let results = everywhere(|ctx| {
                let mut y = vec![f32::NAN; m];
                reduce(ctx, kind, cols, &x, &mut y);
                y
            });
            let want: Vec<f64> = x.chunks(cols).map(|row| match kind {
                Reduction::Sum => wide(row).iter().sum(),
                Reduction::Mean => wide(row).iter().sum::<f64>() / cols as f64,
                Reduction::Min => wide(row).into_iter().fold(f64::INFINITY, f64::min),
                Reduction::Max => wide(row).into_iter().fold(f64::NEG_INFINITY, f64::max),
            }).collect();
            let size = if kind == Reduction::Sum { cols as f64 } else { 1.0 };
            assert_close(&results, &want, 2e-7, |_| size);
        }
    }
}

#[test]
fn a_row_of_one_value_has_no_variance() {
    for (isa, y) in
        everywhere(|ctx| floats(&[2, 33], &[123.456; 66], |x, y| layer_norm(ctx, 1e-6, &Affine::NONE, x, y, &mut [])))
    {
        // The mean is exact to rounding: what is left is far below one standard deviation of eps.
        assert!(y.iter().all(|y| y.abs() < 1e-2), "{} {y:?}", isa.name());
    }
}

#[test]
fn nan_stays_in_its_row() {
    let mut x = rows(1, 5, 21, 0.0, 1.0);
    x[2 * 21 + 20] = f32::NAN;
    x[4 * 21 + 3] = f32::NEG_INFINITY;
    for isa in isas() {
        let ctx = Context { isa, pool: &Serial };
        let mut y = vec![0.0; x.len()];
        softmax(&ctx, 21, &x, &mut y);
        for (row, y) in y.chunks(21).enumerate() {
            assert!(y.iter().all(|y| y.is_nan() == (row == 2)), "softmax {} row {row}: {y:?}", isa.name());
        }
        assert_eq!(y[4 * 21 + 3], 0.0);
        let y = floats(&[5, 21], &x, |x, y| rms_norm(&ctx, 1e-5, &Affine::NONE, x, y, &mut []));
        assert!(y[2 * 21..3 * 21].iter().all(|y| y.is_nan()) && y[..2 * 21].iter().all(|y| y.is_finite()));
        for (kind, last) in [(Reduction::Max, 0.9), (Reduction::Min, f32::NEG_INFINITY)] {
            let mut y = vec![0.0; 5];
            reduce(&ctx, kind, 21, &x, &mut y);
            assert!(y[2].is_nan() && y[0].is_finite() && y[4] <= 1.0, "{kind:?} {y:?}");
            assert!(y[4] == last || kind == Reduction::Max);
        }
    }
}

#[test]
fn empty_tensors_are_nothing_to_do() {
    let ctx = Context { isa: Isa::best(), pool: &Threads(2) };
    softmax(&ctx, 0, &[], &mut []);
    softmax(&ctx, 5, &[], &mut []);
    floats(&[0, 3], &[], |x, y| rms_norm(&ctx, 1e-5, &Affine::NONE, x, y, &mut []));
    floats(&[3, 0], &[], |x, y| layer_norm(&ctx, 1e-5, &Affine::NONE, x, y, &mut []));
    let mut y = [f32::NAN; 2];
    reduce(&ctx, Reduction::Sum, 0, &[], &mut y);
    assert_eq!(y, [0.0; 2]);
    reduce(&ctx, Reduction::Max, 0, &[], &mut y);
    assert_eq!(y, [f32::NEG_INFINITY; 2]);
    assert_eq!(embedding(&ctx, 4, &[0.0; 8], &[], &mut []), Ok(()));
}

#[test]
fn embedding_reads_rows_and_refuses_others() {
    let table: Vec<f32> = (0..15).map(|i| i as f32).collect();
    for (isa, y) in everywhere(|ctx| {
        let mut y = vec![0.0; 9];
        embedding(ctx, 3, &table, &[4, 0, 4], &mut y).unwrap();
        y
    }) {
        assert_eq!(bits(&y), bits(&[12.0, 13.0, 14.0, 0.0, 1.0, 2.0, 12.0, 13.0, 14.0]), "{}", isa.name());
    }
    let ctx = Context { isa: Isa::best(), pool: &Serial };
    for index in [5, -1, i64::MIN, i64::MAX] {
        let mut y = [7.0; 6];
        let error = embedding(&ctx, 3, &table, &[1, index], &mut y).unwrap_err();
        assert_eq!(error, OutOfRange { position: 1, index, rows: 5 });
        assert_eq!(y, [7.0; 6], "nothing is written");
    }
}
