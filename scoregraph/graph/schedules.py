"""Noise schedules: from how much noise, over which points, to none.

A schedule of N steps is a ``Grid`` of N + 1 points (alpha, sigma), from the most noise to none (alpha = 1, sigma = 0);
the network is called at the first N. Grids are float64 and exact neighbours: the step from a point always ends at the
next one, so the last one ends at the clean sample.

    schedules.scaled_linear(steps=20, offset=1)      Stable Diffusion 1 and 2
    schedules.karras(steps=12)                       EDM
    schedules.flow(steps=28, shift=3.0)              rectified flows (Stable Diffusion 3, Flux)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from scoregraph.errors import InfiniteSigma, Location, NoTimestep, TooManySteps, UnknownName, ZeroAlpha, here
from scoregraph.graph import options
from scoregraph.graph.prediction import SPACES, Prediction
from scoregraph.graph.spec import Spec

TIMES = ("timestep", "sigma", "c_noise", "flow", "flow1000", "none")
SPACINGS = ("leading", "trailing", "linspace")


@dataclass(frozen=True)
class Point:
    """A noise level: x = alpha x0 + sigma eps, in the space of the grid it belongs to."""

    alpha: float
    sigma: float

    @property
    def kappa(self) -> float:
        """sigma / alpha: the noise level in units of the signal; infinite at alpha = 0."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def lam(self) -> float:
        """ln(alpha / sigma), half the log signal-to-noise ratio: infinite without noise, -infinite without signal."""
        kappa = self.kappa
        return math.inf if kappa == 0.0 else -math.log(kappa) if math.isfinite(kappa) else -math.inf


@dataclass(frozen=True)
class Grid:
    """The points of a schedule: ``alpha`` and ``sigma`` of N + 1 points, and the N training timesteps if it has any."""

    schedule: Schedule
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]
    timesteps: tuple[float, ...] | None = None
    space: str = "vp"

    @property
    def steps(self) -> int:
        """N."""
        return len(self.alpha) - 1

    def point(self, i: int) -> Point:
        """Number ``i`` of the N + 1 points."""
        return Point(self.alpha[i], self.sigma[i])

    def at_kappa(self, kappa: float) -> Point:
        """The point of noise level ``kappa`` in the space of this grid, whether the grid visits it or not."""
        norm = {"kappa": 1.0, "vp": math.hypot(1.0, kappa), "flow": 1.0 + kappa}[self.space]
        return Point(1.0 / norm, kappa / norm)

    @property
    def kappa(self) -> tuple[float, ...]:
        """sigma / alpha of every point: the noise level in units of the signal; infinite at alpha = 0."""
        return tuple(s / a if a else math.inf for a, s in zip(self.alpha, self.sigma, strict=True))

    def in_space(self, space: str, where: Location | None = None) -> Grid:
        """The same points for a latent of another scale: vp (a^2 + s^2 = 1), kappa (a = 1) or flow (a + s = 1)."""
        if space not in SPACES:
            raise UnknownName(kind="latent space", name=space, known=SPACES, where=where)
        if space == "kappa":
            if 0.0 in self.alpha:
                raise InfiniteSigma(what="a latent in kappa space", schedule=self.schedule, where=where)
            scale = self.alpha
        elif space == "vp":
            scale = tuple(map(math.hypot, self.alpha, self.sigma))
        else:
            scale = tuple(a + s for a, s in zip(self.alpha, self.sigma, strict=True))
        alpha = tuple(a / n for a, n in zip(self.alpha, scale, strict=True))
        sigma = tuple(s / n for s, n in zip(self.sigma, scale, strict=True))
        return Grid(self.schedule, alpha, sigma, self.timesteps, space)

    def time_at(self, at: Point, convention: str, where: Location | None = None) -> float:
        """What the network is told at a point of this grid's space, one of the grid's own or one between them."""
        for i, own in enumerate(zip(self.alpha[:-1], self.sigma, strict=False)):
            if own == (at.alpha, at.sigma):
                return self.times(convention, where)[i]
        if convention == "timestep":
            return self.schedule.timestep_at(at.kappa, where)
        between = Grid(self.schedule, (at.alpha, 1.0), (at.sigma, 0.0), None, self.space)
        return between.times(convention, where)[0]

    def times(self, convention: str, where: Location | None = None) -> tuple[float, ...]:
        """What the network is told at the first N points, in its own ``convention`` of time.

        ``timestep``: the training index; ``sigma``: kappa; ``c_noise``: ln(kappa) / 4 (EDM); ``flow``: sigma / (alpha +
        sigma), from 1 down to 0; ``flow1000``: 1000 times that; ``none``: 0, for networks without a time input.
        """
        if convention not in TIMES:
            raise UnknownName(kind="time convention", name=convention, known=TIMES, where=where)
        if convention == "none":
            return (0.0,) * self.steps
        if convention == "timestep":
            if self.timesteps is None:
                raise NoTimestep(schedule=self.schedule, where=where)
            return tuple(map(float, self.timesteps))
        if convention in ("flow", "flow1000"):
            unit = 1000.0 if convention == "flow1000" else 1.0
            return tuple(unit * s / (a + s) for a, s in zip(self.alpha[:-1], self.sigma, strict=False))
        kappa = self.kappa[:-1]
        if math.inf in kappa:
            raise InfiniteSigma(what=f"the network's time {convention!r}", schedule=self.schedule, where=where)
        return kappa if convention == "sigma" else tuple(0.25 * math.log(k) for k in kappa)


