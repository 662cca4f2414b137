//! AVX-512 F, BW, DQ, VL: 16 lanes.

use std::arch::x86_64::*;

use crate::dots::{Bf16Dots, Bf16Kernel, DotKernel, Dots};
use crate::isa::Isa;
use crate::vector::{Kernel, Simd};

/// Token of AVX-512, with `VNNI` and `BF16` of those extensions too. The private field keeps anyone but the functions that
/// enter from making one.
#[derive(Clone, Copy)]
pub struct Avx512<const VNNI: bool = false, const BF16: bool = false>(());

/// Runs `kernel` in a function that may use AVX-512, never inlined, not even where its features are there already: a kernel
/// within a kernel keeps its registers to itself.
///
/// # Safety
/// The processor must support AVX-512 F, BW, DQ, VL, AVX2 and FMA.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub unsafe fn enter<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512::<false, false>(()))
}

/// The same for a kernel over [`Dots`].
///
/// # Safety
/// As [`enter`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub unsafe fn enter_dots<K: DotKernel>(kernel: K) -> K::Output {
    kernel.run(Avx512::<false, false>(()))
}

/// The same in a function that may use VNNI too.
///
/// # Safety
/// As [`enter`]; and the processor must support AVX-512 VNNI.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
pub unsafe fn enter_vnni<K: DotKernel>(kernel: K) -> K::Output {
    kernel.run(Avx512::<true, false>(()))
}

/// Runs `kernel` in a function that may use AVX-512, never inlined, not even where its features are there already: a kernel
/// within a kernel keeps its registers to itself.with VNNI and BF16.
///
/// # Safety
/// As [`enter_vnni`]; and the processor must support AVX-512 BF16.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma")]
pub unsafe fn enter_bf16<K: Bf16Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512::<true, true>(()))
}

#[inline(always)]
fn first(n: usize) -> __mmask16 {
    ((1u32 << n.min(16)) - 1) as __mmask16
}

/// Defines arithmetic methods: `name(operands) -> result = intrinsics`.
macro_rules! ops {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $type),*) -> $result {
            // SAFETY: register arithmetic; `self` is a token, so the processor has AVX-512 F, BW, DQ and VL.
            unsafe { $body }
        }
    )*};
}

impl<const VNNI: bool, const BF16: bool> Simd for Avx512<VNNI, BF16> {
    type F = __m512;
    type I = __m512i;
    type M = __mmask16;

