"""Schedules in continuous noise levels: those of EDM in kappa = sigma / alpha, of the VP SDE, and of TrigFlow."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from scoregraph.errors import Location
from scoregraph.graph import options
from scoregraph.graph.schedules import curves
from scoregraph.graph.schedules.base import FINALS, Grid, Stepped


@dataclass(frozen=True)
class NoiseLevels(Stepped):
    """Family of the schedules that say kappa from ``sigma_max`` down to ``sigma_min``; alpha is 1 everywhere.

    With ``final`` "zero" the N levels reach ``sigma_min`` and the last step goes on to 0; with "sigma_min" there are
    N + 1 levels and the last step ends on ``sigma_min``.
    """

    space: ClassVar[str] = "kappa"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    final: str = field(default="zero", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        options.real(self, "sigma_min", low=0.0, above=True)
        options.real(self, "sigma_max", low=0.0, above=True)
        options.ordered(self, "sigma_min", "sigma_max")
        options.choice(self, "final", FINALS)

    def levels(self, n: int) -> NDArray[np.float64]:
        """n noise levels from ``sigma_max`` to ``sigma_min``, float64 [n]."""
        raise TypeError(f"{type(self).__name__} does not define levels")

    def whole_grid(self) -> Grid:
        """alpha = 1 everywhere."""
        if self.final == "zero":
            sigma = (*self.levels(self.steps).tolist(), 0.0)
        else:
            sigma = tuple(self.levels(self.steps + 1).tolist())
        return Grid(self, (1.0,) * len(sigma), sigma, None, self.space)


@dataclass(frozen=True)
class Karras(NoiseLevels):
    """sigma^(1/rho) falls linearly (Karras et al. 2022, equation 5)."""

    name: ClassVar[str] = "karras"
    rho: float = 7.0

    def __post_init__(self) -> None:
        super().__post_init__()
        options.real(self, "rho", low=0.0, above=True)

    def levels(self, n: int) -> NDArray[np.float64]:
        """Karras' curve."""
        return curves.karras(self.sigma_max, self.sigma_min, n, self.rho)


@dataclass(frozen=True)
class Exponential(NoiseLevels):
    """ln sigma falls linearly: even steps of lambda; also the discretization of the VE SDE (Song et al. 2021)."""

    name: ClassVar[str] = "exponential"

    def levels(self, n: int) -> NDArray[np.float64]:
        """The exponential curve."""
        return curves.exponential(self.sigma_max, self.sigma_min, n)


@dataclass(frozen=True)
class Polyexponential(NoiseLevels):
    """ln sigma falls as a power ``rho`` of an even ramp (k-diffusion); ``rho`` = 1 is ``exponential``."""

    name: ClassVar[str] = "polyexponential"
    rho: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        options.real(self, "rho", low=0.0, above=True)

    def levels(self, n: int) -> NDArray[np.float64]:
        """ln sigma = ln low + r^rho (ln high - ln low) for r from 1 to 0."""
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return np.exp(low + np.linspace(1.0, 0.0, n) ** self.rho * (high - low))


@dataclass(frozen=True)
class Beta(NoiseLevels):
    """sigma at quantiles of the beta distribution B(a, b): many levels at both ends (Lee et al. 2024)."""

    name: ClassVar[str] = "beta"
    a: float = 0.6
    b: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        options.real(self, "a", low=0.0, high=100.0, above=True)
        options.real(self, "b", low=0.0, high=100.0, above=True)

    def levels(self, n: int) -> NDArray[np.float64]:
        """The beta curve."""
        return curves.beta(self.sigma_max, self.sigma_min, n, self.a, self.b)


@dataclass(frozen=True)
class VpSde(Stepped):
    """The VP SDE of Song et al. 2021 (equation 32), whose beta(t) grows from ``beta_min`` to ``beta_max`` on 0 … 1.

    alpha = exp(-t^2 (beta_max - beta_min) / 4 - t beta_min / 2) at N even times from 1 to ``end``, and then no noise.
    Their networks are told ``999 t``, the time "timestep" here. With ``final`` "sigma_min" the last step ends at
    ``end``.
    """

    name: ClassVar[str] = "vp_sde"
    space: ClassVar[str] = "vp"
    beta_min: float = 0.1
    beta_max: float = 20.0
    end: float = 1e-3
    final: str = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        options.real(self, "beta_min", low=0.0, above=True)
        options.real(self, "beta_max", low=0.0, above=True)
        options.ordered(self, "beta_min", "beta_max")
        options.real(self, "end", low=0.0, high=0.5, above=True)
        options.choice(self, "final", FINALS)

    def whole_grid(self) -> Grid:
        """Even in time."""
        t = np.linspace(1.0, self.end, self.steps + (self.final == "sigma_min"))
        log_alpha = -(t**2) * (self.beta_max - self.beta_min) / 4 - t * self.beta_min / 2
        alpha, sigma = np.exp(log_alpha), np.sqrt(-np.expm1(2 * log_alpha))
        if self.final == "zero":
            alpha, sigma = np.append(alpha, 1.0), np.append(sigma, 0.0)
        times = tuple((999.0 * t[: self.steps]).tolist())
        return Grid(self, tuple(alpha.tolist()), tuple(sigma.tolist()), times, self.space)

    def timestep_at(self, kappa: float, where: Location | None = None) -> float:
        """999 t, where t solves ln(1 + kappa^2) = t^2 (beta_max - beta_min) / 2 + t beta_min."""
        curvature, total = self.beta_max - self.beta_min, math.log1p(kappa**2)
        # The root in the form that does not cancel where t is small.
        return 999.0 * 2.0 * total / (self.beta_min + math.sqrt(self.beta_min**2 + 2.0 * curvature * total))


@dataclass(frozen=True)
class TrigFlow(Stepped):
    """alpha = cos t, sigma = sin t with t in even steps from ``start`` to 0 (Lu and Song 2025, sCM).

    ``middle`` gives the one time in between when there are two steps, as the distilled two-step models want it. Data
    are scaled to the standard deviation 1; the network's time "angle" is t.
    """

    name: ClassVar[str] = "trigflow"
    space: ClassVar[str] = "vp"
    start: float = math.pi / 2
    middle: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        options.real(self, "start", low=0.0, high=1.5709, above=True)
        options.optional_real(self, "middle", low=0.0, high=self.start)

    def whole_grid(self) -> Grid:
        """The last point is the clean sample."""
        t = np.linspace(self.start, 0.0, self.steps + 1)
        if self.middle is not None and self.steps == 2:
            t[1] = self.middle
        # At pi/2 there is no signal, though the cosine of the nearest float64 is 6e-17; a rounded pi/2 (diffusers has
        # 1.5708) lies beyond it.
        alpha = np.where(t >= math.pi / 2, 0.0, np.cos(t))
        sigma = np.where(t >= math.pi / 2, 1.0, np.sin(t))
        return Grid(self, tuple(alpha.tolist()), tuple(sigma.tolist()), None, self.space)
