//! Philox4x32-10 and the normal numbers made of it: `scoregraph/graph/noise.py`, operation by operation.
//!
//! Every float line is one IEEE operation per method call, in the order of the Python file, and none of them is fused
//! (`Simd::mul_add` is never used here), so every instruction set gives the bits that numpy gives.
//!
//! Sources: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); polynomials of Moshier's Cephes.

use scoregraph_simd::{Isa, Kernel, Simd};

const PHILOX_M: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const PHILOX_W: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const PHILOX_ROUNDS: usize = 10;

/// log(1 + f) = f - f²/2 + f³ P(f); from the highest power down. The digits are those of the Python file.
#[allow(clippy::excessive_precision, reason = "the digits are Cephes' own")]
const LOG_POLYNOMIAL: [f32; 9] = [
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
];
const SQRT_HALF_BITS: i32 = 0x3F35_04F3;
#[allow(clippy::excessive_precision, reason = "exact: nine bits after the point")]
const LN2_HIGH: f32 = 0.693359375;
#[allow(clippy::excessive_precision, reason = "the digits are Cephes' own")]
const LN2_LOW: f32 = -2.12194440e-4;
/// sin(x) = x + x³ S(x²)
#[allow(clippy::excessive_precision, reason = "the digits are Cephes' own")]
const SIN_POLYNOMIAL: [f32; 3] = [-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1];
/// cos(x) = 1 - x²/2 + x⁴ C(x²)
#[allow(clippy::excessive_precision, reason = "the digits are Cephes' own")]
const COS_POLYNOMIAL: [f32; 3] = [2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2];
/// Radians in one 2^-24th of a turn.
const TURN: f32 = 3.7450704e-07;
/// The weight of one unit in the last place of a number in (0, 1) with 24 bits.
const ULP: f32 = 1.0 / 16_777_216.0;

/// Which normals to draw: the key and the two high words of the counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// The sample's own seed.
    pub seed: u64,
    /// The micro-step.
    pub micro: u32,
    /// The noise site.
    pub site: u32,
}

/// Four random words for a counter and a key, as in Random123.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let mut c = counter;
    let mut k = key;
    for _ in 0..PHILOX_ROUNDS {
        let product0 = u64::from(PHILOX_M[0]) * u64::from(c[0]);
        let product1 = u64::from(PHILOX_M[1]) * u64::from(c[2]);
        c = [
            (product1 >> 32) as u32 ^ c[1] ^ k[0],
            product1 as u32,
            (product0 >> 32) as u32 ^ c[3] ^ k[1],
            product0 as u32,
        ];
        k = [k[0].wrapping_add(PHILOX_W[0]), k[1].wrapping_add(PHILOX_W[1])];
    }
    c
}

/// `LANES` counters at once; the key is the same for all.
#[inline(always)]
fn philox_lanes<S: Simd>(simd: S, mut c: [S::I; 4], key: [u32; 2]) -> [S::I; 4] {
    let m = PHILOX_M.map(|m| simd.splat_i(m as i32));
    let mut k = key;
    for _ in 0..PHILOX_ROUNDS {
        let (high0, low0) = simd.mul_wide(m[0], c[0]);
        let (high1, low1) = simd.mul_wide(m[1], c[2]);
        let keys = k.map(|k| simd.splat_i(k as i32));
        c = [simd.xor(simd.xor(high1, c[1]), keys[0]), low1, simd.xor(simd.xor(high0, c[3]), keys[1]), low0];
        k = [k[0].wrapping_add(PHILOX_W[0]), k[1].wrapping_add(PHILOX_W[1])];
    }
    c
}

/// `(((c0 x + c1) x + c2) x + …)`
#[inline(always)]
fn horner<S: Simd>(simd: S, x: S::F, coefficients: &[f32]) -> S::F {
    let mut total = simd.splat(coefficients[0]);
    for &coefficient in &coefficients[1..] {
        total = simd.add(simd.mul(total, x), simd.splat(coefficient));
    }
    total
}

