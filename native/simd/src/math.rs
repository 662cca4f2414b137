//! Elementary functions of vectors of `f32`.
//!
//! The polynomials are minimax fits of our own (Lawson's iteration in double precision, weighted for the error stated at
//! each function); the range reductions are those of Cody and Waite. Errors are measured in tests/math.rs against double
//! precision. NaN goes in, NaN comes out.

use std::f32::consts::{FRAC_2_PI, LOG2_E, SQRT_2};

use crate::vector::Simd;

/// Added to a number, it rounds it, and leaves the biased exponent of its power in the lowest bits: floats around 1.5 * 2^23
/// are whole numbers.
pub(crate) const BIASED: f32 = 1.5 * (1u32 << 23) as f32 + 127.0;

/// ln 2 in two parts; the first has so few bits that its product with an exponent is exact.
const LN_2_HIGH: f32 = 355.0 / 512.0;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// pi / 2 in three parts, the first two of few bits.
const HALF_PI: [f32; 3] = [1.570_312_5, 4.837_513e-4, 7.549_79e-8];
/// Above this the three parts no longer reduce exactly, and sine and cosine take the slow way.
const LARGEST_ANGLE: f32 = 8192.0;

/// Horner's scheme, highest coefficient last.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(s: S, x: S::F, coefficients: [f32; N]) -> S::F {
    let mut sum = s.splat(coefficients[N - 1]);
    for i in (0..N - 1).rev() {
        sum = s.mul_add(sum, x, s.splat(coefficients[i]));
    }
    sum
}

/// `e^x`; relative error 1.2e-7, correct into the subnormals.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    // Outside these bounds the result is 0 or infinite; the order of the operands keeps NaN.
    let x = s.max(s.splat(-104.0), s.min(s.splat(89.0), x));
    let n = s.round_i(s.mul(x, s.splat(LOG2_E)));
    let n_f = s.to_f(n);
    let r = s.neg_mul_add(n_f, s.splat(LN_2_HIGH), x);
    let r = s.neg_mul_add(n_f, s.splat(LN_2_LOW), r);
    let p = polynomial(s, r, [0.5, 0.166_665_2, 0.041_666_206, 0.008_368_888, 0.001_395_049]);
    let e = s.add(s.mul_add(s.mul(r, r), p, r), s.splat(1.0));
    s.ldexp(e, n)
}

/// `e^x` to the same error, but 0 where it would be subnormal.
///
/// Subnormal results take a processor a hundred cycles each; sums and quotients to which such a term adds nothing use this.
#[inline(always)]
pub fn exp_flushed<S: Simd>(s: S, x: S::F) -> S::F {
    // e^-87 is the last whole exponent with a normal value.
    let least = s.splat(-87.0);
    let e = exp(s, s.max(least, x));
    s.select(s.lt(x, least), s.splat(0.0), e)
}

/// The largest magnitude of an exponent that [`relative_to`] takes.
pub const LARGEST_EXPONENT: f32 = (1 << 20) as f32;

/// The constants of [`exp2_relative`] for one exponent.
#[derive(Clone, Copy)]
pub struct Relative<F> {
    /// Added to a number, it rounds it, takes off the exponent, and leaves the biased exponent in the lowest bits.
    round: F,
    /// The number whose power is the first to be 0.
    least: F,
}

/// For [`exp2_relative`] to `2^exponent`: a whole number of at most [`LARGEST_EXPONENT`] in magnitude.
#[inline(always)]
pub fn relative_to<S: Simd>(s: S, exponent: f32) -> Relative<S::F> {
    let round = BIASED - exponent;
    Relative { round: s.splat(round), least: s.splat(exponent - 127.0) }
}

/// `sqrt(2) * 2^x / 2^exponent` where that is at most a few: 0 where it would be subnormal; relative error 2.2e-7. Two thirds
/// of the cost of [`exp`] of a difference. With `BF16` it is a number within 1.1e-4 of it that is rounded to bf16, to nearest
/// even.
#[inline(always)]
pub fn exp2_relative<S: Simd, const BF16: bool>(s: S, x: S::F, relative: Relative<S::F>) -> S::F {
    // Down there the biased exponent is 0, and so is the power. The order of the operands keeps NaN.
    let x = s.max(relative.least, x);
    let rounded = s.add(x, relative.round);
    let power = s.from_bits(s.shl(s.bits(rounded), 23));
    let r = s.sub(x, s.sub(rounded, relative.round));
    // 2^r times sqrt(2), which makes it 1 at least: where the power is normal, so is the product.
    let p = if BF16 {
        // Between 1 and 2, numbers of bf16 are 2^-7 apart, and so are floats around this.
        let round = s.splat(1.5 * (1u32 << 16) as f32);
        s.sub(s.add(polynomial(s, r, [SQRT_2, 0.980_450_13, 0.342_538_04, 0.077_794_38]), round), round)
    } else {
        polynomial(s, r, [SQRT_2, 0.980_257_87, 0.339_725_8, 0.078_499_23, 0.013_677_584, 0.001_875_915_7])
    };
    s.mul(p, power)
}