@dataclass(frozen=True)
class Schedule(Spec):
    """Family of schedules. Every member has ``steps`` and the space in which its numbers are given."""

    family: ClassVar[str] = "schedule"
    space: ClassVar[str] = ""
    steps: int

    def __post_init__(self) -> None:
        options.whole(self, "steps", low=1)

    def grid(self) -> Grid:
        """The points, in the schedule's own space."""
        raise TypeError(f"{type(self).__name__} does not define grid")

    def timestep_at(self, kappa: float, where: Location | None = None) -> float:
        """The training timestep, not necessarily whole, of a noise level; raises ``NoTimestep``."""
        raise NoTimestep(schedule=self, where=where)

    def has_zero_alpha(self) -> bool:
        """Whether the first point is pure noise, with nothing of x0 left."""
        return self.grid().alpha[0] == 0.0

    def check_prediction(self, prediction: Prediction, where: Location | None = None) -> None:
        """Raise ``ZeroAlpha`` if the network's x0 would be a division by zero at the first point."""
        if prediction.singular and self.has_zero_alpha():
            raise ZeroAlpha(prediction=prediction.name, schedule=self, where=where)

    def check_network(self, time: str, space: str, where: Location | None = None) -> None:
        """Raise if the schedule cannot say the network's ``time``, or its latent ``space`` cannot hold a point."""
        self.grid().times(time, where)
        self.grid().in_space(space, where)


@dataclass(frozen=True)
class Discrete(Schedule):
    """Family of the variance-preserving schedules of DDPM: T training steps with noise beta_t, and a grid of N of them.

    ``spacing`` says which training timesteps are visited: ``leading`` the multiples of T//N plus ``offset``;
    ``trailing`` from T - 1 down in steps of T/N; ``linspace`` evenly from T - 1 to 0. ``zero_snr`` rescales alpha so
    that the last training step holds no signal (Lin et al. 2024).
    """

    space: ClassVar[str] = "vp"
    spacing: str = "leading"
    train_steps: int = 1000
    offset: int = 0
    zero_snr: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        options.choice(self, "spacing", SPACINGS)
        options.whole(self, "train_steps", low=1)
        options.whole(self, "offset", low=0)
        options.flag(self, "zero_snr")

    def betas(self) -> NDArray[np.float64]:
        """The noise variance that each of the T training steps adds, float64 [T]."""
        raise TypeError(f"{type(self).__name__} does not define betas")

    @cached_property
    def alphas_cumprod(self) -> NDArray[np.float64]:
        """alpha^2 of every training timestep, float64 [T]."""
        products = np.cumprod(1.0 - self.betas(), dtype=np.float64)
        if not self.zero_snr:
            return products
        alpha = np.sqrt(products, dtype=np.float64)
        first, last = alpha[0], alpha[-1]
        alpha = (alpha - last) * (first / (first - last))
        return alpha * alpha

    def timestep_at(self, kappa: float, where: Location | None = None) -> float:
        """Linear between the training timesteps in ln kappa, as k-diffusion and diffusers have it."""
        squares = self.alphas_cumprod
        known = 0.5 * (np.log1p(-squares) - np.log(np.maximum(squares, 1e-300)))
        return float(np.interp(math.log(kappa), known, np.arange(self.train_steps)))

    def timesteps(self) -> tuple[int, ...]:
        """The N training timesteps, in descending order."""
        n, train = self.steps, self.train_steps
        if n > train:
            raise TooManySteps(spec=self, needed=n - 1, last=train - 1, where=here())
        if self.spacing == "leading":
            visited = np.arange(n)[::-1] * (train // n) + self.offset
        elif self.spacing == "trailing":
            visited = np.round(np.arange(train, 0, -train / n)[:n]) - 1
        else:
            visited = np.round(np.linspace(train - 1, 0, n))
        if visited[0] >= train:
            raise TooManySteps(spec=self, needed=int(visited[0]), last=train - 1, where=here())
        return tuple(int(t) for t in visited)

    def grid(self) -> Grid:
        """The visited training steps, and then the clean sample."""
        timesteps = self.timesteps()
        squares = self.alphas_cumprod[list(timesteps)]
        alpha = np.append(np.sqrt(squares), 1.0)
        sigma = np.append(np.sqrt(1.0 - squares), 0.0)
        return Grid(self, tuple(alpha.tolist()), tuple(sigma.tolist()), timesteps, self.space)


@dataclass(frozen=True)
class Linear(Discrete):
    """Beta grows linearly (Ho et al. 2020)."""

    name: ClassVar[str] = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_betas(self)

    def betas(self) -> NDArray[np.float64]:
        """Evenly from ``beta_start`` to ``beta_end``."""
        return np.linspace(self.beta_start, self.beta_end, self.train_steps)


@dataclass(frozen=True)
class ScaledLinear(Discrete):
    """The square root of beta grows linearly (Rombach et al. 2022, Stable Diffusion)."""

    name: ClassVar[str] = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_betas(self)

    def betas(self) -> NDArray[np.float64]:
        """The squares of even steps from sqrt(``beta_start``) to sqrt(``beta_end``)."""
        root = np.linspace(math.sqrt(self.beta_start), math.sqrt(self.beta_end), self.train_steps)
        return root * root


def _check_betas(schedule: Linear | ScaledLinear) -> None:
    options.real(schedule, "beta_start", low=0.0, high=0.999, above=True)
    options.real(schedule, "beta_end", low=0.0, high=0.999, above=True)
    options.ordered(schedule, "beta_start", "beta_end")


@dataclass(frozen=True)
class Cosine(Discrete):
    """alpha^2 follows a squared cosine (Nichol and Dhariwal 2021; diffusers' ``squaredcos_cap_v2``)."""

    name: ClassVar[str] = "cosine"
    max_beta: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        options.real(self, "max_beta", low=0.0, high=0.9999, above=True)

    def betas(self) -> NDArray[np.float64]:
        """1 - abar(t+1)/abar(t) with abar(t) = cos((t/T + 0.008) / 1.008 * pi/2)^2, at most ``max_beta``."""
        t = np.arange(self.train_steps + 1) / self.train_steps
        abar = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1.0 - abar[1:] / abar[:-1], self.max_beta)


