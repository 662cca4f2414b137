"""Reverse SDEs in their own time (Song et al. 2021), by Euler-Maruyama, with Langevin corrections between the steps.

Time-reversing dx = f dt + g dw gives dx = (f - g^2 score) dt + g dw, and the same marginals have the whole family

    dx = (f - (1 + n^2)/2 g^2 score) dt + n g dw          n = 1: the reverse SDE, n = 0: the probability-flow ODE.

score = -eps / sigma. Over a step from a point to the next, g^2 dt is replaced by its exact integral where that is known
in closed form, so a step depends on its two points alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import hypot, log, sqrt
from typing import ClassVar

from scoregraph.errors import Location, WrongDirection
from scoregraph.graph import options
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers.base import MicroStep, Sampler, Walk
from scoregraph.graph.schedules import Point, Schedule

KINDS = ("ve", "vp", "sub_vp")


@dataclass(frozen=True)
class ReverseSde(Sampler):
    """Euler-Maruyama for the reverse SDE of a ``kind``, each in the variables of its paper.

    - ``ve``: x = X, f = 0, g^2 dt = k^2 - k'^2: the reverse diffusion sampler of Song and Ermon;
    - ``vp``: x = alpha X with alpha^2 + sigma^2 = 1, f = -beta x / 2, g^2 = beta, beta dt = 2 ln(alpha'/alpha);
    - ``sub_vp``: x = a X with sigma = 1 - a^2, f = -beta x / 2, g^2 = beta (1 - a^4), beta dt = 2 ln(a'/a).

    ``noise`` is n above. A step that ends at sigma = 0 adds none, which is Song's final denoising.

    Before each step, ``corrections`` Langevin steps x += d score + sqrt(2 d) z at the same noise level, of the size
    d = 2 c (``snr`` sigma)^2, with c = alpha^2/alpha'^2 for the VP kinds and 1 for ve: their predictor-corrector
    method with the norms of score and noise at their expected values: sigma |score| = |z|.
    """

    name: ClassVar[str] = "reverse_sde"
    needs_finite_kappa: ClassVar[bool] = True
    kind: str = "vp"
    noise: float = 1.0
    corrections: int = 0
    snr: float = 0.16

    def __post_init__(self) -> None:
        options.choice(self, "kind", KINDS)
        options.real(self, "noise", low=0.0)
        options.whole(self, "corrections", low=0, high=100)
        options.real(self, "snr", low=0.0, high=1.0)

    def check(self, schedule: Schedule, prediction: Prediction, where: Location | None = None) -> None:
        """Noise is for the way down; the ODE walks both ways."""
        super().check(schedule, prediction, where)
        if (self.noise > 0.0 or self.corrections > 0) and schedule.rises():
            raise WrongDirection(sampler=self.name, schedule=schedule, where=where)

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """The corrections at a point, then the step to the next."""
        for i in range(walk.grid.steps):
            at, to = walk.grid.point(i), walk.grid.point(i + 1)
            here, there = self._own(at), self._own(to)
            for _ in range(self.corrections):
                _, eps = walk.estimates(at)
                # alpha^2/alpha'^2 is 1 - beta dt of the forward step, which Song's code takes.
                rate = 1.0 if self.kind == "ve" else (here.alpha / there.alpha) ** 2
                size = 2.0 * rate * (self.snr * here.sigma) ** 2
                x = walk["x"] * here.alpha / at.alpha - size / here.sigma * eps + sqrt(2.0 * size) * walk.z
                yield walk.call(i, at, x=x * at.alpha / here.alpha)
            _, eps = walk.estimates(at)
            growth, diffusion = self._integrals(here, there)
            pull = (1.0 + self.noise**2) / 2 * diffusion / here.sigma
            fresh = self.noise * sqrt(diffusion) if self.noise > 0.0 and to.sigma > 0.0 else 0.0
            x = (1.0 + growth) * (walk["x"] * here.alpha / at.alpha) - pull * eps + fresh * walk.z
            yield walk.call(i, at, x=x * to.alpha / there.alpha)

    def _own(self, at: Point) -> Point:
        """The point in the variables of the kind."""
        if self.kind == "ve":
            return Point(1.0, at.kappa)
        if self.kind == "vp":
            norm = hypot(at.alpha, at.sigma)
            return Point(at.alpha / norm, at.sigma / norm)
        # kappa = (1 - a^2)/a, of which a is the positive root.
        alpha = 2.0 / (at.kappa + hypot(at.kappa, 2.0))
        return Point(alpha, alpha * at.kappa)

    def _integrals(self, here: Point, there: Point) -> tuple[float, float]:
        """(-f dt / x, g^2 dt) over the step backwards in time."""
        if self.kind == "ve":
            return 0.0, (here.kappa - there.kappa) * (here.kappa + there.kappa)
        beta = 2.0 * log(there.alpha / here.alpha)
        return beta / 2, beta if self.kind == "vp" else beta * (1.0 - here.alpha**4)
