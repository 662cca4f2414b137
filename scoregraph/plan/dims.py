"""Sizes that may grow with the batch: an ``int``, or ``Batch(k)`` for k·B, written ``"B"``, ``"2B"`` in plan files."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

Dim = "int | Batch"


@dataclass(frozen=True, slots=True)
class Batch:
    """``k`` times the number of samples of a run. Multiplies and divides by whole numbers, nothing else."""

    k: int = 1

    def __mul__(self, other: object) -> Batch:
        return Batch(self.k * other) if isinstance(other, int) else NotImplemented

    __rmul__ = __mul__

    def __floordiv__(self, other: object) -> Batch | int:
        if isinstance(other, Batch):
            return self.k // other.k
        if isinstance(other, int) and self.k % other == 0:
            return Batch(self.k // other)
        return NotImplemented

    def __str__(self) -> str:
        return "B" if self.k == 1 else f"{self.k}B"

    def at(self, batch: int) -> int:
        """The size for a run of ``batch`` samples."""
        return self.k * batch


def parse_dim(text: int | str) -> int | Batch:
    """``7`` → 7, ``"B"`` → Batch(1), ``"2B"`` → Batch(2)."""
    return text if isinstance(text, int) else Batch(int(text[:-1] or 1))


def dump_dim(dim: int | Batch) -> int | str:
    """The way back."""
    return str(dim) if isinstance(dim, Batch) else dim


def at(shape: Iterable[int | Batch], batch: int) -> tuple[int, ...]:
    """``shape`` for a run of ``batch`` samples."""
    return tuple(d.at(batch) if isinstance(d, Batch) else d for d in shape)


def product(shape: Iterable[int | Batch]) -> int | Batch:
    """The number of elements; at most one dimension may be a ``Batch``."""
    total: int | Batch = 1
    for d in shape:
        total = d * total if isinstance(d, Batch) else total * d
    return total


def per_unit(shape: Iterable[int | Batch]) -> int:
    """Elements per unit of B (or in all, for a shape without B)."""
    total = product(shape)
    return total.k if isinstance(total, Batch) else total


def has_batch(shape: Iterable[int | Batch]) -> bool:
    """Whether the size of ``shape`` grows with the batch."""
    return any(isinstance(d, Batch) for d in shape)


def dense_strides(shape: tuple[int | Batch, ...]) -> tuple[int, ...] | None:
    """Row-major strides in elements; None where one would itself grow with B (a ``Batch`` that is not outermost)."""
    strides: list[int] = []
    step: int | Batch = 1
    for d in reversed(shape):
        if isinstance(step, Batch):
            if d != 1:
                return None
            strides.append(0)
            continue
        strides.append(step)
        step = d * step
    return tuple(reversed(strides))


def view_strides(
    shape: tuple[int | Batch, ...], strides: tuple[int, ...], target: tuple[int | Batch, ...]
) -> tuple[int, ...] | None:
    """Strides that show the same elements as ``target``, or None when that needs a copy.

    The rule is torch's ``view``: runs of dimensions that are contiguous with each other may be regrouped. It is worked
    out for two large primes in place of B; strides that differ between them would depend on the batch.
    """
    results = {_view_strides(at(shape, b), strides, at(target, b)) for b in (1_000_003, 1_000_033)}
    return results.pop() if len(results) == 1 else None


def _view_strides(shape: tuple[int, ...], strides: tuple[int, ...], target: tuple[int, ...]) -> tuple[int, ...] | None:
    if math.prod(shape) != math.prod(target):
        return None
    pairs = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
    runs: list[tuple[int, int]] = []  # (elements, innermost stride) of every maximal contiguous run
    for n, s in pairs:
        if runs and runs[-1][1] == n * s:
            runs[-1] = (runs[-1][0] * n, s)
        else:
            runs.append((n, s))
    found: list[int] = []
    remaining = list(target)
    for elements, stride in reversed(runs):
        while elements > 1:
            if not remaining:
                return None
            n = remaining.pop()
            if n == 1:
                found.append(0)
                continue
            if elements % n:
                return None
            found.append(stride)
            stride *= n
            elements //= n
    if any(n != 1 for n in remaining):
        return None
    found.extend(0 for _ in remaining)
    return tuple(reversed(found))
