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

/// A function of two values; `Min` and `Max` are NaN if either is.
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
            _ => return Err(format!("`{name}` is not a function of two values")),
        })
    }
}

/// One instruction; operands are value numbers: the inputs first, then one for each instruction before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Instr {
    /// A constant.
    Const(f32),
    /// A function of one value.
    Unary(Unary, usize),
    /// A function of two values.
    Binary(Binary, usize, usize),
}

/// An expression over some inputs; its value is the last one.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    inputs: usize,
    instrs: Vec<Instr>,
}

impl Program {
    /// The largest number of inputs.
    pub const MAX_INPUTS: usize = 8;
    /// The largest number of values: inputs and instructions.
    pub const MAX_VALUES: usize = 128;

    /// Checks that every operand is a value that exists by then.
    ///
    /// # Errors
    /// If one does not, or there are too many values or none.
    pub fn new(inputs: usize, instrs: Vec<Instr>) -> Result<Program, String> {
        if inputs > Self::MAX_INPUTS {
            return Err(format!("{inputs} inputs; at most {} are supported", Self::MAX_INPUTS));
        }
        let values = inputs.saturating_add(instrs.len());
        if values == 0 || values > Self::MAX_VALUES {
            return Err(format!("{values} values; a program has 1 to {}", Self::MAX_VALUES));
        }
        for (i, instr) in instrs.iter().enumerate() {
            let largest = match *instr {
                Instr::Const(_) => None,
                Instr::Unary(_, a) => Some(a),
                Instr::Binary(_, a, b) => Some(a.max(b)),
            };
            if let Some(operand) = largest.filter(|&operand| operand >= inputs + i) {
                return Err(format!("instruction {i} reads value {operand}, which does not exist yet"));
            }
        }
        Ok(Program { inputs, instrs })
    }

    /// How many inputs it reads.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// The instructions, in order.
    pub fn instrs(&self) -> &[Instr] {
        &self.instrs
    }

    /// Inputs and instructions.
    pub(super) fn values(&self) -> usize {
        self.inputs + self.instrs.len()
    }
}
