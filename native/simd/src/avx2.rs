//! AVX2 and FMA: 8 lanes.

use std::arch::x86_64::*;

use crate::dots::{DotKernel, Dots};
use crate::isa::Isa;
use crate::vector::{Kernel, Simd};

/// Token of AVX2 and FMA, and with `VNNI` of AVX-VNNI. The private field keeps anyone but the functions that enter from
/// making one.
#[derive(Clone, Copy)]
pub struct Avx2<const VNNI: bool = false>(());

/// Runs `kernel` in a function that may use AVX2 and FMA, never inlined, not even where they are there already: a kernel
/// within a kernel keeps its registers to itself.
///
/// # Safety
/// The processor must support both.
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
pub unsafe fn enter<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2::<false>(()))
}

/// The same for a kernel over [`Dots`].
///
/// # Safety
/// The processor must support both.
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
pub unsafe fn enter_dots<K: DotKernel>(kernel: K) -> K::Output {
    kernel.run(Avx2::<false>(()))
}

/// The same in a function that may use AVX-VNNI too.
///
/// # Safety
/// The processor must support AVX2, FMA and AVX-VNNI.
#[inline(never)]
#[target_feature(enable = "avx2,fma,avxvnni")]
pub unsafe fn enter_vnni<K: DotKernel>(kernel: K) -> K::Output {
    kernel.run(Avx2::<true>(()))
}

/// [`Simd::transpose_8x8`] for every instruction set that has AVX.
///
/// # Safety
/// As there; and the processor must support AVX.
#[inline(always)]
pub(crate) unsafe fn transpose_8x8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    // SAFETY: rows 0..8 of both blocks; the caller's contract.
    unsafe {
        // Halves of rows i and i + 4 share a register, so that the in-lane shuffles below finish the work.
        let half = |row: usize, col: usize| {
            let low = _mm_loadu_ps(from.add(row * from_stride + col));
            let high = _mm_loadu_ps(from.add((row + 4) * from_stride + col));
            _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(low), high)
        };
        for col in [0, 4] {
            let [a, b, c, d] = [half(0, col), half(1, col), half(2, col), half(3, col)];
            let (ab_low, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let (cd_low, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            let to = to.add(col * to_stride);
            _mm256_storeu_ps(to, _mm256_shuffle_ps::<0b01_00_01_00>(ab_low, cd_low));
            _mm256_storeu_ps(to.add(to_stride), _mm256_shuffle_ps::<0b11_10_11_10>(ab_low, cd_low));
            _mm256_storeu_ps(to.add(2 * to_stride), _mm256_shuffle_ps::<0b01_00_01_00>(ab_high, cd_high));
            _mm256_storeu_ps(to.add(3 * to_stride), _mm256_shuffle_ps::<0b11_10_11_10>(ab_high, cd_high));
        }
    }
}

/// Row `8 - n` of this table is a mask of the first `n` lanes.
static FIRST: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

#[inline(always)]
fn first(n: usize) -> __m256i {
    // SAFETY: 8 - min(n, 8) is in 0..=8, so the 8 elements from there lie in the table of 16; only tokens call this.
    unsafe { _mm256_loadu_si256(FIRST.as_ptr().add(8 - n.min(8)).cast()) }
}

/// The pointer and three vectors as they are, in registers.
#[inline]
#[target_feature(enable = "avx")]
#[allow(clippy::pointers_in_nomem_asm_block, reason = "the pointer is passed on, not followed")]
fn pin_three(mut ptr: *const f32, mut a: __m256, mut b: __m256, mut c: __m256) -> (*const f32, __m256, __m256, __m256) {
    // SAFETY: no instruction; the operands only make the compiler treat the results as new values.
    unsafe {
        std::arch::asm!(
            "/* {0} {1} {2} {3} */",
            inout(reg) ptr, inout(ymm_reg) a, inout(ymm_reg) b, inout(ymm_reg) c,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    (ptr, a, b, c)
}

/// The order that makes rows of the columns of 4 by 4 bytes.
#[inline]
#[target_feature(enable = "sse2")]
pub(crate) fn transposed_bytes() -> __m128i {
    _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)
}

/// Defines arithmetic methods: `name(operands) -> result = intrinsics`.
macro_rules! ops {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $type),*) -> $result {
            // SAFETY: register arithmetic; `self` is a token, so the processor has AVX2 and FMA.
            unsafe { $body }
        }
    )*};
}

impl<const VNNI: bool> Simd for Avx2<VNNI> {
    type F = __m256;
    type I = __m256i;
    type M = __m256;

