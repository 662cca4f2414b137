//! The activations that a kernel can apply in its epilogue.

use std::str::FromStr;

use crate::math;
use crate::vector::Simd;

/// An activation function, by the name it has in a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Act {
    /// The identity.
    #[default]
    None,
    /// `x * sigmoid(x)`
    Silu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`
    GeluTanh,
    /// `x / 2 * (1 + erf(x / sqrt(2)))`
    GeluErf,
    /// `max(x, 0)`
    Relu,
    /// `tanh(x)`
    Tanh,
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// `x * sigmoid(1.702 x)`
    QuickGelu,
}

impl Act {
    /// Every activation with its name.
    pub const ALL: [(Act, &'static str); 8] = [
        (Act::None, "none"),
        (Act::Silu, "silu"),
        (Act::GeluTanh, "gelu_tanh"),
        (Act::GeluErf, "gelu_erf"),
        (Act::Relu, "relu"),
        (Act::Tanh, "tanh"),
        (Act::Sigmoid, "sigmoid"),
        (Act::QuickGelu, "quick_gelu"),
    ];

    /// The activation of every lane.
    #[inline(always)]
    pub fn apply<S: Simd>(self, simd: S, x: S::F) -> S::F {
        match self {
            Act::None => x,
            Act::Silu => math::silu(simd, x),
            Act::GeluTanh => math::gelu_tanh(simd, x),
            Act::GeluErf => math::gelu_erf(simd, x),
            Act::Relu => math::relu(simd, x),
            Act::Tanh => math::tanh(simd, x),
            Act::Sigmoid => math::sigmoid(simd, x),
            Act::QuickGelu => math::quick_gelu(simd, x),
        }
    }
}

impl FromStr for Act {
    type Err = String;

    fn from_str(name: &str) -> Result<Act, String> {
        let found = Act::ALL.into_iter().find(|(_, known)| *known == name);
        found.map(|(act, _)| act).ok_or_else(|| format!("`{name}` is not an activation"))
    }
}
