//! The fused sampler pass: all registers, all branches, the noise and the next network input in one walk over memory.
//!
//! `new_j = Σ A[j,l] r_l + Σ B[j,k] m_k + C[j] z`, summed in that order in plain float32 multiplies and adds. A term
//! whose coefficient is 0 is not read. The bits are the same for every instruction set, tile and number of threads.

use scoregraph_simd::{Isa, Kernel, Parallel, Simd};

use crate::noise::{self, Stream};

/// Most registers of a sampler.
pub const MAX_REGISTERS: usize = 8;
/// Most network answers (branches of all predictions) of a step.
pub const MAX_BRANCHES: usize = 64;
/// Most terms in a sum: every register, every branch and the noise.
const MAX_TERMS: usize = MAX_REGISTERS + MAX_BRANCHES + 1;

/// Elements of a sample that one tile handles: 32 KiB per stream.
const TILE: usize = 8192;
/// Elements whose noise is drawn at once; a multiple of 4 so that it begins a Philox group.
const BLOCK: usize = 1024;

/// A dense `[branches * B, E]` operand.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// First element; written only where it is a register or the network input.
    pub ptr: *mut f32,
    /// Rows per sample; 1 for a register.
    pub branches: usize,
}

impl Rows {
    /// A place for an operand that a step does not have.
    pub const NONE: Rows = Rows { ptr: std::ptr::null_mut(), branches: 0 };

    /// First element of row `j` of sample `b`.
    ///
    /// # Safety
    /// The operand must have that row.
    #[inline(always)]
    unsafe fn row(self, sample: usize, j: usize, elements: usize) -> *mut f32 {
        // SAFETY: promised by the caller.
        unsafe { self.ptr.add((sample * self.branches + j) * elements) }
    }
}

/// One step for a whole batch.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// R registers.
    pub registers: &'a [Rows],
    /// The predictions; their branches are numbered through.
    pub predictions: &'a [Rows],
    /// The network input and its factor `table[row + 1, cin]`.
    pub next_input: Option<(Rows, f32)>,
    /// A, row-major [R, R].
    pub a: &'a [f32],
    /// B, row-major [R, K].
    pub b: &'a [f32],
    /// C, [R].
    pub c: &'a [f32],
    /// The seed of each sample.
    pub seeds: &'a [u64],
    /// The micro-step and the site of the noise.
    pub micro: u32,
    /// See `micro`.
    pub site: u32,
    /// Elements of a sample.
    pub elements: usize,
}

// SAFETY: the pointers are to buffers of the caller, who lends them for the call; tiles touch disjoint elements.
unsafe impl Sync for Step<'_> {}

/// Where a term's values come from.
#[derive(Clone, Copy, Debug)]
enum Source {
    Register(usize),
    Branch { prediction: usize, branch: usize },
    Noise,
}

#[derive(Clone, Copy, Debug)]
struct Term {
    coefficient: f32,
    source: Source,
}

/// The nonzero terms of one register's sum.
#[derive(Clone, Copy)]
struct Sum {
    terms: [Term; MAX_TERMS],
    len: usize,
}

impl Sum {
    const EMPTY: Sum = Sum { terms: [Term { coefficient: 0.0, source: Source::Noise }; MAX_TERMS], len: 0 };

    fn push(&mut self, coefficient: f32, source: Source) {
        if coefficient != 0.0 {
            self.terms[self.len] = Term { coefficient, source };
            self.len += 1;
        }
    }
}

