"""DDIM (Song, Meng and Ermon 2021): the first-order step between any two points, with as much fresh noise as wanted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

from scoregraph.graph import options
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers.base import MicroStep, Sampler, basis, estimates
from scoregraph.graph.schedules import Grid


@dataclass(frozen=True)
class Ddim(Sampler):
    """x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s z, with s = eta * sigma' * sqrt(1 - (kappa'/kappa)^2).

    ``eta`` = 0 is the deterministic ODE step; ``eta`` = 1 has the variance of DDPM (``fixed_small``) and of ancestral
    sampling.
    """

    name: ClassVar[str] = "ddim"
    eta: float = 0.0

    def __post_init__(self) -> None:
        options.real(self, "eta", low=0.0, high=1.0)

    def micro_steps(self, grid: Grid, prediction: Prediction) -> Iterator[MicroStep]:
        """One call per step."""
        x, m, z = basis(self.registers)
        for i in range(grid.steps):
            alpha, sigma, alpha_next, sigma_next = *point(grid, i), *point(grid, i + 1)
            x0, eps = estimates(prediction, alpha, sigma, x, m)
            # kappa'/kappa = (alpha sigma') / (alpha' sigma) is 0, not undefined, where alpha is 0.
            ratio = alpha * sigma_next / (alpha_next * sigma)
            fresh = self.eta * sigma_next * sqrt(1.0 - ratio**2)
            kept = sqrt(sigma_next**2 - fresh**2)
            yield MicroStep(i, i, (alpha_next * x0 + kept * eps + fresh * z,))


def point(grid: Grid, i: int) -> tuple[float, float]:
    """(alpha, sigma) of a grid point."""
    return grid.alpha[i], grid.sigma[i]