/// Natural logarithm on (0, 1).
#[inline(always)]
fn log<S: Simd>(simd: S, u: S::F) -> S::F {
    let bits = simd.bits(u);
    let k = simd.sar(simd.sub_i(bits, simd.splat_i(SQRT_HALF_BITS)), 23);
    let m = simd.from_bits(simd.sub_i(bits, simd.shl(k, 23)));
    let e = simd.to_f(k);
    let f = simd.sub(m, simd.splat(1.0));
    let z = simd.mul(f, f);
    let mut y = horner(simd, f, &LOG_POLYNOMIAL);
    y = simd.mul(y, f);
    y = simd.mul(y, z);
    y = simd.add(y, simd.mul(e, simd.splat(LN2_LOW)));
    y = simd.sub(y, simd.mul(z, simd.splat(0.5)));
    y = simd.add(f, y);
    simd.add(y, simd.mul(e, simd.splat(LN2_HIGH)))
}

/// cos and sin of j 2^-24 turns.
#[inline(always)]
fn cos_sin_turn<S: Simd>(simd: S, j: S::I) -> (S::F, S::F) {
    let quarter = simd.shr(simd.add_i(j, simd.splat_i(1 << 21)), 22);
    let r = simd.sub_i(j, simd.shl(quarter, 22));
    let x = simd.mul(simd.to_f(r), simd.splat(TURN));
    let z = simd.mul(x, x);
    let mut s = horner(simd, z, &SIN_POLYNOMIAL);
    s = simd.mul(s, z);
    s = simd.mul(s, x);
    s = simd.add(s, x);
    let mut c = horner(simd, z, &COS_POLYNOMIAL);
    c = simd.mul(c, z);
    c = simd.mul(c, z);
    c = simd.sub(c, simd.mul(z, simd.splat(0.5)));
    c = simd.add(c, simd.splat(1.0));
    let one = simd.splat_i(1);
    let two = simd.splat_i(2);
    let swap = simd.eq_i(simd.and(quarter, one), one);
    let cos_sign = simd.sub(simd.splat(1.0), simd.to_f(simd.and(simd.add_i(quarter, one), two)));
    let sin_sign = simd.sub(simd.splat(1.0), simd.to_f(simd.and(quarter, two)));
    (simd.mul(simd.select(swap, s, c), cos_sign), simd.mul(simd.select(swap, c, s), sin_sign))
}

/// Two normals from two words (Box and Muller).
#[inline(always)]
fn normal_pair<S: Simd>(simd: S, word_a: S::I, word_b: S::I) -> (S::F, S::F) {
    let odd = simd.add_i(simd.shl(simd.shr(word_a, 9), 1), simd.splat_i(1));
    let u = simd.mul(simd.to_f(odd), simd.splat(ULP));
    let radius = simd.sqrt(simd.mul(simd.splat(-2.0), log(simd, u)));
    let (cosine, sine) = cos_sin_turn(simd, simd.shr(word_b, 8));
    (simd.mul(radius, cosine), simd.mul(radius, sine))
}