impl Step<'_> {
    fn sums(&self) -> [Sum; MAX_REGISTERS] {
        let count = self.registers.len();
        let branches: usize = self.predictions.iter().map(|p| p.branches).sum();
        let mut sums = [Sum::EMPTY; MAX_REGISTERS];
        for (j, sum) in sums.iter_mut().enumerate().take(count) {
            for l in 0..count {
                sum.push(self.a[j * count + l], Source::Register(l));
            }
            let mut k = 0;
            for (prediction, rows) in self.predictions.iter().enumerate() {
                for branch in 0..rows.branches {
                    sum.push(self.b[j * branches + k], Source::Branch { prediction, branch });
                    k += 1;
                }
            }
            sum.push(self.c[j], Source::Noise);
        }
        sums
    }

    /// Moves every sample one step.
    ///
    /// # Safety
    /// Every register is `[B, E]`, prediction and next input `[branches * B, E]` with B = `seeds.len()` and E =
    /// `elements`; registers and the next input are writable, nothing else accesses them during the call, and no two
    /// operands overlap. R <= [`MAX_REGISTERS`], K <= [`MAX_BRANCHES`], and a, b, c have their sizes.
    pub unsafe fn run(&self, isa: Isa, pool: &dyn Parallel) {
        let sums = self.sums();
        let sums = &sums[..self.registers.len()];
        let draws = self.c.iter().any(|&c| c != 0.0);
        let tiles = self.elements.div_ceil(TILE);
        pool.run(self.seeds.len() * tiles, &|index, _| {
            let (sample, tile) = (index / tiles, index % tiles);
            let start = tile * TILE;
            let len = TILE.min(self.elements - start);
            isa.dispatch(Tile { step: self, sums, draws, sample, start, len });
        });
    }
}

struct Tile<'a> {
    step: &'a Step<'a>,
    sums: &'a [Sum],
    draws: bool,
    sample: usize,
    start: usize,
    len: usize,
}

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut noise = [0.0f32; BLOCK];
        for block in (0..self.len).step_by(BLOCK) {
            let len = BLOCK.min(self.len - block);
            let first = self.start + block;
            if self.draws {
                let stream =
                    Stream { seed: self.step.seeds[self.sample], micro: self.step.micro, site: self.step.site };
                noise::fill(simd, stream, (first / 4) as u64, &mut noise[..len]);
            }
            // SAFETY: `first + len <= elements`, and the caller of `Step::run` vouches for the operands.
            unsafe { self.block(simd, first, len, &noise) };
        }
    }
}

