//! The vector abstraction: what every instruction set can do with `LANES` values of `f32` or of 32-bit integers.

use crate::isa::Isa;
use crate::math::BIASED;

/// A computation written once for every instruction set; [`Isa::dispatch`] runs it.
///
/// Mark `run`, every generic function it calls and every closure that computes with vectors `#[inline(always)]`: only code
/// inlined into the entry of an instruction set is compiled for it, and what is left outside runs some fifty times slower.
pub trait Kernel {
    /// What the computation returns.
    type Output;

    /// The computation, in vectors of `S`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// An instruction set's vectors. A value of such a type is a token: it exists only where the instructions do, so
/// arithmetic is safe, and only memory access is not.
///
/// Comparisons with NaN are false. Integers wrap.
pub trait Simd: Copy + Send + Sync + 'static {
    /// `LANES` values of `f32`.
    type F: Copy;
    /// `LANES` 32-bit integers; signed or unsigned is the operation's matter.
    type I: Copy;
    /// `LANES` booleans.
    type M: Copy;

    /// Elements in a vector: 1, 8 or 16.
    const LANES: usize;
    /// The instruction set.
    const ISA: Isa;

    /// Runs a kernel in a function of its own, for the same instruction set: what several kernels need is then compiled
    /// once, and not into each of them.
    fn call<K: Kernel>(self, kernel: K) -> K::Output;

    /// Reads `LANES` elements, of any alignment.
    ///
    /// # Safety
    /// `ptr..ptr + LANES` must be readable.
    unsafe fn load(self, ptr: *const f32) -> Self::F;

    /// Writes `LANES` elements, of any alignment.
    ///
    /// # Safety
    /// `ptr..ptr + LANES` must be writable.
    unsafe fn store(self, ptr: *mut f32, v: Self::F);

    /// Reads the first `n` lanes; the others are 0 and their memory is not touched.
    ///
    /// # Safety
    /// `ptr..ptr + min(n, LANES)` must be readable.
    unsafe fn load_first(self, ptr: *const f32, n: usize) -> Self::F;

    /// Writes the first `n` lanes; the memory of the others is not touched.
    ///
    /// # Safety
    /// `ptr..ptr + min(n, LANES)` must be writable.
    unsafe fn store_first(self, ptr: *mut f32, v: Self::F, n: usize);

    /// Reads the first `n` lanes; the others are those of `fill`.
    ///
    /// # Safety
    /// As [`Simd::load_first`].
    #[inline(always)]
    unsafe fn load_or(self, ptr: *const f32, n: usize, fill: Self::F) -> Self::F {
        let read = self.lt(self.to_f(self.iota()), self.splat(n as f32));
        // SAFETY: the caller's contract.
        self.select(read, unsafe { self.load_first(ptr, n) }, fill)
    }

    /// Asks for the cache line at `ptr`, which need not be readable, ahead of its use.
    #[inline(always)]
    fn prefetch(self, _ptr: *const f32) {}

    /// The same for a use that is further off, into the second-level cache.
    #[inline(always)]
    fn prefetch_far(self, _ptr: *const f32) {}

    /// Writes the transpose of an 8 by 8 block, whose rows are `from_stride` and `to_stride` elements apart.
    ///
    /// # Safety
    /// The rows at `from` must be readable, those at `to` writable, and the two must not overlap.
    #[inline(always)]
    unsafe fn transpose_8x8(self, from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        for row in 0..8 {
            for col in 0..8 {
                // SAFETY: the caller's contract.
                unsafe { to.add(col * to_stride + row).write(*from.add(row * from_stride + col)) };
            }
        }
    }