/// `2^x` for `x` in -120 … 120, and 0 for -inf; relative error 1.9e-7. With `BF16` it is a number within 7.5e-5 of it that is
/// rounded to bf16, to nearest even. Cheaper than [`exp2_relative`] where [`Simd::SCALES`].
#[inline(always)]
pub fn exp2_bounded<S: Simd, const BF16: bool>(s: S, x: S::F) -> S::F {
    let r = s.fraction(x);
    let p = if BF16 {
        // Between 1 and 2, numbers of bf16 are 2^-7 apart, and so are floats around this.
        let round = s.splat(1.5 * (1u32 << 16) as f32);
        s.sub(s.add(polynomial(s, r, [0.999_925_2, 0.695_833_5, 0.226_067_25, 0.078_024_54]), round), round)
    } else {
        polynomial(s, r, [0.999_999_94, 0.693_153, 0.240_153_61, 0.055_826_318, 0.008_989_341, 0.001_877_576_7])
    };
    s.scale(p, x)
}

/// Two factors of `top * 2^(a b)`, for a product of -126 to 126 less the logarithm of `top`: what comes next may fuse with
/// their product. Relative error 2e-3, half a step of bytes at most where top is 255; exact where the product is 0.
#[inline(always)]
pub fn exp2_coarse<S: Simd>(s: S, top: f32, a: S::F, b: S::F) -> [S::F; 2] {
    let round = s.splat(BIASED);
    let rounded = s.mul_add(a, b, round);
    let power = s.from_bits(s.shl(s.bits(rounded), 23));
    // The power of -r is asked for, so odd coefficients are negative.
    let r = s.neg_mul_add(a, b, s.sub(rounded, round));
    let p = polynomial(s, r, [top, top * -0.702_941_9, top * 0.239_864_04]);
    [p, power]
}

/// `x sigmoid(x)`, as at -80 below that; relative error 4e-6 above -17, 8e-6 below, which bytes do not show. Two thirds of the
/// instructions of [`silu`], and two less if x is known to be `WITHIN` -80 to 80.
#[inline(always)]
pub fn silu_coarse<S: Simd, const WITHIN: bool>(s: S, x: S::F) -> S::F {
    // Above 80 the result is x; the order of the operands keeps NaN.
    let x = if WITHIN { x } else { s.max(s.splat(-80.0), x) };
    let within = if WITHIN { x } else { s.min(s.splat(80.0), x) };
    // e^-x
    let round = s.splat(BIASED);
    let rounded = s.neg_mul_add(within, s.splat(LOG2_E), round);
    let power = s.from_bits(s.shl(s.bits(rounded), 23));
    let r = s.mul_add(s.sub(rounded, round), s.splat(std::f32::consts::LN_2), within);
    let p = polynomial(s, r, [0.999_999_3, -0.999_963_34, 0.500_043_7, -0.167_910_3, 0.041_458_4]);
    s.div(x, s.mul_add(p, power, s.splat(1.0)))
}

/// `ln x`; relative error 2e-7, correct for subnormals; -inf at 0, NaN below.
#[inline(always)]
pub fn log<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    let subnormal = s.lt(x, s.splat(f32::MIN_POSITIVE));
    let scaled = s.select(subnormal, s.mul(x, s.splat((1u32 << 23) as f32)), x);
    let shift = s.select(subnormal, s.splat(-23.0), s.splat(0.0));
    // x = 2^e m with m in [sqrt(1/2), sqrt(2))
    let bits = s.bits(scaled);
    let e = s.sar(s.sub_i(bits, s.splat_i(std::f32::consts::FRAC_1_SQRT_2.to_bits() as i32)), 23);
    let m = s.from_bits(s.sub_i(bits, s.shl(e, 23)));
    let e = s.add(s.to_f(e), shift);
    let f = s.sub(m, one);
    let square = s.mul(f, f);
    let p = polynomial(
        s,
        f,
        [
            0.333_333_3,
            -0.250_008_2,
            0.200_012_27,
            -0.166_233_57,
            0.142_017_57,
            -0.131_601_83,
            0.127_615_78,
            -0.076_344_977,
        ],
    );
    let tail = s.mul_add(s.mul(square, f), p, s.mul(e, s.splat(LN_2_LOW)));
    let tail = s.add(s.neg_mul_add(s.splat(0.5), square, tail), f);
    let y = s.mul_add(e, s.splat(LN_2_HIGH), tail);
    let infinity = s.splat(f32::INFINITY);
    let y = s.select(s.lt(x, infinity), y, x);
    let y = s.select(s.lt(x, s.splat(0.0)), s.splat(f32::NAN), y);
    s.select(s.eq(x, s.splat(0.0)), s.neg(infinity), y)
}

