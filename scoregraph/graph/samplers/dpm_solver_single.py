"""Singlestep DPM-Solver: groups of calls that start from the state before the group (Lu et al. 2022a, algorithm 2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from typing import ClassVar

from scoregraph.errors import Location
from scoregraph.graph import options
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers.base import MicroStep, Sampler, Vector, Walk
from scoregraph.graph.samplers.dpm_solver import CORRECTIONS, Rule, rule_of
from scoregraph.graph.samplers.exponential import weights
from scoregraph.graph.samplers.history import History, slots
from scoregraph.graph.schedules import Grid, Schedule

ALGORITHMS = ("dpmsolver", "dpmsolver++", "sde-dpmsolver++")
THIRD = ("taylor", "diffusers")


@dataclass(frozen=True)
class DpmSolverSingle(Sampler):
    """diffusers' singlestep DPM-Solver: every point of the grid is a call, ``order`` calls are one step of that order.

    The calls of a group have the orders 1, 2, … ``order``; an incomplete group at the end has the first of these. The
    last call is of first order if it ends without noise, or if its group is complete and ``lower_order_final``. With
    ``correction="midpoint"`` a third-order call uses the first and the last value alone. ``third="diffusers"`` is what
    diffusers' sde-dpmsolver++ has for the second derivative, -1/2 for +1/2. Registers: ``start``, the state before the
    group, and the values f (x0 or eps) of its calls.
    """

    name: ClassVar[str] = "dpm_solver_single"
    order: int = 2
    algorithm: str = "dpmsolver++"
    correction: str = "midpoint"
    lower_order_final: bool = field(default=False, kw_only=True)
    third: str = field(default="taylor", kw_only=True)

    def __post_init__(self) -> None:
        options.whole(self, "order", low=1, high=3)
        options.choice(self, "algorithm", ALGORITHMS)
        options.choice(self, "correction", CORRECTIONS)
        options.flag(self, "lower_order_final")
        options.choice(self, "third", THIRD)

    @property
    def rule(self) -> Rule:
        """How steps are made."""
        return rule_of(self.algorithm, self.correction, "taylor")

    def values(self) -> tuple[str, ...]:
        """The registers of the values of a group."""
        return slots("x0" if self.rule.clean else "eps", self.order - 1)

    def memory(self) -> tuple[str, ...]:
        """The state before the group, and the values of its calls."""
        return ("start", *self.values()) if self.order > 1 else ()

    def check(self, schedule: Schedule, prediction: Prediction, where: Location | None = None) -> None:
        """See ``Rule.check``."""
        super().check(schedule, prediction, where)
        self.rule.check(self.name, schedule, where)

    def orders(self, grid: Grid) -> list[int]:
        """The order of every call: 1, 2, … within a group."""
        n, order = grid.steps, self.order
        group = list(range(1, order + 1))
        if not self.lower_order_final and n % order == 0 and grid.sigma[-1] > 0.0:
            orders = group * (n // order)
        elif n % order == 0:
            orders = [*group * (n // order - 1), *group[:-1], 1]
        else:
            orders = group * (n // order) + group[: n % order]
        if not isfinite(grid.point(n).lam):
            orders[-1] = 1
        # Without signal lambda is infinite, and a point visited twice says nothing of slopes.
        for i, wanted in enumerate(orders):
            nodes = [grid.point(i - age).lam for age in range(wanted)]
            if not isfinite(nodes[-1]) or len(set(nodes)) < wanted:
                orders[i] = 1
        return orders

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """One call per point; those of order 2 and 3 step from the start of their group."""
        grid, rule, orders = walk.grid, self.rule, self.orders(walk.grid)
        history = History(self.values(), [order - 1 for order in orders])
        for i, order in enumerate(orders):
            at, to = grid.point(i), grid.point(i + 1)
            x0, eps = walk.estimates(at)
            f = x0 if rule.clean else eps
            start = walk["x"] if order == 1 else walk["start"]
            if order == 1:
                x = rule.first_order(walk, at, to, x0, eps)
            else:
                past = [history.past(walk, i, age) for age in range(1, order)]
                x = self.grouped(walk, i, start, [f, *past])
            inside = i + 1 < len(orders) and orders[i + 1] > 1
            kept = history.kept(walk, i, f) | ({"start": start} if inside else {})
            yield walk.call(i, at, x=x, kept=kept)

    def grouped(self, walk: Walk, i: int, start: Vector, values: list[Vector]) -> Vector:
        """A step from the start of the group to point i + 1, with the values at the points i, i-1, … back to it."""
        rule, order = self.rule, len(values)
        base, to = walk.grid.point(i + 1 - order), walk.grid.point(i + 1)
        first, h = values[-1], to.lam - base.lam
        offsets = [walk.grid.point(i - age).lam - base.lam for age in range(order)]
        moments = rule.moments(h, order)
        if order == 3 and self.correction == "midpoint":
            offsets, values, moments = [offsets[0], 0.0], [values[0], first], moments[:2]
        elif order == 3 and self.third == "diffusers" and rule.eta > 0.0:
            moments[2] -= 2 * h**2
        if rule.clean:
            x0, eps = first, (start - base.alpha * first) / base.sigma
        else:
            x0, eps = (start - base.sigma * first) / base.alpha, first
        x = rule.first_order(walk, base, to, x0, eps)
        w = weights(offsets, moments)
        return x + rule.scale(to) * sum(w_j * (f - first) for w_j, f in zip(w, values, strict=True))
