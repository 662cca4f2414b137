//! What a word of A times a word of B is, and how such products are summed.

use scoregraph_simd::{Bf16Dots, DotKernel, Dots, Kernel, Simd};

use super::tile::Tile;

/// Sums of products of 32-bit words, `LANES` columns at a time.
///
/// Every function here is `#[inline(always)]`, as all that computes with vectors.
pub(crate) trait Product<S: Simd>: Copy {
    /// Words, a lane each.
    type Word: Copy;
    /// The sums of `LANES` columns while k runs.
    type Sum: Copy;

    /// Words that a step takes, 1 or 2; a missing second one is 0.
    const STEP: usize = 1;

    /// Words after which sums are added to C and start again.
    fn chain(self) -> usize {
        usize::MAX
    }

    /// The most rows of a tile, as registers allow.
    const MOST_ROWS: usize;
    /// The most panels of a tile of 0, 1, … rows: few rows leave registers for more panels, whose chains hide the latency.
    const MOST_PANELS: [usize; 9];

    /// The most rows of a tile of two panels, if more than [`Product::MOST_ROWS`].
    const TALL_ROWS: usize = Self::MOST_ROWS;

    /// Computes a tile, in a function of its own where kernels can share it: its many sizes take long to compile.
    ///
    /// # Safety
    /// See [`Tile`].
    unsafe fn tile(self, s: S, tile: &Tile);

    /// `LANES` words.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn load(self, s: S, ptr: *const u32) -> Self::Word;
    /// One word in every lane, from any alignment.
    ///
    /// # Safety
    /// Its four bytes are readable.
    unsafe fn splat(self, s: S, ptr: *const u8) -> Self::Word;
    /// 0 in every lane.
    fn zero(self, s: S) -> Self::Word;

    /// Sums to begin with: those of C if it is continued and sums take all of k, else 0.
    ///
    /// # Safety
    /// `c` is readable where `accumulate` is set.
    unsafe fn begin(self, s: S, c: *const u32, accumulate: bool) -> Self::Sum;
    /// `sum +` the products of a step.
    fn step(self, s: S, sum: Self::Sum, a: [Self::Word; 2], b: [Self::Word; 2]) -> Self::Sum;
    /// Puts sums in C, or adds them to it if it is continued and they did not begin there.
    ///
    /// # Safety
    /// `c` is writable, and readable where `accumulate` is set.
    unsafe fn end(self, s: S, sum: Self::Sum, c: *mut u32, accumulate: bool);
}

/// Rows by two panels that leave three of 32 registers: for both panels and for A. Each word of B then meets fourteen of A,
/// and B may come from the second-level cache.
const TALL: usize = 14;

/// A word is a float32.
#[derive(Clone, Copy)]
pub(crate) struct Float;

/// A word is four bytes, summed exactly whatever they are: one instruction with VNNI, else widened to 16 bits first.
#[derive(Clone, Copy)]
pub(crate) struct Exact;

/// A word is four bytes whose products in pairs fit 16 bits (a chain of 1).
#[derive(Clone, Copy)]
pub(crate) struct Singles;

/// A word is four bytes of which two products in pairs add up in 16 bits (a chain of 2).
#[derive(Clone, Copy)]
pub(crate) struct Pairs;

/// A word is four bytes of which this many products in pairs add up in 16 bits. The 16-bit sums are in registers and the
/// 32-bit ones in C: with a chain of 4 or more that is faster than the other way.
#[derive(Clone, Copy)]
pub(crate) struct Chains(pub(crate) usize);

/// A word is two bf16.
#[derive(Clone, Copy)]
pub(crate) struct Bf16;

/// The methods of products whose sums are C itself: floats.
macro_rules! float_sums {
    () => {
        type Sum = S::F;

        #[inline(always)]
        unsafe fn begin(self, s: S, c: *const u32, accumulate: bool) -> S::F {
            // SAFETY: the caller's contract.
            if accumulate { unsafe { s.load(c.cast()) } } else { s.splat(0.0) }
        }

        #[inline(always)]
        unsafe fn end(self, s: S, sum: S::F, c: *mut u32, _: bool) {
            // SAFETY: the caller's contract.
            unsafe { s.store(c.cast(), sum) };
        }
    };
}

