"""A sampler and a schedule, compiled to numbers: one row per network call.

A continuous sampler is a register machine. At micro-step i, with the registers R (the state x first), the network's
answers m_k and a fresh normal z:

    x_in = c_in * R_0;   m_k = net(x_in, t, cond_k);   R'_j = sum_l A[j,l] R_l + sum_k B[j,k] m_k + C[j] z

Where something is not linear (a clamp of x0, a mask, a learned variance), it stands between two linear maps, which a
``Formula`` names:

    e_i = sum_l E[i,l] R_l + sum_k E[i,R+k] m_k;   y = f(e, z, …);   R'_j gains sum_i H[j,i] y_i

and where coefficients depend on the sample (rescaled guidance), they are functions of inner products of the forms

    v_i = sum_l F[i,l] R_l + sum_k F[i,R+k] m_k.

A ``StepTable`` holds t, c_in, A, B, C, E, H and F of every micro-step in float64. Methods with several network calls
per step (Heun) are simply more rows; multistep methods keep their history in registers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from scoregraph.errors import BadTable, BadWeights

Float64 = NDArray[np.float64]


def machine_columns(registers: int, answers: int, estimates: int = 0, outputs: int = 0, forms: int = 0) -> list[str]:
    """The names of the columns that the machine reads, in order: t, c_in, A, B, C, E, H, F, each row-major."""
    sources = registers + answers
    return [
        "t",
        "c_in",
        *(f"a{j}_{k}" for j in range(registers) for k in range(registers)),
        *(f"b{j}_{k}" for j in range(registers) for k in range(answers)),
        *(f"c{j}" for j in range(registers)),
        *(f"e{i}_{k}" for i in range(estimates) for k in range(sources)),
        *(f"h{j}_{i}" for j in range(registers) for i in range(outputs)),
        *(f"f{i}_{k}" for i in range(forms) for k in range(sources)),
    ]


@dataclass(frozen=True)
class Row:
    """The matrices of one row, float64: A [R, R], B [R, K], C [R], E [e, R + K], H [R, y], F [f, R + K]."""

    a: Float64
    b: Float64
    c: Float64
    e: Float64
    h: Float64
    f: Float64

    def numbers(self) -> list[float]:
        """All of them, in the order of the columns behind t and c_in."""
        return np.concatenate([part.ravel() for part in (self.a, self.b, self.c, self.e, self.h, self.f)]).tolist()


@dataclass(frozen=True)
class StepTable:
    """The rows of a register machine, in float64; frozen, hashable, and free of arrays.

    ``columns`` are those of ``machine_columns`` and then others by name: ``step``, ``alpha``, ``sigma`` (where a row's
    call stands), ``calls`` (0 in rows without a network call), times in other conventions, parameters of formulas.
    ``registers`` are names, the state x first. ``branches`` is the number K of answers a row combines: 1 until guidance
    is folded in. ``estimates``, ``outputs`` and ``forms`` are the sizes of E, H and F. The loop starts with
    ``x = init_scale * noise``; the other registers start at 0.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[float, ...], ...]
    registers: tuple[str, ...]
    branches: int = 1
    init_scale: float = 1.0
    estimates: int = 0
    outputs: int = 0
    forms: int = 0

    def __post_init__(self) -> None:
        if not self.registers or self.branches < 1:
            raise BadTable(problem="a step table needs at least one register and one branch")
        if min(self.estimates, self.outputs, self.forms) < 0:
            raise BadTable(problem="a step table has no negative number of estimates, outputs or forms")
        expected = tuple(self._machine())
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

    def _machine(self) -> list[str]:
        return machine_columns(len(self.registers), self.branches, self.estimates, self.outputs, self.forms)

    @classmethod
    def from_rows(
        cls,
        registers: Sequence[str],
        times: Sequence[float],
        c_in: Sequence[float],
        rows: Sequence[Row],
        report: Mapping[str, Sequence[float]],
        init_scale: float,
    ) -> StepTable:
        """A table from the matrices of every row, and columns behind them by name."""
        first = rows[0]
        sizes = (len(registers), first.b.shape[1], first.e.shape[0], first.h.shape[1], first.f.shape[0])
        numbers = [
            (t, scale, *row.numbers(), *(values[i] for values in report.values()))
            for i, (t, scale, row) in enumerate(zip(times, c_in, rows, strict=True))
        ]
        return cls(
            columns=(*machine_columns(*sizes), *report),
            # Adding 0.0 turns -0.0 into 0.0, so that equal tables print equally.
            rows=tuple(tuple(float(value) + 0.0 for value in row) for row in numbers),
            registers=tuple(registers),
            branches=sizes[1],
            init_scale=float(init_scale),
            estimates=sizes[2],
            outputs=sizes[3],
            forms=sizes[4],
        )

    def column(self, name: str) -> int:
        """The index of a column."""
        return self.columns.index(name)

    def values(self, name: str) -> tuple[float, ...]:
        """One column, top to bottom."""
        at = self.column(name)
        return tuple(row[at] for row in self.rows)

    @property
    def report(self) -> dict[str, tuple[float, ...]]:
        """The columns that the machine does not read, by name."""
        return {name: self.values(name) for name in self.columns[len(self._machine()) :]}

    @property
    def steps(self) -> tuple[int, ...]:
        """The loop step of every row: several rows share one when the sampler calls the network several times."""
        return (
            tuple(int(step) for step in self.values("step")) if "step" in self.columns else tuple(range(len(self.rows)))
        )

    def row(self, row: int) -> Row:
        """The matrices of one row, in float64."""
        r, k, e, y, f = len(self.registers), self.branches, self.estimates, self.outputs, self.forms
        shapes = ((r, r), (r, k), (r,), (e, r + k), (r, y), (f, r + k))
        ends = np.cumsum([2, *map(math.prod, shapes)]).tolist()
        numbers = np.array(self.rows[row])
        parts = [numbers[a:b].reshape(s) for a, b, s in zip(ends, ends[1:], shapes, strict=False)]
        return Row(*parts)

    def matrices(self, row: int) -> tuple[Float64, Float64, Float64]:
        """A [R, R], B [R, K] and C [R] of one row, in float64."""
        found = self.row(row)
        return found.a, found.b, found.c

    @cached_property
    def uses_noise(self) -> bool:
        """Whether any row adds noise by itself."""
        return any(any(self.row(i).c) for i in range(len(self.rows)))

    def float32(self) -> NDArray[np.float32]:
        """The table as a plan stores it: float32 [rows, columns]."""
        return np.array(self.rows, dtype=np.float32)

    def with_rows(self, rows: Sequence[Row], registers: Sequence[str] | None = None) -> StepTable:
        """The same times and report with other matrices."""
        return StepTable.from_rows(
            self.registers if registers is None else registers,
            self.values("t"),
            self.values("c_in"),
            rows,
            self.report,
            self.init_scale,
        )

    def with_report(self, **columns: Sequence[float]) -> StepTable:
        """The same machine with further columns, or with other numbers in those that are not the machine's."""
        report: dict[str, Sequence[float]] = {**self.report, **columns}
        machine = len(self._machine())
        rows = tuple(
            (*row[:machine], *(float(values[i]) + 0.0 for values in report.values())) for i, row in enumerate(self.rows)
        )
        return replace(self, columns=(*self.columns[:machine], *report), rows=rows)

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
        r = len(self.registers)
        rows: list[Row] = []
        for i, share in enumerate(weights):
            old, by_branch = self.row(i), np.array(share, dtype=np.float64)

            def fold(sources: Float64, by_branch: Float64 = by_branch) -> Float64:
                """Columns over (registers…, m) as columns over (registers…, branches…)."""
                return np.concatenate([sources[:, :r], sources[:, r:] * by_branch], axis=1)

            rows.append(Row(old.a, old.b * by_branch, old.c, fold(old.e), old.h, fold(old.f)))
        return self.with_rows(rows)


def check_weights(weights: Sequence[float], branches: int, where: str) -> None:
    """Raise ``BadWeights`` unless there are ``branches`` finite weights that sum to one (to rounding)."""
    if len(weights) != branches or not weights:
        raise BadWeights(problem=f"{where} has {len(weights)} weights for {branches} branches")
    if not all(map(math.isfinite, weights)):
        raise BadWeights(problem=f"{where} has a weight that is not finite: {tuple(weights)}")
    if abs(math.fsum(weights) - 1.0) > 1e-9 * max(1.0, *map(abs, weights)):
        raise BadWeights(problem=f"the weights of {where} sum to {math.fsum(weights):.9g}, not to 1: {tuple(weights)}")
