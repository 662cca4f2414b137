"""A step table run in numpy float64 on a fake network: the plainest possible register machine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from scoregraph.graph.table import StepTable

Net = Callable[[np.ndarray, float], list[np.ndarray]]
"""(x_in, t) -> one answer per branch."""


def run_table(table: StepTable, net: Net, x: np.ndarray, noise: np.ndarray | None = None) -> list[np.ndarray]:
    """The state before every row and at the end. ``x`` is the state the loop starts with, ``noise`` [rows, …]."""
    registers = [x, *(np.zeros_like(x) for _ in table.registers[1:])]
    states = [x]
    for i, (t, c_in) in enumerate(zip(table.values("t"), table.values("c_in"), strict=True)):
        m = net(c_in * registers[0], t)
        assert len(m) == table.branches
        a, b, c = table.matrices(i)
        z = noise[i] if noise is not None else np.zeros_like(x)
        registers = [
            sum(a[j, k] * r for k, r in enumerate(registers)) + sum(b[j, k] * mk for k, mk in enumerate(m)) + c[j] * z
            for j in range(len(registers))
        ]
        states.append(registers[0])
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