    const LANES: usize = 8;
    const ISA: Isa = Isa::Avx2;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` is a token, so the processor has AVX2 and FMA.
        unsafe { enter(kernel) }
    }

    #[inline(always)]
    unsafe fn load(self, ptr: *const f32) -> __m256 {
        // SAFETY: the caller's contract.
        unsafe { _mm256_loadu_ps(ptr) }
    }

    #[inline(always)]
    unsafe fn store(self, ptr: *mut f32, v: __m256) {
        // SAFETY: the caller's contract.
        unsafe { _mm256_storeu_ps(ptr, v) }
    }

    #[inline(always)]
    unsafe fn load_first(self, ptr: *const f32, n: usize) -> __m256 {
        // SAFETY: the caller's contract; masked lanes are not accessed.
        unsafe { _mm256_maskload_ps(ptr, first(n)) }
    }

    #[inline(always)]
    unsafe fn store_first(self, ptr: *mut f32, v: __m256, n: usize) {
        // SAFETY: the caller's contract; masked lanes are not accessed.
        unsafe { _mm256_maskstore_ps(ptr, first(n), v) }
    }

    #[inline(always)]
    unsafe fn load_i(self, ptr: *const i32) -> __m256i {
        // SAFETY: the caller's contract.
        unsafe { _mm256_loadu_si256(ptr.cast()) }
    }

    #[inline(always)]
    unsafe fn store_i(self, ptr: *mut i32, v: __m256i) {
        // SAFETY: the caller's contract.
        unsafe { _mm256_storeu_si256(ptr.cast(), v) }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, ptr: *mut u8, v: __m256i, n: usize) {
        const LOW: [i8; 16] = [0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1];
        // SAFETY: 8 bytes are written where the caller allows 8, else the first n of a local copy.
        unsafe {
            let packed = _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(_mm_loadu_si128(LOW.as_ptr().cast())));
            let bytes = _mm_unpacklo_epi32(_mm256_castsi256_si128(packed), _mm256_extracti128_si256::<1>(packed));
            if n >= 8 {
                _mm_storel_epi64(ptr.cast(), bytes);
            } else {
                let lanes = (_mm_cvtsi128_si64(bytes) as u64).to_le_bytes();
                std::ptr::copy_nonoverlapping(lanes.as_ptr(), ptr, n);
            }
        }
    }

    #[inline(always)]
    unsafe fn store_clamped(self, ptr: *mut u8, [a, b, c, d]: [__m256i; 4], top: u8) {
        // SAFETY: `self` is a token, so the processor has AVX2; the caller's contract.
        unsafe {
            // Four lanes of each of the four, then four more of each; packing clamps to 0 … 255.
            let bytes = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            _mm256_storeu_si256(ptr.cast(), _mm256_min_epu8(bytes, _mm256_set1_epi8(top as i8)));
        }
    }

    #[inline(always)]
    unsafe fn store_words(self, ptr: *mut u16, v: __m256i, n: usize) {
        const LOW: [i8; 16] = [0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1];
        // SAFETY: 8 words are written where the caller allows 8, else the first n of a local copy; as bytes, so of any
        // alignment.
        unsafe {
            let packed = _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(_mm_loadu_si128(LOW.as_ptr().cast())));
            let words = _mm_unpacklo_epi64(_mm256_castsi256_si128(packed), _mm256_extracti128_si256::<1>(packed));
            if n >= 8 {
                _mm_storeu_si128(ptr.cast(), words);
            } else {
                let mut lanes = [0u8; 16];
                _mm_storeu_si128(lanes.as_mut_ptr().cast(), words);
                std::ptr::copy_nonoverlapping(lanes.as_ptr(), ptr.cast::<u8>(), 2 * n);
            }
        }
    }

    #[inline(always)]
    fn pin<const N: usize>(self, ptr: *const f32, mut values: [__m256; N]) -> (*const f32, [__m256; N]) {
        let mut ptr = ptr;
        if let [a, b, c] = values.as_mut_slice() {
            // SAFETY: `self` is a token, so the processor has AVX.
            (ptr, *a, *b, *c) = unsafe { pin_three(ptr, *a, *b, *c) };
        }
        (ptr, values)
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
        unsafe { transpose_8x8(from, from_stride, to, to_stride) }
    }

    ops! {
        splat(x: f32) -> __m256 = _mm256_set1_ps(x);
        add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
        sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b);
        mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
        div(a: __m256, b: __m256) -> __m256 = _mm256_div_ps(a, b);
        mul_add(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
        neg_mul_add(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fnmadd_ps(a, b, c);
        min(a: __m256, b: __m256) -> __m256 = _mm256_min_ps(a, b);
        max(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
        sqrt(a: __m256) -> __m256 = _mm256_sqrt_ps(a);
        floor(a: __m256) -> __m256 = _mm256_floor_ps(a);

        deinterleave(a: __m256, b: __m256) -> (__m256, __m256) = {
            // Of each half the even (odd) elements of a and then of b, as pairs; then the pairs of a before those of b.
            let even = _mm256_castps_pd(_mm256_shuffle_ps::<0b10_00_10_00>(a, b));
            let odd = _mm256_castps_pd(_mm256_shuffle_ps::<0b11_01_11_01>(a, b));
            let even = _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(even));
            (even, _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(odd)))
        };
        interleave(a: __m256, b: __m256) -> (__m256, __m256) = {
            let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            (_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high))
        };

        lt(a: __m256, b: __m256) -> __m256 = _mm256_cmp_ps::<_CMP_LT_OQ>(a, b);
        le(a: __m256, b: __m256) -> __m256 = _mm256_cmp_ps::<_CMP_LE_OQ>(a, b);
        eq(a: __m256, b: __m256) -> __m256 = _mm256_cmp_ps::<_CMP_EQ_OQ>(a, b);
        is_nan(a: __m256) -> __m256 = _mm256_cmp_ps::<_CMP_UNORD_Q>(a, a);
        select(mask: __m256, a: __m256, b: __m256) -> __m256 = _mm256_blendv_ps(b, a, mask);
        any(mask: __m256) -> bool = _mm256_movemask_ps(mask) != 0;

        reduce_add(a: __m256) -> f32 = {
            let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        };
        reduce_max(a: __m256) -> f32 = {
            let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        };
        reduce_min(a: __m256) -> f32 = {
            let four = _mm_min_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_min_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)))
        };

        splat_i(x: i32) -> __m256i = _mm256_set1_epi32(x);
        iota() -> __m256i = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        add_i(a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi32(a, b);
        sub_i(a: __m256i, b: __m256i) -> __m256i = _mm256_sub_epi32(a, b);
        and(a: __m256i, b: __m256i) -> __m256i = _mm256_and_si256(a, b);
        or(a: __m256i, b: __m256i) -> __m256i = _mm256_or_si256(a, b);
        xor(a: __m256i, b: __m256i) -> __m256i = _mm256_xor_si256(a, b);
        // Counts are constants wherever these are used, so the variable shifts become immediate ones.
        shl(a: __m256i, n: u32) -> __m256i = _mm256_sllv_epi32(a, _mm256_set1_epi32(n as i32));
        shr(a: __m256i, n: u32) -> __m256i = _mm256_srlv_epi32(a, _mm256_set1_epi32(n as i32));
        sar(a: __m256i, n: u32) -> __m256i = _mm256_srav_epi32(a, _mm256_set1_epi32(n as i32));
        mul_wide(a: __m256i, b: __m256i) -> (__m256i, __m256i) = {
            let even = _mm256_mul_epu32(a, b);
            let odd = _mm256_mul_epu32(_mm256_srli_epi64::<32>(a), _mm256_srli_epi64::<32>(b));
            let high = _mm256_blend_epi32::<0b1010_1010>(_mm256_srli_epi64::<32>(even), odd);
            let low = _mm256_blend_epi32::<0b1010_1010>(even, _mm256_slli_epi64::<32>(odd));
            (high, low)
        };
        eq_i(a: __m256i, b: __m256i) -> __m256 = _mm256_castsi256_ps(_mm256_cmpeq_epi32(a, b));
        to_f(a: __m256i) -> __m256 = _mm256_cvtepi32_ps(a);
        round_i(a: __m256) -> __m256i = _mm256_cvtps_epi32(a);
        join_bytes(parts: [__m256i; 4]) -> __m256i = {
            let [a, b, c, d] = parts;
            // In each half the bytes of four lanes of a, then of b, c and d.
            let bytes = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(transposed_bytes()))
        };
        bits(a: __m256) -> __m256i = _mm256_castps_si256(a);
        from_bits(a: __m256i) -> __m256 = _mm256_castsi256_ps(a);
    }
}

impl<const VNNI: bool> Dots for Avx2<VNNI> {
    const VNNI: bool = VNNI;

    #[inline(always)]
    fn call_dots<K: DotKernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` is a token of all that these enter, and with `VNNI` of that too.
        unsafe { if VNNI { enter_vnni(kernel) } else { enter_dots(kernel) } }
    }

    #[inline(always)]
    fn dot4(self, sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        if VNNI {
            // SAFETY: register arithmetic; a token with `VNNI` means that the processor has AVX-VNNI.
            return unsafe { _mm256_dpbusd_avx_epi32(sum, a, b) };
        }
        // SAFETY: register arithmetic; `self` is a token, so the processor has AVX2.
        let (even, odd) = unsafe { (_mm256_and_si256(a, _mm256_set1_epi16(0xFF)), _mm256_srli_epi16::<8>(a)) };
        let sum = self.dot_halves(sum, even, self.even_bytes(b));
        self.dot_halves(sum, odd, self.odd_bytes(b))
    }

    ops! {
        dot2(a: __m256i, b: __m256i) -> __m256i = _mm256_maddubs_epi16(a, b);
        add_pairs(a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi16(a, b);
        widen(sum: __m256i, pairs: __m256i) -> __m256i =
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        even_bytes(a: __m256i) -> __m256i = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(a));
        odd_bytes(a: __m256i) -> __m256i = _mm256_srai_epi16::<8>(a);
        dot_halves(sum: __m256i, a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
        mul_i(a: __m256i, b: __m256i) -> __m256i = _mm256_mullo_epi32(a, b);
    }
}
