//! Elementary functions against double precision, on every instruction set of this machine.

use scoregraph_simd::{Act, Isa, Kernel, Simd, math};

#[derive(Clone, Copy, Debug)]
enum Function {
    Exp,
    Log,
    Sin,
    Cos,
    Erf,
    /// To a power of two.
    Exp2Relative(f64),
    /// The same, rounded to bf16.
    Exp2Bf16,
    Exp2Bounded,
    Exp2BoundedBf16,
    /// Times 255.
    Exp2Coarse,
    SiluCoarse,
    /// For numbers of -80 to 80.
    SiluWithin,
    Act(Act),
}

struct Map<'a> {
    function: Function,
    values: &'a mut [f32],
}

impl Kernel for Map<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for chunk in self.values.chunks_mut(S::LANES) {
            // SAFETY: only the first `chunk.len()` lanes are touched.
            unsafe {
                let x = s.load_first(chunk.as_ptr(), chunk.len());
                let y = match self.function {
                    Function::Exp => math::exp(s, x),
                    Function::Log => math::log(s, x),
                    Function::Sin => math::sin(s, x),
                    Function::Cos => math::cos(s, x),
                    Function::Erf => math::erf(s, x),
                    Function::Exp2Relative(exponent) => {
                        math::exp2_relative::<S, false>(s, x, math::relative_to(s, exponent as f32))
                    }
                    Function::Exp2Bf16 => math::exp2_relative::<S, true>(s, x, math::relative_to(s, 0.0)),
                    Function::Exp2Bounded => math::exp2_bounded::<S, false>(s, x),
                    Function::Exp2BoundedBf16 => math::exp2_bounded::<S, true>(s, x),
                    Function::Exp2Coarse => {
                        let [a, b] = math::exp2_coarse(s, 255.0, x, s.splat(0.25));
                        s.mul(a, b)
                    }
                    Function::SiluCoarse => math::silu_coarse::<S, false>(s, x),
                    Function::SiluWithin => math::silu_coarse::<S, true>(s, x),
                    Function::Act(act) => act.apply(s, x),
                };
                s.store_first(chunk.as_mut_ptr(), y, chunk.len());
            }
        }
    }
}

fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.supported())
}

