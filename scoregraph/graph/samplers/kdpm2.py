"""Second order by a midpoint: the network is asked a second time halfway down, at the geometric mean of two levels.

In lambda = -ln kappa that is the middle of the step. ``kdpm2`` is DPM-Solver-2 in the words of k-diffusion (``dpm_2``);
the samplers of DPM-Solver++ take the midpoint's x0 instead of its slope.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, sqrt
from typing import ClassVar

from scoregraph.graph import options
from scoregraph.graph.samplers.base import MicroStep, Sampler, Walk
from scoregraph.graph.samplers.churn import Churn
from scoregraph.graph.samplers.euler import ancestral


@dataclass(frozen=True)
class Kdpm2(Churn):
    """X' = X + (kappa' - kappa) eps_mid, with eps_mid at Euler's point for k_mid = sqrt(kappa kappa') (k-diffusion).

    Two network calls per step, but one in a last step that ends at kappa = 0. The register ``start`` is X.
    """

    name: ClassVar[str] = "kdpm2"
    needs_finite_kappa: ClassVar[bool] = True

    def memory(self) -> tuple[str, ...]:
        """X where the step began."""
        return ("start",)

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """A step to the middle, then the whole step with its slope."""
        for i in range(walk.grid.steps):
            at = yield from self.churned(walk, i)
            to = walk.grid.point(i + 1)
            start = walk["x"] / at.alpha
            _, slope = walk.estimates(at)
            if to.kappa == 0.0:
                yield walk.call(i, at, x=to.alpha * (start + (to.kappa - at.kappa) * slope))
                continue
            middle = walk.grid.at_kappa(sqrt(at.kappa * to.kappa))
            yield walk.call(i, at, x=middle.alpha * (start + (middle.kappa - at.kappa) * slope), start=start)
            _, slope = walk.estimates(middle)
            yield walk.call(i, middle, x=to.alpha * (walk["start"] + (to.kappa - at.kappa) * slope))


@dataclass(frozen=True)
class Ancestral(Sampler):
    """Family of the samplers that step down to k_down with two calls and then add k_up s_noise z (``ancestral``)."""

    needs_finite_kappa: ClassVar[bool] = True
    walks_down: ClassVar[bool] = True
    eta: float = 1.0
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        options.real(self, "eta", low=0.0)
        options.real(self, "s_noise", low=0.0)

    def levels(self, k: float, k_next: float) -> tuple[float, float]:
        """(k_down, k_up s_noise)."""
        down, up = ancestral(k_next / k, self.eta)
        return k_next * down, k_next * up * self.s_noise


@dataclass(frozen=True)
class Kdpm2Ancestral(Ancestral):
    """``kdpm2`` down to k_down, then noise (k-diffusion's ``dpm_2_ancestral``).

    Where k_down is 0, at the end or with eta above 1, the step is Euler's and of one call; as there, no noise follows.
    """

    name: ClassVar[str] = "kdpm2_ancestral"

    def memory(self) -> tuple[str, ...]:
        """X where the step began."""
        return ("start",)

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """A step to the middle, then the whole step with its slope."""
        for i in range(walk.grid.steps):
            at, to = walk.grid.point(i), walk.grid.point(i + 1)
            down, up = self.levels(at.kappa, to.kappa)
            start = walk["x"] / at.alpha
            _, slope = walk.estimates(at)
            if down == 0.0:
                yield walk.call(i, at, x=to.alpha * (start - at.kappa * slope))
                continue
            middle = walk.grid.at_kappa(sqrt(at.kappa * down))
            yield walk.call(i, at, x=middle.alpha * (start + (middle.kappa - at.kappa) * slope), start=start)
            _, slope = walk.estimates(middle)
            yield walk.call(i, middle, x=to.alpha * (walk["start"] + (down - at.kappa) * slope + up * walk.z))


@dataclass(frozen=True)
class Dpmpp2sAncestral(Ancestral):
    """DPM-Solver++(2S) down to k_down, then noise: X' = (k_down/k) X + (1 - k_down/k) D_mid + k_up s_noise z.

    D_mid is x0 at the geometric mean of k and k_down (Lu et al. 2022, algorithm 1 with r = 1/2; k-diffusion). The
    register ``start`` is X.
    """

    name: ClassVar[str] = "dpmpp_2s_ancestral"

    def memory(self) -> tuple[str, ...]:
        """X where the step began."""
        return ("start",)

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """A step to the middle, then the whole step with its x0."""
        for i in range(walk.grid.steps):
            at, to = walk.grid.point(i), walk.grid.point(i + 1)
            down, up = self.levels(at.kappa, to.kappa)
            start = walk["x"] / at.alpha
            x0, _ = walk.estimates(at)
            if down == 0.0:
                yield walk.call(i, at, x=to.alpha * (x0 + up * walk.z))
                continue
            middle = walk.grid.at_kappa(sqrt(at.kappa * down))
            half = middle.kappa / at.kappa
            yield walk.call(i, at, x=middle.alpha * (half * start + (1.0 - half) * x0), start=start)
            x0, _ = walk.estimates(middle)
            whole = down / at.kappa
            yield walk.call(i, middle, x=to.alpha * (whole * walk["start"] + (1.0 - whole) * x0 + up * walk.z))


@dataclass(frozen=True)
class DpmppSde(Ancestral):
    """DPM-Solver++ for the SDE (k-diffusion): both halves are ancestral steps, and their noise is one Brownian path.

    The middle is at lambda + ``r`` h. Its x0 has the weight 1/(2r) in the whole step, the first x0 the rest. The noise
    of the whole step is that of the path W(kappa) from kappa to kappa', which passes the middle: the normalized sum of
    the noise of both parts, sqrt(k - k_mid) z and sqrt(k_mid - k') z'. The register ``start`` is all of X' that is
    known before the second call.
    """

    name: ClassVar[str] = "dpmpp_sde"
    r: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        options.real(self, "r", low=0.0, high=1.0, above=True)

    def memory(self) -> tuple[str, ...]:
        """What the first call adds to X'."""
        return ("start",)

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """An ancestral step to the middle, then one over the whole."""
        for i in range(walk.grid.steps):
            at, to = walk.grid.point(i), walk.grid.point(i + 1)
            start, (x0, _) = walk["x"] / at.alpha, walk.estimates(at)
            if to.kappa == 0.0:
                yield walk.call(i, at, x=to.alpha * x0)
                continue
            middle = walk.grid.at_kappa(at.kappa * (to.kappa / at.kappa) ** self.r)
            down, up = self.levels(at.kappa, middle.kappa)
            x = down / at.kappa * start + (1.0 - down / at.kappa) * x0 + up * walk.z
            down, up = self.levels(at.kappa, to.kappa)
            kept, late = down / at.kappa, 1.0 / (2.0 * self.r)
            length = (at.kappa - to.kappa) or inf  # a step of no length adds no noise
            part, rest = sqrt((at.kappa - middle.kappa) / length), sqrt((middle.kappa - to.kappa) / length)
            start = kept * start + (1.0 - kept) * (1.0 - late) * x0 + up * part * walk.z
            yield walk.call(i, at, x=middle.alpha * x, start=start)
            x0, _ = walk.estimates(middle)
            yield walk.call(i, middle, x=to.alpha * (walk["start"] + (1.0 - kept) * late * x0 + up * rest * walk.z))
