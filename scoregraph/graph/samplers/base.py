"""The family of continuous samplers, and the small algebra in which they are written.

A sampler says what its registers become as linear combinations of what they were, of the network's answer m and of a
normal z. It writes that with vectors: ``walk["x"]``, ``walk.m`` and ``walk.z`` are unit vectors, and
``walk.estimates(at)`` are the combinations x0 and eps that the parameterization makes of x and m. So the formulas of
the papers stand in the code as they are, and their coefficients are the rows of the table::

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        for i in range(walk.grid.steps):
            at, to = walk.grid.point(i), walk.grid.point(i + 1)
            x0, eps = walk.estimates(at)
            yield walk.call(i, at, x=to.alpha * x0 + to.sigma * eps)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import hypot
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from scoregraph.errors import InfiniteSigma, Location, WrongDirection
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.schedules import Grid, Point, Schedule
from scoregraph.graph.spec import Spec
from scoregraph.graph.table import Row, StepTable

Vector = NDArray[np.float64]
"""A linear combination of (registers…, m, n, z, d, w): its coefficients, float64 [R + 5]."""

M, N, Z, D, W, EXTRA = range(6)
"""Where the vectors that are no registers stand, behind the registers."""


@dataclass(frozen=True)
class MicroStep:
    """One row: the network is called at ``at`` in loop step ``step``; then the registers become ``registers``.

    ``at`` None is a row without a network call: it may not use m, x0 or eps. ``spread`` is the l of a learned variance:
    w is exp(l v) z, where v is what the network says of its variance.
    """

    step: int
    at: Point | None
    registers: tuple[Vector, ...]
    spread: float = 0.0


@dataclass(frozen=True)
class Walk:
    """What a sampler writes its formulas with, on one grid and for one parameterization.

    Attributes:
        grid: the points, in the latent's own space.
        registers: the names of what is carried from row to row, the state ``x`` first.
        corrected: x0 is not the network's own but what a correction (a clamp, say) makes of it: the vector d.
        split: eps comes from an answer n of its own (CFG++: the guided answer says x0, the unguided one eps).
    """

    grid: Grid
    prediction: Prediction
    registers: tuple[str, ...]
    corrected: bool = False
    split: bool = False

    def _unit(self, index: int) -> Vector:
        unit = np.zeros(len(self.registers) + EXTRA)
        unit[index] = 1.0
        return unit

    def __getitem__(self, register: str) -> Vector:
        """A register as it was before the row."""
        return self._unit(self.registers.index(register))

    @property
    def m(self) -> Vector:
        """The network's answer."""
        return self._unit(len(self.registers) + M)

    @property
    def z(self) -> Vector:
        """A fresh unit normal; one per row."""
        return self._unit(len(self.registers) + Z)

    @property
    def w(self) -> Vector:
        """The same normal, each element times exp(spread * v): the noise of a learned variance."""
        return self._unit(len(self.registers) + W)

    def estimates(self, at: Point) -> tuple[Vector, Vector]:
        """(x0, eps) as combinations of the state and the network's answer, or of what a correction made of x0."""
        p, q = self.prediction.to_x0(at.alpha, at.sigma)
        p_eps, q_eps = self.prediction.to_eps(at.alpha, at.sigma)
        if self.corrected:
            x0 = self._unit(len(self.registers) + D)
            return x0, (self["x"] - at.alpha * x0) / at.sigma
        n = self._unit(len(self.registers) + N) if self.split else self.m
        return p * self["x"] + q * self.m, p_eps * self["x"] + q_eps * n

    def call(
        self,
        step: int,
        at: Point | None,
        x: Vector,
        *,
        spread: float = 0.0,
        kept: Mapping[str, Vector] | None = None,
        **memory: Vector,
    ) -> MicroStep:
        """A row after which the state is ``x`` and the other registers are ``memory``; one not named is forgotten.

        Registers whose names are computed come by name in ``kept``.
        """
        memory = {**memory, **(kept or {})}
        nothing = np.zeros(len(self.registers) + EXTRA)
        unknown = memory.keys() - set(self.registers)
        assert not unknown, f"no register is named {unknown}"
        return MicroStep(step, at, (x, *(memory.get(name, nothing) for name in self.registers[1:])), spread)


