"""PNDM, PLMS (Liu et al. 2022) and iPNDM (Zhang and Chen 2023): Adams-Bashforth on the first-order step.

The first-order step ("transfer", equation 9 of Liu et al.) from a point takes an estimate of eps; these methods give it
a combination of the last ones, with the weights of evenly spaced points whatever the spacing is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import sqrt
from typing import ClassVar

from scoregraph.errors import InfiniteSigma, Location
from scoregraph.graph import options
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers.base import MicroStep, Sampler, Vector, Walk
from scoregraph.graph.samplers.history import History, slots
from scoregraph.graph.samplers.stride import STEPS_TO, at_timestep, check_stride, next_point, stride
from scoregraph.graph.schedules import Discrete, Grid, Point, Schedule

ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""The weights of the newest value, the one before, …, for evenly spaced values, by their number."""


def blend(walk: Walk, history: History, row: int, new: Vector, count: int) -> Vector:
    """The Adams-Bashforth combination of ``new`` and the last values of the history, ``count`` in all."""
    w = ADAMS_BASHFORTH[count - 1]
    return w[0] * new + sum(w[age] * history.past(walk, row, age) for age in range(1, count))


@dataclass(frozen=True)
class Ipndm(Sampler):
    """iPNDM: no Runge-Kutta start, but 1, 2, 3 and then ``order`` values of eps (Zhang and Chen 2023, appendix H.2)."""

    name: ClassVar[str] = "ipndm"
    order: int = 4

    def __post_init__(self) -> None:
        options.whole(self, "order", low=1, high=4)

    def memory(self) -> tuple[str, ...]:
        """eps of earlier calls."""
        return slots("eps", self.order - 1)

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """One call per step."""
        grid = walk.grid
        counts = [min(i + 1, self.order) for i in range(grid.steps)]
        history = History(self.memory(), [count - 1 for count in counts])
        for i, count in enumerate(counts):
            at, to = grid.point(i), grid.point(i + 1)
            x0, eps = walk.estimates(at)
            # x0 moves against eps, so that alpha x0 + sigma eps stays x; there is nothing of it at alpha = 0.
            change = blend(walk, history, i, eps, count) - eps
            x0 = x0 - at.sigma / at.alpha * change if count > 1 else x0
            yield walk.call(i, at, x=to.alpha * x0 + to.sigma * (eps + change), kept=history.kept(walk, i, eps))


