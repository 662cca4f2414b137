//! Vector operations against their scalar meaning, on every instruction set of this machine.

use scoregraph_simd::{Bf16Dots, Bf16Kernel, DotKernel, Dots, Isa, Kernel, Simd};

fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.supported())
}

/// Partial loads and stores touch what they say and no more.
struct Partial;

impl Kernel for Partial {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let source: Vec<f32> = (1..=S::LANES as i32).map(|i| i as f32).collect();
        for n in 0..=S::LANES + 2 {
            let kept = n.min(S::LANES);
            let mut first = vec![9.0; S::LANES];
            let mut filled = vec![9.0; S::LANES];
            let mut stored = vec![9.0; S::LANES];
            // SAFETY: all buffers have LANES elements; slices of exactly `kept` elements are read.
            unsafe {
                let exact = source[..kept].to_vec();
                s.store(first.as_mut_ptr(), s.load_first(exact.as_ptr(), n));
                s.store(filled.as_mut_ptr(), s.load_or(exact.as_ptr(), n, s.splat(-5.0)));
                s.store_first(stored.as_mut_ptr(), s.load(source.as_ptr()), n);
            }
            for i in 0..S::LANES {
                let inside = i < kept;
                assert_eq!(first[i], if inside { source[i] } else { 0.0 });
                assert_eq!(filled[i], if inside { source[i] } else { -5.0 });
                assert_eq!(stored[i], if inside { source[i] } else { 9.0 });
            }
        }
    }
}

#[test]
fn partial_access() {
    isas().for_each(|isa| isa.dispatch(Partial));
}

/// Results of every operation on two vectors of bits, as bits.
struct Operations<'a>(&'a [i32], &'a [i32]);

impl Kernel for Operations<'_> {
    type Output = Vec<Vec<i32>>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<Vec<i32>> {
        let mut results = vec![Vec::new(); 24];
        for (a, b) in self.0.chunks_exact(S::LANES).zip(self.1.chunks_exact(S::LANES)) {
            // SAFETY: chunks have LANES elements.
            let (a, b) = unsafe { (s.load_i(a.as_ptr()), s.load_i(b.as_ptr())) };
            let (x, y) = (s.from_bits(a), s.from_bits(b));
            let (one, zero) = (s.splat(1.0), s.splat(0.0));
            let flag = |mask| s.bits(s.select(mask, one, zero));
            let (high, low) = s.mul_wide(a, b);
            let all = [
                s.bits(s.add(x, y)),
                s.bits(s.sub(x, y)),
                s.bits(s.mul(x, y)),
                s.bits(s.div(x, y)),
                s.bits(s.sqrt(x)),
                s.bits(s.min(x, y)),
                s.bits(s.max(x, y)),
                s.bits(s.abs(x)),
                s.bits(s.neg(x)),
                s.bits(s.floor(x)),
                flag(s.lt(x, y)),
                flag(s.le(x, y)),
                flag(s.eq(x, y)),
                flag(s.is_nan(x)),
                flag(s.eq_i(a, b)),
                s.add_i(a, b),
                s.sub_i(a, b),
                s.xor(s.and(a, b), s.or(a, b)),
                s.shl(a, 9),
                s.shr(a, 9),
                s.sar(a, 9),
                high,
                low,
                s.bits(s.to_f(a)),
            ];
            for (result, value) in results.iter_mut().zip(all) {
                let mut lanes = [0; 16];
                // SAFETY: LANES <= 16.
                unsafe { s.store_i(lanes.as_mut_ptr(), value) };
                result.extend_from_slice(&lanes[..S::LANES]);
            }
        }
        results
    }
}

