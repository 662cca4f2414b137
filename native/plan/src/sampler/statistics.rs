//! Inner products and quantiles of linear forms, per sample.

use scoregraph_kernels::Context;
use scoregraph_simd::{Disjoint, Kernel, Simd};

use super::linear::{BLOCK, Source, Sums, TILE, combine};
use super::{Coefficients, Columns, workers};

/// Most statistics of one call.
pub const MAX_STATISTICS: usize = 64;

/// Partial sums that run side by side: element i goes to sum i mod 16, whatever the instruction set.
const LANES: usize = 16;

/// A statistic of forms v: `Σ v_i v_j`, or `Σ v_i` without j.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistic {
    /// i.
    pub form: usize,
    /// j.
    pub with: Option<usize>,
}

/// The operands of a statistic for a whole batch.
#[derive(Clone, Copy)]
pub struct Forms<'a> {
    /// R registers, then the answers that are there.
    pub sources: &'a [Source],
    /// R.
    pub registers: usize,
    /// B.
    pub samples: usize,
    /// Elements of a sample.
    pub elements: usize,
}

// SAFETY: the pointers are to buffers of the caller, who lends them for reading during the call.
unsafe impl Sync for Forms<'_> {}

/// Floats of scratch that [`gram`] needs.
pub fn gram_scratch(samples: usize, elements: usize, forms: usize, statistics: usize, threads: usize) -> usize {
    forms * BLOCK * threads + 2 * (samples * elements.div_ceil(TILE) * statistics + 1)
}

/// `out[s, n]` is statistic n of sample s, where form i has the row `columns.e + i (R + width)` of `row`. Forms in float32;
/// products and sums in float64, over tiles of [`TILE`] elements and then over the tiles in order.
///
/// # Safety
/// Every source has `elements` elements for each sample, and `row` all columns that `columns` and its `estimates` forms
/// name; forms in `statistics` exist. Nothing writes the sources meanwhile.
///
/// # Panics
/// If `out` is not `[samples, statistics]` or the scratch is too small.
pub unsafe fn gram(
    ctx: &Context<'_>,
    forms: Forms<'_>,
    columns: &Columns,
    row: &[f32],
    statistics: &[Statistic],
    out: &mut [f32],
    scratch: &mut [f32],
) {
    let Forms { registers, samples, elements, .. } = forms;
    assert_eq!(out.len(), samples * statistics.len());
    assert!(scratch.len() >= gram_scratch(samples, elements, columns.estimates, statistics.len(), ctx.pool.threads()));
    let mut sums = Sums::EMPTY;
    for i in 0..columns.estimates {
        sums.push(columns.form(row, columns.e, i, registers));
    }
    let tiles = elements.div_ceil(TILE);
    let per_thread = columns.estimates * BLOCK;
    let (rows, partial) = scratch.split_at_mut(per_thread * ctx.pool.threads());
    // SAFETY: every pattern of bits is a float64.
    let (_, partial, _) = unsafe { partial.align_to_mut::<f64>() };
    let partial = &mut partial[..samples * tiles * statistics.len()];
    let (rows, shared) = (Disjoint::new(rows), Disjoint::new(partial));
    workers(ctx.pool, samples * elements).run(samples * tiles, &|index, thread| {
        let (sample, start) = (index / tiles, index % tiles * TILE);
        // SAFETY: a thread runs one tile at a time, and its rows are its own; so are a tile's sums.
        let (rows, to) = unsafe {
            (
                rows.part(thread * per_thread..(thread + 1) * per_thread),
                shared.part(index * statistics.len()..(index + 1) * statistics.len()),
            )
        };
        let end = (start + TILE).min(elements);
        ctx.isa.dispatch(Products {
            forms: &forms,
            sums: &sums,
            count: columns.estimates,
            statistics,
            sample,
            start,
            end,
            rows,
            to,
        });
    });
    for (sample, out) in out.chunks_exact_mut(statistics.len()).enumerate() {
        for (n, out) in out.iter_mut().enumerate() {
            let tiles = (0..tiles).map(|tile| partial[(sample * tiles + tile) * statistics.len() + n]);
            *out = tiles.fold(0.0, |sum, tile| sum + tile) as f32;
        }
    }
}

/// The statistics of elements `start..end` of a sample.
struct Products<'a> {
    forms: &'a Forms<'a>,
    sums: &'a Sums,
    count: usize,
    statistics: &'a [Statistic],
    sample: usize,
    start: usize,
    end: usize,
    rows: &'a mut [f32],
    to: &'a mut [f64],
}