/// Sine (`QUARTER` 0) or cosine (1): the same curve, a quarter of a turn apart.
#[inline(always)]
fn circular<S: Simd, const QUARTER: i32>(s: S, x: S::F) -> S::F {
    let n = s.round_i(s.mul(x, s.splat(FRAC_2_PI)));
    let n_f = s.to_f(n);
    let mut r = x;
    for part in HALF_PI {
        r = s.neg_mul_add(n_f, s.splat(part), r);
    }
    let square = s.mul(r, r);
    let p = polynomial(s, square, [-0.166_666_55, 0.008_332_178, -0.000_195_172]);
    let sine = s.mul_add(s.mul(square, r), p, r);
    let p = polynomial(s, square, [4.166_664_7e-2, -1.388_736_7e-3, 2.443_835_8e-5]);
    let cosine = s.mul_add(s.mul(square, square), p, s.neg_mul_add(s.splat(0.5), square, s.splat(1.0)));
    let quadrant = s.add_i(n, s.splat_i(QUARTER));
    let even = s.eq_i(s.and(quadrant, s.splat_i(1)), s.splat_i(0));
    let sign = s.shl(s.and(quadrant, s.splat_i(2)), 30);
    let near = s.from_bits(s.xor(s.bits(s.select(even, sine, cosine)), sign));
    let far = s.lt(s.splat(LARGEST_ANGLE), s.abs(x));
    if !s.any(far) {
        return near;
    }
    // Lane by lane, so that no value depends on its neighbours.
    s.select(far, s.map_lanes(x, if QUARTER == 0 { f32::sin } else { f32::cos }), near)
}

/// Sine of radians; absolute error 1e-7, at any magnitude.
#[inline(always)]
pub fn sin<S: Simd>(s: S, x: S::F) -> S::F {
    circular::<S, 0>(s, x)
}

/// Cosine of radians; absolute error 1e-7, at any magnitude.
#[inline(always)]
pub fn cos<S: Simd>(s: S, x: S::F) -> S::F {
    circular::<S, 1>(s, x)
}

/// `e^-a`, 0 where `none` is set; relative error 1.3e-7 for `a` in 0..87. Lanes outside must be set in `none`.
#[inline(always)]
fn exp_negated<S: Simd>(s: S, a: S::F, none: S::M) -> S::F {
    let round = s.splat(BIASED);
    let rounded = s.neg_mul_add(a, s.splat(LOG2_E), round);
    let n = s.sub(rounded, round);
    let power = s.from_bits(s.shl(s.bits(rounded), 23));
    let r = s.mul_add(n, s.splat(LN_2_LOW), s.mul_add(n, s.splat(LN_2_HIGH), a));
    let p = polynomial(s, r, [1.0, -1.0, 0.499_999_94, -0.166_664_3, 0.041_668_005, -0.008_374_195, 0.001_384_360_7]);
    s.select(none, s.splat(0.0), s.mul(p, power))
}

/// `numerator / (1 + e^-a)`, where `a >= 0` is given the sign of `x`: both halves of the curve come from the same power,
/// which cannot overflow.
#[inline(always)]
fn gated<S: Simd>(s: S, x: S::F, a: S::F, numerator: S::F) -> S::F {
    // Beyond 87 the quotient is the numerator or 0.
    let z = exp_negated(s, a, s.lt(s.splat(87.0), a));
    let negative = s.lt(x, s.splat(0.0));
    s.div(s.select(negative, s.mul(numerator, z), numerator), s.add(s.splat(1.0), z))
}

/// `1 / (1 + e^-x)`; relative error 2e-7 until it underflows.
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::F) -> S::F {
    gated(s, x, s.abs(x), s.splat(1.0))
}

/// Hyperbolic tangent; relative error 2e-7.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    let magnitude = s.abs(x);
    // 1 - 2 e^-2|x| / (1 + e^-2|x|) cancels near 0, where the series is short.
    let z = exp_negated(s, s.add(magnitude, magnitude), s.lt(s.splat(43.0), magnitude));
    let far = s.sub(one, s.div(s.add(z, z), s.add(one, z)));
    let far = with_sign_of(s, far, x);
    let square = s.mul(x, x);
    let p = polynomial(s, square, [-0.333_332_8, 0.133_314_42, -0.053_739_715, 0.020_639_087, -0.005_704_987]);
    let near = s.mul_add(s.mul(square, x), p, x);
    s.select(s.lt(magnitude, s.splat(0.625)), near, far)
}