#[test]
fn operations_are_the_same_bits_everywhere() {
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as i32
    };
    let special = [0.0, -0.0, 1.0, -1.5, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MIN_POSITIVE, 1e-42, 3e9];
    let mut a: Vec<i32> = special.iter().flat_map(|x| [x.to_bits() as i32; 10]).collect();
    let mut b: Vec<i32> = (0..10).flat_map(|_| special.map(|x| x.to_bits() as i32)).collect();
    for _ in 100..4096 {
        a.push(random());
        b.push(random());
    }
    let want = Isa::Scalar.dispatch(Operations(&a, &b));
    let is_nan = |bits: i32| f32::from_bits(bits as u32).is_nan();
    for isa in isas() {
        for (op, (want, got)) in want.iter().zip(isa.dispatch(Operations(&a, &b))).enumerate() {
            for (i, (&want, got)) in want.iter().zip(got).enumerate() {
                let same = want == got || (op < 10 && is_nan(want) && is_nan(got));
                assert!(same, "{} op {op} of {:x} and {:x}: {got:x} instead of {want:x}", isa.name(), a[i], b[i]);
            }
        }
    }
}

/// Elements of two vectors taken apart by their parity, and put together again.
struct Parity;

impl Kernel for Parity {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let pairs: Vec<f32> = (0..2 * S::LANES as i32).map(|i| i as f32).collect();
        let (mut parts, mut joined) = (vec![9.0; 2 * S::LANES], vec![9.0; 2 * S::LANES]);
        // SAFETY: all buffers have two vectors.
        unsafe {
            let (even, odd) = s.deinterleave(s.load(pairs.as_ptr()), s.load(pairs[S::LANES..].as_ptr()));
            s.store(parts.as_mut_ptr(), even);
            s.store(parts[S::LANES..].as_mut_ptr(), odd);
            let (low, high) = s.interleave(even, odd);
            s.store(joined.as_mut_ptr(), low);
            s.store(joined[S::LANES..].as_mut_ptr(), high);
        }
        let sorted: Vec<f32> = pairs.iter().step_by(2).chain(pairs.iter().skip(1).step_by(2)).copied().collect();
        assert_eq!((parts, joined), (sorted, pairs), "{}", S::ISA.name());
    }
}

#[test]
fn pairs_come_apart_and_together() {
    isas().for_each(|isa| isa.dispatch(Parity));
}

/// Narrowed lanes: bytes, words and bf16, of every number of lanes, with what lies behind them left alone.
struct Narrow<'a>(&'a [i32]);

impl Kernel for Narrow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for bits in self.0.chunks_exact(S::LANES) {
            for n in 0..=S::LANES {
                let (mut bytes, mut words, mut halves) = ([77u8; 16], [777u16; 16], [777u16; 16]);
                // SAFETY: the chunk has LANES elements, and LANES <= 16.
                unsafe {
                    let v = s.load_i(bits.as_ptr());
                    s.store_bytes(bytes.as_mut_ptr(), v, n);
                    s.store_words(words.as_mut_ptr(), v, n);
                    s.store_words(halves.as_mut_ptr(), s.to_bf16(s.from_bits(v)), n);
                }
                for i in 0..16 {
                    if i >= n {
                        assert_eq!((bytes[i], words[i], halves[i]), (77, 777, 777));
                        continue;
                    }
                    assert_eq!((bytes[i], words[i]), (bits[i] as u8, bits[i] as u16));
                    let (exact, made) = (f32::from_bits(bits[i] as u32), f32::from_bits(u32::from(halves[i]) << 16));
                    if exact.is_nan() {
                        assert!(made.is_nan());
                        continue;
                    }
                    // The nearest of the two neighbours, the even one of a tie; beyond the largest lies 2^128.
                    let below = bits[i] as u32 & 0xFFFF_0000;
                    let value = |bits: u32| {
                        let value = f64::from(f32::from_bits(bits));
                        if value.is_infinite() { value.signum() * 2f64.powi(128) } else { value }
                    };
                    let (low, high) = (value(below), value(below.wrapping_add(0x1_0000)));
                    let x = value(bits[i] as u32);
                    let up = match ((x - low).abs(), (high - x).abs()) {
                        (a, b) if a == b && exact.is_finite() => below & 0x1_0000 != 0,
                        (a, b) => exact.is_finite() && a > b,
                    };
                    let want = (below >> 16) as u16 + u16::from(up);
                    assert_eq!(halves[i], want, "{:x} as bf16", bits[i]);
                }
            }
        }
    }
}

