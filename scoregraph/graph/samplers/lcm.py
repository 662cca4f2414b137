"""Latent consistency models (Luo et al. 2023): multistep consistency sampling through their boundary condition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import hypot
from typing import ClassVar

from scoregraph.errors import Location
from scoregraph.graph import options
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers.base import MicroStep, Sampler, Walk
from scoregraph.graph.schedules import Schedule


@dataclass(frozen=True)
class Lcm(Sampler):
    """x' = alpha' f + sigma' z, with f = c_skip x + c_out x0 of the state in vp space; the last step ends on f.

    c_skip = d^2 / (s^2 + d^2) and c_out = s / sqrt(s^2 + d^2), where d is ``sigma_data`` and s = ``timestep_scaling``
    times the training timestep: f is x itself at timestep 0. Schedules with ``spacing="distilled"`` visit the timesteps
    of the distillation.
    """

    name: ClassVar[str] = "lcm"
    walks_down: ClassVar[bool] = True
    timestep_scaling: float = 10.0
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        options.real(self, "timestep_scaling", low=0.0, above=True)
        options.real(self, "sigma_data", low=0.0, above=True)

    def check(self, schedule: Schedule, prediction: Prediction, where: Location | None = None) -> None:
        """The boundary condition is a function of training timesteps."""
        super().check(schedule, prediction, where)
        schedule.grid().times("timestep", where)

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """One call per step."""
        for i in range(walk.grid.steps):
            at, to = walk.grid.point(i), walk.grid.point(i + 1)
            time = self.timestep_scaling * walk.grid.time_at(at, "timestep")
            skip, out = (self.sigma_data / hypot(time, self.sigma_data)) ** 2, time / hypot(time, self.sigma_data)
            x0, _ = walk.estimates(at)
            clean = skip * (walk["x"] / hypot(at.alpha, at.sigma)) + out * x0
            last = i + 1 == walk.grid.steps
            yield walk.call(i, at, x=clean if last else to.alpha * clean + to.sigma * walk.z)
