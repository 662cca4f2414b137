"""Trajectory consistency distillation (Zheng et al. 2024): jumps along the trajectory, then noise back up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import floor, sqrt
from typing import ClassVar

from scoregraph.errors import Location
from scoregraph.graph import options
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers.base import MicroStep, Sampler, Walk
from scoregraph.graph.schedules import Schedule


@dataclass(frozen=True)
class Tcd(Sampler):
    """X' = x0 + kappa_s eps + sqrt(kappa'^2 - kappa_s^2) z, where s is the training timestep floor((1 - eta) t').

    Strategic stochastic sampling: ``eta`` (gamma in the paper) = 0 is DDIM, 1 is multistep consistency sampling. t' is
    the timestep of the next point, 0 for the last one.
    """

    name: ClassVar[str] = "tcd"
    walks_down: ClassVar[bool] = True
    eta: float = 0.3

    def __post_init__(self) -> None:
        options.real(self, "eta", low=0.0, high=1.0)

    def check(self, schedule: Schedule, prediction: Prediction, where: Location | None = None) -> None:
        """s is a training timestep."""
        super().check(schedule, prediction, where)
        schedule.grid().times("timestep", where)

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """One call per step."""
        times = [*walk.grid.times("timestep"), 0.0]
        for i in range(walk.grid.steps):
            at, to = walk.grid.point(i), walk.grid.point(i + 1)
            x0, eps = walk.estimates(at)
            low = min(walk.grid.schedule.kappa_at(floor((1.0 - self.eta) * times[i + 1])), to.kappa)
            if self.eta == 0.0:
                low = to.kappa
            fresh = sqrt((to.kappa - low) * (to.kappa + low))
            yield walk.call(i, at, x=to.alpha * (x0 + low * eps + fresh * walk.z))
