"""SA-Solver: stochastic Adams, predictor and corrector, with as much noise as wanted (Xue et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from typing import ClassVar

from scoregraph.errors import Location
from scoregraph.graph import options
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers.base import MicroStep, Sampler, Vector, Walk
from scoregraph.graph.samplers.dpm_solver import Rule
from scoregraph.graph.samplers.exponential import lam, moments, order_of, reach, step_length, weights
from scoregraph.graph.samplers.history import History, slots
from scoregraph.graph.schedules import Grid, Schedule


@dataclass(frozen=True)
class SASolver(Sampler):
    """An SDE of noise ``tau`` between two noise levels, and the ODE elsewhere, solved by stochastic Adams methods.

    A step starting at low <= kappa <= high has the fresh noise tau^2 (as ``eta`` of the other solvers counts it); the
    bounds are optional. ``predictor`` values of f (``predict``: x0 or eps) predict; ``corrector`` values, that at the
    predicted state among them, correct (0: no correction), with the same noise. Methods of two values of x0 are
    simplified: M_1 = (1 + tau^2) h^2/2. ``lower_order_final``: orders fall to 1 at the end. Registers: ``start``, the
    corrected state before the step, its noise ``z``, and values of f.
    """

    name: ClassVar[str] = "sa_solver"
    predictor: int = 2
    corrector: int = 2
    tau: float = 1.0
    low: float | None = field(default=None, kw_only=True)
    high: float | None = field(default=None, kw_only=True)
    predict: str = "x0"
    lower_order_final: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        options.whole(self, "predictor", low=1, high=4)
        options.whole(self, "corrector", low=0, high=4)
        options.real(self, "tau", low=0.0)
        options.optional_real(self, "low", low=0.0)
        options.optional_real(self, "high", low=0.0)
        options.choice(self, "predict", ("x0", "eps"))
        options.flag(self, "lower_order_final")

    def values(self) -> tuple[str, ...]:
        """The registers of f at earlier points."""
        return slots(self.predict, max(self.predictor, self.corrector) - 1)

    def memory(self) -> tuple[str, ...]:
        """The corrected state before the step, its noise, and values of f."""
        noise = ("z",) if self.tau else ()
        return ("start", *noise, *self.values()) if self.corrector else self.values()

    def check(self, schedule: Schedule, prediction: Prediction, where: Location | None = None) -> None:
        """What the rules of its steps demand."""
        super().check(schedule, prediction, where)
        for kappa in schedule.grid().kappa:
            self.rule(kappa).check(self.name, schedule, where)

    def rule(self, kappa: float) -> Rule:
        """The step from a point of noise level ``kappa``."""
        inside = (self.low is None or kappa >= self.low) and (self.high is None or kappa <= self.high)
        return Rule(self.predict == "x0", self.tau**2 if inside else 0.0)

    def moments(self, h: float, rule: Rule, count: int, simple: bool) -> list[float]:
        """M_0 …; with ``simple``, M_1 is that of a kernel that is constant over the step."""
        used = moments(h, 1.0 + rule.eta if rule.clean else -1.0, count)
        if simple and rule.clean:
            used[1] = (1.0 + rule.eta) * h**2 / 2
        return used

    def orders(self, grid: Grid) -> tuple[list[int], list[int]]:
        """How many values each row's predictor uses, and each row's corrector (0: none) of the step before it."""
        n = grid.steps
        predictors: list[int] = []
        correctors: list[int] = []
        for i in range(n):
            left = n - i if self.lower_order_final else n
            predictors.append(order_of(grid, i, min(self.predictor, left)))
            known = i > 0 and isfinite(lam(grid, i - 1)) and lam(grid, i) != lam(grid, i - 1)
            correctors.append(reach(grid, i, min(self.corrector, left + 2)) if known and self.corrector else 0)
        return predictors, correctors

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """One call per step: correct, then predict."""
        grid = walk.grid
        predictors, correctors = self.orders(grid)
        reads = [max(p - 1, c - 1) for p, c in zip(predictors, correctors, strict=True)]
        history = History(self.values(), reads)
        for i, order in enumerate(predictors):
            at, to, rule = grid.point(i), grid.point(i + 1), self.rule(grid.kappa[i])
            x0, eps = walk.estimates(at)
            f = x0 if rule.clean else eps
            past = [history.past(walk, i, age) for age in range(1, reads[i] + 1)]
            state = walk["x"]
            if correctors[i]:
                state = self.corrected(walk, i, [f, *past[: correctors[i] - 1]])
                # The same f in the corrected state.
                shift = state - walk["x"]
                x0, eps = (x0, eps + shift / at.sigma) if rule.clean else (x0 + shift / at.alpha, eps)
            x = rule.first_order(walk, at, to, x0, eps)
            if order > 1:
                w = weights(
                    [lam(grid, i - age) - at.lam for age in range(order)],
                    self.moments(step_length(grid, i), rule, order, order == 2),
                )
                x = x + rule.scale(to) * sum(w[age] * (past[age - 1] - f) for age in range(1, order))
            kept = history.kept(walk, i, f)
            if i + 1 < grid.steps and correctors[i + 1]:
                kept |= {"start": state, "z": walk.z} if rule.eta else {"start": state}
            yield walk.call(i, at, x=x, kept=kept)

    def corrected(self, walk: Walk, i: int, values: list[Vector]) -> Vector:
        """The step that led to point ``i`` again, from its start, with its noise and the values at i, i-1, …"""
        grid = walk.grid
        at, to, rule, start = grid.point(i - 1), grid.point(i), self.rule(grid.kappa[i - 1]), walk["start"]
        # The first-order step for f = 0, the noise of which is remembered.
        zero = 0.0 * start
        x0, eps = (zero, start / at.sigma) if rule.clean else (start / at.alpha, zero)
        x = rule.first_order(walk, at, to, x0, eps)
        if rule.eta:
            fresh = walk.z @ x
            x = x - fresh * walk.z + fresh * walk["z"]
        offsets = [lam(grid, i - age) - at.lam for age in range(len(values))]
        w = weights(offsets, self.moments(to.lam - at.lam, rule, len(values), len(values) == 2))
        return x + rule.scale(to) * sum(w_j * f_j for w_j, f_j in zip(w, values, strict=True))
