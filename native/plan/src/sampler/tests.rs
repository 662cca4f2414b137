//! The register machine, its statistics and its quantiles against their definitions, one element at a time.

use proptest::prelude::*;
use scoregraph_kernels::pointwise::block::Strided;
use scoregraph_kernels::pointwise::{Binary, Instr, Program, Unary};
use scoregraph_kernels::{Context, Layout, View};
use scoregraph_simd::{Isa, Kernel, Parallel, Serial, Simd, math};

use super::linear::{Source, TILE};
use super::statistics::{Forms, Statistic, gram, gram_scratch, quantile, quantile_scratch};
use super::{Coefficients, Columns, Elementwise, Noise, Param, Step, step_scratch};
use crate::noise::{Stream, scaled_normals};
use crate::pool::Pool;

const MICRO: u32 = 9;
const SITE: u32 = 4;
const DRAWS: usize = 3;
const DRAW: usize = 1;
const FACTOR: f32 = 0.75;
const NEXT_BRANCHES: usize = 2;

/// What a case has beside registers and answers.
#[derive(Clone, Copy, Debug, Default)]
struct Options {
    /// Coefficients of each sample's own.
    own: bool,
    /// Estimates, of which a program makes results.
    program: bool,
    /// Noise from a bank.
    bank: bool,
    /// Elements between the rows of answers.
    gap: usize,
    /// Answers that the columns speak of beyond those that are there.
    absent: usize,
    /// Every coefficient is that of the identity or 0.
    still: bool,
}

/// Everything a step touches, owned.
#[derive(Clone, Debug)]
struct Case {
    options: Options,
    samples: usize,
    elements: usize,
    registers: Vec<Vec<f32>>,
    /// Values and branches; rows are `elements + gap` apart.
    predictions: Vec<(Vec<f32>, usize)>,
    next_input: Vec<f32>,
    columns: Columns,
    /// Rows of coefficients, `entries` each.
    coefficients: Vec<f32>,
    entries: usize,
    row: Vec<f32>,
    elementwise: Option<Elementwise>,
    /// One value per sample, and one per element of the sample.
    extras: [Vec<f32>; 2],
    bank: Vec<f32>,
    seeds: Vec<u64>,
}

/// Normal numbers without end.
struct Draw(Stream);

impl Draw {
    fn numbers(&mut self, len: usize) -> Vec<f32> {
        let mut out = vec![0.0; len];
        self.0.micro += 1;
        scaled_normals(Isa::Scalar, self.0, 0, 1.0, &mut out);
        out
    }
}

/// `where(less(e0, x0), exp(c z), max(e0, -row))` and `e_last * x1 + coefficient`, over e…, z, x0, x1.
fn program(estimates: usize) -> Elementwise {
    let (z, x0, x1) = (estimates, estimates + 1, estimates + 2);
    let at = |instr: usize| estimates + 3 + instr;
    let instrs = vec![
        Instr::Param(0),
        Instr::Param(1),
        Instr::Binary(Binary::Less, 0, x0),
        Instr::Binary(Binary::Mul, at(1), z),
        Instr::Unary(Unary::Exp, at(3)),
        Instr::Unary(Unary::Neg, at(0)),
        Instr::Binary(Binary::Max, 0, at(5)),
        Instr::Where(at(2), at(4), at(6)),
        Instr::Binary(Binary::Mul, estimates - 1, x1),
        Instr::Binary(Binary::Add, at(8), at(1)),
    ];
    // The last result is an operand itself.
    let program = Program::with_results(estimates + 3, instrs, vec![at(7), at(9), x1]).unwrap();
    Elementwise { program, params: vec![Param::Row(1), Param::Coefficient(2)], draws: true }
}

