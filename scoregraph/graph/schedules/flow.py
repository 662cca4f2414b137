"""The straight path of rectified flows, and how resolution shifts it towards the noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from scoregraph.graph import options
from scoregraph.graph.schedules.base import Grid, Stepped
from scoregraph.graph.schedules.curves import CURVES


@dataclass(frozen=True)
class Flow(Stepped):
    """The straight path alpha = 1 - sigma, with sigma from ``sigma_max`` to 0, ``shift``ed towards the noise.

    sigma = shift*s / (1 + (shift-1)*s) for s = 1, 1 - 1/N, … 1/N, 0 (Esser et al. 2024; shift grows with resolution).
    In kappa = sigma / alpha that is a factor: kappa = shift * s / (1 - s).

    Attributes:
        sigma_max: the first s.
        sigma_min: the last s before 0; without it the steps to 0 are even.
        terminal: the noise level, after the shift, to which the last point before 0 is stretched (LTX-Video). With one
            step there is nothing to stretch.
        curve: how the shifted levels are placed between their ends: "even", or a curve of ``schedules.curves``.
    """

    name: ClassVar[str] = "flow"
    space: ClassVar[str] = "flow"
    shift: float = 1.0
    sigma_max: float = field(default=1.0, kw_only=True)
    sigma_min: float | None = field(default=None, kw_only=True)
    terminal: float | None = field(default=None, kw_only=True)
    curve: str = field(default="even", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        options.real(self, "shift", low=0.0, above=True)
        options.real(self, "sigma_max", low=0.0, high=1.0, above=True)
        if self.sigma_min is not None:
            options.real(self, "sigma_min", low=0.0, high=1.0, above=True)
            options.ordered(self, "sigma_min", "sigma_max")
        if self.terminal is not None:
            options.real(self, "terminal", low=0.0, high=0.999)
        options.choice(self, "curve", ("even", *CURVES))

    def whole_grid(self) -> Grid:
        """alpha = 1 - sigma; with ``sigma_max`` = 1 the first point is pure noise."""
        n = self.steps
        if self.sigma_min is None:
            s = self.sigma_max * np.arange(n, 0, -1) / n
        else:
            s = np.linspace(self.sigma_max, self.sigma_min, n)
        # (1 - s) / (1 + (shift-1) s) is 1 - sigma without cancellation.
        sigma = self.shift * s / (1.0 + (self.shift - 1.0) * s)
        alpha = (1.0 - s) / (1.0 + (self.shift - 1.0) * s)
        if self.terminal is not None and n > 1:
            alpha = alpha * (1.0 - self.terminal) / alpha[-1]
            sigma = 1.0 - alpha
        if self.curve != "even":
            sigma = CURVES[self.curve](float(sigma[0]), float(sigma[-1]), n)
            sigma[0] = min(sigma[0], 1.0)
            alpha = 1.0 - sigma
        return Grid(self, (*alpha.tolist(), 1.0), (*sigma.tolist(), 0.0), None, self.space)


def resolution_shift(
    tokens: float,
    base: tuple[float, float] = (256, 0.5),
    top: tuple[float, float] = (4096, 1.15),
    kind: str = "exponential",
) -> float:
    """The shift for a latent of ``tokens`` image tokens: exp(mu) or, with ``kind`` "linear", mu.

    mu is the straight line through (tokens, mu) = ``base`` and ``top``; the defaults are those of Flux (Black Forest
    Labs 2024). It is not cut off beyond them.
    """
    (x0, y0), (x1, y1) = base, top
    mu = y0 + (tokens - x0) * (y1 - y0) / (x1 - x0)
    return {"exponential": math.exp, "linear": float}[kind](mu)


def flow_for(
    shape: Sequence[int],
    steps: int,
    *,
    patch: int = 2,
    base: tuple[float, float] = (256, 0.5),
    top: tuple[float, float] = (4096, 1.15),
    kind: str = "exponential",
    **options: Any,
) -> Flow:
    """``flow`` with the shift that fits a latent of a shape [channels, *extent], per sample.

    Its tokens are patches of ``patch`` elements along each of the last two axes (and single frames along others before
    them). What comes back is plain: the shift is a number in it, so another shape is another schedule.
    """
    *frames, height, width = shape[1:]
    tokens = math.prod(frames) * (height / patch) * (width / patch)
    return Flow(steps=steps, shift=resolution_shift(tokens, base, top, kind), **options)