#[test]
fn lanes_are_narrowed() {
    let mut state = 3u64;
    let mut bits: Vec<i32> = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN, 1e-40]
        .map(|x: f32| x.to_bits() as i32)
        .to_vec();
    bits.extend([0x3F80_8000, 0x3F81_8000, 0x3F80_8001, 0x3F80_7FFF, -1, 0x7F80_0001, 0x0000_8000, 0x7F7F_8000]);
    for _ in 0..2048 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bits.push((state >> 32) as i32);
    }
    isas().for_each(|isa| isa.dispatch(Narrow(&bits)));
}

/// Bytes of four vectors, in the order of their lanes, clamped.
struct Clamp<'a>(&'a [i32], u8);

impl Kernel for Clamp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Clamp(values, top) = self;
        for block in values.chunks_exact(4 * S::LANES) {
            let mut bytes = [77u8; 65];
            // SAFETY: the block has four vectors, and 4 * LANES <= 64.
            unsafe {
                let four = std::array::from_fn(|i| s.load_i(block[i * S::LANES..].as_ptr()));
                s.store_clamped(bytes.as_mut_ptr(), four, top);
            }
            let want: Vec<u8> = block.iter().map(|&value| value.clamp(0, i32::from(top)) as u8).collect();
            assert_eq!(bytes[..want.len()], want);
            assert!(bytes[want.len()..].iter().all(|&byte| byte == 77), "what lies behind is left alone");
        }
    }
}

#[test]
fn four_vectors_become_clamped_bytes() {
    let mut state = 5u64;
    let mut values =
        vec![i32::MIN, i32::MAX, -1, 0, 1, 126, 127, 128, 254, 255, 256, 32767, 32768, 65535, -32769, 65536];
    for i in 0..2032 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        values.push((state >> 32) as i32 >> (i % 32));
    }
    for top in [0, 1, 127, 128, 255] {
        isas().for_each(|isa| isa.dispatch(Clamp(&values, top)));
    }
}

/// `x` in its powers and fractions of two: `fraction(x)` and `scale(1.5, x)`.
struct Split<'a>(&'a [f32]);

impl Kernel for Split<'_> {
    type Output = Vec<[f32; 2]>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let mut results = Vec::new();
        for chunk in self.0.chunks_exact(S::LANES) {
            let (mut fractions, mut scaled) = ([0.0; 16], [0.0; 16]);
            // SAFETY: the chunk has LANES elements, and LANES <= 16.
            unsafe {
                let x = s.load(chunk.as_ptr());
                s.store(fractions.as_mut_ptr(), s.fraction(x));
                s.store(scaled.as_mut_ptr(), s.scale(s.splat(1.5), x));
            }
            results.extend((0..S::LANES).map(|i| [fractions[i], scaled[i]]));
        }
        results
    }
}

#[test]
fn fractions_and_scales() {
    let mut values: Vec<f32> = (0..4000).map(|i| (i - 2000) as f32 * 0.06 + 0.01 * (i % 7) as f32 - 0.02).collect();
    values
        .extend([0.0, -0.0, 1.0, -1.0, 120.0, -120.0, 119.999, 0.5, -0.5, 1e-20, -1e-20, 1e-3, -1e-3, 7.0, -7.0, 3.25]);
    let special = [f32::NEG_INFINITY, f32::NAN].repeat(8);
    for isa in isas() {
        for (x, [fraction, scaled]) in values.iter().zip(isa.dispatch(Split(&values))) {
            let whole = f64::from(*x).floor();
            assert!((f64::from(fraction) - (f64::from(*x) - whole)).abs() <= 6e-8, "{} {x}: {fraction}", isa.name());
            assert_eq!(f64::from(scaled), 1.5 * whole.exp2(), "{} {x}", isa.name());
        }
        for (x, [fraction, scaled]) in special.iter().zip(isa.dispatch(Split(&special))) {
            let same = if x.is_nan() { fraction.is_nan() } else { (fraction, scaled) == (0.0, 0.0) };
            assert!(same, "{} {x}: {fraction}, {scaled}", isa.name());
        }
    }
}

struct Transpose<'a>(&'a [f32], &'a mut [f32]);

impl Kernel for Transpose<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: 8 rows, 11 and 9 apart, of buffers of 8 such rows.
        unsafe { s.transpose_8x8(self.0.as_ptr(), 11, self.1.as_mut_ptr(), 9) };
    }
}

