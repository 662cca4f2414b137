//! Pooling and upsampling against their definitions.

use proptest::prelude::*;
use scoregraph_kernels::Context;
use scoregraph_kernels::pool2d::{Pool2d, avg_pool2d, max_pool2d, upsample_nearest};
use scoregraph_simd::Isa;

use crate::support::{Threads, bits, isas, numbers};

type PoolFn = fn(&Context, &Pool2d, &[f32], &mut [f32]);

fn pooled(call: PoolFn, isa: Isa, threads: usize, pool: &Pool2d, planes: usize, x: &[f32]) -> Vec<f32> {
    let [rows, columns] = pool.output().unwrap();
    let mut y = vec![f32::NAN; planes * rows * columns];
    call(&Context { isa, pool: &Threads(threads) }, pool, x, &mut y);
    y
}

/// The elements of every window, window by window.
fn windows(pool: &Pool2d, planes: usize, x: &[f32]) -> Vec<Vec<f32>> {
    let [rows, columns] = pool.output().unwrap();
    let [height, width] = pool.input;
    let mut windows = Vec::new();
    for index in 0..planes * rows * columns {
        let (plane, row, column) = (index / (rows * columns), index / columns % rows, index % columns);
        let inside = (0..pool.kernel[0] * pool.kernel[1]).map(|k| {
            let y = row * pool.stride[0] + k / pool.kernel[1];
            x[(plane * height + y) * width + column * pool.stride[1] + k % pool.kernel[1]]
        });
        windows.push(inside.collect());
    }
    windows
}

fn pools() -> impl Strategy<Value = Pool2d> {
    let pair = |range: std::ops::RangeInclusive<usize>| proptest::array::uniform2(range);
    (pair(1..=40), pair(1..=4), pair(1..=4))
        .prop_map(|(input, kernel, stride)| Pool2d { input, kernel, stride })
        .prop_filter("a window fits", |pool| pool.output().is_some())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pooling(pool in pools(), planes in 0usize..=5, seed in any::<u32>()) {
        let x = numbers(u64::from(seed), planes * pool.input[0] * pool.input[1]);
        let windows = windows(&pool, planes, &x);
        for isa in isas() {
            let mean = pooled(avg_pool2d, isa, 1, &pool, planes, &x);
            for (y, window) in mean.iter().zip(&windows) {
                let expected = window.iter().map(|&x| f64::from(x)).sum::<f64>() / window.len() as f64;
                prop_assert!((f64::from(*y) - expected).abs() <= 1e-6, "{isa:?}: {y}, not {expected}");
            }
            prop_assert_eq!(bits(&pooled(avg_pool2d, isa, 3, &pool, planes, &x)), bits(&mean));
            let max: Vec<f32> = windows.iter().map(|window| window.iter().copied().fold(f32::MIN, f32::max)).collect();
            prop_assert_eq!(bits(&pooled(max_pool2d, isa, 2, &pool, planes, &x)), bits(&max));
        }
    }

    #[test]
    fn upsampling(
        planes in 0usize..=4,
        input in proptest::array::uniform2(1usize..=20),
        factor in proptest::array::uniform2(1usize..=4),
        seed in any::<u32>(),
    ) {
        let [height, width] = input;
        let x = numbers(u64::from(seed), planes * height * width);
        let (rows, columns) = (height * factor[0], width * factor[1]);
        let expected: Vec<f32> = (0..planes * rows * columns)
            .map(|i| x[(i / (rows * columns) * height + i / columns % rows / factor[0]) * width + i % columns / factor[1]])
            .collect();
        for isa in isas() {
            let mut y = vec![f32::NAN; expected.len()];
            upsample_nearest(&Context { isa, pool: &Threads(2) }, width, factor, &x, &mut y);
            prop_assert_eq!(bits(&y), bits(&expected));
        }
    }
}

#[test]
fn a_nan_wins_its_windows() {
    let pool = Pool2d { input: [4, 64], kernel: [2, 2], stride: [2, 2] };
    let mut x = numbers(1, 4 * 64);
    x[64 + 13] = f32::NAN;
    for isa in isas() {
        for call in [avg_pool2d as PoolFn, max_pool2d] {
            let y = pooled(call, isa, 1, &pool, 1, &x);
            assert!(y.iter().enumerate().all(|(i, y)| y.is_nan() == (i == 6)), "{isa:?}");
        }
    }
}

#[test]
fn windows_that_do_not_fit_are_refused() {
    for (kernel, stride) in [([5, 1], [1, 1]), ([0, 1], [1, 1]), ([1, 1], [1, 0])] {
        assert_eq!(Pool2d { input: [4, 4], kernel, stride }.output(), None);
    }
}
