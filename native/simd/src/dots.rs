//! Sums of products of bytes: what integer matrix products and convolutions are made of.

use crate::isa::Isa;
use crate::vector::Simd;

/// An instruction set that sums products of unsigned with signed bytes, four to a 32-bit lane, lowest byte first.
///
/// There are two ways. [`Dots::dot4`] is exact for all bytes; it is one instruction with VNNI. Without VNNI it is faster to
/// add products in pairs of 16 bits for a while ([`Dots::dot2`], [`Dots::add_pairs`]) before they are widened
/// ([`Dots::widen`]), as long as their bytes are known to be so small that 16 bits hold the sums.
pub trait Dots: Simd {
    /// Whether [`Dots::dot4`] is one instruction.
    const VNNI: bool;

    /// [`Simd::call`] for a kernel over [`Dots`].
    fn call_dots<K: DotKernel>(self, kernel: K) -> K::Output;

    /// `sum + a0 * b0 + a1 * b1 + a2 * b2 + a3 * b3` in every lane, a unsigned and b signed; the sum wraps.
    fn dot4(self, sum: Self::I, a: Self::I, b: Self::I) -> Self::I;

    /// `(a0 * b0 + a1 * b1, a2 * b2 + a3 * b3)` in the two halves of every lane, a unsigned and b signed; both must fit
    /// 16 bits.
    fn dot2(self, a: Self::I, b: Self::I) -> Self::I;

    /// The sums of both halves; they must fit 16 bits.
    fn add_pairs(self, a: Self::I, b: Self::I) -> Self::I;

    /// `sum +` the lower half `+` the upper half, both signed.
    fn widen(self, sum: Self::I, pairs: Self::I) -> Self::I;

    /// The bytes 0 and 2 of every lane, sign-extended to its halves.
    fn even_bytes(self, a: Self::I) -> Self::I;

    /// The bytes 1 and 3 of every lane, sign-extended to its halves.
    fn odd_bytes(self, a: Self::I) -> Self::I;

    /// `sum + a0 * b0 + a1 * b1` of the signed halves of every lane; the sum wraps.
    fn dot_halves(self, sum: Self::I, a: Self::I, b: Self::I) -> Self::I;

    /// `a * b`, wrapping.
    fn mul_i(self, a: Self::I, b: Self::I) -> Self::I;
}

/// A computation over [`Dots`], written once for every instruction set; [`Isa::dispatch_dots`] runs it.
///
/// The rule of [`crate::Kernel`] about inlining holds here too.
pub trait DotKernel {
    /// What the computation returns.
    type Output;

    /// The computation, in vectors of `S`.
    fn run<S: Dots>(self, simd: S) -> Self::Output;
}

/// An instruction set with a product of bf16 pairs.
pub trait Bf16Dots: Simd {
    /// `fma(a0, b0, fma(a1, b1, sum))` of the bf16 halves of every lane, each step rounded to nearest even; subnormal
    /// numbers, also those that a step makes, count as 0.
    fn dot_bf16(self, sum: Self::F, a: Self::I, b: Self::I) -> Self::F;
}

/// A computation over [`Bf16Dots`]; [`Isa::dispatch_bf16`] runs it. The rule of [`crate::Kernel`] about inlining holds.
pub trait Bf16Kernel {
    /// What the computation returns.
    type Output;

    /// The computation, in vectors of `S`.
    fn run<S: Bf16Dots>(self, simd: S) -> Self::Output;
}

impl Isa {
    /// Runs `kernel` compiled for this instruction set.
    ///
    /// # Panics
    /// If the processor does not support it.
    #[inline]
    pub fn dispatch_dots<K: DotKernel>(self, kernel: K) -> K::Output {
        assert!(self.supported(), "this processor cannot run {} kernels", self.name());
        match self {
            Isa::Scalar => kernel.run(crate::scalar::Scalar),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `supported` has just found AVX2 and FMA.
            Isa::Avx2 => unsafe { crate::avx2::enter_dots(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `supported` has just found AVX-VNNI, AVX2 and FMA.
            Isa::AvxVnni => unsafe { crate::avx2::enter_vnni(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `supported` has just found AVX-512 F, BW, DQ, VL, AVX2 and FMA.
            Isa::Avx512 => unsafe { crate::avx512::enter_dots(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `supported` has just found AVX-512 F, BW, DQ, VL, VNNI, AVX2 and FMA.
            Isa::Avx512Vnni => unsafe { crate::avx512::enter_vnni(kernel) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("only x86-64 has {}", self.name()),
        }
    }

    /// Whether [`Isa::dispatch_bf16`] runs kernels: with AVX-512 BF16, under an instruction set of that generation.
    pub fn has_bf16_dots(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self == Isa::Avx512Vnni && self.supported() && is_x86_feature_detected!("avx512bf16");
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Runs `kernel` with the processor's products of bf16.
    ///
    /// # Panics
    /// If it has none, see [`Isa::has_bf16_dots`].
    #[inline]
    pub fn dispatch_bf16<K: Bf16Kernel>(self, kernel: K) -> K::Output {
        assert!(self.has_bf16_dots(), "{} has no products of bf16 here", self.name());
        #[cfg(target_arch = "x86_64")]
        // SAFETY: just asserted: AVX-512 F, BW, DQ, VL, VNNI and BF16, AVX2 and FMA.
        return unsafe { crate::avx512::enter_bf16(kernel) };
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("only x86-64 has AVX-512")
    }
}
