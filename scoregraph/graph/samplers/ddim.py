"""DDIM (Song, Meng and Ermon 2021): the first-order step between any two points, with as much fresh noise as wanted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

from scoregraph.graph import options
from scoregraph.graph.samplers.base import MicroStep, Sampler, Walk


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

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """One call per step."""
        for i in range(walk.grid.steps):
            at, to = walk.grid.point(i), walk.grid.point(i + 1)
            x0, eps = walk.estimates(at)
            # kappa'/kappa = (alpha sigma') / (alpha' sigma) is 0, not undefined, where alpha is 0.
            ratio = at.alpha * to.sigma / (to.alpha * at.sigma)
            fresh = self.eta * to.sigma * sqrt(1.0 - ratio**2)
            kept = sqrt(to.sigma**2 - fresh**2)
            yield walk.call(i, at, x=to.alpha * x0 + kept * eps + fresh * walk.z)