    const LANES: usize = 16;
    const ISA: Isa = Isa::Avx512;
    const SCALES: bool = true;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` is a token, so the processor has AVX-512 F, BW, DQ and VL, AVX2 and FMA.
        unsafe { enter(kernel) }
    }

    #[inline(always)]
    unsafe fn load(self, ptr: *const f32) -> __m512 {
        // SAFETY: the caller's contract.
        unsafe { _mm512_loadu_ps(ptr) }
    }

    #[inline(always)]
    unsafe fn store(self, ptr: *mut f32, v: __m512) {
        // SAFETY: the caller's contract.
        unsafe { _mm512_storeu_ps(ptr, v) }
    }

    #[inline(always)]
    unsafe fn load_first(self, ptr: *const f32, n: usize) -> __m512 {
        // SAFETY: the caller's contract; masked lanes are not accessed.
        unsafe { _mm512_maskz_loadu_ps(first(n), ptr) }
    }

    #[inline(always)]
    unsafe fn store_first(self, ptr: *mut f32, v: __m512, n: usize) {
        // SAFETY: the caller's contract; masked lanes are not accessed.
        unsafe { _mm512_mask_storeu_ps(ptr, first(n), v) }
    }

    #[inline(always)]
    unsafe fn load_i(self, ptr: *const i32) -> __m512i {
        // SAFETY: the caller's contract.
        unsafe { _mm512_loadu_si512(ptr.cast()) }
    }

    #[inline(always)]
    unsafe fn store_i(self, ptr: *mut i32, v: __m512i) {
        // SAFETY: the caller's contract.
        unsafe { _mm512_storeu_si512(ptr.cast(), v) }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, ptr: *mut u8, v: __m512i, n: usize) {
        // SAFETY: the caller's contract; masked lanes are not accessed.
        unsafe { _mm_mask_storeu_epi8(ptr.cast(), first(n), _mm512_cvtepi32_epi8(v)) }
    }

    #[inline(always)]
    unsafe fn store_clamped(self, ptr: *mut u8, [a, b, c, d]: [__m512i; 4], top: u8) {
        // SAFETY: `self` is a token, so the processor has AVX-512 F and BW; the caller's contract.
        unsafe {
            // Four lanes of each of the four, then four more of each, and so on; packing clamps to 0 … 255.
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let bytes = _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
            let bytes = _mm512_permutexvar_epi32(order, bytes);
            _mm512_storeu_si512(ptr.cast(), _mm512_min_epu8(bytes, _mm512_set1_epi8(top as i8)));
        }
    }

    #[inline(always)]
    unsafe fn store_words(self, ptr: *mut u16, v: __m512i, n: usize) {
        // SAFETY: the caller's contract; masked lanes are not accessed.
        unsafe { _mm256_mask_storeu_epi16(ptr.cast(), first(n), _mm512_cvtepi32_epi16(v)) }
    }

    #[inline(always)]
    fn any(self, mask: __mmask16) -> bool {
        mask != 0
    }

    #[inline(always)]
    fn prefetch(self, ptr: *const f32) {
        // SAFETY: a hint, which faults on no address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ptr.cast()) };
    }

    #[inline(always)]
    fn prefetch_far(self, ptr: *const f32) {
        // SAFETY: a hint, which faults on no address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(ptr.cast()) };
    }

    #[inline(always)]
    unsafe fn transpose_8x8(self, from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: the caller's contract; a token means AVX.
        unsafe { crate::avx2::transpose_8x8(from, from_stride, to, to_stride) }
    }

    ops! {
        splat(x: f32) -> __m512 = _mm512_set1_ps(x);
        add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
        mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
        mul_add(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        neg_mul_add(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fnmadd_ps(a, b, c);
        min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
        max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
        sqrt(a: __m512) -> __m512 = _mm512_sqrt_ps(a);
        floor(a: __m512) -> __m512 = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(a);

        deinterleave(a: __m512, b: __m512) -> (__m512, __m512) = {
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
            (_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b))
        };
        interleave(a: __m512, b: __m512) -> (__m512, __m512) = {
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
            (_mm512_permutex2var_ps(a, low, b), _mm512_permutex2var_ps(a, high, b))
        };

        lt(a: __m512, b: __m512) -> __mmask16 = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b);
        le(a: __m512, b: __m512) -> __mmask16 = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, b);
        eq(a: __m512, b: __m512) -> __mmask16 = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b);
        is_nan(a: __m512) -> __mmask16 = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a);
        select(mask: __mmask16, a: __m512, b: __m512) -> __m512 = _mm512_mask_blend_ps(mask, b, a);

        reduce_add(a: __m512) -> f32 = _mm512_reduce_add_ps(a);
        reduce_max(a: __m512) -> f32 = _mm512_reduce_max_ps(a);
        reduce_min(a: __m512) -> f32 = _mm512_reduce_min_ps(a);

        splat_i(x: i32) -> __m512i = _mm512_set1_epi32(x);
        iota() -> __m512i = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        add_i(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi32(a, b);
        sub_i(a: __m512i, b: __m512i) -> __m512i = _mm512_sub_epi32(a, b);
        and(a: __m512i, b: __m512i) -> __m512i = _mm512_and_si512(a, b);
        or(a: __m512i, b: __m512i) -> __m512i = _mm512_or_si512(a, b);
        xor(a: __m512i, b: __m512i) -> __m512i = _mm512_xor_si512(a, b);
        // Counts are constants wherever these are used, so the variable shifts become immediate ones.
        shl(a: __m512i, n: u32) -> __m512i = _mm512_sllv_epi32(a, _mm512_set1_epi32(n as i32));
        shr(a: __m512i, n: u32) -> __m512i = _mm512_srlv_epi32(a, _mm512_set1_epi32(n as i32));
        sar(a: __m512i, n: u32) -> __m512i = _mm512_srav_epi32(a, _mm512_set1_epi32(n as i32));
        mul_wide(a: __m512i, b: __m512i) -> (__m512i, __m512i) = {
            const ODD: __mmask16 = 0b1010_1010_1010_1010;
            let even = _mm512_mul_epu32(a, b);
            let odd = _mm512_mul_epu32(_mm512_srli_epi64::<32>(a), _mm512_srli_epi64::<32>(b));
            let high = _mm512_mask_blend_epi32(ODD, _mm512_srli_epi64::<32>(even), odd);
            let low = _mm512_mask_blend_epi32(ODD, even, _mm512_slli_epi64::<32>(odd));
            (high, low)
        };
        eq_i(a: __m512i, b: __m512i) -> __mmask16 = _mm512_cmpeq_epi32_mask(a, b);
        to_f(a: __m512i) -> __m512 = _mm512_cvtepi32_ps(a);
        ldexp(a: __m512, n: __m512i) -> __m512 = _mm512_scalef_ps(a, _mm512_cvtepi32_ps(n));
        // 0 bits of fraction are taken off, by rounding down.
        fraction(a: __m512) -> __m512 = _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(a);
        scale(a: __m512, n: __m512) -> __m512 = _mm512_scalef_ps(a, n);
        round_i(a: __m512) -> __m512i = _mm512_cvtps_epi32(a);
        join_bytes(parts: [__m512i; 4]) -> __m512i = {
            let [a, b, c, d] = parts;
            // In each quarter the bytes of four lanes of a, then of b, c and d.
            let bytes = _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
            _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(crate::avx2::transposed_bytes()))
        };
        bits(a: __m512) -> __m512i = _mm512_castps_si512(a);
        from_bits(a: __m512i) -> __m512 = _mm512_castsi512_ps(a);
    }
}

impl<const VNNI: bool, const BF16: bool> Dots for Avx512<VNNI, BF16> {
    const VNNI: bool = VNNI;

    #[inline(always)]
    fn call_dots<K: DotKernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` is a token of all that these enter, and with `VNNI` of that too.
        unsafe { if VNNI { enter_vnni(kernel) } else { enter_dots(kernel) } }
    }

    #[inline(always)]
    fn dot4(self, sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        if VNNI {
            // SAFETY: register arithmetic; a token with `VNNI` means that the processor has AVX-512 VNNI.
            return unsafe { _mm512_dpbusd_epi32(sum, a, b) };
        }
        // SAFETY: register arithmetic; `self` is a token, so the processor has AVX-512 F and BW.
        let (even, odd) = unsafe { (_mm512_and_si512(a, _mm512_set1_epi16(0xFF)), _mm512_srli_epi16::<8>(a)) };
        let sum = self.dot_halves(sum, even, self.even_bytes(b));
        self.dot_halves(sum, odd, self.odd_bytes(b))
    }

    ops! {
        dot2(a: __m512i, b: __m512i) -> __m512i = _mm512_maddubs_epi16(a, b);
        add_pairs(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi16(a, b);
        widen(sum: __m512i, pairs: __m512i) -> __m512i =
            _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
        even_bytes(a: __m512i) -> __m512i = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(a));
        odd_bytes(a: __m512i) -> __m512i = _mm512_srai_epi16::<8>(a);
        dot_halves(sum: __m512i, a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
        mul_i(a: __m512i, b: __m512i) -> __m512i = _mm512_mullo_epi32(a, b);
    }
}

impl<const VNNI: bool> Bf16Dots for Avx512<VNNI, true> {
    #[inline(always)]
    fn dot_bf16(self, sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        // SAFETY: register arithmetic on bits of the same size; a token with `BF16` means that the processor has it.
        unsafe {
            _mm512_dpbf16_ps(
                sum,
                std::mem::transmute::<__m512i, __m512bh>(a),
                std::mem::transmute::<__m512i, __m512bh>(b),
            )
        }
    }
}
