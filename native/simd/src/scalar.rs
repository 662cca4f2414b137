//! The scalar twin: one lane of plain Rust.

use crate::dots::{DotKernel, Dots};
use crate::isa::Isa;
use crate::vector::{Kernel, Simd};

/// Token of the scalar twin; it exists everywhere.
#[derive(Clone, Copy)]
pub struct Scalar;

impl Simd for Scalar {
    type F = f32;
    type I = i32;
    type M = bool;

    const LANES: usize = 1;
    const ISA: Isa = Isa::Scalar;

    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    unsafe fn load(self, ptr: *const f32) -> f32 {
        // SAFETY: the caller's contract.
        unsafe { ptr.read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, ptr: *mut f32, v: f32) {
        // SAFETY: the caller's contract.
        unsafe { ptr.write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn load_first(self, ptr: *const f32, n: usize) -> f32 {
        // SAFETY: the caller's contract, for n >= 1.
        if n == 0 { 0.0 } else { unsafe { ptr.read_unaligned() } }
    }

    #[inline(always)]
    unsafe fn store_first(self, ptr: *mut f32, v: f32, n: usize) {
        if n > 0 {
            // SAFETY: the caller's contract, for n >= 1.
            unsafe { ptr.write_unaligned(v) }
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> f32 {
        x
    }

    #[inline(always)]
    fn add(self, a: f32, b: f32) -> f32 {
        a + b
    }

    #[inline(always)]
    fn sub(self, a: f32, b: f32) -> f32 {
        a - b
    }

    #[inline(always)]
    fn mul(self, a: f32, b: f32) -> f32 {
        a * b
    }

    #[inline(always)]
    fn div(self, a: f32, b: f32) -> f32 {
        a / b
    }

    // Not `f32::mul_add`: without the FMA instruction that is a library call, some 20 times slower.
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }

    #[inline(always)]
    fn neg_mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        c - a * b
    }

    #[inline(always)]
    fn min(self, a: f32, b: f32) -> f32 {
        if a < b { a } else { b }
    }

    #[inline(always)]
    fn max(self, a: f32, b: f32) -> f32 {
        if a > b { a } else { b }
    }

    #[inline(always)]
    fn sqrt(self, a: f32) -> f32 {
        a.sqrt()
    }

    #[inline(always)]
    fn floor(self, a: f32) -> f32 {
        a.floor()
    }

    #[inline(always)]
    fn deinterleave(self, a: f32, b: f32) -> (f32, f32) {
        (a, b)
    }

    #[inline(always)]
    fn interleave(self, a: f32, b: f32) -> (f32, f32) {
        (a, b)
    }

    #[inline(always)]
    fn lt(self, a: f32, b: f32) -> bool {
        a < b
    }

    #[inline(always)]
    fn le(self, a: f32, b: f32) -> bool {
        a <= b
    }

    #[inline(always)]
    fn eq(self, a: f32, b: f32) -> bool {
        a == b
    }

    #[inline(always)]
    fn is_nan(self, a: f32) -> bool {
        a.is_nan()
    }

    #[inline(always)]
    fn select(self, mask: bool, a: f32, b: f32) -> f32 {
        if mask { a } else { b }
    }

    #[inline(always)]
    fn any(self, mask: bool) -> bool {
        mask
    }

    #[inline(always)]
    fn reduce_add(self, a: f32) -> f32 {
        a
    }

    #[inline(always)]
    fn reduce_max(self, a: f32) -> f32 {
        a
    }

    #[inline(always)]
    fn reduce_min(self, a: f32) -> f32 {
        a
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> i32 {
        x
    }

    #[inline(always)]
    fn iota(self) -> i32 {
        0
    }

    #[inline(always)]
    fn add_i(self, a: i32, b: i32) -> i32 {
        a.wrapping_add(b)
    }

    #[inline(always)]
    fn sub_i(self, a: i32, b: i32) -> i32 {
        a.wrapping_sub(b)
    }

    #[inline(always)]
    fn and(self, a: i32, b: i32) -> i32 {
        a & b
    }

    #[inline(always)]
    fn or(self, a: i32, b: i32) -> i32 {
        a | b
    }

    #[inline(always)]
    fn xor(self, a: i32, b: i32) -> i32 {
        a ^ b
    }

    #[inline(always)]
    fn shl(self, a: i32, n: u32) -> i32 {
        a << n
    }

    #[inline(always)]
    fn shr(self, a: i32, n: u32) -> i32 {
        (a as u32 >> n) as i32
    }

    #[inline(always)]
    fn sar(self, a: i32, n: u32) -> i32 {
        a >> n
    }

    #[inline(always)]
    fn mul_wide(self, a: i32, b: i32) -> (i32, i32) {
        let product = u64::from(a as u32) * u64::from(b as u32);
        ((product >> 32) as i32, product as i32)
    }

    #[inline(always)]
    fn eq_i(self, a: i32, b: i32) -> bool {
        a == b
    }

    #[inline(always)]
    fn to_f(self, a: i32) -> f32 {
        a as f32
    }

    #[inline(always)]
    fn round_i(self, a: f32) -> i32 {
        let whole = a.round_ties_even();
        if (-2_147_483_648.0..2_147_483_648.0).contains(&whole) { whole as i32 } else { i32::MIN }
    }

    #[inline(always)]
    fn join_bytes(self, parts: [i32; 4]) -> i32 {
        i32::from_le_bytes(parts.map(|part| part.clamp(0, 255) as u8))
    }

    #[inline(always)]
    fn bits(self, a: f32) -> i32 {
        a.to_bits() as i32
    }

    #[inline(always)]
    fn from_bits(self, a: i32) -> f32 {
        f32::from_bits(a as u32)
    }

    #[inline(always)]
    unsafe fn load_i(self, ptr: *const i32) -> i32 {
        // SAFETY: the caller's contract.
        unsafe { ptr.read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store_i(self, ptr: *mut i32, v: i32) {
        // SAFETY: the caller's contract.
        unsafe { ptr.write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn store_clamped(self, ptr: *mut u8, v: [i32; 4], top: u8) {
        // SAFETY: the caller's contract.
        unsafe { ptr.cast::<[u8; 4]>().write_unaligned(v.map(|v| v.clamp(0, i32::from(top)) as u8)) }
    }
}

/// The two signed halves of a lane, the lower one first.
#[inline(always)]
fn halves(lane: i32) -> [i32; 2] {
    [i32::from(lane as i16), lane >> 16]
}

/// A lane of these halves, which must fit 16 bits.
#[inline(always)]
fn join([low, high]: [i32; 2]) -> i32 {
    debug_assert!(i16::try_from(low).is_ok() && i16::try_from(high).is_ok(), "{low} and {high} do not fit 16 bits");
    (high << 16) | (low & 0xFFFF)
}

impl Dots for Scalar {
    const VNNI: bool = false;

    fn call_dots<K: DotKernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn dot4(self, sum: i32, a: i32, b: i32) -> i32 {
        let products = a.to_le_bytes().into_iter().zip(b.to_le_bytes());
        products.fold(sum, |sum, (a, b)| sum.wrapping_add(i32::from(a) * i32::from(b as i8)))
    }

    #[inline(always)]
    fn dot2(self, a: i32, b: i32) -> i32 {
        let (a, b) = (a.to_le_bytes().map(i32::from), b.to_le_bytes().map(|b| i32::from(b as i8)));
        join([a[0] * b[0] + a[1] * b[1], a[2] * b[2] + a[3] * b[3]])
    }

    #[inline(always)]
    fn add_pairs(self, a: i32, b: i32) -> i32 {
        let (a, b) = (halves(a), halves(b));
        join([a[0] + b[0], a[1] + b[1]])
    }

    #[inline(always)]
    fn widen(self, sum: i32, pairs: i32) -> i32 {
        let [low, high] = halves(pairs);
        sum.wrapping_add(low).wrapping_add(high)
    }

    #[inline(always)]
    fn even_bytes(self, a: i32) -> i32 {
        let bytes = a.to_le_bytes().map(|byte| i32::from(byte as i8));
        join([bytes[0], bytes[2]])
    }

    #[inline(always)]
    fn odd_bytes(self, a: i32) -> i32 {
        let bytes = a.to_le_bytes().map(|byte| i32::from(byte as i8));
        join([bytes[1], bytes[3]])
    }

    #[inline(always)]
    fn dot_halves(self, sum: i32, a: i32, b: i32) -> i32 {
        let (a, b) = (halves(a), halves(b));
        sum.wrapping_add(a[0] * b[0]).wrapping_add(a[1] * b[1])
    }

    #[inline(always)]
    fn mul_i(self, a: i32, b: i32) -> i32 {
        a.wrapping_mul(b)
    }
}
