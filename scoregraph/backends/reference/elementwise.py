"""Programs of elementwise instructions, and the calls that are made of them (docs/plan-format.md, "Calls")."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from scoregraph.backends.reference.frame import Attrs, Frame, Roles, numbered

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "neg": torch.neg,
    "abs": torch.abs,
    "exp": torch.exp,
    "log": torch.log,
    "sin": torch.sin,
    "cos": torch.cos,
    "sqrt": torch.sqrt,
    "rsqrt": lambda x: 1.0 / torch.sqrt(x),
    "reciprocal": torch.reciprocal,
    "square": lambda x: x * x,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": lambda x: x * torch.sigmoid(x),
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_erf": functional.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": torch.relu,
    "erf": torch.erf,
    "floor": torch.floor,
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "pow": torch.pow,
    "min": torch.minimum,
    "max": torch.maximum,
    "less": lambda x, y: (x < y).to(x.dtype),
}

Leaf = Callable[..., Tensor]
"""What an instruction without operands (``const``, ``row``, …) stands for, from its arguments."""


def evaluate(program: Sequence[Sequence[Any]], operands: Sequence[Tensor], leaves: Mapping[str, Leaf]) -> list[Tensor]:
    """All values of a program: the operands, then one per instruction."""
    values = list(operands)
    for name, *arguments in program:
        if name in leaves:
            values.append(leaves[name](*arguments))
        elif name == "where":
            condition, a, b = (values[i] for i in arguments)
            values.append(torch.where(condition != 0, a, b))
        elif name in UNARY:
            values.append(UNARY[name](values[arguments[0]]))
        else:
            values.append(BINARY[name](values[arguments[0]], values[arguments[1]]))
    return values


def activate(y: Tensor, attrs: Attrs) -> Tensor:
    """The function named ``act``."""
    name = attrs.get("act", "none")
    return y if name == "none" else UNARY[name](y)


def fill(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """A constant."""
    return torch.full(frame.shape("x"), attrs["value"], dtype=frame.dtype)


def pointwise(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """The last value of the expression program; every instruction adds one to the operands."""

    def constant(value: float) -> Tensor:
        return torch.full(frame.shape("y"), value, dtype=frame.dtype)

    return evaluate(attrs["program"], [x.to(frame.dtype) for x in numbered(ins, "x")], {"const": constant})[-1]


def copy(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """x as it is."""
    return ins["x"].clone()