    /// Every lane is `x`.
    fn splat(self, x: f32) -> Self::F;
    /// `a + b`
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`, correctly rounded
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`: fused where the instruction set fuses (not in the scalar twin).
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `c - a * b`: fused where the instruction set fuses.
    fn neg_mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `if a < b { a } else { b }`: b if either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a > b { a } else { b }`: b if either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// Square root, correctly rounded.
    fn sqrt(self, a: Self::F) -> Self::F;
    /// The largest integer that is not larger.
    fn floor(self, a: Self::F) -> Self::F;
    /// `|a|`
    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        self.from_bits(self.and(self.bits(a), self.splat_i(i32::MAX)))
    }
    /// `-a`
    #[inline(always)]
    fn neg(self, a: Self::F) -> Self::F {
        self.from_bits(self.xor(self.bits(a), self.splat_i(i32::MIN)))
    }

    /// The even and the odd elements of the `2 * LANES` that `a` and then `b` are.
    fn deinterleave(self, a: Self::F, b: Self::F) -> (Self::F, Self::F);
    /// `a0 b0 a1 b1 …`, in two vectors: what [`Simd::deinterleave`] takes apart.
    fn interleave(self, a: Self::F, b: Self::F) -> (Self::F, Self::F);

    /// `a < b`
    fn lt(self, a: Self::F, b: Self::F) -> Self::M;
    /// `a <= b`
    fn le(self, a: Self::F, b: Self::F) -> Self::M;
    /// `a == b`
    fn eq(self, a: Self::F, b: Self::F) -> Self::M;
    /// `a` is NaN
    fn is_nan(self, a: Self::F) -> Self::M;
    /// Lanes of `a` where the mask is set, of `b` elsewhere.
    fn select(self, mask: Self::M, a: Self::F, b: Self::F) -> Self::F;
    /// Whether any lane is set.
    fn any(self, mask: Self::M) -> bool;

    /// The sum of all lanes, in one fixed order.
    fn reduce_add(self, a: Self::F) -> f32;
    /// The largest lane; if any is NaN, any lane.
    fn reduce_max(self, a: Self::F) -> f32;
    /// The smallest lane; if any is NaN, any lane.
    fn reduce_min(self, a: Self::F) -> f32;

    /// Every lane is `x`.
    fn splat_i(self, x: i32) -> Self::I;
    /// `0, 1, 2, …`
    fn iota(self) -> Self::I;
    /// `a + b`, wrapping
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a - b`, wrapping
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bitwise and.
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bitwise or.
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bitwise exclusive or.
    fn xor(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a << n`, for `n < 32`
    fn shl(self, a: Self::I, n: u32) -> Self::I;
    /// `a >> n` with zeros shifted in, for `n < 32`
    fn shr(self, a: Self::I, n: u32) -> Self::I;
    /// `a >> n` with the sign shifted in, for `n < 32`
    fn sar(self, a: Self::I, n: u32) -> Self::I;
    /// The 64-bit product of unsigned lanes: (high half, low half).
    fn mul_wide(self, a: Self::I, b: Self::I) -> (Self::I, Self::I);
    /// `a == b`
    fn eq_i(self, a: Self::I, b: Self::I) -> Self::M;
    /// Signed integers as `f32`, rounded to nearest.
    fn to_f(self, a: Self::I) -> Self::F;
    /// Rounds to the nearest integer, ties to even; `i32::MIN` for NaN and outside the range of `i32`.
    fn round_i(self, a: Self::F) -> Self::I;
    /// Byte k of every lane is that lane of `parts[k]`, saturated to 0..=255.
    fn join_bytes(self, parts: [Self::I; 4]) -> Self::I;
    /// The bits of floats.
    fn bits(self, a: Self::F) -> Self::I;
    /// The floats of bits.
    #[allow(clippy::wrong_self_convention, reason = "self is the instruction set, not the value converted")]
    fn from_bits(self, a: Self::I) -> Self::F;

    /// `a * 2^n`, rounded once, for `n` in -252..=254.
    #[inline(always)]
    fn ldexp(self, a: Self::F, n: Self::I) -> Self::F {
        // 2^n itself may be out of range where the product is not: multiply by two halves of it.
        let half = self.sar(n, 1);
        let rest = self.sub_i(n, half);
        let bias = self.splat_i(127);
        let half = self.from_bits(self.shl(self.add_i(half, bias), 23));
        let rest = self.from_bits(self.shl(self.add_i(rest, bias), 23));
        self.mul(self.mul(a, half), rest)
    }

    /// Whether [`Simd::fraction`] and [`Simd::scale`] are one instruction each.
    const SCALES: bool = false;

    /// `a - floor(a)`, rounded: 0 to 1; 0 for infinities.
    #[inline(always)]
    fn fraction(self, a: Self::F) -> Self::F {
        let infinite = self.eq(self.abs(a), self.splat(f32::INFINITY));
        self.select(infinite, self.splat(0.0), self.sub(a, self.floor(a)))
    }

    /// `a * 2^floor(n)` for `a` in 1/2 … 4 and `n` in -120 … 120; 0 for an `n` of -inf.
    #[inline(always)]
    fn scale(self, a: Self::F, n: Self::F) -> Self::F {
        // At -127 the biased exponent, and with it the power, is 0.
        let whole = self.floor(self.max(n, self.splat(-127.0)));
        let biased = self.bits(self.add(whole, self.splat(BIASED)));
        self.mul(a, self.from_bits(self.shl(biased, 23)))
    }

    /// Reads `LANES` integers, of any alignment.
    ///
    /// # Safety
    /// `ptr..ptr + LANES` must be readable.
    unsafe fn load_i(self, ptr: *const i32) -> Self::I;

    /// Writes `LANES` integers, of any alignment.
    ///
    /// # Safety
    /// `ptr..ptr + LANES` must be writable.
    unsafe fn store_i(self, ptr: *mut i32, v: Self::I);

    /// Writes the low byte of the first `n` lanes; the memory of the others is not touched.
    ///
    /// # Safety
    /// `ptr..ptr + min(n, LANES)` must be writable.
    #[inline(always)]
    unsafe fn store_bytes(self, ptr: *mut u8, v: Self::I, n: usize) {
        let mut lanes = [0i32; 16];
        // SAFETY: LANES <= 16, and the caller's contract.
        unsafe {
            self.store_i(lanes.as_mut_ptr(), v);
            for (i, lane) in lanes.iter().enumerate().take(n.min(Self::LANES)) {
                ptr.add(i).write(*lane as u8);
            }
        }
    }

    /// Writes the lanes of four vectors as a byte each, clamped to 0 … `top`.
    ///
    /// # Safety
    /// `ptr..ptr + 4 * LANES` must be writable.
    unsafe fn store_clamped(self, ptr: *mut u8, v: [Self::I; 4], top: u8);

    /// Writes the low 16 bits of the first `n` lanes, to any alignment; the memory of the others is not touched.
    ///
    /// # Safety
    /// `ptr..ptr + min(n, LANES)` must be writable.
    #[inline(always)]
    unsafe fn store_words(self, ptr: *mut u16, v: Self::I, n: usize) {
        let mut lanes = [0i32; 16];
        // SAFETY: LANES <= 16, and the caller's contract.
        unsafe {
            self.store_i(lanes.as_mut_ptr(), v);
            for (i, lane) in lanes.iter().enumerate().take(n.min(Self::LANES)) {
                ptr.add(i).write_unaligned(*lane as u16);
            }
        }
    }

    /// bf16 in the low halves: the upper half of the float, rounded to nearest even; NaN stays NaN.
    #[inline(always)]
    fn to_bf16(self, a: Self::F) -> Self::I {
        let bits = self.bits(a);
        let odd = self.and(self.shr(bits, 16), self.splat_i(1));
        let rounded = self.shr(self.add_i(self.add_i(bits, self.splat_i(0x7FFF)), odd), 16);
        // Rounding could carry a NaN of few bits into an infinity.
        self.bits(self.select(self.is_nan(a), self.from_bits(self.splat_i(0x7FC0)), self.from_bits(rounded)))
    }

    /// Returns its arguments; what is read through the pointer is read after `values` are computed. It costs no
    /// instruction.
    ///
    /// A register kernel that needs all 16 registers of AVX2 spills when the compiler moves its next load up among the
    /// arithmetic before it; this keeps the load where it was written.
    #[inline(always)]
    fn pin<const N: usize>(self, ptr: *const f32, values: [Self::F; N]) -> (*const f32, [Self::F; N]) {
        (ptr, values)
    }

    /// Applies `f` to every lane through memory: for functions too rare to vectorise.
    #[inline(always)]
    fn map_lanes(self, a: Self::F, f: impl Fn(f32) -> f32) -> Self::F {
        let mut lanes = [0.0f32; 16];
        // SAFETY: LANES <= 16, so both accesses stay inside the array.
        unsafe {
            self.store(lanes.as_mut_ptr(), a);
            for lane in &mut lanes[..Self::LANES] {
                *lane = f(*lane);
            }
            self.load(lanes.as_ptr())
        }
    }
}
