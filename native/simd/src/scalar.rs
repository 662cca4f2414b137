//! The scalar twin: one lane of plain Rust.

use crate::isa::Isa;
use crate::vector::Simd;

/// Token of the scalar twin; it exists everywhere.
#[derive(Clone, Copy)]
pub struct Scalar;

impl Simd for Scalar {
    type F = f32;
    type I = i32;
    type M = bool;

    const LANES: usize = 1;
    const ISA: Isa = Isa::Scalar;

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
        a.round_ties_even() as i32
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
}
