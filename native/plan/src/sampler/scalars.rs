//! One small program per sample in float64: the coefficients of a step from its statistics, an error norm, a new time.

use scoregraph_kernels::pointwise::{Binary, Unary};

/// Most values of a program.
pub const MAX_VALUES: usize = 1024;

/// One instruction; operands are the numbers of the instructions before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar {
    /// A constant.
    Const(f64),
    /// Entry j of the sample's row of operand i.
    In(usize, usize),
    /// The entry of the table's current row in a column.
    Row(usize),
    /// That of the row after; the last row is its own next.
    Next(usize),
    /// A function of one value.
    Unary(Unary, usize),
    /// A function of two values.
    Binary(Binary, usize, usize),
    /// The second value where the first is not 0, else the third.
    Where(usize, usize, usize),
}

/// A program whose instructions read only what is there: proved by the rule that makes it.
#[derive(Clone, Debug)]
pub struct ScalarProgram {
    /// At most [`MAX_VALUES`].
    pub instrs: Vec<Scalar>,
    /// The values that are stored.
    pub results: Vec<usize>,
}

impl ScalarProgram {
    /// Runs it for one sample: `input(i, j)` is an entry of operand i, `row` and `next` are rows of the table.
    ///
    /// # Panics
    /// If an instruction names what does not exist, or `out` has not one element for each result.
    pub fn run(&self, input: impl Fn(usize, usize) -> f32, row: &[f32], next: &[f32], out: &mut [f32]) {
        let mut values = [0.0f64; MAX_VALUES];
        for (i, instr) in self.instrs.iter().enumerate() {
            values[i] = match *instr {
                Scalar::Const(value) => value,
                Scalar::In(operand, entry) => f64::from(input(operand, entry)),
                Scalar::Row(column) => f64::from(row[column]),
                Scalar::Next(column) => f64::from(next[column]),
                Scalar::Unary(function, a) => unary(function, values[a]),
                Scalar::Binary(function, a, b) => binary(function, values[a], values[b]),
                Scalar::Where(c, a, b) => values[if values[c] != 0.0 { a } else { b }],
            };
        }
        assert_eq!(out.len(), self.results.len());
        for (out, &result) in out.iter_mut().zip(&self.results) {
            *out = values[result] as f32;
        }
    }
}

fn unary(function: Unary, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match function {
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Exp => x.exp(),
        Unary::Log => x.ln(),
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Sqrt => x.sqrt(),
        Unary::Rsqrt => 1.0 / x.sqrt(),
        Unary::Reciprocal => 1.0 / x,
        Unary::Square => x * x,
        Unary::Tanh => x.tanh(),
        Unary::Sigmoid => sigmoid(x),
        Unary::Silu => x * sigmoid(x),
        // GELU's tanh approximation is x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x³).
        Unary::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            x * sigmoid(2.0 * u)
        }
        Unary::GeluErf => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Unary::Relu => {
            if x.is_nan() {
                x
            } else {
                x.max(0.0)
            }
        }
        Unary::Erf => erf(x),
        Unary::Floor => x.floor(),
    }
}

fn binary(function: Binary, a: f64, b: f64) -> f64 {
    let unordered = a.is_nan() || b.is_nan();
    match function {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::Pow => a.powf(b),
        Binary::Min => {
            if unordered {
                f64::NAN
            } else {
                a.min(b)
            }
        }
        Binary::Max => {
            if unordered {
                f64::NAN
            } else {
                a.max(b)
            }
        }
        Binary::Less => f64::from(a < b),
    }
}

/// The error function, to 1e-15: `2/sqrt(pi) e^{-x²} Σ 2^n x^{2n+1} / (2n+1)!!`, whose terms all have one sign
/// (Abramowitz and Stegun 7.1.6).
fn erf(x: f64) -> f64 {
    // Beyond 6 the difference to 1 is below 1e-16.
    if x.is_nan() || x.abs() > 6.0 {
        return if x.is_nan() { x } else { x.signum() };
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-17 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

/// The piecewise linear function through (xs, ys), xs ascending, constant beyond its ends; NaN of NaN.
///
/// # Panics
/// If there are no points, or not as many ys as xs.
pub fn interpolate(x: f32, xs: &[f32], ys: &[f32]) -> f32 {
    assert!(!xs.is_empty() && xs.len() == ys.len());
    if x.is_nan() {
        return x;
    }
    let above = xs.partition_point(|&point| point <= x);
    if above == 0 || above == xs.len() {
        return ys[above.min(xs.len() - 1)];
    }
    let [x0, x1, y0, y1] = [xs[above - 1], xs[above], ys[above - 1], ys[above]].map(f64::from);
    (y0 + (f64::from(x) - x0) / (x1 - x0) * (y1 - y0)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_as_tabulated() {
        // Abramowitz and Stegun, table 7.1, and NIST's digits beyond it.
        let table = [
            (0.1, 0.112_462_916_018_284_9),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (3.5, 0.999_999_256_901_627_7),
        ];
        for (x, y) in table {
            assert!((erf(x) - y).abs() < 2e-15, "{x}: {} {y}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
        assert_eq!([erf(0.0), erf(7.0), erf(f64::NEG_INFINITY)], [0.0, 1.0, -1.0]);
        assert!(erf(f64::NAN).is_nan());
    }

    #[test]
    fn a_program_reads_operands_and_rows() {
        let program = ScalarProgram {
            instrs: vec![
                Scalar::In(1, 2),
                Scalar::Row(0),
                Scalar::Next(1),
                Scalar::Binary(Binary::Pow, 0, 1),
                Scalar::Binary(Binary::Less, 0, 2),
                Scalar::Where(4, 3, 2),
                Scalar::Unary(Unary::Sqrt, 5),
                Scalar::Const(0.1),
                Scalar::Binary(Binary::Add, 6, 7),
            ],
            results: vec![8, 4],
        };
        let mut out = [0.0; 2];
        program.run(|i, j| (10 * i + j) as f32, &[2.0], &[0.0, 20.0], &mut out);
        assert_eq!(out, [12.1, 1.0]);
        program.run(|i, j| (10 * i + j) as f32, &[2.0], &[0.0, 9.0], &mut out);
        assert_eq!(out, [3.1, 0.0]);
    }

    #[test]
    fn infinities_and_nan() {
        assert!(binary(Binary::Min, f64::NAN, 1.0).is_nan() && binary(Binary::Max, 1.0, f64::NAN).is_nan());
        assert!(unary(Unary::Relu, f64::NAN).is_nan() && unary(Unary::Log, -1.0).is_nan());
        assert_eq!([unary(Unary::Reciprocal, 0.0), unary(Unary::Exp, -1e9)], [f64::INFINITY, 0.0]);
    }

    #[test]
    fn interpolation() {
        let (xs, ys) = ([-1.0, 0.0, 0.0, 2.0], [5.0, 1.0, 3.0, -3.0]);
        let cases = [(-9.0, 5.0), (-1.0, 5.0), (-0.5, 3.0), (0.0, 3.0), (1.0, 0.0), (2.0, -3.0), (f32::INFINITY, -3.0)];
        for (x, y) in cases {
            assert_eq!(interpolate(x, &xs, &ys), y, "at {x}");
        }
        assert!(interpolate(f32::NAN, &xs, &ys).is_nan());
        assert_eq!(interpolate(7.0, &[1.0], &[4.0]), 4.0);
    }
}
