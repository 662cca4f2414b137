"""Multistep consistency sampling (Song et al. 2023, algorithm 1; in vp space that of latent consistency models)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

from scoregraph.graph.samplers.base import MicroStep, Sampler, Walk


@dataclass(frozen=True)
class Consistency(Sampler):
    """x' = alpha' (f + sqrt(kappa'^2 - k0^2) z): jump to the clean sample f, then renew the noise of the next point.

    f is the network's x0; k0 is the noise level at which the network is the identity (``prediction.consistency`` has
    one, for others it is 0). At the last step, and below k0, nothing is added. With k0 = 0 this is also the sampler of
    sCM (``scm``, on ``schedules.trigflow``) and the stochastic one of flows, x' = (1 - s') x0 + s' z
    (``flow_stochastic``).
    """

    name: ClassVar[str] = "consistency"
    walks_down: ClassVar[bool] = True

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """One call per step."""
        for i in range(walk.grid.steps):
            at, to = walk.grid.point(i), walk.grid.point(i + 1)
            clean, _ = walk.estimates(at)
            noise = sqrt(max(to.kappa**2 - walk.prediction.boundary**2, 0.0))
            yield walk.call(i, at, x=to.alpha * (clean + noise * walk.z))
