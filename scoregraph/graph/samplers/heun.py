"""Heun's method: a step of second order from the slopes at both its ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from scoregraph.graph.samplers.base import MicroStep, Walk
from scoregraph.graph.samplers.churn import Churn


@dataclass(frozen=True)
class Heun(Churn):
    """X' = X + (kappa' - kappa) (eps + eps') / 2, where eps' is taken at Euler's X' (Karras et al. 2022).

    Algorithm 1 of the paper; with churn its algorithm 2, the stochastic sampler of EDM. Second order; two network calls
    per step, but one in a last step that ends at kappa = 0. The register ``half`` is X + (kappa' - kappa) eps / 2.
    """

    name: ClassVar[str] = "heun"
    needs_finite_kappa: ClassVar[bool] = True

    def memory(self) -> tuple[str, ...]:
        """X after half of Euler's step."""
        return ("half",)

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """Euler's step, then its correction from the half step."""
        for i in range(walk.grid.steps):
            at = yield from self.churned(walk, i)
            to = walk.grid.point(i + 1)
            step = to.kappa - at.kappa
            _, slope = walk.estimates(at)
            half = walk["x"] / at.alpha + step / 2 * slope
            if to.kappa == 0.0:
                yield walk.call(i, at, x=to.alpha * (half + step / 2 * slope))
                continue
            yield walk.call(i, at, x=to.alpha * (half + step / 2 * slope), half=half)
            _, slope = walk.estimates(to)
            yield walk.call(i, to, x=to.alpha * (walk["half"] + step / 2 * slope))
