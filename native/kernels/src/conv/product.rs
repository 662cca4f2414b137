//! What a convolution multiplies and sums: float32 by float32, or bytes by signed bytes.

use scoregraph_simd::{Dots, Simd};

use super::geometry::FILTER_BLOCK;

/// The most vectors of output pixels in a register tile: 8 filters x 3 of AVX-512, or 4 x 3 of AVX2, leave just room for
/// the pixels and one weight.
pub(super) const MOST_VECTORS: usize = 3;

/// How many cells of weights ahead of their use they are asked for.
const AHEAD: usize = 64 * FILTER_BLOCK;

/// How cells of an image and of weights make sums, and sums make float32.
pub(super) trait Product<S: Simd>: Copy {
    /// The vectors of a register tile: at most [`MOST_VECTORS`].
    const VECTORS: usize;

    /// What [`Product::value`] needs for a filter.
    fn terms(self, filter: usize) -> Terms;

    /// The register kernel: `sums[f][v] = Σ_i weights[i][f] * cells[v][offsets[i]]`, i over planes and taps, as vectors of
    /// 32-bit sums.
    ///
    /// # Safety
    /// For every offset i, `FILTERS` cells are readable at `weights + i * 8`, and a vector at `cells[v] + offsets[i]` for
    /// every v; `FILTERS * VECTORS` vectors are writable at `sums`.
    unsafe fn multiply<const FILTERS: usize, const VECTORS: usize>(
        simd: S,
        cells: [*const u32; VECTORS],
        weights: *const u32,
        offsets: &[u32],
        sums: *mut u32,
    );

    /// The values of a vector of sums.
    ///
    /// # Safety
    /// A vector is readable at `sums`.
    unsafe fn value(simd: S, sums: *const u32, terms: Terms) -> S::F;
}

/// The value of a sum of integers is `(sum - offset) * factor`; sums of float32 are values.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    offset: i32,
    factor: f32,
}

/// Float32 times float32.
#[derive(Clone, Copy)]
pub(super) struct Floats;

impl<S: Simd> Product<S> for Floats {
    const VECTORS: usize = MOST_VECTORS;

    #[inline(always)]
    fn terms(self, _: usize) -> Terms {
        Terms { offset: 0, factor: 1.0 }
    }

    /// One loop over planes and taps: an inner loop over the taps would mispredict its end once per plane.
    #[inline(always)]
    unsafe fn multiply<const FILTERS: usize, const VECTORS: usize>(
        simd: S,
        cells: [*const u32; VECTORS],
        weights: *const u32,
        offsets: &[u32],
        sums: *mut u32,
    ) {
        let cells = cells.map(<*const u32>::cast::<f32>);
        let mut weights = weights.cast::<f32>();
        let mut sum = [[simd.splat(0.0); VECTORS]; FILTERS];
        for &offset in offsets {
            simd.prefetch(weights.wrapping_add(AHEAD));
            // SAFETY: the caller's contract; a step of `weights` is one tap.
            unsafe {
                let x: [S::F; VECTORS] = std::array::from_fn(
                    #[inline(always)]
                    |v| simd.load(cells[v].add(offset as usize)),
                );
                for (filter, row) in sum.iter_mut().enumerate() {
                    let w = simd.splat(*weights.add(filter));
                    for v in 0..VECTORS {
                        row[v] = simd.mul_add(w, x[v], row[v]);
                    }
                    (weights, *row) = simd.pin(weights, *row);
                }
                weights = weights.add(FILTER_BLOCK);
            }
        }
        for (f, row) in sum.iter().enumerate() {
            for (v, value) in row.iter().enumerate() {
                // SAFETY: the caller's contract.
                unsafe { simd.store(sums.cast::<f32>().add((f * VECTORS + v) * S::LANES), *value) };
            }
        }
    }

    #[inline(always)]
    unsafe fn value(simd: S, sums: *const u32, _: Terms) -> S::F {
        // SAFETY: the caller's contract.
        unsafe { simd.load(sums.cast()) }
    }
}

