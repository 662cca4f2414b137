"""DDPM: ancestral sampling with the posterior of the forward process, and all its variances (Ho et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import hypot, log, sqrt
from typing import ClassVar

from scoregraph.graph import options
from scoregraph.graph.samplers.base import MicroStep, Sampler, Walk
from scoregraph.graph.schedules import Point

VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")


@dataclass(frozen=True)
class Ddpm(Sampler):
    """x' = alpha' x0 + sigma' (kappa'/kappa) eps + s z: the mean of q(x' | x, x0) (Ho et al. 2020, equation 7).

    ``variance`` says what s is. With r = kappa'/kappa, and all in units of vp space:

    - ``fixed_small``: s^2 = sigma'^2 (1 - r^2), the posterior's own; ``fixed_small_log`` is the same number;
    - ``fixed_large``: s^2 = beta = 1 - (alpha/alpha')^2; ``fixed_large_log`` is the same number (NaN in diffusers);
    - ``learned_range``: the network's v in -1 … 1 goes from the logarithm of the first s to that of the second (Nichol
      and Dhariwal 2021, equation 15);
    - ``learned``: v is ln s^2 itself, as in guided-diffusion.

    The step that ends without noise adds none, whatever the variance.
    """

    name: ClassVar[str] = "ddpm"
    walks_down: ClassVar[bool] = True
    variance: str = "fixed_small"

    def __post_init__(self) -> None:
        options.choice(self, "variance", VARIANCES)

    @property
    def learns_variance(self) -> bool:
        """Whether the network says v."""
        return self.variance.startswith("learned")

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """One call per step."""
        for i in range(walk.grid.steps):
            at, to = walk.grid.point(i), walk.grid.point(i + 1)
            x0, eps = walk.estimates(at)
            # kappa'/kappa is 0, not undefined, where alpha is 0.
            ratio = at.alpha * to.sigma / (to.alpha * at.sigma)
            x, spread = to.alpha * x0 + to.sigma * ratio * eps, 0.0
            if to.sigma > 0.0:
                small = to.sigma * sqrt(1.0 - ratio**2)
                unit = hypot(to.alpha, to.sigma)  # a state of vp space times this lies in the grid's
                large = unit * sqrt(_beta(at, to))
                if self.variance == "learned":
                    x, spread = x + unit * walk.w, 0.5
                elif self.variance == "learned_range":
                    x, spread = x + sqrt(small * large) * walk.w, 0.5 * log(large / small)
                else:
                    x = x + (small if self.variance.startswith("fixed_small") else large) * walk.z
            yield walk.call(i, at, x=x, spread=spread)


def _beta(at: Point, to: Point) -> float:
    """The noise variance of a forward step in vp space: 1 - (alpha/alpha')^2, without its cancellation.

    With alpha^2 = 1/(1 + kappa^2) it is (kappa^2 - kappa'^2)/(1 + kappa^2), here times alpha^2 above and below.
    """
    between = at.sigma**2 - (at.alpha * to.sigma / to.alpha) ** 2
    return between / (at.alpha**2 + at.sigma**2)
