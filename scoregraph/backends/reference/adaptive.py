"""Loops whose sampler chooses its own steps: embedded Runge-Kutta methods, one sample at a time.

The probability-flow ODE on the straight path, y = x / (alpha + sigma) over s = sigma / (alpha + sigma), has the slope
dy/ds = eps - x0; steps are controlled as in Hairer, Norsett and Wanner 1993, II.4, and in scipy's ``solve_ivp``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoregraph.backends.reference import textbook
from scoregraph.backends.reference.moments import Interpreter, Moment, Scope
from scoregraph.backends.reference.textbook import Point
from scoregraph.errors import LoopUnfinished
from scoregraph.graph import nodes as n
from scoregraph.graph import values as v
from scoregraph.graph.schedules import Schedule

SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0


@dataclass
class AdaptiveRun:
    """One such loop of one sample."""

    run: Interpreter
    loop: n.While
    scope: Scope

    def __post_init__(self) -> None:
        step, *others = self.loop.results
        if not isinstance(step, n.SamplerStep) or not isinstance(self.loop.schedule, Schedule) or self.loop.emits:
            raise self.run.refusal(self.loop, "the reference interprets loops that one adaptive sampler moves")
        if any(isinstance(other, n.SamplerStep) for other in others):
            raise self.run.refusal(self.loop, "an adaptive sampler that moves several values")
        assert isinstance(step.state.type, v.Latent)
        self.step, self.space, self.rule = step, step.state.type.space, vars(step.rule)
        self.tableau: Any = type(step.rule).tableau  # pyright: ignore[reportAttributeAccessIssue]
        self.schedule = self.loop.schedule
        self.grid = self.schedule.grid()

    def values(self) -> list[Any]:
        """The state at the end of the schedule; the other carried values as they were."""
        points = [Point(a, s) for a, s in zip(self.grid.alpha, self.grid.sigma, strict=True)]
        noisy = [point.s for point in points if point.sigma > 0.0]
        s, end = noisy[0], noisy[-1]
        others = [self.run.value(init, self.scope) for init in self.loop.init[1:]]
        y = self._start(points[0])
        h = self.rule["first"] * (end - s)
        slope = self._slope(s, y)
        rejected, rounds = False, 0
        while s != end:
            if rounds == self.loop.max_iters:
                raise LoopUnfinished(loop=self.loop.name, rounds=rounds, unfinished=1, samples=1)
            rounds += 1
            last = abs(h) >= abs(end - s)
            h = end - s if last else h
            y_new, error, slope_new = self._try(s, y, h, slope)
            scale = self.rule["atol"] + self.rule["rtol"] * torch.maximum(y.abs(), y_new.abs())
            rms = float((error / scale).square().mean().sqrt())
            factor = SAFETY * rms ** (-1.0 / self.tableau.order) if rms else math.inf
            if rms < 1.0:
                s, y = end if last else s + h, y_new
                slope = self._slope(s, y) if slope_new is None else slope_new
                h *= min(GROW if not rejected else 1.0, factor)
            else:
                h *= max(SHRINK, factor)
            rejected = rms >= 1.0
        # The jump to the clean sample, if that is where the schedule ends.
        x = self._clean(s, y)[0] if points[-1].sigma == 0.0 else y * self._scale(s)
        return [x, *others]

    def _start(self, first: Point) -> Tensor:
        """y at the first point: noise alone, or a clean sample with noise."""
        init = self.loop.init[0]
        value = self.run.value(init, self.scope)
        if isinstance(init.type, v.Start):
            clean, noise = value
            return (first.alpha * clean + first.sigma * noise) / first.flow
        if isinstance(init.type, v.Noise):
            size = 1.0 if self.space == "vp" else self._point(first.s).sigma
            return size * value / self._scale(first.s)
        return value / self._scale(first.s)

    def _point(self, s: float) -> Point:
        """The point s of the path in the latent's space."""
        norm = {"vp": math.hypot(1.0 - s, s), "kappa": 1.0 - s, "flow": 1.0}[self.space]
        return Point((1.0 - s) / norm, s / norm)

    def _scale(self, s: float) -> float:
        """x / y."""
        return self._point(s).flow

    def _clean(self, s: float, y: Tensor) -> tuple[Tensor, Tensor]:
        """x0 and eps of the prediction at a point of the path."""
        point, kind = self._point(s), self.step.preds[0].type
        assert isinstance(kind, v.Pred)
        x = y * self._scale(s)
        here = self.grid.in_space(self.space)
        moment = Moment(here, self._step(s), point)
        known: dict[n.Node, Any] = {n.StepTime(self.loop.name): moment, self.step.state: x}
        body = Scope(self.loop.name, self.scope, known)
        (m,) = self.run.value(self.step.preds[0], body)
        x0 = textbook.clean(kind.prediction, m, x, point)
        return x0, (x - point.alpha * x0) / point.sigma

    def _step(self, s: float) -> int:
        """The schedule's step in which a point of the path lies: guidance may change from one to the next."""
        here = [b / (a + b) for a, b in zip(self.grid.alpha, self.grid.sigma, strict=True)]
        passed = sum(own <= s if self.schedule.ascending else own >= s for own in here)
        return min(max(passed - 1, 0), self.grid.steps - 1)

    def _slope(self, s: float, y: Tensor) -> Tensor:
        """dy/ds = eps - x0."""
        x0, eps = self._clean(s, y)
        return eps - x0

    def _try(self, s: float, y: Tensor, h: float, slope: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """y' and its error for a step h; the slope there, if the method has evaluated it already."""
        tableau = self.tableau
        k = [slope]

        def moved(weights: tuple[float, ...]) -> Tensor:
            """h times the weighted sum of the slopes so far."""
            return h * sum((w * each for w, each in zip(weights, k, strict=True)), torch.zeros_like(y))

        for c, row in zip(tableau.c[1:], tableau.a[1:], strict=True):
            k.append(self._slope(s + c * h, y + moved(row)))
        return y + moved(tableau.b), moved(tableau.e), k[-1] if tableau.first_same_as_last else None
