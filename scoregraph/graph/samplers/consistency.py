"""Multistep consistency sampling (Song et al. 2023, algorithm 1; in vp space that of latent consistency models)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers.base import MicroStep, Sampler, basis, estimates
from scoregraph.graph.schedules import Grid


@dataclass(frozen=True)
class Consistency(Sampler):
    """x' = alpha' (f + sqrt(kappa'^2 - k0^2) z): jump to the clean sample f, then renew the noise of the next point.

    f is the network's x0; k0 is the noise level at which the network is the identity (``prediction.consistency`` has
    one, for others it is 0). At the last step, and below k0, nothing is added.
    """

    name: ClassVar[str] = "consistency"

    def micro_steps(self, grid: Grid, prediction: Prediction) -> Iterator[MicroStep]:
        """One call per step."""
        x, m, z = basis(self.registers)
        for i in range(grid.steps):
            clean, _ = estimates(prediction, grid.alpha[i], grid.sigma[i], x, m)
            noise = sqrt(max(grid.kappa[i + 1] ** 2 - prediction.boundary**2, 0.0))
            yield MicroStep(i, i, (grid.alpha[i + 1] * (clean + noise * z),))
