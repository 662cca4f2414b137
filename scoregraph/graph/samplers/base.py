"""The family of continuous samplers, and the small algebra in which they are written.

A sampler says what its registers become as linear combinations of what they were, of the network's answer m and of a
normal z. It writes that with vectors: ``x, m, z = basis(registers)`` are unit vectors, and ``x0, eps`` are the
combinations that the parameterization makes of x and m. So the formulas of the papers stand in the code as they are,
and their coefficients are the rows of the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import hypot
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from scoregraph.errors import InfiniteSigma, Location
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.schedules import Grid, Schedule
from scoregraph.graph.spec import Spec
from scoregraph.graph.table import StepTable

Vector = NDArray[np.float64]
"""A linear combination of (registers…, m, z): its coefficients, float64 [R + 2]."""


def basis(registers: tuple[str, ...]) -> list[Vector]:
    """The unit vectors: one per register, then m, then z."""
    return list(np.eye(len(registers) + 2))


def estimates(prediction: Prediction, alpha: float, sigma: float, x: Vector, m: Vector) -> tuple[Vector, Vector]:
    """(x0, eps) as combinations of the state and the network's answer at one point of a schedule."""
    p, q = prediction.to_x0(alpha, sigma)
    p_eps, q_eps = prediction.to_eps(alpha, sigma)
    return p * x + q * m, p_eps * x + q_eps * m


@dataclass(frozen=True)
class MicroStep:
    """One network call: in loop step ``step``, at grid point ``point``; then the registers become ``registers``."""

    step: int
    point: int
    registers: tuple[Vector, ...]


@dataclass(frozen=True)
class Sampler(Spec):
    """Family of samplers. ``registers`` names what is carried from call to call, the state x first."""

    family: ClassVar[str] = "sampler"
    registers: ClassVar[tuple[str, ...]] = ("x",)
    needs_finite_kappa: ClassVar[bool] = False
    """True for samplers that step in sigma / alpha, which is infinite at the first point of some schedules."""

    def micro_steps(self, grid: Grid, prediction: Prediction) -> Iterator[MicroStep]:
        """The network calls over a grid, in order, in the grid's own space."""
        raise TypeError(f"{type(self).__name__} does not define micro_steps")

    def check(self, schedule: Schedule, prediction: Prediction, where: Location | None = None) -> None:
        """Raise if this sampler cannot walk the schedule with such a network."""
        schedule.check_prediction(prediction, where)
        if self.needs_finite_kappa and schedule.has_zero_alpha():
            raise InfiniteSigma(what=f"sigma / alpha, in which {self.name} steps,", schedule=schedule, where=where)

    def table(
        self, schedule: Schedule, prediction: Prediction, time: str, space: str, where: Location | None = None
    ) -> StepTable:
        """The sampler on a schedule, compiled for one network: its parameterization, its ``time`` and latent ``space``.

        The state is in the network's own space, so that c_in is 1 unless the parameterization has one. The loop starts
        from ``init_scale * noise``: 1 in vp space, sigma in kappa and flow space.
        """
        self.check(schedule, prediction, where)
        grid = schedule.grid().in_space(space, where)
        times = grid.times(time, where)
        micro = list(self.micro_steps(grid, prediction))
        alpha = [grid.alpha[row.point] for row in micro]
        sigma = [grid.sigma[row.point] for row in micro]
        count = len(self.registers)
        machines = [np.stack(row.registers) for row in micro]
        return StepTable.from_matrices(
            self.registers,
            times=[times[row.point] for row in micro],
            c_in=[prediction.c_in(a, s) for a, s in zip(alpha, sigma, strict=True)],
            matrices=[(m[:, :count], m[:, count : count + 1], m[:, count + 1]) for m in machines],
            report={"step": [row.step for row in micro], "alpha": alpha, "sigma": sigma},
            init_scale=hypot(alpha[0], sigma[0]) if space == "vp" else sigma[0],
        )
