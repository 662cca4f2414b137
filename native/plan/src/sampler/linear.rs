//! Linear forms of registers and answers: `Σ_l q_l r_l + Σ_k q_k m_k`, summed in that order in plain float32.

use scoregraph_simd::Simd;

/// Most registers of a sampler.
pub const MAX_REGISTERS: usize = 8;
/// Most network answers (branches of all predictions) of a step.
pub const MAX_ANSWERS: usize = 64;
/// Most forms of one call: estimates, or forms of statistics.
pub const MAX_FORMS: usize = 16;
/// Most values of a step's elementwise program that registers gain.
pub const MAX_RESULTS: usize = 8;
/// Most registers and answers.
pub const MAX_SOURCES: usize = MAX_REGISTERS + MAX_ANSWERS;

/// Elements that are computed at once: what is intermediate stays in the first-level cache. A multiple of 16.
pub const BLOCK: usize = 1024;
/// Elements of a sample that one tile handles; a multiple of [`BLOCK`].
pub const TILE: usize = 8192;
/// Terms that one walk over a block adds up; longer sums are continued by another walk.
pub const GROUP: usize = 8;
/// Registers come first in a sum, so all of them are read in its first walk: a sum may be written over one of its own.
const _: () = assert!(MAX_REGISTERS <= GROUP);

/// A register or an answer: one run of elements per sample.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The first element of the first sample; written only where it is a register or a network input.
    pub ptr: *mut f32,
    /// Elements from a sample's run to the next one's.
    pub step: usize,
}

impl Source {
    /// A place for a source that a call does not have.
    pub const NONE: Source = Source { ptr: std::ptr::null_mut(), step: 0 };

    /// The address of an element.
    #[inline(always)]
    pub fn at(self, sample: usize, element: usize) -> *mut f32 {
        self.ptr.wrapping_add(sample * self.step + element)
    }
}

/// A coefficient and the number of the source it belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Term {
    /// Never 0.
    pub coefficient: f32,
    /// Whose number it is, the caller knows.
    pub source: u16,
}

/// Most terms of all sums of a step: [`MAX_REGISTERS`] sums over all sources, the noise and the results, and estimates.
const MAX_TERMS: usize = MAX_REGISTERS * (MAX_SOURCES + 1 + MAX_RESULTS) + MAX_FORMS * MAX_SOURCES;

/// Several sums, each a list of its nonzero terms.
#[derive(Clone, Copy)]
pub struct Sums {
    terms: [Term; MAX_TERMS],
    ends: [u16; MAX_REGISTERS + MAX_FORMS],
    len: usize,
}

impl Sums {
    /// No sum yet.
    pub const EMPTY: Sums =
        Sums { terms: [Term { coefficient: 0.0, source: 0 }; MAX_TERMS], ends: [0; MAX_REGISTERS + MAX_FORMS], len: 0 };

    /// Appends the sum of `terms`, in their order, without those whose coefficient is 0.
    pub fn push(&mut self, terms: impl Iterator<Item = (f32, usize)>) {
        let mut end = self.start(self.len);
        for (coefficient, source) in terms.filter(|(coefficient, _)| *coefficient != 0.0) {
            self.terms[end] = Term { coefficient, source: source as u16 };
            end += 1;
        }
        self.ends[self.len] = end as u16;
        self.len += 1;
    }

    fn start(&self, sum: usize) -> usize {
        if sum == 0 { 0 } else { usize::from(self.ends[sum - 1]) }
    }

    /// The terms of sum number `sum`.
    pub fn terms(&self, sum: usize) -> &[Term] {
        &self.terms[self.start(sum)..usize::from(self.ends[sum])]
    }
}

/// `to[i] = Σ coefficient * address(source)[i]`, summed in order, for `len` elements; 0 without terms.
///
/// # Safety
/// Every address has `len` readable elements and `to` that many writable ones. `to` may be the address of one of the first
/// [`GROUP`] terms, and else overlaps none.
#[inline(always)]
pub unsafe fn combine<S: Simd>(s: S, terms: &[Term], address: impl Fn(usize) -> *const f32, to: *mut f32, len: usize) {
    if terms.is_empty() {
        // SAFETY: the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(to, len) }.fill(0.0);
    }
    for (number, group) in terms.chunks(GROUP).enumerate() {
        let onto = number > 0;
        let mut coefficients = [0.0; GROUP];
        let mut from = [std::ptr::null(); GROUP];
        for (i, term) in group.iter().enumerate() {
            coefficients[i] = term.coefficient;
            from[i] = address(usize::from(term.source));
        }
        // A walk for each number of terms, so that coefficients and addresses stay in registers.
        // SAFETY: the caller's contract.
        unsafe {
            match group.len() {
                1 => walk::<S, 1>(s, &coefficients, &from, onto, to, len),
                2 => walk::<S, 2>(s, &coefficients, &from, onto, to, len),
                3 => walk::<S, 3>(s, &coefficients, &from, onto, to, len),
                4 => walk::<S, 4>(s, &coefficients, &from, onto, to, len),
                5 => walk::<S, 5>(s, &coefficients, &from, onto, to, len),
                6 => walk::<S, 6>(s, &coefficients, &from, onto, to, len),
                7 => walk::<S, 7>(s, &coefficients, &from, onto, to, len),
                _ => walk::<S, GROUP>(s, &coefficients, &from, onto, to, len),
            }
        }
    }
}

/// The sum of the first N terms, onto what is there if `onto`.
///
/// # Safety
/// As [`combine`].
#[inline(always)]
unsafe fn walk<S: Simd, const N: usize>(
    s: S,
    coefficients: &[f32; GROUP],
    from: &[*const f32; GROUP],
    onto: bool,
    to: *mut f32,
    len: usize,
) {
    let mut q = [s.splat(0.0); N];
    let mut x = [std::ptr::null(); N];
    for t in 0..N {
        q[t] = s.splat(coefficients[t]);
        x[t] = from[t];
    }
    let whole = len - len % S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: `i + LANES <= len`, and the caller's contract.
        unsafe {
            let mut sum = s.mul(q[0], s.load(x[0].add(i)));
            if onto {
                sum = s.add(s.load(to.add(i)), sum);
            }
            for t in 1..N {
                sum = s.add(sum, s.mul(q[t], s.load(x[t].add(i))));
            }
            s.store(to.add(i), sum);
        }
    }
    let rest = len - whole;
    if rest > 0 {
        // SAFETY: the last elements, fewer than a vector.
        unsafe {
            let mut sum = s.mul(q[0], s.load_first(x[0].add(whole), rest));
            if onto {
                sum = s.add(s.load_first(to.add(whole), rest), sum);
            }
            for t in 1..N {
                sum = s.add(sum, s.mul(q[t], s.load_first(x[t].add(whole), rest)));
            }
            s.store_first(to.add(whole), sum, rest);
        }
    }
}