@dataclass(frozen=True)
class Pndm(Sampler):
    """The pseudo linear multistep method, started by Runge-Kutta or, with ``skip_prk``, by a mean of two (PLMS).

    PRK makes the first three steps with four calls each, the second and third of them halfway: at the training timestep
    in the middle, or at the geometric mean of kappa where the schedule has no table of timesteps. PLMS makes its first
    step twice: plainly, and from its start again with the mean of both answers. As in diffusers, what is combined are
    the network's ``answers``, converted at the point the step starts from; ``average="eps"`` combines eps, which is the
    same for an eps network, and always so where x0 is corrected. ``prev``: see ``stride``. Registers: ``start``, the
    state before a step of several calls, ``sum``, and earlier answers.
    """

    name: ClassVar[str] = "pndm"
    skip_prk: bool = False
    prev: str = field(default="grid", kw_only=True)
    average: str = field(default="answers", kw_only=True)

    def __post_init__(self) -> None:
        options.flag(self, "skip_prk")
        options.choice(self, "prev", STEPS_TO)
        options.choice(self, "average", ("answers", "eps"))

    def memory(self) -> tuple[str, ...]:
        """The start of a step of several calls, PRK's sum, and three answers."""
        return ("start", *(() if self.skip_prk else ("sum",)), *slots("m", 3))

    def check(self, schedule: Schedule, prediction: Prediction, where: Location | None = None) -> None:
        """A stride needs timesteps, and what is between two points, or eps alone, a finite kappa."""
        super().check(schedule, prediction, where)
        check_stride(self.prev, schedule, where)
        finite = self.average == "answers" and (self.skip_prk or isinstance(schedule, Discrete))
        if schedule.has_zero_alpha() and not finite:
            raise InfiniteSigma(what="sigma / alpha, in which pndm steps,", schedule=schedule, where=where)

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """One call per step, four in those of PRK, two in the first of PLMS."""
        grid = walk.grid
        started = 0 if self.skip_prk else min(3, grid.steps - 1)
        counts = [1 if i < started else min(i + 1, 4) for i in range(grid.steps)]
        history = History(slots("m", 3), [count - 1 for count in counts])
        for i, count in enumerate(counts):
            at, to = grid.point(i), next_point(grid, i, self.prev)
            m = self.said(walk, at)
            if i < started:
                yield from self.runge_kutta(walk, i, history)
            elif i == 0 and grid.steps > 1:
                x = self.transfer(walk, at, to, walk["x"], m)
                yield walk.call(0, at, x=x, start=walk["x"], kept=history.kept(walk, 0, m))
                # With strides diffusers calls at the next point, and steps to it from a stride above, all the same.
                if self.prev == "stride" and grid.timesteps is not None:
                    at = at_timestep(grid, grid.timesteps[1] - stride(grid))
                first = history.past(walk, 1, 1)
                mean = (self.said(walk, grid.point(1)) + first) / 2
                x = self.transfer(walk, at, grid.point(1), walk["start"], mean)
                yield walk.call(0, grid.point(1), x=x, kept=history.kept(walk, 0, first))
            else:
                x = self.transfer(walk, at, to, walk["x"], blend(walk, history, i, m, count))
                yield walk.call(i, at, x=x, kept=history.kept(walk, i, m))

    def runge_kutta(self, walk: Walk, i: int, history: History) -> Iterator[MicroStep]:
        """The classical method of fourth order on the transfer, from point ``i`` to the next."""
        at, to = walk.grid.point(i), walk.grid.point(i + 1)
        below, between = self.halfway(walk.grid, i)
        m, start, total = self.said(walk, at), walk["start"], walk["sum"]
        x = self.transfer(walk, at, below, walk["x"], m)
        yield walk.call(i, at, x=x, start=walk["x"], sum=m / 6, kept=history.kept(walk, i, m))
        for goal in (between, to):
            m = self.said(walk, between)
            held = history.kept(walk, i, walk[history.ring[i % 3]])
            x = self.transfer(walk, at, goal, start, m)
            yield walk.call(i, between, x=x, start=start, sum=total + m / 3, kept=held)
        x = self.transfer(walk, at, to, start, total + self.said(walk, to) / 6)
        yield walk.call(i, to, x=x, kept=history.kept(walk, i, walk[history.ring[i % 3]]))

    def halfway(self, grid: Grid, i: int) -> tuple[Point, Point]:
        """Where the first stage of step ``i`` goes to, and where the second and third call are.

        That is one point. With odd strides diffusers has two: half a stride, rounded down, below the start of the step,
        and as far above its end.
        """
        if grid.timesteps is not None and isinstance(grid.schedule, Discrete):
            here, there = grid.timesteps[i], grid.timesteps[i + 1]
            if self.prev == "stride":
                half = int(stride(grid) / 2)
                return at_timestep(grid, here + half), at_timestep(grid, there - half)
            middle = at_timestep(grid, (here + there) / 2)
        else:
            middle = grid.at_kappa(sqrt(grid.kappa[i] * grid.kappa[i + 1]))
        return middle, middle

    def averages_eps(self, walk: Walk) -> bool:
        """Whether eps is combined, and not the network's answers."""
        return self.average == "eps" or walk.corrected or walk.split

    def said(self, walk: Walk, at: Point) -> Vector:
        """What is combined, of a call at a point."""
        return walk.estimates(at)[1] if self.averages_eps(walk) else walk.m

    def transfer(self, walk: Walk, at: Point, to: Point, x: Vector, m: Vector) -> Vector:
        """The first-order step from state ``x`` at a point, given a combination ``m`` of what was said."""
        if self.averages_eps(walk):
            if at.alpha == 0.0:
                raise InfiniteSigma(what="x0, which pndm finds from eps,", schedule=walk.grid.schedule)
            return to.alpha / at.alpha * x + (to.sigma - to.alpha * at.kappa) * m
        (p, q), (p_eps, q_eps) = (f(at.alpha, at.sigma) for f in (walk.prediction.to_x0, walk.prediction.to_eps))
        return to.alpha * (p * x + q * m) + to.sigma * (p_eps * x + q_eps * m)