/// The error function; relative error 2e-7.
#[inline(always)]
pub fn erf<S: Simd>(s: S, x: S::F) -> S::F {
    // Beyond 4, erf rounds to 1; the order of the operands keeps NaN.
    let t = s.min(s.splat(4.0), s.abs(x));
    let p = polynomial(s, t, [1.128_490_6, 0.635_797_28, 0.105_159_61, -0.022_825_437, 3.195_113e-3, -2.116_077_5e-4]);
    let far = s.sub(s.splat(1.0), exp_flushed(s, s.neg(s.mul(t, p))));
    let far = with_sign_of(s, far, x);
    let p = polynomial(
        s,
        s.mul(x, x),
        [0.128_379_17, -0.376_126_26, 0.112_835_852, -2.685_381_2e-2, 5.188_328_6e-3, -8.010_200_9e-4, 7.853_883e-5],
    );
    let near = s.mul_add(x, p, x);
    s.select(s.le(t, s.splat(1.0)), near, far)
}

/// `x sigmoid(x)`; error 3e-7, relative until sigmoid underflows.
#[inline(always)]
pub fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    gated(s, x, s.abs(x), x)
}

/// `x sigmoid(1.702 x)`, GELU's cheapest approximation; error 3e-7, absolute or relative.
#[inline(always)]
pub fn quick_gelu<S: Simd>(s: S, x: S::F) -> S::F {
    gated(s, x, s.mul(s.abs(x), s.splat(1.702)), x)
}

/// `2^n` and `2^(v - n)` for the whole number `n` next to `v`, which `rounded` has: it is `v` plus [`BIASED`], and `r` is
/// `v - n`. The power is 0 for `n` = -127 and infinite for 128; relative error 1e-7.
#[inline(always)]
fn exp2_parts<S: Simd>(s: S, rounded: S::F, r: S::F) -> [S::F; 2] {
    let p = polynomial(s, r, [1.000_000_1, 0.693_146_94, 0.240_221_2, 0.055_507_135, 0.009_675_547, 0.001_327_648_2]);
    [s.from_bits(s.shl(s.bits(rounded), 23)), p]
}

/// GELU by its tanh approximation, computed as `x sigmoid(2 u)`; error 2e-7, absolute or relative.
#[inline(always)]
pub fn gelu_tanh<S: Simd>(s: S, x: S::F) -> S::F {
    // 2 sqrt(2 / pi), to the base 2: what rounding does to a large exponent is lost in the sigmoid's tail.
    const SLOPE: f32 = 1.595_769 * LOG2_E;
    // 2^-2u is infinite at the lower bound, as it has to be for all that lies below, and next to nothing at the upper one.
    // The order of the operands keeps NaN.
    let within = s.max(s.splat(-10.06), s.min(s.splat(10.0), x));
    let factor = s.mul_add(s.mul(within, within), s.splat(-0.044_715 * SLOPE), s.splat(-SLOPE));
    let round = s.splat(BIASED);
    let rounded = s.mul_add(within, factor, round);
    let r = s.mul_add(within, factor, s.sub(round, rounded));
    let [power, p] = exp2_parts(s, rounded, r);
    s.div(x, s.mul_add(p, power, s.splat(1.0)))
}

/// GELU by the error function; error 2e-7, absolute or relative.
#[inline(always)]
pub fn gelu_erf<S: Simd>(s: S, x: S::F) -> S::F {
    // The graph lies below that of max(x, 0) by |x| 2^p(|x|), of which p falls to -127 at 13.4: the power is 0 from there on.
    // The order of the operands keeps NaN.
    let t = s.min(s.splat(13.416_577), s.abs(x));
    let exponent = polynomial(
        s,
        t,
        [-1.000_005_8, -1.151_094_1, -0.459_068_3, -0.053_044_483, 0.007_857_909, -0.000_704_897_85, 2.606_220_7e-5],
    );
    let round = s.splat(BIASED);
    let rounded = s.add(exponent, round);
    let [power, p] = exp2_parts(s, rounded, s.sub(exponent, s.sub(rounded, round)));
    s.neg_mul_add(s.mul(t, p), power, relu(s, x))
}

/// `max(x, 0)`
#[inline(always)]
pub fn relu<S: Simd>(s: S, x: S::F) -> S::F {
    s.max(s.splat(0.0), x)
}

/// The magnitude of `x`, which is not negative, with the sign of `sign`.
#[inline(always)]
fn with_sign_of<S: Simd>(s: S, x: S::F, sign: S::F) -> S::F {
    s.from_bits(s.or(s.bits(x), s.and(s.bits(sign), s.splat_i(i32::MIN))))
}