@dataclass(frozen=True)
class Karras(Schedule):
    """sigma^(1/rho) falls linearly from ``sigma_max`` to ``sigma_min``, then 0 (Karras et al. 2022, equation 5)."""

    name: ClassVar[str] = "karras"
    space: ClassVar[str] = "kappa"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        super().__post_init__()
        options.real(self, "sigma_min", low=0.0, above=True)
        options.real(self, "sigma_max", low=0.0, above=True)
        options.real(self, "rho", low=0.0, above=True)
        options.ordered(self, "sigma_min", "sigma_max")

    def grid(self) -> Grid:
        """alpha = 1 everywhere."""
        root = np.linspace(math.pow(self.sigma_max, 1 / self.rho), math.pow(self.sigma_min, 1 / self.rho), self.steps)
        return _kappa_grid(self, np.power(root, self.rho))


@dataclass(frozen=True)
class Exponential(Schedule):
    """ln sigma falls linearly from ``sigma_max`` to ``sigma_min``, then 0."""

    name: ClassVar[str] = "exponential"
    space: ClassVar[str] = "kappa"
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        super().__post_init__()
        options.real(self, "sigma_min", low=0.0, above=True)
        options.real(self, "sigma_max", low=0.0, above=True)
        options.ordered(self, "sigma_min", "sigma_max")

    def grid(self) -> Grid:
        """alpha = 1 everywhere."""
        return _kappa_grid(self, np.exp(np.linspace(math.log(self.sigma_max), math.log(self.sigma_min), self.steps)))


def _kappa_grid(schedule: Schedule, sigma: NDArray[np.float64]) -> Grid:
    return Grid(schedule, (1.0,) * (len(sigma) + 1), (*sigma.tolist(), 0.0), None, schedule.space)


@dataclass(frozen=True)
class Flow(Schedule):
    """The straight path alpha = 1 - sigma, with sigma from 1 to 0 in even steps, ``shift``ed towards the noise.

    sigma = shift*s / (1 + (shift-1)*s) for s = 1, 1 - 1/N, … 1/N, 0 (Esser et al. 2024; shift grows with resolution).
    """

    name: ClassVar[str] = "flow"
    space: ClassVar[str] = "flow"
    shift: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        options.real(self, "shift", low=0.0, above=True)

    def grid(self) -> Grid:
        """alpha = 1 - sigma; the first point is pure noise."""
        s = np.arange(self.steps, -1, -1) / self.steps
        sigma = self.shift * s / (1.0 + (self.shift - 1.0) * s)
        # (1 - s) / (1 + (shift-1) s) is 1 - sigma without cancellation.
        alpha = (1.0 - s) / (1.0 + (self.shift - 1.0) * s)
        return Grid(self, tuple(alpha.tolist()), tuple(sigma.tolist()), None, self.space)


linear = Linear
scaled_linear = ScaledLinear
cosine = Cosine
karras = Karras
exponential = Exponential
flow = Flow
