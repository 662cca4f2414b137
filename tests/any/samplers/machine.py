"""A step table run in numpy float64 on a fake network: the plainest possible register machine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from scoregraph.graph.table import StepTable

Net = Callable[[np.ndarray, float], list[np.ndarray]]
"""(x_in, t) -> one answer per branch."""


class Machine:
    """A table at work: ``step`` runs its next row. The state may be replaced between rows.

    Tables with a learned variance have one output, exp(e) z with the one estimate e.
    """

    def __init__(self, table: StepTable, net: Net, x: np.ndarray) -> None:
        self.table, self.net = table, net
        self.registers = [x, *(np.zeros_like(x) for _ in table.registers[1:])]
        self.row = 0

    @property
    def state(self) -> np.ndarray:
        """The register x."""
        return self.registers[0]

    @state.setter
    def state(self, x: np.ndarray) -> None:
        self.registers[0] = x

    def step(self, z: np.ndarray) -> None:
        """One row with the noise ``z``."""
        table, i = self.table, self.row
        m = self.net(table.values("c_in")[i] * self.state, table.values("t")[i])
        assert len(m) == table.branches
        row = table.row(i)
        sources = [*self.registers, *m]
        outputs = [np.exp(combine(e, sources)) * z for e in row.e]
        assert len(outputs) == table.outputs
        self.registers = [
            combine(np.concatenate([a, b, [c], h]), [*sources, z, *outputs])
            for a, b, c, h in zip(row.a, row.b, row.c, row.h, strict=True)
        ]
        self.row += 1


def combine(weights: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
    """The weighted sum."""
    return sum((w * value for w, value in zip(weights, values, strict=True)), np.zeros_like(values[0]))


def run_table(table: StepTable, net: Net, x: np.ndarray, noise: np.ndarray | None = None) -> list[np.ndarray]:
    """The state before every row and at the end. ``x`` is the state the loop starts with, ``noise`` [rows, …]."""
    machine = Machine(table, net, x)
    states = [x]
    for i in range(len(table.rows)):
        machine.step(noise[i] if noise is not None else np.zeros_like(x))
        states.append(machine.state)
    return states


class FakeNetwork:
    """A smooth, non-linear stand-in: m(x, t, condition) = tanh(W x + t u + c) + x / 2, float64 [n, width]."""

    def __init__(self, width: int = 24, seed: int = 0, time_scale: float = 1.0) -> None:
        rng = np.random.default_rng(seed)
        self.w = rng.standard_normal((width, width)) / np.sqrt(width)
        self.u = rng.standard_normal(width) * time_scale
        self.conds = [rng.standard_normal(width) for _ in range(2)]

    def __call__(self, x: np.ndarray, t: float, cond: int) -> np.ndarray:
        return 0.7 * np.tanh(x @ self.w + t * self.u + self.conds[cond]) + 0.3 * x

    def branches(self, x: np.ndarray, t: float) -> list[np.ndarray]:
        """The conditional answer and the unconditional one."""
        return [self(x, t, 0), self(x, t, 1)]


def guided(net: FakeNetwork, scale: float) -> Callable[[np.ndarray, float], np.ndarray]:
    """Classifier-free guidance as pipelines write it: u + scale * (c - u)."""
    return lambda x, t: net(x, t, 1) + scale * (net(x, t, 0) - net(x, t, 1))


def relative_error(ours: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference over the largest value."""
    return float(np.abs(ours - expected).max() / np.abs(expected).max())