impl Tile<'_> {
    /// Elements `first .. first + len` of the sample.
    ///
    /// # Safety
    /// `first + len <= elements` and the contract of [`Step::run`].
    #[inline(always)]
    unsafe fn block<S: Simd>(&self, simd: S, first: usize, len: usize, noise: &[f32; BLOCK]) {
        let step = self.step;
        // Every source's address at `first`, so that the loop below only adds an index.
        let mut sources = [[std::ptr::null::<f32>(); MAX_TERMS]; MAX_REGISTERS];
        for (from, sum) in sources.iter_mut().zip(self.sums) {
            for (from, term) in from.iter_mut().zip(&sum.terms[..sum.len]) {
                // SAFETY: operand, row and `first` are in range by the contract.
                *from = unsafe {
                    match term.source {
                        Source::Register(l) => step.registers[l].row(self.sample, 0, step.elements).add(first),
                        Source::Branch { prediction, branch } => {
                            step.predictions[prediction].row(self.sample, branch, step.elements).add(first)
                        }
                        Source::Noise => noise.as_ptr(),
                    }
                };
            }
        }
        let whole = len - len % S::LANES;
        for i in (0..whole).step_by(S::LANES) {
            // SAFETY: `i + LANES <= len`.
            unsafe { self.vector::<S, true>(simd, &sources, first, i, S::LANES) };
        }
        if whole < len {
            // SAFETY: the last elements, fewer than a vector.
            unsafe { self.vector::<S, false>(simd, &sources, first, whole, len - whole) };
        }
    }

    /// Elements `first + i .. first + i + lanes`: a WHOLE vector, or the first lanes of one.
    ///
    /// # Safety
    /// They are elements of the sample, `sources` point to its element `first`, and the contract of [`Step::run`].
    #[inline(always)]
    unsafe fn vector<S: Simd, const WHOLE: bool>(
        &self,
        simd: S,
        sources: &[[*const f32; MAX_TERMS]; MAX_REGISTERS],
        first: usize,
        i: usize,
        lanes: usize,
    ) {
        let step = self.step;
        // SAFETY: `lanes` elements from the address on belong to the operand.
        let load = |from: *const f32| unsafe { if WHOLE { simd.load(from) } else { simd.load_first(from, lanes) } };
        // SAFETY: as above.
        let store = |to: *mut f32, v| unsafe { if WHOLE { simd.store(to, v) } else { simd.store_first(to, v, lanes) } };
        let mut new = [simd.splat(0.0); MAX_REGISTERS];
        for ((new, sum), from) in new.iter_mut().zip(self.sums).zip(sources) {
            for (t, term) in sum.terms[..sum.len].iter().enumerate() {
                let product = simd.mul(simd.splat(term.coefficient), load(from[t].wrapping_add(i)));
                *new = if t == 0 { product } else { simd.add(*new, product) };
            }
        }
        // All old values are read: now the registers may change. This tile alone writes these elements.
        for (rows, new) in step.registers.iter().zip(new) {
            // SAFETY: sample and element are in range by the contract.
            store(unsafe { rows.row(self.sample, 0, step.elements).add(first + i) }, new);
        }
        if let Some((rows, factor)) = step.next_input {
            let scaled = simd.mul(simd.splat(factor), new[0]);
            for j in 0..rows.branches {
                // SAFETY: as above.
                store(unsafe { rows.row(self.sample, j, step.elements).add(first + i) }, scaled);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::scaled_normals;
    use crate::pool::Pool;
    use proptest::prelude::*;
    use scoregraph_simd::Serial;

    /// Everything a step touches, owned.
    #[derive(Clone, Debug, PartialEq)]
    struct Case {
        registers: Vec<Vec<f32>>,
        predictions: Vec<(Vec<f32>, usize)>,
        next_input: Vec<f32>,
        a: Vec<f32>,
        b: Vec<f32>,
        c: Vec<f32>,
        seeds: Vec<u64>,
        elements: usize,
    }

    const NEXT_ROWS: usize = 2;
    const FACTOR: f32 = 0.75;
    const MICRO: u32 = 9;
    const SITE: u32 = 4;

    impl Case {
        /// Numbers from the noise itself; every third coefficient is 0.
        fn new(seed: u64, batch: usize, elements: usize, registers: usize, branches: &[usize]) -> Case {
            let mut stream = Stream { seed, micro: 0, site: 99 };
            let mut draw = |len: usize| {
                let mut out = vec![0.0; len];
                stream.micro += 1;
                scaled_normals(Isa::Scalar, stream, 0, 1.0, &mut out);
                out
            };
            let mut coefficients = |len: usize| -> Vec<f32> {
                draw(len).into_iter().enumerate().map(|(i, x)| if i % 3 == 1 { 0.0 } else { x }).collect()
            };
            let total: usize = branches.iter().sum();
            let (a, b, c) =
                (coefficients(registers * registers), coefficients(registers * total), coefficients(registers));
            Case {
                registers: (0..registers).map(|_| draw(batch * elements)).collect(),
                predictions: branches.iter().map(|&k| (draw(k * batch * elements), k)).collect(),
                next_input: vec![0.0; NEXT_ROWS * batch * elements],
                a,
                b,
                c,
                seeds: (0..batch as u64).map(|i| seed.wrapping_add(i)).collect(),
                elements,
            }
        }

        fn run(&mut self, isa: Isa, pool: &dyn Parallel) {
            let rows = |values: &mut Vec<f32>, branches| Rows { ptr: values.as_mut_ptr(), branches };
            let registers: Vec<Rows> = self.registers.iter_mut().map(|r| rows(r, 1)).collect();
            let predictions: Vec<Rows> = self.predictions.iter_mut().map(|(p, k)| rows(p, *k)).collect();
            let step = Step {
                registers: &registers,
                predictions: &predictions,
                next_input: Some((rows(&mut self.next_input, NEXT_ROWS), FACTOR)),
                a: &self.a,
                b: &self.b,
                c: &self.c,
                seeds: &self.seeds,
                micro: MICRO,
                site: SITE,
                elements: self.elements,
            };
            // SAFETY: the sizes above are those of the step, and every operand is a vector of its own.
            unsafe { step.run(isa, pool) };
        }

        /// The page's formula, one element at a time.
        fn by_definition(&mut self) {
            let old = self.registers.clone();
            let (count, branches) = (old.len(), self.predictions.iter().map(|(_, k)| k).sum::<usize>());
            for (sample, &seed) in self.seeds.iter().enumerate() {
                let mut z = vec![0.0; self.elements];
                scaled_normals(Isa::Scalar, Stream { seed, micro: MICRO, site: SITE }, 0, 1.0, &mut z);
                for e in 0..self.elements {
                    let at = sample * self.elements + e;
                    let mut answers = Vec::new();
                    for (values, k) in &self.predictions {
                        answers.extend((0..*k).map(|j| values[(sample * k + j) * self.elements + e]));
                    }
                    for j in 0..count {
                        let mut terms: Vec<(f32, f32)> =
                            (0..count).map(|l| (self.a[j * count + l], old[l][at])).collect();
                        terms.extend((0..branches).map(|k| (self.b[j * branches + k], answers[k])));
                        terms.push((self.c[j], z[e]));
                        let products = terms.into_iter().filter(|(c, _)| *c != 0.0).map(|(c, x)| c * x);
                        self.registers[j][at] = products.reduce(|sum, product| sum + product).unwrap_or(0.0);
                    }
                    for j in 0..NEXT_ROWS {
                        self.next_input[(sample * NEXT_ROWS + j) * self.elements + e] = FACTOR * self.registers[0][at];
                    }
                }
            }
        }
    }

    fn same_bits(a: &Case, b: &Case) -> bool {
        let bits = |case: &Case| -> Vec<u32> {
            case.registers.iter().flatten().chain(&case.next_input).map(|x| x.to_bits()).collect()
        };
        bits(a) == bits(b)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn every_isa_gives_the_bits_of_the_definition(
            seed: u64, batch in 1usize..4, elements in 1usize..700, registers in 1usize..5,
            branches in proptest::collection::vec(1usize..4, 0..3),
        ) {
            let case = Case::new(seed, batch, elements, registers, &branches);
            let mut exact = case.clone();
            exact.by_definition();
            for isa in Isa::ALL.into_iter().filter(|isa| isa.supported()) {
                let mut made = case.clone();
                made.run(isa, &Serial);
                prop_assert!(same_bits(&made, &exact), "{}", isa.name());
            }
        }
    }

    #[test]
    fn tiles_and_threads_change_no_bit() {
        let case = Case::new(5, 2, 3 * TILE + 5, 3, &[2]);
        let mut exact = case.clone();
        exact.by_definition();
        for threads in [1, 2, 3] {
            let mut made = case.clone();
            made.run(Isa::best(), &Pool::new(threads).unwrap());
            assert!(same_bits(&made, &exact), "{threads} threads");
        }
    }

    /// A value behind a coefficient of 0 may be anything, NaN included.
    #[test]
    fn what_is_not_read_does_no_harm() {
        let mut case = Case::new(1, 1, 40, 1, &[2]);
        (case.a, case.b, case.c) = (vec![1.0], vec![0.0, 2.0], vec![0.0]);
        case.predictions[0].0[..40].fill(f32::NAN);
        case.run(Isa::best(), &Serial);
        assert!(case.registers[0].iter().all(|x| x.is_finite()));
    }
}
