"""DDIM (Song, Meng and Ermon 2021): the first-order step between any two points, with as much fresh noise as wanted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import sqrt
from typing import ClassVar

from scoregraph.errors import Location, WrongDirection
from scoregraph.graph import options
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers.base import MicroStep, Sampler, Walk
from scoregraph.graph.samplers.stride import STEPS_TO, check_stride, next_point
from scoregraph.graph.schedules import Schedule


@dataclass(frozen=True)
class Ddim(Sampler):
    """x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s z, with s = eta * sigma' * sqrt(1 - (kappa'/kappa)^2).

    ``eta`` = 0 is the deterministic ODE step, also upwards (DDIM inversion, on an ascending schedule); ``eta`` = 1 has
    the variance of DDPM (``fixed_small``) and of ancestral sampling. ``prev`` is the point a step goes to, "grid" or
    "stride": see ``stride``.
    """

    name: ClassVar[str] = "ddim"
    eta: float = 0.0
    prev: str = field(default="grid", kw_only=True)

    def __post_init__(self) -> None:
        options.real(self, "eta", low=0.0, high=1.0)
        options.choice(self, "prev", STEPS_TO)

    def check(self, schedule: Schedule, prediction: Prediction, where: Location | None = None) -> None:
        """A stride needs training timesteps, and fresh noise a walk down."""
        super().check(schedule, prediction, where)
        if self.eta > 0.0 and schedule.ascending:
            raise WrongDirection(sampler=self.name, schedule=schedule, where=where)
        check_stride(self.prev, schedule, where)

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """One call per step."""
        for i in range(walk.grid.steps):
            at, to = walk.grid.point(i), next_point(walk.grid, i, self.prev)
            x0, eps = walk.estimates(at)
            if self.eta == 0.0:
                yield walk.call(i, at, x=to.alpha * x0 + to.sigma * eps)
                continue
            # kappa'/kappa = (alpha sigma') / (alpha' sigma) is 0, not undefined, where alpha is 0.
            ratio = at.alpha * to.sigma / (to.alpha * at.sigma)
            fresh = self.eta * to.sigma * sqrt(1.0 - ratio**2)
            kept = sqrt(to.sigma**2 - fresh**2)
            yield walk.call(i, at, x=to.alpha * x0 + kept * eps + fresh * walk.z)
