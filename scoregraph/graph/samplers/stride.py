"""Where a step goes to: to the next point of the grid, or a fixed number of training timesteps further.

The second is a habit of diffusers' DDIM and PNDM: T//N timesteps, which is the next point only where the spacing is
"leading" or N divides T. Elsewhere the state then lies at another noise level than the network is told in the next
call; published results that were made so can only be repeated so.
"""

from __future__ import annotations

from math import isfinite

from scoregraph.errors import Location, NoTimestep
from scoregraph.graph.schedules import Discrete, Grid, Point, Schedule

STEPS_TO = ("grid", "stride")


def check_stride(prev: str, schedule: Schedule, where: Location | None = None) -> None:
    """Raise ``NoTimestep`` for strides on a schedule that has no training timesteps."""
    if prev == "stride" and not isinstance(schedule, Discrete):
        raise NoTimestep(schedule=schedule, where=where)


def stride(grid: Grid) -> int:
    """How many timesteps a step goes: T//N for the N steps of the whole schedule, less than 0 where it walks down."""
    assert isinstance(grid.schedule, Discrete)  # or check_stride has raised
    length = grid.schedule.train_steps // grid.schedule.steps
    return length if grid.schedule.ascending else -length


def next_point(grid: Grid, i: int, prev: str) -> Point:
    """Where step ``i`` goes to; strides below timestep 0 go to the last point of the grid."""
    if prev == "grid":
        return grid.point(i + 1)
    assert grid.timesteps is not None  # the schedule is discrete
    return at_timestep(grid, grid.timesteps[i] + stride(grid))


def at_timestep(grid: Grid, timestep: float) -> Point:
    """The point of a training timestep in the grid's space; below 0 the last point of the grid."""
    if timestep < 0:
        return grid.point(grid.steps)
    kappa = grid.schedule.kappa_at(timestep)
    return grid.at_kappa(kappa) if isfinite(kappa) else Point(0.0, 1.0)