/// erf by its Maclaurin series and, further out, the continued fraction of erfc: good to 1e-15.
fn erf(x: f64) -> f64 {
    let t = x.abs();
    if t < 3.0 {
        let (mut term, mut sum) = (t, t);
        for n in 1..200 {
            term *= -t * t / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        return (sum * 2.0 / std::f64::consts::PI.sqrt()).copysign(x);
    }
    let mut fraction = 0.0;
    for n in (1..200).rev() {
        fraction = n as f64 / 2.0 / (t + fraction);
    }
    (1.0 - (-t * t).exp() / (std::f64::consts::PI.sqrt() * (t + fraction))).copysign(x)
}

fn exact(function: Function, x: f64) -> f64 {
    match function {
        Function::Exp => x.exp(),
        Function::Log => x.ln(),
        Function::Sin => x.sin(),
        Function::Cos => x.cos(),
        Function::Erf => erf(x),
        Function::Act(Act::None) => x,
        Function::Act(Act::Silu) | Function::SiluCoarse | Function::SiluWithin => x / (1.0 + (-x).exp()),
        Function::Act(Act::GeluTanh) => {
            x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
        Function::Act(Act::GeluErf) => x / 2.0 * (1.0 + erf(x / 2f64.sqrt())),
        Function::Act(Act::Relu) => x.max(0.0),
        Function::Act(Act::Tanh) => x.tanh(),
        Function::Act(Act::Sigmoid) => 1.0 / (1.0 + (-x).exp()),
        Function::Act(Act::QuickGelu) => x / (1.0 + (-1.702 * x).exp()),
        Function::Exp2Relative(exponent) => std::f64::consts::SQRT_2 * (x - exponent).exp2(),
        Function::Exp2Bf16 => std::f64::consts::SQRT_2 * x.exp2(),
        Function::Exp2Bounded | Function::Exp2BoundedBf16 => x.exp2(),
        Function::Exp2Coarse => 255.0 * (x / 4.0).exp2(),
    }
}

/// The largest error over `values`: absolute below 1 where `absolute`, else relative (to the smallest normal number).
fn worst(isa: Isa, function: Function, values: &[f32], absolute: bool) -> (f64, f32) {
    let mut got = values.to_vec();
    isa.dispatch(Map { function, values: &mut got });
    let mut worst = (0.0, 0.0);
    for (&x, &y) in values.iter().zip(&got) {
        let want = exact(function, f64::from(x));
        let floor = if absolute { 1.0 } else { f64::from(f32::MIN_POSITIVE) };
        let error = (f64::from(y) - want).abs() / want.abs().max(floor);
        if error.is_nan() || error > worst.0 {
            worst = (if error.is_nan() { f64::INFINITY } else { error }, x);
        }
    }
    worst
}

/// `count` values spread evenly over `low..high`, and as many over their magnitudes.
fn spread(low: f32, high: f32, count: usize) -> Vec<f32> {
    let linear = (0..=count).map(|i| low + (high - low) * (i as f32 / count as f32));
    let magnitudes = (0..=count).map(|i| 10f32.powf(-12.0 + 12.0 * (i as f32 / count as f32)));
    linear.chain(magnitudes.clone().map(|m| m * low)).chain(magnitudes.map(|m| m * high)).collect()
}

#[test]
fn errors_stay_below_the_documented_ones() {
    use Function::*;
    let cases = [
        (Exp, -87.3, 88.7, false, 1.3e-7),
        (Log, 1e-38, 3e38, false, 2e-7),
        (Log, 0.4, 2.5, false, 2e-7),
        (Sin, -8192.0, 8192.0, true, 1e-7),
        (Cos, -8192.0, 8192.0, true, 1e-7),
        (Sin, -10.0, 10.0, true, 1e-7),
        (Cos, -1e7, 1e7, true, 1e-7),
        (Erf, -6.0, 6.0, false, 2e-7),
        (Exp2Relative(0.0), -126.0, 0.5, false, 2.2e-7),
        (Exp2Bf16, -126.0, 0.5, false, 4.02e-3),
        (Exp2Bounded, -120.0, 120.0, false, 1.9e-7),
        (Exp2BoundedBf16, -120.0, 120.0, false, 4.02e-3),
        (Exp2Coarse, -400.0, 0.0, false, 2e-3),
        (SiluCoarse, -80.0, 80.0, false, 8e-6),
        (SiluCoarse, -17.0, 17.0, false, 4e-6),
        (SiluWithin, -80.0, 80.0, false, 8e-6),
        (SiluWithin, -17.0, 17.0, false, 4e-6),
        (Act(scoregraph_simd::Act::QuickGelu), -30.0, 30.0, true, 4e-7),
        (Act(scoregraph_simd::Act::Tanh), -20.0, 20.0, false, 2e-7),
        (Act(scoregraph_simd::Act::Sigmoid), -85.0, 85.0, false, 2e-7),
        (Act(scoregraph_simd::Act::Silu), -80.0, 80.0, false, 2.5e-7),
        (Act(scoregraph_simd::Act::GeluTanh), -30.0, 30.0, true, 2e-7),
        (Act(scoregraph_simd::Act::GeluErf), -30.0, 30.0, true, 2e-7),
        (Act(scoregraph_simd::Act::Relu), -30.0, 30.0, false, 0.0),
    ];
    for isa in isas() {
        for (function, low, high, absolute, bound) in cases {
            let mut values = spread(low, high, 100_000);
            if matches!(function, Log) {
                values.retain(|&x| x >= f32::MIN_POSITIVE);
            }
            let (error, at) = worst(isa, function, &values, absolute);
            println!("{:>7} {function:?} on {low}..{high}: {error:.2e} at {at:e}", isa.name());
            assert!(error <= bound, "{} {function:?}: error {error:.2e} at {at:e}, bound {bound:.1e}", isa.name());
        }
    }
}

#[test]
fn special_values() {
    use Function::*;
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let sub = f32::from_bits(1);
    let cases = [
        (Exp, vec![(inf, inf), (-inf, 0.0), (89.0, inf), (-104.0, 0.0), (0.0, 1.0), (nan, nan)]),
        (
            Log,
            vec![
                (0.0, -inf),
                (-0.0, -inf),
                (-1.0, nan),
                (-inf, nan),
                (inf, inf),
                (1.0, 0.0),
                (sub, -103.278_93),
                (nan, nan),
            ],
        ),
        (Sin, vec![(inf, nan), (nan, nan), (0.0, 0.0), (-0.0, -0.0)]),
        (Cos, vec![(-inf, nan), (nan, nan), (0.0, 1.0)]),
        (Erf, vec![(inf, 1.0), (-inf, -1.0), (nan, nan), (0.0, 0.0), (-0.0, -0.0)]),
        (Act(scoregraph_simd::Act::Tanh), vec![(inf, 1.0), (-inf, -1.0), (nan, nan), (-0.0, -0.0)]),
        (Act(scoregraph_simd::Act::Sigmoid), vec![(inf, 1.0), (-inf, 0.0), (nan, nan), (0.0, 0.5)]),
        (Exp2Relative(0.0), vec![(-127.0, 0.0), (-1e30, 0.0), (-inf, 0.0), (nan, nan), (inf, nan)]),
        (Exp2Bf16, vec![(0.0, 1.414_062_5), (-1.0, 0.707_031_25), (-127.0, 0.0), (-inf, 0.0), (nan, nan)]),
        (Exp2Bounded, vec![(-inf, 0.0), (nan, nan)]),
        (Exp2BoundedBf16, vec![(-inf, 0.0), (nan, nan)]),
        (Exp2Coarse, vec![(0.0, 255.0), (nan, nan)]),
        (SiluCoarse, vec![(inf, inf), (1e30, 1e30), (80.0, 80.0), (0.0, 0.0), (nan, nan)]),
        (Act(scoregraph_simd::Act::QuickGelu), vec![(inf, inf), (-1e30, 0.0), (1e30, 1e30), (nan, nan)]),
        (Act(scoregraph_simd::Act::Relu), vec![(inf, inf), (-inf, 0.0), (nan, nan)]),
        (Act(scoregraph_simd::Act::Silu), vec![(inf, inf), (-1e30, 0.0), (nan, nan)]),
        (Act(scoregraph_simd::Act::GeluTanh), vec![(inf, inf), (-1e30, 0.0), (-10.1, 0.0), (1e30, 1e30), (nan, nan)]),
        (Act(scoregraph_simd::Act::GeluErf), vec![(inf, inf), (-1e30, 0.0), (1e30, 1e30), (nan, nan)]),
    ];
    for isa in isas() {
        for (function, values) in &cases {
            let mut got: Vec<f32> = values.iter().map(|&(x, _)| x).collect();
            isa.dispatch(Map { function: *function, values: &mut got });
            for (&(x, want), y) in values.iter().zip(got) {
                let same = y == want || (y.is_nan() && want.is_nan());
                assert!(same, "{} {function:?}({x}) = {y}, not {want}", isa.name());
            }
        }
    }
}

/// Far below 0 there is nothing left, whatever the argument.
#[test]
fn coarse_silu_of_large_negative_numbers() {
    for isa in isas() {
        let mut values = vec![f32::NEG_INFINITY, f32::MIN, -1e4, -80.1];
        isa.dispatch(Map { function: Function::SiluCoarse, values: &mut values });
        assert!(values.iter().all(|y| (-2e-33..=0.0).contains(y)), "{}: {values:?}", isa.name());
    }
}

#[test]
fn subnormal_results_of_exp() {
    let values: Vec<f32> = (0..1000).map(|i| -87.4 - 16.0 * i as f32 / 1000.0).collect();
    for isa in isas() {
        let mut got = values.clone();
        isa.dispatch(Map { function: Function::Exp, values: &mut got });
        for (&x, y) in values.iter().zip(got) {
            let error = (f64::from(y) - f64::from(x).exp()).abs();
            assert!(error <= 1.1 * f64::from(f32::from_bits(1)), "{} exp({x}) = {y:e}", isa.name());
        }
    }
}

/// The exponents of scores far from 0 are taken off without cancellation.
#[test]
fn exponentials_relative_to_a_large_power() {
    for exponent in [14_427.0, -14_427.0, 1_048_576.0, -1_048_576.0, 1000.0, -1000.0] {
        let values: Vec<f32> = (0..100_000).map(|i| exponent as f32 - i as f32 * (126.0 / 100_000.0)).collect();
        for isa in isas() {
            let (error, at) = worst(isa, Function::Exp2Relative(exponent), &values, false);
            assert!(error <= 2.2e-7, "{}: error {error:.2e} at {at:e} to 2^{exponent}", isa.name());
        }
    }
}

/// AVX2 and AVX-512 run the same fused operations in the same order, so they agree to the bit.
#[test]
fn fused_isas_agree_exactly() {
    if !(Isa::Avx2.supported() && Isa::Avx512.supported()) {
        return;
    }
    let acts = Act::ALL.into_iter().map(|(act, _)| Function::Act(act));
    let others = [Function::Exp, Function::Log, Function::Sin, Function::Cos, Function::Erf];
    let values = spread(-90.0, 90.0, 20_000);
    for function in acts.chain(others) {
        let (mut a, mut b) = (values.clone(), values.clone());
        Isa::Avx2.dispatch(Map { function, values: &mut a });
        Isa::Avx512.dispatch(Map { function, values: &mut b });
        for (i, x) in values.iter().enumerate() {
            let same = a[i].to_bits() == b[i].to_bits() || (a[i].is_nan() && b[i].is_nan());
            assert!(same, "{function:?}({x:e}): {:e} {:e}", a[i], b[i]);
        }
    }
}
