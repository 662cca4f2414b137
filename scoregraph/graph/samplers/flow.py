"""Steps along the straight path: x_f = x / (alpha + sigma) as a function of s = sigma / (alpha + sigma).

dx_f/ds = u = eps - x0 is the same curve as dX/dkappa = eps in other variables, and finite where alpha is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

from scoregraph.graph import options
from scoregraph.graph.samplers.base import MicroStep, Sampler, Vector, Walk
from scoregraph.graph.schedules import Point


def scale(point: Point) -> float:
    """What a state at a point is divided by to get x_f."""
    return point.alpha + point.sigma


def time(point: Point) -> float:
    """s."""
    return point.sigma / scale(point)


def velocity(walk: Walk, at: Point) -> Vector:
    """u = eps - x0."""
    x0, eps = walk.estimates(at)
    return eps - x0


@dataclass(frozen=True)
class FlowEuler(Sampler):
    """x_f' = x_f + (s' - s) u (Liu et al. 2023, rectified flow)."""

    name: ClassVar[str] = "flow_euler"

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """One call per step."""
        for i in range(walk.grid.steps):
            at, to = walk.grid.point(i), walk.grid.point(i + 1)
            x = walk["x"] / scale(at) + (time(to) - time(at)) * velocity(walk, at)
            yield walk.call(i, at, x=scale(to) * x)


@dataclass(frozen=True)
class FlowHeun(Sampler):
    """x_f' = x_f + (s' - s) (u + u') / 2, where u' is taken at Euler's x_f'.

    Second order; two network calls per step, but one in a last step that ends at s = 0. The register ``half`` is x_f +
    (s' - s) u / 2.
    """

    name: ClassVar[str] = "flow_heun"

    def memory(self) -> tuple[str, ...]:
        """x_f after half of Euler's step."""
        return ("half",)

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """Euler's step, then its correction from the half step."""
        for i in range(walk.grid.steps):
            at, to = walk.grid.point(i), walk.grid.point(i + 1)
            step = time(to) - time(at)
            slope = velocity(walk, at)
            half = walk["x"] / scale(at) + step / 2 * slope
            if to.sigma == 0.0:
                yield walk.call(i, at, x=scale(to) * (half + step / 2 * slope))
                continue
            yield walk.call(i, at, x=scale(to) * (half + step / 2 * slope), half=half)
            yield walk.call(i, to, x=scale(to) * (walk["half"] + step / 2 * velocity(walk, to)))


@dataclass(frozen=True)
class FlowAncestral(Sampler):
    """A step down to s_down = s' (1 + (s'/s - 1) eta), then noise up to s' (ancestral sampling on the straight path).

    x_f = (1 - r) x0 + r x_f with r = s_down/s; then x_f' = q x_f + sqrt(s'^2 - q^2 s_down^2) s_noise z with
    q = (1 - s')/(1 - s_down). The sampler of LTX-Video; eta = 0 is ``flow_euler``.
    """

    name: ClassVar[str] = "flow_ancestral"
    walks_down: ClassVar[bool] = True
    eta: float = 1.0
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        options.real(self, "eta", low=0.0, high=1.0)
        options.real(self, "s_noise", low=0.0)

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """One call per step."""
        for i in range(walk.grid.steps):
            at, to = walk.grid.point(i), walk.grid.point(i + 1)
            s, s_next = time(at), time(to)
            x0, _ = walk.estimates(at)
            down = s_next * (1.0 + (s_next / s - 1.0) * self.eta)
            x = down / s * (walk["x"] / scale(at)) + (1.0 - down / s) * x0
            shrink = (1.0 - s_next) / (1.0 - down)
            # s' >= s_down and q <= 1, so neither factor is negative.
            fresh = sqrt((s_next - shrink * down) * (s_next + shrink * down))
            yield walk.call(i, at, x=scale(to) * (shrink * x + fresh * self.s_noise * walk.z))