#[test]
fn transposes() {
    let from: Vec<f32> = (0..88).map(|i| i as f32).collect();
    for isa in isas() {
        let mut to = vec![-1.0; 72];
        isa.dispatch(Transpose(&from, &mut to));
        for (i, value) in to.iter().enumerate() {
            let want = if i % 9 < 8 { from[i % 9 * 11 + i / 9] } else { -1.0 };
            assert_eq!(*value, want, "{}", isa.name());
        }
    }
}

/// Sums and extremes of lanes, and rounding.
struct Across;

impl Kernel for Across {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let lanes = s.to_f(s.add_i(s.iota(), s.splat_i(1)));
        let n = S::LANES as f32;
        assert_eq!(s.reduce_add(lanes), n * (n + 1.0) / 2.0);
        assert_eq!((s.reduce_max(lanes), s.reduce_min(lanes)), (n, 1.0));
        assert!(s.any(s.lt(lanes, s.splat(1.5))) && !s.any(s.lt(lanes, s.splat(1.0))));
        for (x, want) in [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (7.49, 7), (-7.51, -8)] {
            assert_eq!(s.reduce_max(s.to_f(s.round_i(s.splat(x)))), want as f32);
        }
        for x in [f32::NAN, -3e9, f32::NEG_INFINITY, 2_147_483_648.0, f32::INFINITY] {
            assert!(s.reduce_max(s.to_f(s.round_i(s.splat(x)))) == i32::MIN as f32, "{x}");
        }
        for (x, n, want) in [(1.5, 3, 12.0), (1.0, 127, 1.701_411_8e38), (1.0, 128, f32::INFINITY), (1.0, -149, 1e-45)]
        {
            assert_eq!(s.reduce_max(s.ldexp(s.splat(x), s.splat_i(n))), want);
        }
        assert_eq!(s.reduce_max(s.map_lanes(s.splat(3.0), |x| x + 1.0)), 4.0);
    }
}

/// Bytes of four vectors joined, as lanes.
struct Joined<'a>([&'a [i32]; 4]);

impl Kernel for Joined<'_> {
    type Output = Vec<i32>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<i32> {
        let mut joined = vec![0; self.0[0].len()];
        for (at, to) in joined.chunks_exact_mut(S::LANES).enumerate() {
            let mut parts = [s.splat_i(0); 4];
            for (part, from) in parts.iter_mut().zip(self.0) {
                // SAFETY: a chunk of the part, which is as long as what is joined.
                *part = unsafe { s.load_i(from[at * S::LANES..][..S::LANES].as_ptr()) };
            }
            // SAFETY: the chunk has LANES elements.
            unsafe { s.store_i(to.as_mut_ptr(), s.join_bytes(parts)) };
        }
        joined
    }
}

#[test]
fn joined_bytes_saturate() {
    let ends = [i32::MIN, -40_000, -32_769, -1, 0, 1, 127, 128, 255, 256, 32_767, 32_768, 65_536, i32::MAX];
    let parts: [Vec<i32>; 4] =
        std::array::from_fn(|k| (0..112).map(|i| ends[(i * (k + 1) + k) % ends.len()]).collect());
    let want: Vec<i32> =
        (0..112).map(|i| i32::from_le_bytes([0, 1, 2, 3].map(|k: usize| parts[k][i].clamp(0, 255) as u8))).collect();
    for isa in isas() {
        assert_eq!(isa.dispatch(Joined([&parts[0], &parts[1], &parts[2], &parts[3]])), want, "{}", isa.name());
    }
}

#[test]
fn across_lanes() {
    isas().for_each(|isa| isa.dispatch(Across));
}

/// Results of every operation of `Dots` on two vectors of bytes, as lanes.
struct ByteProducts<'a>(&'a [i32], &'a [i32]);

