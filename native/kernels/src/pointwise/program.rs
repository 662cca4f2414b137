//! The expression that a `pointwise` call computes, checked when it is made.

use std::str::FromStr;

/// A function of one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it; docs/plan-format.md lists them")]
pub enum Unary {
    Neg,
    Abs,
    Exp,
    Log,
    Sin,
    Cos,
    Sqrt,
    Rsqrt,
    Reciprocal,
    Square,
    Tanh,
    Sigmoid,
    Silu,
    GeluTanh,
    GeluErf,
    Relu,
    Erf,
    Floor,
}

/// A function of two values; `Min` and `Max` are NaN if either is, `Less` is 1 or 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it; docs/plan-format.md lists them")]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Pow,
    Min,
    Max,
    Less,
}

impl FromStr for Unary {
    type Err = String;

    fn from_str(name: &str) -> Result<Unary, String> {
        Ok(match name {
            "neg" => Unary::Neg,
            "abs" => Unary::Abs,
            "exp" => Unary::Exp,
            "log" => Unary::Log,
            "sin" => Unary::Sin,
            "cos" => Unary::Cos,
            "sqrt" => Unary::Sqrt,
            "rsqrt" => Unary::Rsqrt,
            "reciprocal" => Unary::Reciprocal,
            "square" => Unary::Square,
            "tanh" => Unary::Tanh,
            "sigmoid" => Unary::Sigmoid,
            "silu" => Unary::Silu,
            "gelu_tanh" => Unary::GeluTanh,
            "gelu_erf" => Unary::GeluErf,
            "relu" => Unary::Relu,
            "erf" => Unary::Erf,
            "floor" => Unary::Floor,
            _ => return Err(format!("`{name}` is not a function of one value")),
        })
    }
}

impl FromStr for Binary {
    type Err = String;

    fn from_str(name: &str) -> Result<Binary, String> {
        Ok(match name {
            "add" => Binary::Add,
            "sub" => Binary::Sub,
            "mul" => Binary::Mul,
            "div" => Binary::Div,
            "pow" => Binary::Pow,
            "min" => Binary::Min,
            "max" => Binary::Max,
            "less" => Binary::Less,
            _ => return Err(format!("`{name}` is not a function of two values")),
        })
    }
}

/// One instruction; operands are value numbers: the inputs first, then one for each instruction before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Instr {
    /// A constant.
    Const(f32),
    /// A number known only when the program runs, the same for all elements of a block.
    Param(usize),
    /// A function of one value.
    Unary(Unary, usize),
    /// A function of two values.
    Binary(Binary, usize, usize),
    /// The second value where the first is not 0, else the third.
    Where(usize, usize, usize),
}

/// Expressions over some inputs and some parameters; the results are values of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    inputs: usize,
    params: usize,
    instrs: Vec<Instr>,
    results: Vec<usize>,
}

impl Program {
    /// The largest number of values: inputs and instructions.
    pub const MAX_VALUES: usize = 128;

    /// An expression whose result is its last value.
    ///
    /// # Errors
    /// If an operand is not a value that exists by then, or there are too many values or none.
    pub fn new(inputs: usize, instrs: Vec<Instr>) -> Result<Program, String> {
        let last = inputs.saturating_add(instrs.len()).saturating_sub(1);
        Program::with_results(inputs, instrs, vec![last])
    }

    /// Several expressions at once.
    ///
    /// # Errors
    /// As [`Program::new`], and if a result is not a value.
    pub fn with_results(inputs: usize, instrs: Vec<Instr>, results: Vec<usize>) -> Result<Program, String> {
        let values = inputs.saturating_add(instrs.len());
        if values == 0 || values > Self::MAX_VALUES {
            return Err(format!("{values} values; a program has 1 to {}", Self::MAX_VALUES));
        }
        let mut params = 0;
        for (i, instr) in instrs.iter().enumerate() {
            let largest = match *instr {
                Instr::Const(_) => None,
                Instr::Param(index) => {
                    params = params.max(index + 1);
                    None
                }
                Instr::Unary(_, a) => Some(a),
                Instr::Binary(_, a, b) => Some(a.max(b)),
                Instr::Where(c, a, b) => Some(c.max(a).max(b)),
            };
            if let Some(operand) = largest.filter(|&operand| operand >= inputs + i) {
                return Err(format!("instruction {i} reads value {operand}, which does not exist yet"));
            }
        }
        if let Some(result) = results.iter().find(|&&result| result >= values) {
            return Err(format!("value {result} is a result but does not exist"));
        }
        Ok(Program { inputs, params, instrs, results })
    }

    /// How many inputs it reads.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// How many parameters it needs: one more than the largest it names.
    pub fn params(&self) -> usize {
        self.params
    }

    /// The instructions, in order.
    pub fn instrs(&self) -> &[Instr] {
        &self.instrs
    }

    /// The numbers of the values that are its results.
    pub fn results(&self) -> &[usize] {
        &self.results
    }

    /// Inputs and instructions.
    pub fn values(&self) -> usize {
        self.inputs + self.instrs.len()
    }

    /// Whether a value is the same for all elements of a block.
    pub(super) fn is_constant(&self, value: usize) -> bool {
        let instr = value.checked_sub(self.inputs).and_then(|i| self.instrs.get(i));
        matches!(instr, Some(Instr::Const(_) | Instr::Param(_)))
    }
}
