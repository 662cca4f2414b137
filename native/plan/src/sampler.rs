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
const BLOCK: usize = 256;

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
        for i in (0..len).step_by(S::LANES) {
            let lanes = S::LANES.min(len - i);
            let mut new = [simd.splat(0.0); MAX_REGISTERS];
            for ((new, sum), from) in new.iter_mut().zip(self.sums).zip(&sources) {
                for (t, term) in sum.terms[..sum.len].iter().enumerate() {
                    // SAFETY: `i + lanes <= len`.
                    let value = unsafe { simd.load_first(from[t].add(i), lanes) };
                    let product = simd.mul(simd.splat(term.coefficient), value);
                    *new = if t == 0 { product } else { simd.add(*new, product) };
                }
            }
            // All old values are read: now the registers may change.
            for (rows, new) in step.registers.iter().zip(new) {
                // SAFETY: as above; this tile alone writes these elements.
                unsafe { simd.store_first(rows.row(self.sample, 0, step.elements).add(first + i), new, lanes) };
            }
            if let Some((rows, factor)) = step.next_input {
                let scaled = simd.mul(simd.splat(factor), new[0]);
                for j in 0..rows.branches {
                    // SAFETY: as above.
                    unsafe { simd.store_first(rows.row(self.sample, j, step.elements).add(first + i), scaled, lanes) };
                }
            }
        }
    }
}
