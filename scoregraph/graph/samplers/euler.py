"""Euler steps of the probability-flow ODE in kappa = sigma/alpha: dX/dkappa = eps, with X = x/alpha (EDM)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import sqrt
from typing import ClassVar

from scoregraph.graph import options
from scoregraph.graph.samplers.base import MicroStep, Sampler, Walk
from scoregraph.graph.samplers.churn import Churn, added_noise


@dataclass(frozen=True)
class Euler(Churn):
    """X' = X + (kappa' - kappa) eps, where eps = (X - x0) / kappa (Karras et al. 2022, algorithm 2 without line 8).

    With churn, ``order`` says when its noise is added. "before" the network's call, as in the paper and in k-diffusion;
    or "after" it, as in diffusers: the answer at (X, kappa) is then read as if it had been given at (Xhat, khat), and a
    velocity as if at (Xhat, kappa).
    """

    name: ClassVar[str] = "euler"
    needs_finite_kappa: ClassVar[bool] = True
    order: str = field(default="before", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        options.choice(self, "order", ("before", "after"))

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """One call per step, and a row before it where noise is added."""
        for i in range(walk.grid.steps):
            to = walk.grid.point(i + 1)
            if self.order == "after" and self.gamma(walk, walk.grid.point(i)) > 0.0:
                yield self._noise_after(walk, i)
                continue
            at = yield from self.churned(walk, i)
            _, slope = walk.estimates(at)
            yield walk.call(i, at, x=to.alpha * (walk["x"] / at.alpha + (to.kappa - at.kappa) * slope))

    def _noise_after(self, walk: Walk, i: int) -> MicroStep:
        at, to = walk.grid.point(i), walk.grid.point(i + 1)
        hot = walk.grid.at_kappa(at.kappa * (1.0 + self.gamma(walk, at)))
        hot_x = walk["x"] / at.alpha + added_noise(at, hot) * self.s_noise * walk.z
        m = walk.m
        if walk.corrected:  # the answer whose x0, at the point of the call, is the corrected one
            p, q = walk.prediction.to_x0(at.alpha, at.sigma)
            m = (walk.estimates(at)[0] - p * walk["x"]) / q
        p, q = walk.prediction.to_x0(1.0, at.kappa if walk.prediction.name == "v" else hot.kappa)
        x0 = p * hot_x + q * m
        return walk.call(i, at, x=to.alpha * (hot_x + (to.kappa - hot.kappa) * (hot_x - x0) / hot.kappa))


@dataclass(frozen=True)
class EulerAncestral(Sampler):
    """X' = X + (k_down - kappa) eps + k_up s_noise z, with k_up = eta kappa' sqrt(1 - (kappa'/kappa)^2) (k-diffusion).

    k_down^2 = kappa'^2 - k_up^2, by a form that does not cancel: it is (kappa'^2/kappa)^2 for eta = 1. Where nothing of
    kappa' is left to step down to (eta above 1), k_up is kappa'. With ``s_noise`` = 1 the step is DDIM's of the same
    eta, finite at alpha = 0.
    """

    name: ClassVar[str] = "euler_ancestral"
    walks_down: ClassVar[bool] = True
    eta: float = 1.0
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        options.real(self, "eta", low=0.0)
        options.real(self, "s_noise", low=0.0)

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """One call per step."""
        for i in range(walk.grid.steps):
            at, to = walk.grid.point(i), walk.grid.point(i + 1)
            x0, eps = walk.estimates(at)
            # kappa'/kappa is 0, not undefined, where alpha is 0.
            down, up = ancestral(at.alpha * to.sigma / (to.alpha * at.sigma), self.eta)
            yield walk.call(i, at, x=to.alpha * x0 + to.sigma * (down * eps + up * self.s_noise * walk.z))


def ancestral(ratio: float, eta: float) -> tuple[float, float]:
    """(k_down, k_up) in units of kappa', for a step by the factor ``ratio`` = kappa'/kappa < 1: squares sum to 1."""
    kept = (1.0 - eta) * (1.0 + eta) + (eta * ratio) ** 2
    if kept <= 0.0:
        return 0.0, 1.0
    return sqrt(kept), eta * sqrt((1.0 - ratio) * (1.0 + ratio))