impl Kernel for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut lanes = [[0.0f64; LANES]; MAX_STATISTICS];
        for first in (self.start..self.end).step_by(BLOCK) {
            let len = BLOCK.min(self.end - first);
            for i in 0..self.count {
                let address = |source: usize| self.forms.sources[source].at(self.sample, first).cast_const();
                // SAFETY: `len` elements from `first` on are the sample's; the row has BLOCK elements.
                unsafe { combine(s, self.sums.terms(i), address, self.rows[i * BLOCK..].as_mut_ptr(), len) };
            }
            for (lanes, statistic) in lanes.iter_mut().zip(self.statistics) {
                let v = &self.rows[statistic.form * BLOCK..][..len];
                match statistic.with {
                    Some(j) => add_products(lanes, v, &self.rows[j * BLOCK..][..len]),
                    None => add(lanes, v),
                }
            }
        }
        for (to, lanes) in self.to.iter_mut().zip(&lanes) {
            *to = lanes.iter().fold(0.0, |sum, lane| sum + lane);
        }
    }
}

/// `lanes[i mod 16] += a[i] b[i]`; exact products, since a float64 holds that of two float32.
#[inline(always)]
fn add_products(lanes: &mut [f64; LANES], a: &[f32], b: &[f32]) {
    let mut sum = *lanes;
    let (a, b) = (a.chunks(LANES), b.chunks(LANES));
    for (a, b) in a.zip(b) {
        if let (Ok(a), Ok(b)) = (<&[f32; LANES]>::try_from(a), <&[f32; LANES]>::try_from(b)) {
            for i in 0..LANES {
                sum[i] += f64::from(a[i]) * f64::from(b[i]);
            }
        } else {
            for i in 0..a.len() {
                sum[i] += f64::from(a[i]) * f64::from(b[i]);
            }
        }
    }
    *lanes = sum;
}

/// `lanes[i mod 16] += a[i]`
#[inline(always)]
fn add(lanes: &mut [f64; LANES], a: &[f32]) {
    let mut sum = *lanes;
    for a in a.chunks(LANES) {
        for (sum, a) in sum.iter_mut().zip(a) {
            *sum += f64::from(*a);
        }
    }
    *lanes = sum;
}

/// Floats of scratch that [`quantile`] needs.
pub fn quantile_scratch(elements: usize, threads: usize) -> usize {
    elements * threads
}

/// `out[s]` is the q-quantile of |form 0| over the elements of sample s, linear between order statistics at the position
/// `q (elements - 1)`; NaN if any element is.
///
/// # Safety
/// As [`gram`], for the rows of coefficients of all samples.
///
/// # Panics
/// If q is not in 0 … 1, `out` has not one element for each sample, or the scratch is too small.
pub unsafe fn quantile(
    ctx: &Context<'_>,
    forms: Forms<'_>,
    columns: &Columns,
    coefficients: Coefficients<'_>,
    q: f64,
    out: &mut [f32],
    scratch: &mut [f32],
) {
    let Forms { registers, samples, elements, .. } = forms;
    assert!((0.0..=1.0).contains(&q) && out.len() == samples);
    assert!(scratch.len() >= quantile_scratch(elements, ctx.pool.threads()));
    let (scratch, out) = (Disjoint::new(scratch), Disjoint::new(out));
    workers(ctx.pool, samples * elements).run(samples, &|sample, thread| {
        let mut sums = Sums::EMPTY;
        sums.push(columns.form(coefficients.of(sample), columns.e, 0, registers));
        // SAFETY: a thread runs one tile at a time, and its part of the scratch is its own; so is a sample's result.
        let (values, out) =
            unsafe { (scratch.part(thread * elements..(thread + 1) * elements), out.part(sample..sample + 1)) };
        ctx.isa.dispatch(Magnitudes { forms: &forms, sums: &sums, sample, values });
        out[0] = order_statistic(as_bits(values), q);
    });
}

/// The bits of floats that are not negative, which are in the order of the floats; NaN behind all numbers.
fn as_bits(values: &mut [f32]) -> &mut [u32] {
    // SAFETY: same size and alignment, and every pattern of bits is a u32.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), values.len()) }
}

/// |form 0| of all elements of a sample.
struct Magnitudes<'a> {
    forms: &'a Forms<'a>,
    sums: &'a Sums,
    sample: usize,
    values: &'a mut [f32],
}

impl Kernel for Magnitudes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let address = |source: usize| self.forms.sources[source].at(self.sample, 0).cast_const();
        // SAFETY: the sample has as many elements as `values`.
        unsafe { combine(s, self.sums.terms(0), address, self.values.as_mut_ptr(), self.values.len()) };
        for value in self.values {
            *value = value.abs();
        }
    }
}

/// The q-quantile of floats given by their bits, which it reorders.
fn order_statistic(bits: &mut [u32], q: f64) -> f32 {
    const INFINITY: u32 = f32::INFINITY.to_bits();
    if bits.iter().any(|&bits| bits > INFINITY) {
        return f32::NAN;
    }
    let position = q * (bits.len() - 1) as f64;
    let below = position as usize;
    let weight = position - below as f64;
    let (_, &mut low, above) = bits.select_nth_unstable(below);
    let low = f64::from(f32::from_bits(low));
    match above.iter().min() {
        Some(&high) if weight > 0.0 => {
            let high = f64::from(f32::from_bits(high));
            if high == low { low as f32 } else { (low + weight * (high - low)) as f32 }
        }
        _ => low as f32,
    }
}
