"""DPM-Solver++ (Lu et al. 2022): exponential integrators in half the log signal-to-noise ratio, lambda = -ln kappa."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, log
from typing import ClassVar

from scoregraph.graph import options
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers.base import MicroStep, Sampler, basis, estimates
from scoregraph.graph.schedules import Grid


@dataclass(frozen=True)
class Dpmpp2m(Sampler):
    """The multistep solver 2M: x' = (sigma'/sigma) x - alpha' E (D0 + (h/h0) (D0 - D1) / 2).

    D0 and D1 are x0 now and one call before, h and h0 the steps in lambda now and before, E = e^-h - 1. With
    ``correction="heun"`` the weight of (h/h0) (D0 - D1) is alpha' (E/h + 1) instead of the midpoint's -alpha' E / 2.
    Second order with one call per step; the first step, and a last one that ends without noise, are of first order.
    The register ``x0`` holds D1.
    """

    name: ClassVar[str] = "dpmpp_2m"
    registers: ClassVar[tuple[str, ...]] = ("x", "x0")
    correction: str = "midpoint"

    def __post_init__(self) -> None:
        options.choice(self, "correction", ("midpoint", "heun"))

    def micro_steps(self, grid: Grid, prediction: Prediction) -> Iterator[MicroStep]:
        """One call per step."""
        x, previous, m, _ = basis(self.registers)
        h_previous = inf
        for i in range(grid.steps):
            alpha, sigma, alpha_next, sigma_next = grid.alpha[i], grid.sigma[i], grid.alpha[i + 1], grid.sigma[i + 1]
            x0, _ = estimates(prediction, alpha, sigma, x, m)
            # e^-h = kappa'/kappa; it is 0, and h infinite, from a point without signal and to one without noise.
            decay = alpha * sigma_next / (alpha_next * sigma)
            h = -log(decay) if decay else inf
            change = alpha_next * (1.0 - decay)  # -alpha' E
            x_next = sigma_next / sigma * x + change * x0
            last = sigma_next == 0.0
            if i > 0 and not last:
                weight = change / 2 if self.correction == "midpoint" else alpha_next - change / h
                x_next = x_next + weight * (h / h_previous) * (x0 - previous)
            h_previous = h
            yield MicroStep(i, i, (x_next, 0 * x0 if last else x0))