impl Case {
    /// Numbers from the noise itself; every third coefficient is 0.
    fn new(seed: u64, samples: usize, elements: usize, registers: usize, branches: &[usize], options: Options) -> Case {
        let mut draw = Draw(Stream { seed, micro: 0, site: 99 });
        let present: usize = branches.iter().sum();
        let width = present + options.absent;
        let estimates = if options.program { 2 } else { 0 };
        let elementwise = options.program.then(|| program(estimates));
        let gained = elementwise.as_ref().map_or(0, |e| e.program.results().len());
        let sizes =
            [registers * registers, registers * width, registers, estimates * (registers + width), registers * gained];
        let starts: Vec<usize> = (0..5).map(|i| 3 + sizes[..i].iter().sum::<usize>()).collect();
        let columns = Columns {
            a: starts[0],
            b: starts[1],
            c: starts[2],
            e: starts[3],
            h: starts[4],
            estimates,
            width,
            // Those that are there are the last ones, in reverse.
            answers: (0..present).map(|k| width - 1 - k).collect(),
        };
        let entries = 3 + sizes.iter().sum::<usize>();
        let rows = if options.own { samples } else { 1 };
        let mut coefficients: Vec<f32> = draw
            .numbers(rows * entries)
            .into_iter()
            .enumerate()
            .map(|(i, x)| if i % 3 == 1 { 0.0 } else { x })
            .collect();
        if options.still {
            for row in coefficients.chunks_mut(entries) {
                row[3..].fill(0.0);
                (0..registers).for_each(|j| row[columns.a + j * registers + j] = 1.0);
            }
        }
        Case {
            options,
            samples,
            elements,
            registers: (0..registers).map(|_| draw.numbers(samples * elements)).collect(),
            predictions: branches.iter().map(|&k| (draw.numbers(k * samples * (elements + options.gap)), k)).collect(),
            next_input: vec![0.0; NEXT_BRANCHES * samples * elements],
            columns,
            coefficients,
            entries,
            row: draw.numbers(4),
            elementwise,
            extras: [draw.numbers(samples), draw.numbers(samples * elements)],
            bank: draw.numbers(samples * DRAWS * elements),
            seeds: (0..samples as u64).map(|i| seed.wrapping_add(i)).collect(),
        }
    }

    fn answers(&mut self) -> Vec<Source> {
        let row = self.elements + self.options.gap;
        let mut found = Vec::new();
        for (values, k) in &mut self.predictions {
            let ptr = values.as_mut_ptr();
            found.extend((0..*k).map(|j| Source { ptr: ptr.wrapping_add(j * row), step: *k * row }));
        }
        found
    }

    fn run(&mut self, isa: Isa, pool: &dyn Parallel) {
        let (samples, elements) = (self.samples, self.elements);
        let answers = self.answers();
        let registers: Vec<Source> =
            self.registers.iter_mut().map(|r| Source { ptr: r.as_mut_ptr(), step: elements }).collect();
        let next = self.next_input.as_mut_ptr();
        let next_input: Vec<Source> = (0..NEXT_BRANCHES)
            .map(|j| Source { ptr: next.wrapping_add(j * elements), step: NEXT_BRANCHES * elements })
            .collect();
        let bank = self.bank.as_mut_ptr();
        let shape = [samples, elements];
        let extras = [
            Some(Strided::new(View::new(&self.extras[0], 0, Layout::new(&shape, &[1, 0]).unwrap()).unwrap())),
            Some(Strided::new(View::dense(&self.extras[1], &shape).unwrap())),
        ];
        let scratch = step_scratch(registers.len(), &self.columns, self.elementwise.as_ref(), pool.threads());
        let mut scratch = vec![f32::NAN; scratch];
        let step = Step {
            registers: &registers,
            answers: &answers,
            next_input: &next_input,
            factor: FACTOR,
            columns: &self.columns,
            coefficients: Coefficients {
                values: &self.coefficients,
                step: if self.options.own { self.entries } else { 0 },
            },
            row: &self.row,
            elementwise: self.elementwise.as_ref(),
            extras: if self.options.program { &extras } else { &[] },
            noise: if self.options.bank {
                Noise::Bank(Source { ptr: bank.wrapping_add(DRAW * elements), step: DRAWS * elements })
            } else {
                Noise::Drawn { seeds: &self.seeds, micro: MICRO, site: SITE }
            },
            samples,
            elements,
        };
        // SAFETY: the sizes above are those of the step, and every operand is a vector of its own.
        unsafe { step.run(isa, pool, &mut scratch) };
    }

