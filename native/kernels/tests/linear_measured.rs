//! `linear_measured` against `linear` and `quantize` one after the other: the same bytes and grids, bit for bit.

mod common;

use common::{Numbers, Threads, isas};
use proptest::prelude::*;
use scoregraph_kernels::format::{Grid, Rows};
use scoregraph_kernels::linear::{
    Bits, Input, Integers, Linear, Measured, Output, Weights, linear, linear_measured, linear_scratch, measured_scratch,
};
use scoregraph_kernels::quantize::{quantize, rows_scratch};
use scoregraph_kernels::{Act, Context, Layout, Parallel, Serial, View, ViewMut};

/// What of a case is chosen.
#[derive(Clone, Copy, Debug)]
struct Case {
    /// x \[m, k\], y \[m, n\]
    m: usize,
    k: usize,
    n: usize,
    /// Rows of x's grid: one for so many rows.
    share: usize,
    act: Act,
    smooth: bool,
    top: u8,
    /// Bytes between rows; `uneven`: also one between every second and third.
    gap: usize,
    uneven: bool,
    /// A weight's scale that is not finite.
    broken: bool,
}

/// Rows of `cols` that are as far apart as the case says.
fn layout(case: &Case, cols: usize) -> Layout {
    let stride = cols + case.gap;
    if case.uneven && case.m.is_multiple_of(2) {
        return Layout::new(&[case.m / 2, 2, cols], &[2 * stride + 1, stride, 1]).unwrap();
    }
    Layout::new(&[case.m, cols], &[stride, 1]).unwrap()
}

fn check(case: Case, seed: u64) {
    let Case { m, k, n, share, act, smooth, top, .. } = case;
    let mut numbers = Numbers(seed);
    let (from, to) = (layout(&case, k), layout(&case, n));
    let x: Vec<u8> = (0..from.span()).map(|_| numbers.below(256) as u8).collect();
    let grid: Vec<f32> = (0..m / share).flat_map(|_| [0.01 * numbers.float(), numbers.below(256) as f32]).collect();
    let stored: Vec<u8> = (0..n.div_ceil(16) * 16 * k).map(|_| (numbers.below(255) as i32 - 127) as i8 as u8).collect();
    let mut scale: Vec<f32> = (0..n).map(|_| 0.01 * numbers.float()).collect();
    if case.broken {
        scale[numbers.below(n)] = [f32::NAN, f32::INFINITY][numbers.below(2)];
    }
    let sum: Vec<f32> = (0..n).map(|_| numbers.below(20000) as f32 - 10000.0).collect();
    let bias: Vec<f32> = (0..n).map(|_| numbers.float()).collect();
    let factors: Vec<f32> = (0..n).map(|_| 1.0 + numbers.float()).collect();
    let smooth = smooth.then_some(&factors[..]);
    let weights = Integers { stored: &stored, bits: Bits::Eight, scale: &scale, sum: &sum, groups: 1, chain: 0 };
    let op = Linear {
        cols: n,
        x: Input::Bytes { q: View::new(&x, 0, from).unwrap(), grid: &grid },
        weights: Weights::Integers(weights),
        bias: Some(&bias),
        act,
        gate: None,
        residual: None,
    };
    let bits = |grid: &[f32]| grid.iter().map(|v| if v.is_nan() { 1 } else { v.to_bits() }).collect::<Vec<_>>();
    for isa in isas() {
        let own = linear_scratch(&op, isa);
        let two = Context { isa, pool: &Serial };
        let (mut wide, mut want, mut spans) = (vec![f32::NAN; m * n], vec![77u8; to.span()], vec![7.0; 2 * m]);
        linear(&two, &op, Output::F32(ViewMut::dense(&mut wide, &[m, n]).unwrap()), &mut vec![f32::NAN; own]);
        let wide = View::dense(&wide, to.shape()).unwrap();
        let y = ViewMut::new(&mut want, 0, to).unwrap();
        let mut y = Rows::Bytes { y, top, grid: Grid::Measured(&mut spans) };
        quantize(&two, &wide, smooth, &mut y, &mut vec![f32::NAN; rows_scratch(m, n, 1)]);
        for pool in [&Serial as &dyn Parallel, &Threads(2), &Threads(3)] {
            let (mut q, mut grid) = (vec![77u8; to.span()], vec![7.0; 2 * m]);
            let y = Measured { q: ViewMut::new(&mut q, 0, to).unwrap(), grid: &mut grid, top, smooth };
            let floats = own + measured_scratch(&from, m / share, &to, pool.threads());
            linear_measured(&Context { isa, pool }, &op, y, &mut vec![f32::NAN; floats]);
            let place = format!("{}, {} threads, {case:?}", isa.name(), pool.threads());
            assert_eq!(bits(&grid), bits(&spans), "{place}");
            assert_eq!(q, want, "{place}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn one_call_is_two(
        (groups, share) in prop_oneof![(1..240usize, Just(1usize)), (Just(1usize), 1..240usize), (1..40usize, 1..6usize)],
        (quads, n) in (1..20usize, 1..130usize),
        act in prop::sample::select(&[Act::None, Act::GeluTanh, Act::Relu][..]),
        (smooth, uneven, broken) in any::<(bool, bool, bool)>(),
        (gap, top) in (0..3usize, prop::sample::select(&[255u8, 127][..])),
        seed: u64,
    ) {
        check(Case { m: groups * share, k: 4 * quads, n, share, act, smooth, top, gap, uneven, broken }, seed);
    }
}

/// More blocks than threads, of which the last is smaller; and rows too long for blocks.
#[test]
fn blocks_of_long_rows() {
    let case = Case {
        m: 200,
        k: 64,
        n: 5200,
        share: 1,
        act: Act::GeluTanh,
        smooth: true,
        top: 255,
        gap: 0,
        uneven: false,
        broken: false,
    };
    check(case, 1);
    check(Case { m: 70, k: 8, n: 12000, ..case }, 2);
}
