"""Samplers as their papers state them, on tensors and step by step: the independent check of the step tables.

Nothing here is shared with ``scoregraph.graph.samplers``. A step is written in the variables of its paper and scaled to
the latent's space at its ends. Notation: the state is x = alpha x0 + sigma eps; X = x / alpha and k = sigma / alpha
(EDM); abar = alpha^2 / (alpha^2 + sigma^2) (DDPM); s = sigma / (alpha + sigma) (flows).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Point:
    """A point of a schedule, in the space of the latent."""

    alpha: float
    sigma: float

    @property
    def kappa(self) -> float:
        """sigma / alpha."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def abar(self) -> float:
        """The signal's share of the variance."""
        return self.alpha**2 / (self.alpha**2 + self.sigma**2)

    @property
    def vp(self) -> float:
        """What x is divided by to get the variance-preserving state."""
        return math.hypot(self.alpha, self.sigma)

    @property
    def flow(self) -> float:
        """What x is divided by to get the flow state."""
        return self.alpha + self.sigma

    @property
    def s(self) -> float:
        """The time of the straight path."""
        return self.sigma / self.flow


def clean(prediction: Any, m: Tensor, x: Tensor, at: Point) -> Tensor:
    """x0 from the network's answer m, by the definition of each parameterization in its own space."""
    match prediction.name:
        case "eps":
            return (x - at.sigma * m) / at.alpha
        case "x0":
            return m
        case "v":
            return math.sqrt(at.abar) * (x / at.vp) - math.sqrt(1 - at.abar) * m
        case "flow":
            return x / at.flow - at.s * m
        case "score":
            return (x + at.sigma**2 * m) / at.alpha
        case "edm" | "consistency":
            data = prediction.sigma_data
            if math.isinf(at.kappa):
                return data * m  # the limit: nothing of x is kept
            k = at.kappa
            gap = k - prediction.sigma_min if prediction.name == "consistency" else k
            c_skip = data**2 / (gap**2 + data**2)
            c_out = gap * data / math.sqrt(k**2 + data**2)
            return c_skip * (x / at.alpha) + c_out * m
        case _:  # its own definition
            p, q = prediction.to_x0(at.alpha, at.sigma)
            return p * x + q * m


def answer(prediction: Any, x0: Tensor, x: Tensor, at: Point) -> Tensor:
    """What a network of a parameterization answers where x is the state and x0 the clean sample: ``clean`` undone."""
    eps = (x - at.alpha * x0) / at.sigma
    match prediction.name:
        case "eps":
            return eps
        case "x0":
            return x0
        case "v":
            return math.sqrt(at.abar) * eps - math.sqrt(1 - at.abar) * x0
        case "flow":
            return eps - x0
        case "score":
            return -eps / at.sigma
        case _:  # the others add a share of x to a multiple of the answer
            return (x0 - clean(prediction, 0.0 * x, x, at)) / (clean(prediction, 0.0 * x + 1.0, 0.0 * x, at))


@dataclass
class Walk:
    """What a sampler needs for one step: the state, where it is and goes, the denoiser D, fresh noise, its memory."""

    x: Tensor
    here: Point
    there: Point
    denoise: Callable[[Tensor, Point], Tensor]
    noise: Callable[[], Tensor]
    prediction: Any
    memory: dict[str, Any] = field(default_factory=dict[str, Any])


def ddim(sampler: Any, walk: Walk) -> Tensor:
    """Song, Meng and Ermon 2021, equations 12 and 16."""
    here, there = walk.here.abar, walk.there.abar
    x0 = walk.denoise(walk.x, walk.here)
    eps = (walk.x / walk.here.vp - math.sqrt(here) * x0) / math.sqrt(1 - here)
    std = sampler.eta * math.sqrt((1 - there) / (1 - here)) * math.sqrt(1 - here / there)
    x = math.sqrt(there) * x0 + math.sqrt(max(1 - there - std**2, 0.0)) * eps
    if std > 0:
        x = x + std * walk.noise()
    return walk.there.vp * x


def euler(sampler: Any, walk: Walk) -> Tensor:
    """Karras et al. 2022, algorithm 1 without the correction."""
    big_x, k, k_next = walk.x / walk.here.alpha, walk.here.kappa, walk.there.kappa
    slope = (big_x - walk.denoise(walk.x, walk.here)) / k
    return walk.there.alpha * (big_x + (k_next - k) * slope)


def heun(sampler: Any, walk: Walk) -> Tensor:
    """Karras et al. 2022, algorithm 1."""
    big_x, k, k_next = walk.x / walk.here.alpha, walk.here.kappa, walk.there.kappa
    slope = (big_x - walk.denoise(walk.x, walk.here)) / k
    x_next = big_x + (k_next - k) * slope
    if k_next != 0:
        slope_next = (x_next - walk.denoise(walk.there.alpha * x_next, walk.there)) / k_next
        x_next = big_x + (k_next - k) * (slope + slope_next) / 2
    return walk.there.alpha * x_next


def flow_euler(sampler: Any, walk: Walk) -> Tensor:
    """Liu et al. 2023: a step along the velocity (x - x0) / s of the straight path."""
    x = walk.x / walk.here.flow
    velocity = (x - walk.denoise(walk.x, walk.here)) / walk.here.s
    return walk.there.flow * (x + (walk.there.s - walk.here.s) * velocity)


def dpmpp_2m(sampler: Any, walk: Walk) -> Tensor:
    """Lu et al. 2022, algorithm 2, in the variables of k-diffusion (alpha = 1) with lambda = -ln k."""
    k, k_next = walk.here.kappa, walk.there.kappa
    lam = -math.log(k) if math.isfinite(k) else -math.inf
    lam_next = -math.log(k_next) if k_next else math.inf
    h = lam_next - lam
    d0 = walk.denoise(walk.x, walk.here)
    # k'/k X is k' x / sigma, which is finite at alpha = 0.
    x = k_next * (walk.x / walk.here.sigma) - math.expm1(-h) * d0
    if "d1" in walk.memory and k_next != 0:
        r0 = walk.memory["h"] / h
        slope = (d0 - walk.memory["d1"]) / r0
        if sampler.correction == "midpoint":
            x = x - 0.5 * math.expm1(-h) * slope
        else:
            x = x + (math.expm1(-h) / h + 1) * slope
    walk.memory.update(d1=d0, h=h)
    return walk.there.alpha * x


def consistency(sampler: Any, walk: Walk) -> Tensor:
    """Song et al. 2023, algorithm 1."""
    big_x = walk.denoise(walk.x, walk.here)
    boundary = getattr(walk.prediction, "sigma_min", 0.0)
    k_next = max(walk.there.kappa, boundary)
    if k_next > boundary:
        big_x = big_x + math.sqrt(k_next**2 - boundary**2) * walk.noise()
    return walk.there.alpha * big_x


STEPS: dict[str, Callable[[Any, Walk], Tensor]] = {
    step.__name__: step for step in (ddim, euler, heun, flow_euler, dpmpp_2m, consistency)
}
OPTIONS = {"ddim": ("eta",), "dpmpp_2m": ("correction",)}
"""The options that a step follows; others it knows only at their defaults."""


def knows(sampler: Any) -> bool:
    """Whether a step of ``STEPS`` says all of what a sampler does."""
    followed = OPTIONS.get(sampler.name, ())
    rest = (option for option in fields(sampler) if option.name not in followed)
    return sampler.name in STEPS and all(getattr(sampler, option.name) == option.default for option in rest)