    /// The page's formulas, one element at a time.
    fn by_definition(&mut self) {
        let (count, elements, old) = (self.registers.len(), self.elements, self.registers.clone());
        let (columns, width, pitch) = (self.columns.clone(), self.columns.width, elements + self.options.gap);
        for sample in 0..self.samples {
            let q = &self.coefficients[if self.options.own { sample * self.entries } else { 0 }..][..self.entries];
            let mut z = vec![0.0; elements];
            let stream = Stream { seed: self.seeds[sample], micro: MICRO, site: SITE };
            scaled_normals(Isa::Scalar, stream, 0, 1.0, &mut z);
            if self.options.bank {
                z.copy_from_slice(&self.bank[(sample * DRAWS + DRAW) * elements..][..elements]);
            }
            for e in 0..elements {
                let at = sample * elements + e;
                let m: Vec<f32> = self
                    .predictions
                    .iter()
                    .flat_map(|(values, k)| (0..*k).map(move |j| values[(sample * k + j) * pitch + e]))
                    .collect();
                let sum = |terms: Vec<(f32, f32)>| -> f32 {
                    let products = terms.into_iter().filter(|(q, _)| *q != 0.0).map(|(q, x)| q * x);
                    products.reduce(|sum, product| sum + product).unwrap_or(0.0)
                };
                let form = |a: usize, b: usize| -> Vec<(f32, f32)> {
                    let state = (0..count).map(|l| (q[a + l], old[l][at]));
                    state.chain(columns.answers.iter().zip(&m).map(|(k, m)| (q[b + k], *m))).collect()
                };
                let estimates: Vec<f32> = (0..columns.estimates)
                    .map(|i| {
                        let row = columns.e + i * (count + width);
                        sum(form(row, row + count))
                    })
                    .collect();
                let y = match estimates[..] {
                    [first, last] => {
                        let (x0, x1) = (self.extras[0][sample], self.extras[1][at]);
                        let chosen = if first < x0 { exp(q[2] * z[e]) } else { first.max(-self.row[1]) };
                        vec![chosen, last * x1 + q[2], x1]
                    }
                    _ => vec![],
                };
                for j in 0..count {
                    let mut terms = form(columns.a + j * count, columns.b + j * width);
                    terms.push((q[columns.c + j], z[e]));
                    terms.extend(y.iter().enumerate().map(|(i, value)| (q[columns.h + j * y.len() + i], *value)));
                    self.registers[j][at] = sum(terms);
                }
                for j in 0..NEXT_BRANCHES {
                    self.next_input[(sample * NEXT_BRANCHES + j) * elements + e] = FACTOR * self.registers[0][at];
                }
            }
        }
    }
}

/// The scalar twin's exponential.
fn exp(x: f32) -> f32 {
    struct Exp(f32);
    impl Kernel for Exp {
        type Output = f32;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> f32 {
            s.reduce_max(math::exp(s, s.splat(self.0)))
        }
    }
    Isa::Scalar.dispatch(Exp(x))
}

fn same_bits(a: &Case, b: &Case) -> bool {
    let bits = |case: &Case| -> Vec<u32> {
        case.registers.iter().flatten().chain(&case.next_input).map(|x| x.to_bits()).collect()
    };
    bits(a) == bits(b)
}

fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.supported())
}