/// Unsigned bytes times signed bytes, four channels to a cell, exactly.
///
/// `CHAIN` products are summed in 16 bits, times two, before they are widened, which the types of the operands must allow
/// (docs/plan-format.md, *Chains*); 0 is [`Dots::dot4`], which any bytes allow.
#[derive(Clone, Copy)]
pub(super) struct Bytes<'a, const CHAIN: usize> {
    /// Scale and zero of the sample.
    pub scale: f32,
    pub zero: i32,
    /// Scale and sum of each filter's weights.
    pub weight_scale: &'a [f32],
    pub weight_sum: &'a [f32],
}

impl<S: Dots, const CHAIN: usize> Product<S> for Bytes<'_, CHAIN> {
    /// The 16-bit sums of a chain take registers, of which AVX2 has 16.
    const VECTORS: usize = if CHAIN > 0 && S::LANES == 8 { 2 } else { MOST_VECTORS };

    #[inline(always)]
    fn terms(self, filter: usize) -> Terms {
        // Whole and below 2^31 in magnitude, since the sums are.
        let offset = self.zero.wrapping_mul(self.weight_sum[filter] as i32);
        Terms { offset, factor: self.scale * self.weight_scale[filter] }
    }

    #[inline(always)]
    unsafe fn multiply<const FILTERS: usize, const VECTORS: usize>(
        simd: S,
        cells: [*const u32; VECTORS],
        weights: *const u32,
        offsets: &[u32],
        sums: *mut u32,
    ) {
        let cells = cells.map(<*const u32>::cast::<i32>);
        let mut weights = weights.cast::<i32>();
        let mut sum = [[simd.splat_i(0); VECTORS]; FILTERS];
        let chains = if CHAIN > 1 { offsets.len() / CHAIN } else { 0 };
        for chain in 0..chains {
            let offsets = &offsets[chain * CHAIN..][..CHAIN];
            for (filter, row) in sum.iter_mut().enumerate() {
                let mut pairs = [simd.splat_i(0); VECTORS];
                for (tap, &offset) in offsets.iter().enumerate() {
                    // SAFETY: the caller's contract; a step of `weights` is one tap.
                    unsafe {
                        let w = simd.splat_i(*weights.add(tap * FILTER_BLOCK + filter));
                        for v in 0..VECTORS {
                            let product = simd.dot2(simd.load_i(cells[v].add(offset as usize)), w);
                            pairs[v] = if tap == 0 { product } else { simd.add_pairs(pairs[v], product) };
                        }
                    }
                }
                for v in 0..VECTORS {
                    row[v] = simd.widen(row[v], pairs[v]);
                }
            }
            weights = weights.wrapping_add(CHAIN * FILTER_BLOCK);
        }
        for &offset in &offsets[chains * CHAIN..] {
            simd.prefetch(weights.wrapping_add(AHEAD).cast());
            // SAFETY: the caller's contract; a step of `weights` is one tap.
            unsafe {
                let x: [S::I; VECTORS] = std::array::from_fn(
                    #[inline(always)]
                    |v| simd.load_i(cells[v].add(offset as usize)),
                );
                for (filter, row) in sum.iter_mut().enumerate() {
                    let w = simd.splat_i(*weights.add(filter));
                    for v in 0..VECTORS {
                        row[v] = match CHAIN {
                            0 => simd.dot4(row[v], x[v], w),
                            _ => simd.widen(row[v], simd.dot2(x[v], w)),
                        };
                    }
                }
                weights = weights.add(FILTER_BLOCK);
            }
        }
        for (f, row) in sum.iter().enumerate() {
            for (v, value) in row.iter().enumerate() {
                // SAFETY: the caller's contract.
                unsafe { simd.store_i(sums.cast::<i32>().add((f * VECTORS + v) * S::LANES), *value) };
            }
        }
    }

    /// No step is fused, so that every instruction set has the same bits.
    #[inline(always)]
    unsafe fn value(simd: S, sums: *const u32, terms: Terms) -> S::F {
        // SAFETY: the caller's contract.
        let sum = unsafe { simd.load_i(sums.cast()) };
        simd.mul(simd.to_f(simd.sub_i(sum, simd.splat_i(terms.offset))), simd.splat(terms.factor))
    }
}
