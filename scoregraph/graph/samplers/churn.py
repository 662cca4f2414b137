"""Churn (Karras et al. 2022, algorithm 2, lines 4 to 6): a little noise is added before a step takes more away."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from math import inf, sqrt

from scoregraph.errors import Location, WrongDirection
from scoregraph.graph import options
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers.base import MicroStep, Sampler, Walk
from scoregraph.graph.schedules import Point, Schedule


@dataclass(frozen=True)
class Churn(Sampler):
    """Family of the samplers whose steps may start from a higher noise level khat = (1 + gamma) kappa.

    gamma = min(``s_churn`` / N, sqrt(2) - 1) where ``s_tmin`` <= kappa <= ``s_tmax``, else 0. Xhat = X + sqrt(khat^2 -
    kappa^2) ``s_noise`` z is made by a row of its own, without a network call, so that the network is asked at khat.
    """

    s_churn: float = field(default=0.0, kw_only=True)
    s_tmin: float = field(default=0.0, kw_only=True)
    s_tmax: float = field(default=inf, kw_only=True)
    s_noise: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        options.real(self, "s_churn", low=0.0)
        options.real(self, "s_tmin", low=0.0)
        if self.s_tmax != inf:
            options.real(self, "s_tmax", low=0.0)
        options.real(self, "s_noise", low=0.0)

    def check(self, schedule: Schedule, prediction: Prediction, where: Location | None = None) -> None:
        """Churn is for the way down."""
        super().check(schedule, prediction, where)
        if self.s_churn > 0.0 and schedule.rises():
            raise WrongDirection(sampler=self.name, schedule=schedule, where=where)

    def gamma(self, walk: Walk, at: Point) -> float:
        """How much of its noise a point gains."""
        if not self.s_tmin <= at.kappa <= self.s_tmax:
            return 0.0
        return min(self.s_churn / walk.grid.steps, sqrt(2.0) - 1.0)

    def churned(self, walk: Walk, i: int) -> Generator[MicroStep, None, Point]:
        """The row that adds noise before step ``i``, if it adds any; returns the point at which the network is asked.

        ``at = yield from self.churned(walk, i)``.
        """
        at = walk.grid.point(i)
        gamma = self.gamma(walk, at)
        if gamma == 0.0:
            return at
        hot = walk.grid.at_kappa(at.kappa * (1.0 + gamma))
        yield walk.call(i, None, x=hot.alpha * (walk["x"] / at.alpha + added_noise(at, hot) * self.s_noise * walk.z))
        return hot


def added_noise(low: Point, high: Point) -> float:
    """sqrt(khat^2 - kappa^2): the noise that lifts a state from one level to a higher one, in units of the signal."""
    return sqrt((high.kappa - low.kappa) * (high.kappa + low.kappa))
