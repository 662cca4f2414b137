//! An instruction set whose multiply-add rounds twice, as the scalar twin's does.

use crate::isa::Isa;
use crate::vector::{Kernel, Simd};

/// The vectors of `S`, never fusing: functions of [`crate::math`] then have the same bits on every instruction set.
#[derive(Clone, Copy)]
pub struct Unfused<S>(pub S);

/// Methods that are those of `S`.
macro_rules! same {
    ($($name:ident($($arg:ident: $kind:ty),*) -> $result:ty;)*) => {
        $(
            #[inline(always)]
            fn $name(self, $($arg: $kind),*) -> $result {
                self.0.$name($($arg),*)
            }
        )*
    };
}

/// Methods of memory that are those of `S`.
macro_rules! same_memory {
    ($($name:ident($($arg:ident: $kind:ty),*) $(-> $result:ty)?;)*) => {
        $(
            #[inline(always)]
            unsafe fn $name(self, $($arg: $kind),*) $(-> $result)? {
                // SAFETY: the caller's contract, which is the same.
                unsafe { self.0.$name($($arg),*) }
            }
        )*
    };
}

impl<S: Simd> Simd for Unfused<S> {
    type F = S::F;
    type I = S::I;
    type M = S::M;

    const LANES: usize = S::LANES;
    const ISA: Isa = S::ISA;

    // Not through `S`, which would fuse.
    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn mul_add(self, a: S::F, b: S::F, c: S::F) -> S::F {
        self.0.add(self.0.mul(a, b), c)
    }

    #[inline(always)]
    fn neg_mul_add(self, a: S::F, b: S::F, c: S::F) -> S::F {
        self.0.sub(c, self.0.mul(a, b))
    }

    same_memory! {
        load(ptr: *const f32) -> S::F;
        store(ptr: *mut f32, v: S::F);
        load_first(ptr: *const f32, n: usize) -> S::F;
        store_first(ptr: *mut f32, v: S::F, n: usize);
        load_i(ptr: *const i32) -> S::I;
        store_i(ptr: *mut i32, v: S::I);
        store_bytes(ptr: *mut u8, v: S::I, n: usize);
        store_clamped(ptr: *mut u8, v: [S::I; 4], top: u8);
        store_words(ptr: *mut u16, v: S::I, n: usize);
    }

    same! {
        splat(x: f32) -> S::F;
        add(a: S::F, b: S::F) -> S::F;
        sub(a: S::F, b: S::F) -> S::F;
        mul(a: S::F, b: S::F) -> S::F;
        div(a: S::F, b: S::F) -> S::F;
        min(a: S::F, b: S::F) -> S::F;
        max(a: S::F, b: S::F) -> S::F;
        sqrt(a: S::F) -> S::F;
        floor(a: S::F) -> S::F;
        deinterleave(a: S::F, b: S::F) -> (S::F, S::F);
        interleave(a: S::F, b: S::F) -> (S::F, S::F);
        lt(a: S::F, b: S::F) -> S::M;
        le(a: S::F, b: S::F) -> S::M;
        eq(a: S::F, b: S::F) -> S::M;
        is_nan(a: S::F) -> S::M;
        select(mask: S::M, a: S::F, b: S::F) -> S::F;
        any(mask: S::M) -> bool;
        reduce_add(a: S::F) -> f32;
        reduce_max(a: S::F) -> f32;
        reduce_min(a: S::F) -> f32;
        splat_i(x: i32) -> S::I;
        iota() -> S::I;
        add_i(a: S::I, b: S::I) -> S::I;
        sub_i(a: S::I, b: S::I) -> S::I;
        and(a: S::I, b: S::I) -> S::I;
        or(a: S::I, b: S::I) -> S::I;
        xor(a: S::I, b: S::I) -> S::I;
        shl(a: S::I, n: u32) -> S::I;
        shr(a: S::I, n: u32) -> S::I;
        sar(a: S::I, n: u32) -> S::I;
        mul_wide(a: S::I, b: S::I) -> (S::I, S::I);
        eq_i(a: S::I, b: S::I) -> S::M;
        to_f(a: S::I) -> S::F;
        round_i(a: S::F) -> S::I;
        join_bytes(parts: [S::I; 4]) -> S::I;
        bits(a: S::F) -> S::I;
        from_bits(a: S::I) -> S::F;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scalar::Scalar;
    use crate::{Kernel, math};

    struct Functions<'a>(&'a [f32; 16], &'a mut [[f32; 16]; 8]);

    impl Kernel for Functions<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let s = Unfused(s);
            for i in (0..16).step_by(S::LANES) {
                // SAFETY: `i + LANES <= 16`, the length of the arrays.
                unsafe {
                    let x = s.load(self.0[i..].as_ptr());
                    let values = [
                        math::exp(s, x),
                        math::log(s, x),
                        math::sin(s, x),
                        math::cos(s, x),
                        math::tanh(s, x),
                        math::erf(s, x),
                        math::silu(s, x),
                        math::gelu_tanh(s, x),
                    ];
                    for (to, value) in self.1.iter_mut().zip(values) {
                        s.store(to[i..].as_mut_ptr(), value);
                    }
                }
            }
        }
    }

    #[test]
    fn every_isa_has_the_bits_of_the_scalar_twin() {
        let x: [f32; 16] = std::array::from_fn(|i| {
            [0.3, -1.7, 88.0, -103.5, 1e-39, 1e4, f32::INFINITY, f32::NAN][i % 8] * (1.0 + (i / 8) as f32 * 0.37)
        });
        let mut exact = [[0.0; 16]; 8];
        Functions(&x, &mut exact).run(Scalar);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.supported()) {
            let mut made = [[0.0; 16]; 8];
            isa.dispatch(Functions(&x, &mut made));
            for (a, b) in exact.iter().flatten().zip(made.iter().flatten()) {
                assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "{}: {a} {b}", isa.name());
            }
        }
    }
}
