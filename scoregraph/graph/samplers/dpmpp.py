"""DPM-Solver++ (Lu et al. 2022): exponential integrators in half the log signal-to-noise ratio, lambda = -ln kappa."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, log
from typing import ClassVar

from scoregraph.graph import options
from scoregraph.graph.samplers.base import MicroStep, Sampler, Walk


@dataclass(frozen=True)
class Dpmpp2m(Sampler):
    """The multistep solver 2M: x' = (sigma'/sigma) x - alpha' E (D0 + (h/h0) (D0 - D1) / 2).

    D0 and D1 are x0 now and one call before, h and h0 the steps in lambda now and before, E = e^-h - 1. With
    ``correction="heun"`` the weight of (h/h0) (D0 - D1) is alpha' (E/h + 1) instead of the midpoint's -alpha' E / 2.
    Second order with one call per step; the first step, and a last one that ends without noise, are of first order.
    The register ``x0`` holds D1.
    """

    name: ClassVar[str] = "dpmpp_2m"
    correction: str = "midpoint"

    def __post_init__(self) -> None:
        options.choice(self, "correction", ("midpoint", "heun"))

    def memory(self) -> tuple[str, ...]:
        """x0 one call before."""
        return ("x0",)

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """One call per step."""
        h_before = inf
        for i in range(walk.grid.steps):
            at, to = walk.grid.point(i), walk.grid.point(i + 1)
            x0, _ = walk.estimates(at)
            # e^-h = kappa'/kappa; it is 0, and h infinite, from a point without signal and to one without noise.
            decay = at.alpha * to.sigma / (to.alpha * at.sigma)
            h = -log(decay) if decay else inf
            change = to.alpha * (1.0 - decay)  # -alpha' E
            x = to.sigma / at.sigma * walk["x"] + change * x0
            if i > 0 and to.sigma > 0.0:
                weight = change / 2 if self.correction == "midpoint" else to.alpha - change / h
                x = x + weight * (h / h_before) * (x0 - walk["x0"])
            h_before = h
            yield walk.call(i, at, x=x, x0=x0)
