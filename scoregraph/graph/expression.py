"""Formulas as data: Python arithmetic on symbols, recorded as a list of instructions.

What is not linear in a sampling step (a clamp, a rescaling, a projection) is written once as plain arithmetic and runs
in every backend: the writer gets ``Expr`` symbols, and ``trace`` turns what he makes of them into the instructions of
docs/plan-format.md::

    def rescaled(std_cond: Expr, std_guided: Expr) -> Expr:
        return 0.7 * std_cond / std_guided + 0.3
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Instruction = tuple[str | int | float, ...]
"""A name and its arguments: value numbers, columns or numbers, as docs/plan-format.md lists them."""

UNARY = ("neg", "abs", "exp", "log", "sqrt", "square", "reciprocal")
BINARY = ("add", "sub", "mul", "div", "pow", "min", "max", "less")

Number = float


@dataclass(frozen=True, eq=False)
class Expr:
    """A symbol or a function of symbols. ``op`` is an instruction's name; ``leaf`` the arguments of a symbol."""

    op: str
    args: tuple[Expr, ...] = ()
    leaf: tuple[str | int | float, ...] = ()

    def __add__(self, other: Expr | Number) -> Expr:
        return binary("add", self, other)

    __radd__ = __add__

    def __sub__(self, other: Expr | Number) -> Expr:
        return binary("sub", self, other)

    def __rsub__(self, other: Number) -> Expr:
        return binary("sub", other, self)

    def __mul__(self, other: Expr | Number) -> Expr:
        return binary("mul", self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Expr | Number) -> Expr:
        return binary("div", self, other)

    def __rtruediv__(self, other: Number) -> Expr:
        return binary("div", other, self)

    def __pow__(self, power: Number) -> Expr:
        if power == 2:
            return unary("square", self)
        return unary("sqrt", self) if power == 0.5 else binary("pow", self, power)

    def __neg__(self) -> Expr:
        return unary("neg", self)

    def __lt__(self, other: Expr | Number) -> Expr:
        """1 where it holds, else 0; to be used in ``where``."""
        return binary("less", self, other)

    def __gt__(self, other: Expr | Number) -> Expr:
        """1 where it holds, else 0; to be used in ``where``."""
        return binary("less", other, self)

    def __bool__(self) -> bool:
        raise TypeError("a symbol is neither true nor false; choose with where(condition, a, b)")


Value = Expr | Number


def constant(value: Value) -> Expr:
    """A number as an expression; an expression as it is."""
    return value if isinstance(value, Expr) else Expr("const", leaf=(float(value),))


def column(name: str) -> Expr:
    """The entry of the table's current row in the column of that name."""
    return Expr("row", leaf=(name,))


def operand(index: int) -> Expr:
    """Operand number ``index`` of an elementwise program."""
    return Expr("operand", leaf=(index,))


def given(source: int, index: int) -> Expr:
    """Number ``index`` of a sample's row in operand ``source`` of a per-sample program."""
    return Expr("in", leaf=(source, index))


def unary(op: str, a: Value) -> Expr:
    """A function of one value; of a number, it is a number."""
    a = constant(a)
    if a.op == "const":
        return constant(_UNARY[op](float(a.leaf[0])))
    return Expr(op, (a,))


def binary(op: str, a: Value, b: Value) -> Expr:
    """A function of two values, with the identities x + 0, x - 0, 1 x, 0 x and x / 1 carried out."""
    a, b = constant(a), constant(b)
    left = float(a.leaf[0]) if a.op == "const" else None
    right = float(b.leaf[0]) if b.op == "const" else None
    if left is not None and right is not None:
        return constant(_BINARY[op](left, right))
    if op == "mul" and 0.0 in (left, right):
        return constant(0.0)
    if (op == "add" and left == 0.0) or (op == "mul" and left == 1.0):
        return b
    if (op in ("add", "sub") and right == 0.0) or (op in ("mul", "div") and right == 1.0):
        return a
    return Expr(op, (a, b))


def exp(a: Value) -> Expr:
    """e to the power of a."""
    return unary("exp", a)


def log(a: Value) -> Expr:
    """The natural logarithm."""
    return unary("log", a)


def sqrt(a: Value) -> Expr:
    """The square root."""
    return unary("sqrt", a)


def hypot(a: Number, b: Number) -> Number:
    """The square root of a^2 + b^2, of numbers or of expressions: formulas that use it can be traced."""
    if isinstance(a, Expr) or isinstance(b, Expr):
        return sqrt(a * a + b * b)  # pyright: ignore[reportReturnType]  # what is traced is not checked
    return math.hypot(a, b)


def absolute(a: Value) -> Expr:
    """The absolute value."""
    return unary("abs", a)


def minimum(a: Value, b: Value) -> Expr:
    """The smaller one."""
    return binary("min", a, b)


def maximum(a: Value, b: Value) -> Expr:
    """The larger one."""
    return binary("max", a, b)


def clamp(a: Value, low: Value, high: Value) -> Expr:
    """The nearest value from low to high."""
    return minimum(maximum(a, low), high)


def where(condition: Value, a: Value, b: Value) -> Expr:
    """a where the condition is not 0, else b."""
    return Expr("where", (constant(condition), constant(a), constant(b)))


def trace(
    results: Sequence[Value], operands: int = 0, lift: Callable[[float], Expr] = constant
) -> tuple[tuple[Instruction, ...], tuple[int, ...]]:
    """The instructions that compute ``results``, and the numbers of those values; equal subexpressions are one.

    The first ``operands`` value numbers are operands of an elementwise program. ``lift`` says what stands for a number,
    so that numbers can become columns. Columns stay names here; whoever lays out the table puts their numbers in.
    """
    instructions: list[Instruction] = []
    numbers: dict[tuple[object, ...], int] = {}

    def number(e: Expr) -> int:
        if e.op == "operand":
            return int(e.leaf[0])
        if e.op == "const":
            e = lift(float(e.leaf[0]))
        key = (e.op, *e.leaf, *(number(a) for a in e.args))
        if key not in numbers:
            numbers[key] = operands + len(instructions)
            instructions.append((e.op, *e.leaf, *key[1 + len(e.leaf) :]))  # pyright: ignore[reportArgumentType]
        return numbers[key]

    found = tuple(number(constant(value)) for value in results)
    return tuple(instructions), found


_UNARY: dict[str, Callable[[float], float]] = {
    "neg": operator.neg,
    "abs": abs,
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "square": lambda a: a * a,
    "reciprocal": lambda a: 1.0 / a,
}
_BINARY: dict[str, Callable[[float, float], float]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": lambda a, b: a / b,
    "pow": math.pow,
    "min": min,
    "max": max,
    "less": lambda a, b: float(a < b),
}