/// The methods of products of words that are bytes or pairs of bf16.
macro_rules! packed_words {
    () => {
        type Word = S::I;

        #[inline(always)]
        unsafe fn load(self, s: S, ptr: *const u32) -> S::I {
            // SAFETY: the caller's contract.
            unsafe { s.load_i(ptr.cast()) }
        }

        #[inline(always)]
        unsafe fn splat(self, s: S, ptr: *const u8) -> S::I {
            // SAFETY: the caller's contract.
            s.splat_i(unsafe { ptr.cast::<i32>().read_unaligned() })
        }

        #[inline(always)]
        fn zero(self, s: S) -> S::I {
            s.splat_i(0)
        }
    };
}

/// The methods of products whose sums are C itself: 32-bit integers.
macro_rules! integer_sums {
    () => {
        type Sum = S::I;

        #[inline(always)]
        unsafe fn begin(self, s: S, c: *const u32, accumulate: bool) -> S::I {
            // SAFETY: the caller's contract.
            if accumulate { unsafe { s.load_i(c.cast()) } } else { s.splat_i(0) }
        }

        #[inline(always)]
        unsafe fn end(self, s: S, sum: S::I, c: *mut u32, _: bool) {
            // SAFETY: the caller's contract.
            unsafe { s.store_i(c.cast(), sum) };
        }
    };
}

/// [`Product::tile`] in a function of its own, which all instruction sets with the same vectors share.
macro_rules! tile_apart {
    ($product:ty, $kernel:ident over $simd:ident through $call:ident) => {
        #[inline(always)]
        unsafe fn tile(self, s: S, tile: &Tile) {
            struct Apart<'a>($product, &'a Tile);
            impl $kernel for Apart<'_> {
                type Output = ();

                #[inline(always)]
                fn run<S: $simd>(self, s: S) {
                    // SAFETY: the contract of `tile`, which alone makes one.
                    unsafe { self.1.multiply(s, self.0) };
                }
            }
            s.$call(Apart(self, tile));
        }
    };
}

/// Tiles for three vectors of temporaries at most. Of 32 AVX-512 registers, 8 rows by 3 panels take 24 for C, 3 for B and one
/// for A; of 16 AVX2 registers, 6 rows by one panel (two registers) take 12, 2 and one.
macro_rules! large_tiles {
    () => {
        const MOST_ROWS: usize = match S::LANES {
            16 => 8,
            8 => 6,
            _ => 3,
        };
        const MOST_PANELS: [usize; 9] = match S::LANES {
            16 => [3; 9],
            8 => [3, 3, 3, 2, 1, 1, 1, 1, 1],
            _ => [1; 9],
        };
    };
}

impl<S: Simd> Product<S> for Float {
    type Word = S::F;

    float_sums!();
    large_tiles!();
    tile_apart!(Float, Kernel over Simd through call);

    const TALL_ROWS: usize = if S::LANES == 16 { TALL } else { <Self as Product<S>>::MOST_ROWS };

    #[inline(always)]
    unsafe fn load(self, s: S, ptr: *const u32) -> S::F {
        // SAFETY: the caller's contract.
        unsafe { s.load(ptr.cast()) }
    }

    #[inline(always)]
    unsafe fn splat(self, s: S, ptr: *const u8) -> S::F {
        // SAFETY: the caller's contract.
        s.splat(unsafe { ptr.cast::<f32>().read_unaligned() })
    }

    #[inline(always)]
    fn zero(self, s: S) -> S::F {
        s.splat(0.0)
    }

    #[inline(always)]
    fn step(self, s: S, sum: S::F, a: [S::F; 2], b: [S::F; 2]) -> S::F {
        s.mul_add(a[0], b[0], sum)
    }
}

impl<S: Bf16Dots> Product<S> for Bf16 {
    packed_words!();
    float_sums!();
    large_tiles!();