impl DotKernel for ByteProducts<'_> {
    type Output = Vec<Vec<i32>>;

    #[inline(always)]
    fn run<S: Dots>(self, s: S) -> Vec<Vec<i32>> {
        let mut results = vec![Vec::new(); 8];
        for (a, b) in self.0.chunks_exact(S::LANES).zip(self.1.chunks_exact(S::LANES)) {
            // SAFETY: chunks have LANES elements.
            let (a, b) = unsafe { (s.load_i(a.as_ptr()), s.load_i(b.as_ptr())) };
            // Of 7 bits, so that two of their pairs fit 16.
            let (a7, b6) = (s.and(a, s.splat_i(0x7F7F_7F7F)), s.and(b, s.splat_i(0x3F3F_3F3F)));
            let all = [
                s.dot4(a, a, b),
                s.dot2(a7, b),
                s.add_pairs(s.dot2(a7, b6), s.dot2(b6, a7)),
                s.widen(b, a),
                s.even_bytes(a),
                s.odd_bytes(a),
                s.dot_halves(b, s.sar(a, 1), b),
                s.mul_i(a, b),
            ];
            for (result, value) in results.iter_mut().zip(all) {
                let mut lanes = [0; 16];
                // SAFETY: LANES <= 16.
                unsafe { s.store_i(lanes.as_mut_ptr(), value) };
                result.extend_from_slice(&lanes[..S::LANES]);
            }
        }
        results
    }
}

#[test]
fn products_of_bytes_are_exact_everywhere() {
    let mut state = 5u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as i32
    };
    // Extremes of both signs against each other, then anything but weights of -128, which no format has.
    let extremes = [[255, 255, 255, 255], [0, 255, 0, 255], [127; 4], [0; 4]].map(i32::from_le_bytes);
    let weights = [[127u8; 4], [129; 4], [127, 129, 127, 129], [0, 1, 255, 129]].map(i32::from_le_bytes);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for x in extremes {
        for w in weights {
            a.push(x);
            b.push(w);
        }
    }
    while a.len() < 2048 {
        a.push(random());
        b.push(i32::from_le_bytes(random().to_le_bytes().map(|byte| if byte == 128 { 127 } else { byte })));
    }
    let want = Isa::Scalar.dispatch_dots(ByteProducts(&a, &b));
    for (i, (&a, &b)) in a.iter().zip(&b).enumerate() {
        let products = a.to_le_bytes().into_iter().zip(b.to_le_bytes()).map(|(a, b)| i64::from(a) * i64::from(b as i8));
        assert_eq!(want[0][i], (i64::from(a) + products.sum::<i64>()) as i32);
        assert_eq!(want[7][i], (i64::from(a) * i64::from(b)) as i32);
    }
    for isa in isas() {
        assert_eq!(isa.dispatch_dots(ByteProducts(&a, &b)), want, "{}", isa.name());
    }
}

/// The product of bf16 pairs, if there is one.
struct Bf16Product([i32; 16], [i32; 16], [f32; 16]);

impl Bf16Kernel for Bf16Product {
    type Output = [f32; 16];

    #[inline(always)]
    fn run<S: Bf16Dots>(self, s: S) -> [f32; 16] {
        let mut made = [0.0; 16];
        // SAFETY: all arrays have 16 elements.
        unsafe {
            let (a, b, sum) = (s.load_i(self.0.as_ptr()), s.load_i(self.1.as_ptr()), s.load(self.2.as_ptr()));
            s.store(made.as_mut_ptr(), s.dot_bf16(sum, a, b));
        }
        made
    }
}

#[test]
fn bf16_pairs_are_added_odd_first() {
    let isa = Isa::best();
    if !isa.has_bf16_dots() {
        return;
    }
    let mut state = 9u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Two bf16 of exponents near 0.
        ((state >> 32) as u32 & 0x83FF_83FF | 0x3E00_3E00) as i32
    };
    let half =
        |lane: i32, high: bool| f32::from_bits(if high { lane as u32 & 0xFFFF_0000 } else { (lane as u32) << 16 });
    for _ in 0..1000 {
        let (a, b) = (std::array::from_fn(|_| random()), std::array::from_fn(|_| random()));
        let sum: [f32; 16] = std::array::from_fn(|_| f32::from_bits(random() as u32));
        let made = isa.dispatch_bf16(Bf16Product(a, b, sum));
        for i in 0..16 {
            let odd = half(a[i], true).mul_add(half(b[i], true), sum[i]);
            let want = half(a[i], false).mul_add(half(b[i], false), odd);
            assert_eq!(made[i].to_bits(), want.to_bits());
        }
    }
}
