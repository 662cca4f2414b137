"""DPM-Solver and DPM-Solver++ as multistep methods, and their SDE variants (Lu et al. 2022a, 2022b).

All of them are x' = base + scale * sum_j w_j (f_j - f_0): an exact first-order step and a correction from values f of
earlier points, f = x0 for the ++ algorithms and eps for the others (see ``exponential``). With eta > 0 fresh noise
replaces part of the old: eta = 1 are the SDE variants of the papers, other values those of k-diffusion.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import sqrt
from typing import ClassVar

from scoregraph.errors import InfiniteSigma, Location, WrongDirection
from scoregraph.graph import options
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers.base import MicroStep, Sampler, Vector, Walk
from scoregraph.graph.samplers.exponential import FEW_STEPS, decay, lam, moments, order_of, step_length, weights
from scoregraph.graph.samplers.history import History, slots
from scoregraph.graph.schedules import Grid, Point, Schedule

ALGORITHMS = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")
CORRECTIONS = ("midpoint", "heun")
THIRD = ("published", "taylor", "diffusers")


@dataclass(frozen=True)
class Rule:
    """How one step of the family is made.

    Attributes:
        clean: f is x0 (the ++ algorithms), not eps.
        eta: how much of the noise is fresh: 0 is the ODE, 1 the SDE of the papers.
        correction: the M_1 of second-order steps: "midpoint" takes M_0 h/2, "heun" the exact one.
        third: the M_2 of third-order steps. The papers, and all code after them, weigh the second difference as if it
            were a second derivative, which makes M_2 half of what it should be: "published", steps of second order with
            a small constant. "taylor" is the exact one, of third order. "diffusers" differs from "published" for its
            sde-dpmsolver++ alone, where it has -1/2 for +1/2.
        noise: a factor on the fresh noise.
    """

    clean: bool
    eta: float = 0.0
    correction: str = "midpoint"
    third: str = "published"
    noise: float = 1.0

    def check(self, sampler: str, schedule: Schedule, where: Location | None = None) -> None:
        """An SDE walks down; that in eps adds noise in proportion to kappa, which must be finite."""
        if self.eta > 0.0 and schedule.ascending:
            raise WrongDirection(sampler=sampler, schedule=schedule, where=where)
        if self.eta > 0.0 and not self.clean and schedule.has_zero_alpha():
            what = f"sigma / alpha, in which the noise of {sampler} grows,"
            raise InfiniteSigma(what=what, schedule=schedule, where=where)

    def moments(self, h: float, order: int) -> list[float]:
        """M_0 … of a step of that order, as the method simplifies them."""
        used = moments(h, 1.0 + self.eta if self.clean else -1.0, order)
        if order == 2 and self.correction == "midpoint":
            used[1] = used[0] * h / 2
        if order == 3 and self.third != "taylor":
            used[2] /= 2
            if self.third == "diffusers" and self.clean and self.eta > 0.0:
                used[2] -= h**2
        return used

    def scale(self, to: Point) -> float:
        """What the weighted values are multiplied with."""
        return to.alpha if self.clean else (1.0 + self.eta) * to.sigma

    def first_order(self, walk: Walk, at: Point, to: Point, x0: Vector, eps: Vector) -> Vector:
        """The exact step for an f that stays what it is.

        ++: alpha' x0 + sigma' e^(-eta h) eps + sigma' sqrt(1 - e^(-2 eta h)) z; for eta = 1 equation 18 of Lu et al.
        2022b. Else alpha' x0 + (sigma' - eta g) eps + sqrt(eta (alpha'^2 kappa^2 - sigma'^2)) z with g = alpha' kappa -
        sigma'. A step that ends without noise is alpha' x0.
        """
        if to.sigma == 0.0:
            return to.alpha * x0
        h = to.lam - at.lam
        if self.clean:
            kept = decay(h, self.eta)
            fresh = to.sigma * sqrt(1.0 - kept**2)
            return to.alpha * x0 + to.sigma * kept * eps + self.noise * fresh * walk.z
        if self.eta == 0.0:
            return to.alpha * x0 + to.sigma * eps
        old = to.alpha * at.kappa
        kept = to.sigma - self.eta * (old - to.sigma)
        fresh = sqrt(self.eta * (old**2 - to.sigma**2))
        return to.alpha * x0 + kept * eps + self.noise * fresh * walk.z


def rule_of(algorithm: str, correction: str, third: str) -> Rule:
    """The rule of one of diffusers' ``algorithm_type``."""
    return Rule(algorithm.endswith("++"), float(algorithm.startswith("sde-")), correction, third)