    const TALL_ROWS: usize = if S::LANES == 16 { TALL } else { <Self as Product<S>>::MOST_ROWS };

    #[inline(always)]
    unsafe fn tile(self, s: S, tile: &Tile) {
        // SAFETY: the caller's contract. Nobody shares it.
        unsafe { tile.multiply(s, self) };
    }

    #[inline(always)]
    fn step(self, s: S, sum: S::F, a: [S::I; 2], b: [S::I; 2]) -> S::F {
        s.dot_bf16(sum, a[0], b[0])
    }
}

impl<S: Dots> Product<S> for Exact {
    packed_words!();
    integer_sums!();
    tile_apart!(Exact, DotKernel over Dots through call_dots);

    const TALL_ROWS: usize = if S::LANES == 16 && S::VNNI { TALL } else { <Self as Product<S>>::MOST_ROWS };

    // Without VNNI, bytes 0 and 2 and bytes 1 and 3 of A and B take registers of their own.
    const MOST_ROWS: usize = match (S::LANES, S::VNNI) {
        (16, true) => 8,
        (8, true) | (16, false) => 6,
        (8, false) => 4,
        _ => 3,
    };
    const MOST_PANELS: [usize; 9] = match (S::LANES, S::VNNI) {
        (16, _) => [3; 9],
        (8, true) => [3, 3, 3, 2, 1, 1, 1, 1, 1],
        (8, false) => [2, 2, 2, 1, 1, 1, 1, 1, 1],
        _ => [1; 9],
    };

    #[inline(always)]
    fn step(self, s: S, sum: S::I, a: [S::I; 2], b: [S::I; 2]) -> S::I {
        s.dot4(sum, a[0], b[0])
    }
}

impl<S: Dots> Product<S> for Singles {
    packed_words!();
    integer_sums!();
    tile_apart!(Singles, DotKernel over Dots through call_dots);

    const MOST_ROWS: usize = match S::LANES {
        16 => 8,
        8 => 5,
        _ => 3,
    };
    const MOST_PANELS: [usize; 9] = match S::LANES {
        16 => [3; 9],
        8 => [2, 2, 2, 1, 1, 1, 1, 1, 1],
        _ => [1; 9],
    };

    #[inline(always)]
    fn step(self, s: S, sum: S::I, a: [S::I; 2], b: [S::I; 2]) -> S::I {
        s.widen(sum, s.dot2(a[0], b[0]))
    }
}

impl<S: Dots> Product<S> for Pairs {
    packed_words!();
    integer_sums!();
    tile_apart!(Pairs, DotKernel over Dots through call_dots);

    const STEP: usize = 2;

    const MOST_ROWS: usize = match S::LANES {
        16 => 6,
        8 => 4,
        _ => 3,
    };
    const MOST_PANELS: [usize; 9] = if S::LANES == 16 { [3; 9] } else { [1; 9] };

    #[inline(always)]
    fn step(self, s: S, sum: S::I, a: [S::I; 2], b: [S::I; 2]) -> S::I {
        s.widen(sum, s.add_pairs(s.dot2(a[0], b[0]), s.dot2(a[1], b[1])))
    }
}

impl<S: Dots> Product<S> for Chains {
    type Sum = S::I;

    packed_words!();
    large_tiles!();
    tile_apart!(Chains, DotKernel over Dots through call_dots);

    #[inline(always)]
    fn chain(self) -> usize {
        self.0
    }

    #[inline(always)]
    unsafe fn begin(self, s: S, _: *const u32, _: bool) -> S::I {
        s.splat_i(0)
    }

    #[inline(always)]
    fn step(self, s: S, sum: S::I, a: [S::I; 2], b: [S::I; 2]) -> S::I {
        s.add_pairs(sum, s.dot2(a[0], b[0]))
    }

    #[inline(always)]
    unsafe fn end(self, s: S, sum: S::I, c: *mut u32, accumulate: bool) {
        // SAFETY: the caller's contract.
        unsafe {
            let before = if accumulate { s.load_i(c.cast()) } else { s.splat_i(0) };
            s.store_i(c.cast(), s.widen(before, sum));
        }
    }
}
