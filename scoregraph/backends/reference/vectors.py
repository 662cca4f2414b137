"""The tensor twin of ``scoregraph.graph.mixture``: what a guidance rule computes, computed at once on tensors.

A rule's ``combine`` is plain arithmetic on vectors and on numbers of each sample. The compiler runs it on symbols; here
the same code runs on the answers themselves, so that nothing of the symbolic way is needed to know what a rule means.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoregraph.backends.reference.elementwise import BINARY, UNARY
from scoregraph.backends.reference.frame import spread
from scoregraph.graph.expression import Expr, Value, given


@dataclass(frozen=True, eq=False)
class Vector:
    """One tensor [B, …] per sample's vector; ``numbers`` are those [B] that expressions about it refer to."""

    value: Tensor
    numbers: list[Tensor]

    def _number(self, value: Tensor) -> Expr:
        """A number of each sample, [B], as a symbol that rules can compute with."""
        self.numbers.append(value)
        return given(0, len(self.numbers) - 1)

    def __add__(self, other: Vector) -> Vector:
        return Vector(self.value + other.value, self.numbers)

    def __sub__(self, other: Vector) -> Vector:
        return Vector(self.value - other.value, self.numbers)

    def __neg__(self) -> Vector:
        return Vector(-self.value, self.numbers)

    def __mul__(self, factor: Value) -> Vector:
        if not isinstance(factor, Expr):
            return Vector(self.value * factor, self.numbers)
        return Vector(self.value * spread(number_of(factor, self.numbers), self.value), self.numbers)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Value) -> Vector:
        return self * (1.0 / divisor)

    def dot(self, other: Vector) -> Expr:
        """The inner product over a sample's elements."""
        return self._number((self.value * other.value).flatten(1).sum(dim=1))

    def norm(self) -> Expr:
        """The Euclidean length over a sample's elements."""
        return self._number(torch.linalg.vector_norm(self.value.flatten(1), dim=1))

    def sum(self) -> Expr:
        """The sum of a sample's elements."""
        return self._number(self.value.flatten(1).sum(dim=1))

    def mean(self) -> Expr:
        """The mean of a sample's elements."""
        return self._number(self.value.flatten(1).mean(dim=1))

    def std(self) -> Expr:
        """The standard deviation of a sample's elements, with n - 1."""
        return self._number(self.value.flatten(1).std(dim=1))


def number_of(e: Expr, numbers: list[Tensor]) -> Tensor:
    """An expression's value for every sample, [B] or one for all [1]."""
    if e.op == "const":
        return torch.tensor([float(e.leaf[0])], dtype=torch.float64)
    if e.op == "in":
        return numbers[int(e.leaf[1])]
    args = [number_of(arg, numbers) for arg in e.args]
    if e.op == "where":
        condition, a, b = args
        return torch.where(condition != 0.0, a, b)
    return UNARY[e.op](args[0]) if e.op in UNARY else BINARY[e.op](args[0], args[1])
