"""Euler and Heun steps of the probability-flow ODE: in kappa = sigma/alpha (EDM), and on the straight path (flows).

With X = x / alpha the ODE is dX/dkappa = eps; with x_f = x / (alpha + sigma) and sigma_f = sigma / (alpha + sigma) it
is dx_f/dsigma_f = eps - x0. Both are steps of the same curve in other variables, so each works in every space: the
state is scaled on the way in and on the way out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from scoregraph.graph.samplers.base import MicroStep, Sampler, Walk


@dataclass(frozen=True)
class Euler(Sampler):
    """X' = X + (kappa' - kappa) eps, where eps = (X - x0) / kappa (Karras et al. 2022, algorithm 1 without line 6)."""

    name: ClassVar[str] = "euler"
    needs_finite_kappa: ClassVar[bool] = True

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """One call per step."""
        for i in range(walk.grid.steps):
            at, to = walk.grid.point(i), walk.grid.point(i + 1)
            _, slope = walk.estimates(at)
            yield walk.call(i, at, x=to.alpha * (walk["x"] / at.alpha + (to.kappa - at.kappa) * slope))


@dataclass(frozen=True)
class Heun(Sampler):
    """X' = X + (kappa' - kappa) (eps + eps') / 2, where eps' is taken at Euler's X' (Karras et al. 2022, algorithm 1).

    Second order; two network calls per step, but one in the last, which ends at kappa = 0. The register ``half`` is
    X + (kappa' - kappa) eps / 2.
    """

    name: ClassVar[str] = "heun"
    needs_finite_kappa: ClassVar[bool] = True

    def memory(self) -> tuple[str, ...]:
        """X after half of Euler's step."""
        return ("half",)

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """Euler's step, then its correction from the half step."""
        for i in range(walk.grid.steps):
            at, to = walk.grid.point(i), walk.grid.point(i + 1)
            step = to.kappa - at.kappa
            _, slope = walk.estimates(at)
            half = walk["x"] / at.alpha + step / 2 * slope
            yield walk.call(i, at, x=to.alpha * (half + step / 2 * slope), half=half)
            if to.kappa > 0.0:
                _, slope = walk.estimates(to)
                yield walk.call(i, to, x=to.alpha * (walk["half"] + step / 2 * slope))


@dataclass(frozen=True)
class FlowEuler(Sampler):
    """x_f' = x_f + (sigma_f' - sigma_f) u, with u = eps - x0 (Liu et al. 2023, rectified flow). Finite at alpha = 0."""

    name: ClassVar[str] = "flow_euler"

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """One call per step."""
        for i in range(walk.grid.steps):
            at, to = walk.grid.point(i), walk.grid.point(i + 1)
            here, there = at.alpha + at.sigma, to.alpha + to.sigma
            x0, eps = walk.estimates(at)
            yield walk.call(i, at, x=there * (walk["x"] / here + (to.sigma / there - at.sigma / here) * (eps - x0)))