@dataclass(frozen=True)
class Sampler(Spec):
    """Family of samplers."""

    family: ClassVar[str] = "sampler"
    needs_finite_kappa: ClassVar[bool] = False
    """True for samplers that step in sigma / alpha, which is infinite at the first point of some schedules."""
    walks_down: ClassVar[bool] = False
    """True for samplers that renew noise: they walk from noise to data, not upwards."""
    adaptive: ClassVar[bool] = False
    """True for samplers that choose their own steps between the ends of the schedule; they have no table."""

    def memory(self) -> tuple[str, ...]:
        """The registers besides the state x: what is carried from call to call."""
        return ()

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """The rows over a grid, in order."""
        raise TypeError(f"{type(self).__name__} does not define micro_steps")

    @property
    def learns_variance(self) -> bool:
        """Whether the network must say its variance besides its prediction."""
        return False

    def check(self, schedule: Schedule, prediction: Prediction, where: Location | None = None) -> None:
        """Raise if this sampler cannot walk the schedule with such a network."""
        schedule.check_prediction(prediction, where)
        if self.needs_finite_kappa and schedule.has_zero_alpha():
            raise InfiniteSigma(what=f"sigma / alpha, in which {self.name} steps,", schedule=schedule, where=where)
        if self.walks_down and schedule.rises():
            raise WrongDirection(sampler=self.name, schedule=schedule, where=where)

    def table(
        self,
        schedule: Schedule,
        prediction: Prediction,
        time: str,
        space: str,
        where: Location | None = None,
        *,
        corrected: bool = False,
        split: bool = False,
    ) -> StepTable:
        """The sampler on a schedule, compiled for one network: its parameterization, its ``time`` and latent ``space``.

        The state is in the network's own space, so that c_in is 1 unless the parameterization has one. The loop starts
        from ``init_scale * noise``: 1 in vp space, sigma in kappa and flow space. With ``corrected`` the
        estimate x0 passes through a correction before it is used; with ``split`` the answers are m and n. Where the
        sampler learns its variance, the last answer is what the network says of it.
        """
        self.check(schedule, prediction, where)
        grid = schedule.grid().in_space(space, where)
        names = ("x", *self.memory())
        micro = list(self.micro_steps(Walk(grid, prediction, names, corrected, split)))
        # A row without a call stands where its step begins; nothing reads its time.
        points = [row.at if row.at is not None else grid.point(row.step) for row in micro]
        first = grid.point(0)
        return StepTable.from_rows(
            names,
            times=[grid.time_at(at, time, where) for at in points],
            c_in=[prediction.c_in(at.alpha, at.sigma) for at in points],
            rows=[self._row(row, prediction, at, corrected, split) for row, at in zip(micro, points, strict=True)],
            report={
                "step": [row.step for row in micro],
                "alpha": [at.alpha for at in points],
                "sigma": [at.sigma for at in points],
                "alpha_next": [grid.alpha[row.step + 1] for row in micro],
                "sigma_next": [grid.sigma[row.step + 1] for row in micro],
                "calls": [float(row.at is not None) for row in micro],
            },
            init_scale=hypot(first.alpha, first.sigma) if space == "vp" else first.sigma,
        )

    def _row(self, micro: MicroStep, prediction: Prediction, at: Point, corrected: bool, split: bool) -> Row:
        """The matrices of a row: estimates are x0 if it is corrected, then l v if the variance is learned."""
        count = len(micro.registers)
        made = np.stack(micro.registers)
        a, m, n, z, d, w = np.split(made, [count + i for i in (M, N, Z, D, W)], axis=1)
        learned = self.learns_variance
        assert learned or not w.any(), f"{self.name} uses a learned variance that it does not declare"
        assert micro.at is not None or not (m.any() or d.any()), f"{self.name} uses an answer in a row without a call"
        b = np.concatenate([m, n[:, : int(split)], np.zeros((count, int(learned)))], axis=1)
        p, q = prediction.to_x0(at.alpha, at.sigma)
        estimates = np.zeros((corrected + learned, count + b.shape[1]))
        if corrected:
            estimates[0, [0, count]] = p, q
        if learned:
            estimates[-1, -1] = micro.spread
        h = np.concatenate([d[:, : int(corrected)], w[:, : int(learned)]], axis=1)
        return Row(a, b, z[:, 0], estimates, h, np.zeros((0, count + b.shape[1])))