fn options() -> impl Strategy<Value = Options> {
    (any::<[bool; 3]>(), 0usize..3, 0usize..3, prop::bool::weighted(0.1)).prop_map(
        |([own, program, bank], gap, absent, still)| {
            // The program has a parameter among the coefficients, so both may be there or not.
            Options { own, program, bank, gap: 4 * gap + gap % 2, absent, still }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_isa_gives_the_bits_of_the_definition(
        seed: u64, samples in 1usize..4, elements in prop_oneof![1usize..34, 1000usize..1100, 2040usize..2060],
        registers in 1usize..6, branches in prop::collection::vec(1usize..4, 0..4), options in options(),
    ) {
        let case = Case::new(seed, samples, elements, registers, &branches, options);
        let mut exact = case.clone();
        exact.by_definition();
        for isa in isas() {
            let mut made = case.clone();
            made.run(isa, &Serial);
            prop_assert!(same_bits(&made, &exact), "{}", isa.name());
        }
    }
}

#[test]
fn every_tail() {
    for elements in 1..=33 {
        let options = Options { program: true, own: true, gap: 1, ..Options::default() };
        let case = Case::new(elements as u64, 2, elements, 3, &[2, 1], options);
        let mut exact = case.clone();
        exact.by_definition();
        for isa in isas() {
            let mut made = case.clone();
            made.run(isa, &Serial);
            assert!(same_bits(&made, &exact), "{} {elements}", isa.name());
        }
    }
}

#[test]
fn tiles_and_threads_change_no_bit() {
    let wild = Options { program: true, own: true, gap: 3, ..Options::default() };
    // Samples of several tiles, and tiles of several samples.
    for (samples, elements) in [(2, 3 * TILE + 5), (70, 301)] {
        for options in [Options::default(), wild] {
            let case = Case::new(5, samples, elements, 3, &[2], options);
            let mut exact = case.clone();
            exact.by_definition();
            for threads in [1, 2, 3] {
                let mut made = case.clone();
                made.run(Isa::best(), &Pool::new(threads).unwrap());
                assert!(same_bits(&made, &exact), "{samples} samples, {threads} threads");
            }
        }
    }
}

/// A sample alone has the bits it has in a batch.
#[test]
fn the_place_in_the_batch_changes_no_bit() {
    let options = Options { program: true, ..Options::default() };
    let mut batch = Case::new(5, 3, 1500, 2, &[2], options);
    let mut alone = Case { samples: 1, ..batch.clone() };
    alone.registers.iter_mut().for_each(|r| drop(r.drain(..2 * 1500)));
    alone.predictions.iter_mut().for_each(|(p, k)| drop(p.drain(..2 * *k * 1500)));
    alone.extras[0].drain(..2);
    alone.extras[1].drain(..2 * 1500);
    alone.seeds.drain(..2);
    batch.run(Isa::best(), &Serial);
    alone.run(Isa::best(), &Serial);
    for (all, one) in batch.registers.iter().zip(&alone.registers) {
        assert_eq!(&all[2 * 1500..], &one[..]);
    }
}

/// A value behind a coefficient of 0 may be anything, NaN included.
#[test]
fn what_is_not_read_does_no_harm() {
    let mut case = Case::new(1, 1, 40, 1, &[2], Options::default());
    case.coefficients.fill(0.0);
    (case.coefficients[case.columns.a], case.coefficients[case.columns.b]) = (1.0, 2.0);
    // Answers are numbered in reverse: the columns' first answer is the second branch.
    case.predictions[0].0[..40].fill(f32::NAN);
    case.run(Isa::best(), &Serial);
    assert!(case.registers[0].iter().all(|x| x.is_finite()));
}

/// Sums of more terms than one walk takes, where the register that is written is also read.
#[test]
fn long_sums() {
    let case = Case::new(3, 2, 1030, 8, &[7, 7], Options { program: true, ..Options::default() });
    let mut exact = case.clone();
    exact.by_definition();
    for isa in isas() {
        let mut made = case.clone();
        made.run(isa, &Serial);
        assert!(same_bits(&made, &exact), "{}", isa.name());
    }
}

/// Numbers at the ends of the range pass through as the definition has them, subnormals too.
#[test]
fn extremes_of_the_range() {
    let mut case = Case::new(3, 1, 64, 2, &[2], Options { program: true, ..Options::default() });
    let extremes = [f32::MAX, f32::MIN_POSITIVE, 1e-42, -1e-45, 0.0, -0.0, 3e38, -3e38];
    case.registers.iter_mut().flatten().enumerate().for_each(|(i, x)| *x = extremes[i % 8]);
    case.extras[0][0] = 1e30;
    let mut exact = case.clone();
    exact.by_definition();
    for isa in isas() {
        let mut made = case.clone();
        made.run(isa, &Serial);
        for (a, b) in made.registers.iter().flatten().zip(exact.registers.iter().flatten()) {
            assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "{}: {a} {b}", isa.name());
        }
    }
}

/// The columns of two forms over the registers and answers of a case.
fn two_forms(case: &Case) -> (Columns, Vec<f32>) {
    let entries = case.registers.len() + case.columns.width;
    let row = Draw(Stream { seed: 8, micro: 0, site: 1 }).numbers(5 + 2 * entries);
    (Columns { e: 5, estimates: 2, ..case.columns.clone() }, row)
}

/// Form i of the case's sample, in float32.
fn form(case: &Case, columns: &Columns, row: &[f32], i: usize, sample: usize) -> Vec<f32> {
    let count = case.registers.len();
    let q = &row[columns.e + i * (count + columns.width)..];
    let pitch = case.elements + case.options.gap;
    (0..case.elements)
        .map(|e| {
            let state = (0..count).map(|l| q[l] * case.registers[l][sample * case.elements + e]);
            let branches = case
                .predictions
                .iter()
                .flat_map(|(values, k)| (0..*k).map(move |j| values[(sample * k + j) * pitch + e]));
            let answers = columns.answers.iter().zip(branches).map(|(k, m)| q[count + k] * m);
            state.chain(answers).reduce(|sum, x| sum + x).unwrap()
        })
        .collect()
}

#[test]
fn products_of_forms() {
    let statistics =
        [Statistic { form: 0, with: Some(0) }, Statistic { form: 0, with: Some(1) }, Statistic { form: 1, with: None }];
    for elements in (1..34).chain([1000, 1024, TILE - 1, 2 * TILE + 700]) {
        let mut case = Case::new(2, 3, elements, 2, &[2], Options { gap: 2, absent: 1, ..Options::default() });
        let (columns, row) = two_forms(&case);
        let mut first: Option<Vec<f32>> = None;
        for (isa, threads) in isas().flat_map(|isa| [(isa, 1), (isa, 2)]) {
            let pool = Pool::new(threads).unwrap();
            let mut sources: Vec<Source> =
                case.registers.iter_mut().map(|r| Source { ptr: r.as_mut_ptr(), step: elements }).collect();
            sources.extend(case.answers());
            let forms = Forms { sources: &sources, registers: 2, samples: 3, elements };
            let mut out = vec![f32::NAN; 9];
            let mut scratch = vec![f32::NAN; gram_scratch(3, elements, 2, 3, threads)];
            let ctx = Context { isa, pool: &pool };
            // SAFETY: the sources are those of the case, and the row has the columns of both forms.
            unsafe { gram(&ctx, forms, &columns, &row, &statistics, &mut out, &mut scratch) };
            for (sample, got) in out.chunks(3).enumerate() {
                let v: Vec<Vec<f32>> = (0..2).map(|i| form(&case, &columns, &row, i, sample)).collect();
                let dot =
                    |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
                let size = dot(&v[0], &v[0]).max(dot(&v[1], &v[1])).max(1.0);
                let want = [dot(&v[0], &v[0]), dot(&v[0], &v[1]), v[1].iter().map(|x| f64::from(*x)).sum()];
                for (got, want) in got.iter().zip(want) {
                    assert!((f64::from(*got) - want).abs() <= 6e-8 * want.abs() + 1e-14 * size, "{got} {want}");
                }
            }
            assert_eq!(first.get_or_insert_with(|| out.clone()), &out, "{} {threads}", isa.name());
        }
    }
}

#[test]
fn quantiles_of_magnitudes() {
    for elements in (1..34).chain([1000, 5000]) {
        let mut case = Case::new(2, 3, elements, 2, &[2], Options { gap: 1, ..Options::default() });
        let (columns, row) = two_forms(&case);
        for q in [0.0, 0.25, 0.5, 0.995, 1.0] {
            let mut sources: Vec<Source> =
                case.registers.iter_mut().map(|r| Source { ptr: r.as_mut_ptr(), step: elements }).collect();
            sources.extend(case.answers());
            let forms = Forms { sources: &sources, registers: 2, samples: 3, elements };
            for (isa, threads) in isas().flat_map(|isa| [(isa, 1), (isa, 2)]) {
                let pool = Pool::new(threads).unwrap();
                let (mut out, mut scratch) = (vec![0.0; 3], vec![f32::NAN; quantile_scratch(elements, threads)]);
                let coefficients = Coefficients { values: &row, step: 0 };
                let ctx = Context { isa, pool: &pool };
                // SAFETY: the sources are those of the case, and the row has the columns of both forms.
                unsafe { quantile(&ctx, forms, &columns, coefficients, q, &mut out, &mut scratch) };
                for (sample, got) in out.iter().enumerate() {
                    let mut v: Vec<f32> = form(&case, &columns, &row, 0, sample).iter().map(|x| x.abs()).collect();
                    v.sort_by(f32::total_cmp);
                    let position = q * (elements - 1) as f64;
                    let (low, high) = (v[position.floor() as usize], v[position.ceil() as usize]);
                    let want = f64::from(low) + position.fract() * (f64::from(high) - f64::from(low));
                    assert_eq!(*got, want as f32, "{} {elements} {q}", isa.name());
                }
            }
        }
    }
}

#[test]
fn quantiles_of_infinities_and_nan() {
    let run = |values: &mut [f32], q: f64| {
        let sources = [Source { ptr: values.as_mut_ptr(), step: values.len() }];
        let forms = Forms { sources: &sources, registers: 1, samples: 1, elements: values.len() };
        let columns = Columns { estimates: 1, ..Columns::default() };
        let (mut out, mut scratch) = ([0.0], vec![0.0; values.len()]);
        // SAFETY: one register of that many elements, and one coefficient.
        unsafe {
            let ctx = Context { isa: Isa::best(), pool: &Serial };
            quantile(&ctx, forms, &columns, Coefficients { values: &[1.0], step: 0 }, q, &mut out, &mut scratch);
        }
        out[0]
    };
    assert_eq!(run(&mut [f32::NEG_INFINITY, 1.0, -2.0], 0.5), 2.0);
    assert_eq!(run(&mut [f32::NEG_INFINITY, f32::INFINITY, -2.0], 0.75), f32::INFINITY);
    assert!(run(&mut [1.0, f32::NAN, 2.0], 0.0).is_nan());
    assert_eq!(run(&mut [-0.0, 0.0], 0.5).to_bits(), 0);
}