/// Writes the normals of elements `4 * group …` of a stream; `out` may have any length.
#[inline(always)]
pub(crate) fn fill<S: Simd>(simd: S, stream: Stream, group: u64, out: &mut [f32]) {
    let key = [stream.seed as u32, (stream.seed >> 32) as u32];
    let micro = simd.splat_i(stream.micro as i32);
    let site = simd.splat_i(stream.site as i32);
    let mut lanes = [[0.0f32; 16]; 4];
    for (i, chunk) in out.chunks_mut(4 * S::LANES).enumerate() {
        let first = group + (i * S::LANES) as u64;
        let mut low = [0i32; 16];
        let mut high = [0i32; 16];
        for lane in 0..S::LANES {
            let counter = first.wrapping_add(lane as u64);
            low[lane] = counter as i32;
            high[lane] = (counter >> 32) as i32;
        }
        // SAFETY: LANES <= 16, the length of every array here.
        let words =
            unsafe { philox_lanes(simd, [simd.load_i(low.as_ptr()), simd.load_i(high.as_ptr()), micro, site], key) };
        let (z0, z1) = normal_pair(simd, words[0], words[1]);
        let (z2, z3) = normal_pair(simd, words[2], words[3]);
        for (row, z) in lanes.iter_mut().zip([z0, z1, z2, z3]) {
            // SAFETY: LANES <= 16.
            unsafe { simd.store(row.as_mut_ptr(), z) };
        }
        for (lane, quad) in chunk.chunks_mut(4).enumerate() {
            for (word, z) in quad.iter_mut().enumerate() {
                *z = lanes[word][lane];
            }
        }
    }
}

struct Fill<'a> {
    stream: Stream,
    group: u64,
    scale: f32,
    out: &'a mut [f32],
}

impl Kernel for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        fill(simd, self.stream, self.group, self.out);
        for x in self.out.iter_mut() {
            *x *= self.scale;
        }
    }
}

/// `out[i] = scale * normal(element 4 * group + i)`.
pub fn scaled_normals(isa: Isa, stream: Stream, group: u64, scale: f32, out: &mut [f32]) {
    isa.dispatch(Fill { stream, group, scale, out });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The known-answer vectors of the Random123 distribution (kat_vectors, philox4x32 with 10 rounds).
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox4x32([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        assert_eq!(
            philox4x32([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    /// Independent of the vector code: the scalar philox and float64 library functions.
    fn normal_f64(stream: Stream, element: u64) -> f64 {
        let group = element / 4;
        let counter = [group as u32, (group >> 32) as u32, stream.micro, stream.site];
        let w = philox4x32(counter, [stream.seed as u32, (stream.seed >> 32) as u32]);
        let pair = if element % 4 < 2 { [w[0], w[1]] } else { [w[2], w[3]] };
        let u = f64::from(2 * (pair[0] >> 9) + 1) * f64::from(ULP);
        let angle = std::f64::consts::TAU * f64::from(pair[1] >> 8) * f64::from(ULP);
        (-2.0 * u.ln()).sqrt() * if element.is_multiple_of(2) { angle.cos() } else { angle.sin() }
    }

    proptest! {
        #[test]
        fn every_isa_gives_the_same_bits_and_the_right_numbers(
            seed: u64, micro: u32, site: u32, group: u64, length in 1usize..200
        ) {
            let stream = Stream { seed, micro, site };
            let group = group >> 3;
            let mut scalar = vec![0.0; length];
            scaled_normals(Isa::Scalar, stream, group, 1.0, &mut scalar);
            for (i, &z) in scalar.iter().enumerate() {
                let exact = normal_f64(stream, 4 * group + i as u64);
                prop_assert!((f64::from(z) - exact).abs() < 2e-6, "{z} is not {exact}");
            }
            for isa in Isa::ALL.into_iter().filter(|isa| isa.supported()) {
                let mut other = vec![0.0; length];
                scaled_normals(isa, stream, group, 1.0, &mut other);
                let same = scalar.iter().zip(&other).all(|(a, b)| a.to_bits() == b.to_bits());
                prop_assert!(same, "{} differs from scalar", isa.name());
            }
        }

        #[test]
        fn where_a_tile_starts_does_not_matter(seed: u64, cut in 0usize..100) {
            let stream = Stream { seed, micro: 3, site: 1 };
            let mut whole = vec![0.0; 800];
            scaled_normals(Isa::best(), stream, 0, 0.5, &mut whole);
            let mut part = vec![0.0; 400];
            scaled_normals(Isa::best(), stream, cut as u64, 0.5, &mut part);
            prop_assert_eq!(&whole[4 * cut..4 * cut + 400], &part[..]);
        }
    }
}
