//! Scores that are known to be small: no score is larger than the product of the lengths of its query and its key (Cauchy
//! and Schwarz), so where that is small no largest score has to be found before scores become weights. That gains where
//! exponents are taken apart and put together by instructions ([`Simd::SCALES`]).

use scoregraph_simd::Simd;

use crate::gemm::PANEL;

/// Scores of this magnitude at most, in base 2, are exponents as they are: their powers times values of the magnitudes
/// 2^-[`MODERATE`] to 2^[`MODERATE`] are normal numbers, and so are sums of these.
const MOST: f32 = 60.0;
/// See [`MOST`].
const MODERATE: i32 = 40;

/// What bounds the scores of a head.
#[derive(Clone, Copy)]
pub(super) struct Bound {
    /// The square of the length of the longest key; infinite or NaN where scores are not to be bounded.
    longest: f32,
}

impl Bound {
    /// That of no scores.
    pub(super) const NONE: Bound = Bound { longest: f32::INFINITY };

    /// That of scores of packed keys, each of `dim` elements, which weigh packed values.
    #[inline(always)]
    pub(super) fn new<S: Simd>(s: S, keys: &[f32], dim: usize, values: &[f32]) -> Bound {
        let mut largest = s.splat(0.0);
        for chunk in values.chunks_exact(S::LANES) {
            // SAFETY: the chunk is a vector.
            largest = s.max(s.abs(unsafe { s.load(chunk.as_ptr()) }), largest);
        }
        // A value that is NaN makes NaN of its sums in any case; tiny ones beside one that is not do not matter.
        let moderate = (-MODERATE as f32).exp2()..(MODERATE as f32).exp2();
        if !moderate.contains(&s.reduce_max(largest)) {
            return Bound::NONE;
        }
        let (mut longest, mut check) = (s.splat(0.0), s.splat(0.0));
        for panel in keys.chunks_exact(PANEL * dim) {
            for v in (0..PANEL).step_by(S::LANES) {
                let mut square = s.splat(0.0);
                for row in panel.chunks_exact(PANEL) {
                    // SAFETY: a vector of the 16 keys.
                    let x = unsafe { s.load(row.as_ptr().add(v)) };
                    square = s.mul_add(x, x, square);
                }
                longest = s.max(square, longest);
                check = s.mul_add(square, s.splat(0.0), check);
            }
        }
        Bound { longest: s.reduce_max(longest) + s.reduce_add(check) }
    }

    /// Whether it makes the scores of these queries, rows of `dim` elements, small enough.
    #[inline(always)]
    pub(super) fn holds<S: Simd>(self, s: S, queries: &[f32], dim: usize) -> bool {
        // Loops, not iterators' closures: these are not always inlined, and then compiled without the features.
        for query in queries.chunks_exact(dim) {
            let mut square = s.splat(0.0);
            for chunk in query.chunks(S::LANES) {
                // SAFETY: the elements of the chunk.
                let x = unsafe { s.load_first(chunk.as_ptr(), chunk.len()) };
                square = s.mul_add(x, x, square);
            }
            // Not smaller where a length is NaN.
            let small = s.reduce_add(square) * self.longest < MOST * MOST;
            if !small {
                return false;
            }
        }
        true
    }
}
