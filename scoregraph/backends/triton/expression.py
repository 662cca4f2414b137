"""A pointwise program (docs/plan-format.md) as the text of a Triton kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scoregraph.backends.protocol import Miss
from scoregraph.backends.triton.launch import Kernel

# Accurate forms throughout: a rounded square root and division rather than the hardware's approximations.
UNARY = {
    "neg": "-{0}",
    "abs": "tl.abs({0})",
    "exp": "tl.exp({0})",
    "log": "tl.log({0})",
    "sin": "tl.sin({0})",
    "cos": "tl.cos({0})",
    "sqrt": "tl.sqrt_rn({0})",
    "rsqrt": "1.0 / tl.sqrt_rn({0})",
    "reciprocal": "1.0 / {0}",
    "square": "{0} * {0}",
    "tanh": "tanh({0})",
    "sigmoid": "sigmoid({0})",
    "silu": "{0} * sigmoid({0})",
    "gelu_tanh": "gelu_tanh({0})",
    "gelu_erf": "gelu_erf({0})",
    "quick_gelu": "{0} * sigmoid(1.702 * {0})",
    "relu": "tl.maximum({0}, 0.0, propagate_nan=tl.PropagateNan.ALL)",
    "erf": "tl.erf({0})",
    "floor": "tl.floor({0})",
}
BINARY = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "tl.div_rn({0}, {1})",
    "min": "tl.minimum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    "max": "tl.maximum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    "less": "({0} < {1}).to(tl.float32)",
}
TERNARY = {"where": "tl.where({0} != 0.0, {1}, {2})"}
ROOTS = {-0.5: "rsqrt", 0.5: "sqrt"}
FORMS = {**UNARY, **BINARY, **TERNARY}
# In double precision plain division and square root are the rounded ones.
DOUBLE = {
    **FORMS,
    "sqrt": "tl.sqrt({0})",
    "rsqrt": "1.0 / tl.sqrt({0})",
    "div": "{0} / {1}",
    "less": "({0} < {1}).to(tl.float64)",
}
# x to a fixed power as products, which is exact where pow would be; Triton itself has no pow.
POWERS = {
    -2.0: "1.0 / ({0} * {0})",
    -1.0: "1.0 / {0}",
    1.0: "{0}",
    2.0: "{0} * {0}",
    3.0: "{0} * {0} * {0}",
    4.0: "({0} * {0}) * ({0} * {0})",
}


@dataclass(frozen=True)
class Dialect:
    """How the instructions of a kind of program are written.

    Attributes:
        forms: by name, over the values of their arguments.
        constant: a number; ``leaves`` what else stands for itself, over its plain arguments.
    """

    forms: Mapping[str, str]
    constant: str
    leaves: Mapping[str, str] = field(default_factory=dict[str, str])


POINTWISE = Dialect(FORMS, "tl.full((BLOCK,), {0}, tl.float32)")


def expressions(program: Sequence[Sequence[Any]], operands: int, dialect: Dialect = POINTWISE) -> list[str] | Miss:
    """One expression per instruction over the values ``v0, v1, …``, or what has no Triton form."""
    constants: dict[int, float] = {}
    lines: list[str] = []
    for number, (name, *args) in enumerate(program, start=operands):
        if name == "const":
            constants[number] = float(args[0])
            lines.append(dialect.constant.format(_literal(float(args[0]))))
        elif name in dialect.leaves:
            lines.append(dialect.leaves[name].format(*args))
        elif name == "pow":
            power = constants.get(args[1])
            if power not in (*POWERS, *ROOTS):
                known = ", ".join(f"{p:g}" for p in sorted((*POWERS, *ROOTS)))
                return Miss(f"pow runs on Triton with a constant exponent among {known}")
            form = POWERS[power] if power in POWERS else dialect.forms[ROOTS[power]]
            lines.append(form.format(f"v{args[0]}"))
        elif name in dialect.forms:
            lines.append(dialect.forms[name].format(*(f"v{arg}" for arg in args)))
        else:
            return Miss(f"the instruction {name!r} has no Triton form")
    return lines


def _literal(value: float) -> str:
    return repr(value) if value - value == 0.0 else f'float("{value}")'


def pointwise_kernel(program: Sequence[Sequence[Any]], operands: int) -> Kernel:
    """The kernel of a program that ``expressions`` accepts.

    Lanes past the end compute the last element again and store nothing, so that no value is made up for them.
    """
    lines = expressions(program, operands)
    if isinstance(lines, Miss):
        raise ValueError(lines.reason)
    loads = [f"v{i} = tl.load(inputs[{i}] + offset(at, sizes, strides[{i}])).to(tl.float32)" for i in range(operands)]
    steps = [f"v{number} = {line}" for number, line in enumerate(lines, start=operands)]
    body = "\n    ".join(loads + steps)
    text = f"""
@triton.jit
def pointwise(inputs, y, total, sizes, strides, y_strides, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at = tl.minimum(i, total - 1)
    {body}
    tl.store(y + offset(i, sizes, y_strides), v{operands + len(lines) - 1}, mask=i < total)
"""
    return Kernel("pointwise", text.lstrip())
