"""A sampler and a schedule, compiled to numbers: one row per network call.

A continuous sampler is a register machine. At micro-step i, with the registers R (the state x first), the network's
answers m_k and a fresh normal z:

    x_in = c_in * R_0;   m_k = net(x_in, t, cond_k);   R'_j = sum_l A[j,l] R_l + sum_k B[j,k] m_k + C[j] z

A ``StepTable`` holds t, c_in, A, B and C of every micro-step in float64. Methods with several network calls per step
(Heun) are simply more rows; multistep methods keep their history in registers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from scoregraph.errors import BadTable, BadWeights

Float64 = NDArray[np.float64]

REPORT = ("step", "alpha", "sigma")
"""Columns behind the machine's own: the loop step a row belongs to, and where on the schedule its network call is."""


def machine_columns(registers: int, branches: int) -> tuple[str, ...]:
    """The names of the columns that the machine reads, in order."""
    a = [f"a{j}_{k}" for j in range(registers) for k in range(registers)]
    b = [f"b{j}_{k}" for j in range(registers) for k in range(branches)]
    return ("t", "c_in", *a, *b, *(f"c{j}" for j in range(registers)))


@dataclass(frozen=True)
class StepTable:
    """The rows of a register machine, in float64; frozen, hashable, and free of arrays.

    ``columns`` are ``machine_columns(len(registers), branches)`` and then any report columns. ``registers`` are names,
    the state x first. ``branches`` is the number of network answers a row combines: 1 until guidance is folded in.
    The loop starts with ``x = init_scale * noise``; the other registers start at 0.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[float, ...], ...]
    registers: tuple[str, ...]
    branches: int = 1
    init_scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.registers or self.branches < 1:
            raise BadTable(problem="a step table needs at least one register and one branch")
        expected = machine_columns(len(self.registers), self.branches)
        if self.columns[: len(expected)] != expected:
            raise BadTable(problem=f"the columns should begin with {' '.join(expected)}, not {' '.join(self.columns)}")
        if len(set(self.columns)) != len(self.columns):
            raise BadTable(problem="two columns have the same name")
        if not self.rows:
            raise BadTable(problem="a step table needs at least one row")
        for i, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise BadTable(problem=f"row {i} has {len(row)} numbers for {len(self.columns)} columns")
            if not all(map(math.isfinite, row)):
                raise BadTable(problem=f"row {i} holds a number that is not finite")
        if not math.isfinite(self.init_scale):
            raise BadTable(problem="init_scale is not finite")

    @classmethod
    def from_matrices(
        cls,
        registers: Sequence[str],
        times: Sequence[float],
        c_in: Sequence[float],
        matrices: Sequence[tuple[Float64, Float64, Float64]],
        report: dict[str, Sequence[float]],
        init_scale: float,
    ) -> StepTable:
        """A table from one (A [R, R], B [R, K], C [R]) per row, and columns behind them by name."""
        branches = matrices[0][1].shape[1]
        rows = [
            (
                t,
                scale,
                *a.ravel().tolist(),
                *b.ravel().tolist(),
                *c.tolist(),
                *(values[i] for values in report.values()),
            )
            for i, (t, scale, (a, b, c)) in enumerate(zip(times, c_in, matrices, strict=True))
        ]
        return cls(
            columns=(*machine_columns(len(registers), branches), *report),
            # Adding 0.0 turns -0.0 into 0.0, so that equal tables print equally.
            rows=tuple(tuple(float(value) + 0.0 for value in row) for row in rows),
            registers=tuple(registers),
            branches=branches,
            init_scale=float(init_scale),
        )

    def column(self, name: str) -> int:
        """The index of a column."""
        return self.columns.index(name)

    def values(self, name: str) -> tuple[float, ...]:
        """One column, top to bottom."""
        at = self.column(name)
        return tuple(row[at] for row in self.rows)

    @property
    def steps(self) -> tuple[int, ...]:
        """The loop step of every row: several rows share one when the sampler calls the network several times."""
        return (
            tuple(int(step) for step in self.values("step")) if "step" in self.columns else tuple(range(len(self.rows)))
        )

    def matrices(self, row: int) -> tuple[Float64, Float64, Float64]:
        """A [R, R], B [R, K] and C [R] of one row, in float64."""
        r, k = len(self.registers), self.branches
        numbers = np.array(self.rows[row][2 : 2 + r * (r + k + 1)])
        a, b, c = np.split(numbers, (r * r, r * (r + k)))
        return a.reshape(r, r), b.reshape(r, k), c

    @cached_property
    def uses_noise(self) -> bool:
        """Whether any row draws noise."""
        return any(any(self.matrices(i)[2]) for i in range(len(self.rows)))

    def float32(self) -> NDArray[np.float32]:
        """The table as a plan stores it: float32 [rows, columns]."""
        return np.array(self.rows, dtype=np.float32)

    def fold_guidance(self, weights: Sequence[Sequence[float]]) -> StepTable:
        """The same machine fed with K guided branches: B of row i becomes the outer product of B and ``weights[i]``.

        ``weights`` has one row of K per micro-step, each with sum 1 (so what all branches agree on is kept). A branch
        of weight exactly 0 in a row is not read there.
        """
        if self.branches != 1:
            raise BadWeights(problem=f"guidance is already folded into this table ({self.branches} branches)")
        if len(weights) != len(self.rows):
            raise BadWeights(problem=f"there are {len(weights)} rows of weights for {len(self.rows)} micro-steps")
        for i, row in enumerate(weights):
            check_weights(row, len(weights[0]), f"micro-step {i}")
        folded: list[tuple[Float64, Float64, Float64]] = []
        for i, row in enumerate(weights):
            a, b, c = self.matrices(i)
            folded.append((a, b * np.array(row, dtype=np.float64), c))
        machine = len(machine_columns(len(self.registers), 1))
        return StepTable.from_matrices(
            self.registers,
            self.values("t"),
            self.values("c_in"),
            folded,
            {name: self.values(name) for name in self.columns[machine:]},
            self.init_scale,
        )


def check_weights(weights: Sequence[float], branches: int, where: str) -> None:
    """Raise ``BadWeights`` unless there are ``branches`` finite weights that sum to one (to rounding)."""
    if len(weights) != branches or not weights:
        raise BadWeights(problem=f"{where} has {len(weights)} weights for {branches} branches")
    if not all(map(math.isfinite, weights)):
        raise BadWeights(problem=f"{where} has a weight that is not finite: {tuple(weights)}")
    if abs(math.fsum(weights) - 1.0) > 1e-9 * max(1.0, *map(abs, weights)):
        raise BadWeights(problem=f"the weights of {where} sum to {math.fsum(weights):.9g}, not to 1: {tuple(weights)}")