@dataclass(frozen=True)
class Multistep(Sampler):
    """Family within the family: one call per step, and values of earlier calls."""

    @property
    def rule(self) -> Rule:
        """How steps are made."""
        raise TypeError(f"{type(self).__name__} does not define rule")

    @property
    def highest(self) -> int:
        """The highest order of a step."""
        raise TypeError(f"{type(self).__name__} does not define highest")

    def wanted(self, i: int, steps: int) -> int:
        """The order that step ``i`` of ``steps`` should have where enough is known."""
        return self.highest

    def orders(self, grid: Grid) -> list[int]:
        """The order of every step: 1 at first, and in a step that ends without noise."""
        return [order_of(grid, i, self.wanted(i, grid.steps)) for i in range(grid.steps)]

    def memory(self) -> tuple[str, ...]:
        """The values f of earlier calls."""
        return slots("x0" if self.rule.clean else "eps", self.highest - 1)

    def check(self, schedule: Schedule, prediction: Prediction, where: Location | None = None) -> None:
        """See ``Rule.check``."""
        super().check(schedule, prediction, where)
        self.rule.check(self.name, schedule, where)

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """One call per step."""
        grid, rule, orders = walk.grid, self.rule, self.orders(walk.grid)
        history = History(self.memory(), [order - 1 for order in orders])
        for i, order in enumerate(orders):
            at, to = grid.point(i), grid.point(i + 1)
            x0, eps = walk.estimates(at)
            f = x0 if rule.clean else eps
            x = rule.first_order(walk, at, to, x0, eps)
            if order > 1:
                offsets = [lam(grid, i - age) - at.lam for age in range(order)]
                w = weights(offsets, rule.moments(step_length(grid, i), order))
                x = x + rule.scale(to) * sum(w[age] * (history.past(walk, i, age) - f) for age in range(1, order))
            yield walk.call(i, at, x=x, kept=history.kept(walk, i, f))


@dataclass(frozen=True)
class DpmSolver(Multistep):
    """diffusers' multistep DPM-Solver: ``algorithm`` is its algorithm_type, ``correction`` its solver_type.

    ``lower_order_final``: with fewer than 15 steps the last one is of first order, the one before of at most second.
    ``euler_at_final``: the last one is of first order whatever their number. ``third``: see ``Rule``. A step that ends
    without noise is always the estimate x0 itself; diffusers allows that for the ++ algorithms alone.
    """

    name: ClassVar[str] = "dpm_solver"
    order: int = 2
    algorithm: str = "dpmsolver++"
    correction: str = "midpoint"
    lower_order_final: bool = field(default=True, kw_only=True)
    euler_at_final: bool = field(default=False, kw_only=True)
    third: str = field(default="published", kw_only=True)

    def __post_init__(self) -> None:
        options.whole(self, "order", low=1, high=3)
        options.choice(self, "algorithm", ALGORITHMS)
        options.choice(self, "correction", CORRECTIONS)
        options.flag(self, "lower_order_final")
        options.flag(self, "euler_at_final")
        options.choice(self, "third", THIRD)

    @property
    def rule(self) -> Rule:
        """That of the algorithm."""
        return rule_of(self.algorithm, self.correction, self.third)

    @property
    def highest(self) -> int:
        """The order; sde-dpmsolver has no third."""
        return min(self.order, 2) if self.algorithm == "sde-dpmsolver" else self.order

    def wanted(self, i: int, steps: int) -> int:
        """Falling to 1 at the end, as the options say."""
        left = steps - i
        if self.euler_at_final and left == 1:
            return 1
        return min(self.highest, left) if self.lower_order_final and steps < FEW_STEPS else self.highest
