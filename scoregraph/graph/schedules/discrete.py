"""The discrete schedules of DDPM: T training steps, of which N are visited."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from scoregraph.errors import Location, TooManySteps, here
from scoregraph.graph import options
from scoregraph.graph.schedules.base import FINALS, SPACINGS, Grid, Stepped
from scoregraph.graph.schedules.curves import CURVES

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Discrete(Stepped):
    """Family of the variance-preserving schedules of DDPM: T training steps with noise beta_t, and a grid of N of them.

    Attributes:
        spacing: which training timesteps are visited. ``leading``: the multiples of T//N, plus ``offset``;
            ``trailing``: from T - 1 down in steps of T/N; ``linspace``: evenly from T - 1 to 0; ``distilled``: N of the
            ``distilled_steps`` timesteps that latent consistency models (LCM, TCD) are distilled at.
        zero_snr: alpha is rescaled so that the last training step holds no signal (Lin et al. 2024), or, as some
            libraries do to keep kappa finite, alpha^2 = ``terminal`` there.
        sigmas: "table" visits the timesteps of ``spacing``. "karras", "exponential" (also "lu") and "beta" follow that
            curve of kappa instead, between the noise levels of the first and the last training step, or between
            ``sigma_max`` and ``sigma_min``; their timesteps are interpolated.
        rounding: "whole" tells the network whole timesteps, "none" fractions; "auto" rounds those of the table, not
            those of curves. A fractional timestep of the table has the kappa between its neighbours'.
        final: where the last step ends: "zero", no noise, or "sigma_min", the noise of timestep 0.
        open_end: one step more than N, and the last of them left out (``leading`` and ``linspace``): the habit of
            multistep solvers in diffusers.
        lambda_min: training steps whose ln(alpha / sigma) is lower are not visited.
        precision: "float64", or "float32" for the rounding of libraries that keep beta and alpha^2 in float32.
    """

    space: ClassVar[str] = "vp"
    spacing: str = "leading"
    train_steps: int = 1000
    offset: int = 0
    zero_snr: bool = False
    sigmas: str = field(default="table", kw_only=True)
    sigma_min: float | None = field(default=None, kw_only=True)
    sigma_max: float | None = field(default=None, kw_only=True)
    rounding: str = field(default="auto", kw_only=True)
    final: str = field(default="zero", kw_only=True)
    open_end: bool = field(default=False, kw_only=True)
    lambda_min: float | None = field(default=None, kw_only=True)
    distilled_steps: int = field(default=50, kw_only=True)
    terminal: float = field(default=0.0, kw_only=True)
    precision: str = field(default="float64", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        options.choice(self, "spacing", SPACINGS)
        options.whole(self, "train_steps", low=1)
        options.whole(self, "offset", low=0)
        options.flag(self, "zero_snr")
        options.choice(self, "sigmas", ("table", *CURVES))
        for name in ("sigma_min", "sigma_max"):
            if getattr(self, name) is not None:
                options.real(self, name, low=0.0, above=True)
        if self.sigma_min is not None and self.sigma_max is not None:
            options.ordered(self, "sigma_min", "sigma_max")
        options.choice(self, "rounding", ("auto", "whole", "none"))
        options.choice(self, "final", FINALS)
        options.flag(self, "open_end")
        options.optional_real(self, "lambda_min")
        options.whole(self, "distilled_steps", low=1)
        if self.spacing == "distilled":
            options.whole(self, "distilled_steps", low=1, high=self.train_steps)
        options.real(self, "terminal", low=0.0, high=0.5)
        options.choice(self, "precision", ("float64", "float32"))

    def betas(self) -> Float64:
        """The noise variance that each of the T training steps adds, float64 [T]."""
        raise TypeError(f"{type(self).__name__} does not define betas")

    @cached_property
    def alphas_cumprod(self) -> Float64:
        """alpha^2 of every training timestep, float64 [T]."""
        products = self._products(self.betas())
        if not self.zero_snr:
            return products
        alpha = np.sqrt(products)
        first, last = alpha[0], alpha[-1]
        alpha = (alpha - last) * (first / (first - last))
        squares = alpha * alpha
        if self.precision == "float32":  # libraries go back to beta and multiply again
            squares = self._products(1.0 - np.append(squares[:1], squares[1:] / squares[:-1]))
        squares[-1] = self.terminal
        return squares

    def _products(self, betas: Float64) -> Float64:
        """The products of 1 - beta; in float32, each rounded, as torch.cumprod makes them."""
        if self.precision == "float64":
            return np.cumprod(1.0 - betas, dtype=np.float64)
        factors = np.float32(1.0) - betas.astype(np.float32)
        return np.cumprod(factors.astype(np.float64)).astype(np.float32).astype(np.float64)

    @cached_property
    def kappas(self) -> Float64:
        """sigma / alpha of every training timestep, float64 [T]; infinite where alpha is 0."""
        squares = self.alphas_cumprod
        with np.errstate(divide="ignore"):
            return np.sqrt((1.0 - squares) / squares)

    def timestep_at(self, kappa: float, where: Location | None = None) -> float:
        """Linear between the training timesteps in ln kappa, as k-diffusion and diffusers have it."""
        known = np.log(np.minimum(self.kappas, 1e150))
        return float(np.interp(math.log(max(kappa, 1e-300)), known, np.arange(self.train_steps)))

    def kappa_at(self, timestep: float, where: Location | None = None) -> float:
        """That of the training steps, and between them linear in ln kappa."""
        known = np.log(np.minimum(self.kappas, 1e150))
        if timestep == int(timestep) and 0 <= timestep < self.train_steps:
            return float(self.kappas[int(timestep)])
        return float(np.exp(np.interp(timestep, np.arange(self.train_steps), known)))

    def timesteps(self) -> tuple[float, ...]:
        """The N training timesteps of the spacing, in descending order."""
        return tuple(self._spaced().tolist())

    def _spaced(self) -> Float64:
        n, train = self.steps, self.train_steps
        if n > train:
            raise TooManySteps(spec=self, needed=n - 1, last=train - 1, where=here())
        usable = train
        if self.lambda_min is not None:
            usable = max(int(np.sum(-np.log(np.maximum(self.kappas, 1e-300)) >= self.lambda_min)), 1)
        made = n + 1 if self.open_end else n
        if self.spacing == "leading":
            visited = np.arange(made)[::-1][:n] * (usable // made) + self.offset
        elif self.spacing == "trailing":
            visited = np.arange(usable, 0, -train / n)[:n]
            visited = (np.round(visited) if self._rounds("table") else visited) - 1
        elif self.spacing == "linspace":
            visited = np.linspace(usable - 1, 0, made)[:n]
            visited = np.round(visited) if self._rounds("table") else visited
        else:
            taught = np.arange(self.distilled_steps, 0, -1) * (train // self.distilled_steps) - 1
            if n > len(taught):
                raise TooManySteps(spec=self, needed=n - 1, last=len(taught) - 1, where=here())
            visited = taught[np.floor(np.linspace(0, len(taught), n, endpoint=False)).astype(int)]
        if visited[0] >= train or len(visited) < n:
            raise TooManySteps(spec=self, needed=int(max(visited[0], n - 1)), last=train - 1, where=here())
        return visited.astype(np.float64)

    def _rounds(self, source: str) -> bool:
        return self.rounding == "whole" or (self.rounding == "auto" and source == "table")

    def whole_grid(self) -> Grid:
        """The visited noise levels, and then the clean sample or the noise of timestep 0."""
        alpha, sigma, timesteps = self._on_table() if self.sigmas == "table" else self._on_curve()
        if self.final == "zero":
            end = (1.0, 0.0)
        else:
            end = (math.sqrt(self.alphas_cumprod[0]), math.sqrt(1.0 - self.alphas_cumprod[0]))
        alpha, sigma = (*alpha.tolist(), end[0]), (*sigma.tolist(), end[1])
        whole = tuple(int(t) if t == int(t) else t for t in timesteps.tolist())
        return Grid(self, alpha, sigma, whole, self.space)

    def _on_table(self) -> tuple[Float64, Float64, Float64]:
        """(alpha, sigma, timesteps) [N] of the training steps that the spacing visits."""
        timesteps = self._spaced()
        if np.all(timesteps == np.round(timesteps)):
            squares = self.alphas_cumprod[timesteps.astype(int)]
            return np.sqrt(squares), np.sqrt(1.0 - squares), timesteps
        kappa = np.interp(timesteps, np.arange(self.train_steps), self.kappas)
        return 1.0 / np.hypot(1.0, kappa), kappa / np.hypot(1.0, kappa), timesteps

    def _on_curve(self) -> tuple[Float64, Float64, Float64]:
        """(alpha, sigma, timesteps) [N] along the curve of kappa."""
        finite = self.kappas[np.isfinite(self.kappas)]
        low = finite[0] if self.sigma_min is None else self.sigma_min
        high = finite[-1] if self.sigma_max is None else self.sigma_max
        kappa = CURVES[self.sigmas](float(high), float(low), self.steps)
        timesteps = np.array([self.timestep_at(k) for k in kappa.tolist()])
        if self._rounds("curve"):
            timesteps = np.round(timesteps).astype(np.float64)
        return 1.0 / np.hypot(1.0, kappa), kappa / np.hypot(1.0, kappa), timesteps


@dataclass(frozen=True)
class BetaRange(Discrete):
    """Family of the schedules whose beta goes from ``beta_start`` to ``beta_end``."""

    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        options.real(self, "beta_start", low=0.0, high=0.999, above=True)
        options.real(self, "beta_end", low=0.0, high=0.999, above=True)
        options.ordered(self, "beta_start", "beta_end")


@dataclass(frozen=True)
class Linear(BetaRange):
    """Beta grows linearly (Ho et al. 2020)."""

    name: ClassVar[str] = "linear"

    def betas(self) -> Float64:
        """Evenly from ``beta_start`` to ``beta_end``."""
        return np.linspace(self.beta_start, self.beta_end, self.train_steps)


@dataclass(frozen=True)
class ScaledLinear(BetaRange):
    """The square root of beta grows linearly (Rombach et al. 2022, Stable Diffusion)."""

    name: ClassVar[str] = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012

    def betas(self) -> Float64:
        """The squares of even steps from sqrt(``beta_start``) to sqrt(``beta_end``)."""
        root = np.linspace(math.sqrt(self.beta_start), math.sqrt(self.beta_end), self.train_steps)
        if self.precision == "float32":
            root = root.astype(np.float32)
        return (root * root).astype(np.float64)


@dataclass(frozen=True)
class Sigmoid(BetaRange):
    """Beta follows a sigmoid on -6 … 6 (Xu et al. 2022, GeoDiff)."""

    name: ClassVar[str] = "sigmoid"

    def betas(self) -> Float64:
        """``beta_start`` + (``beta_end`` - ``beta_start``) / (1 + e^-u), u even from -6 to 6."""
        u = np.linspace(-6.0, 6.0, self.train_steps)
        return self.beta_start + (self.beta_end - self.beta_start) / (1.0 + np.exp(-u))


@dataclass(frozen=True)
class AlphaBar(Discrete):
    """Family of the schedules that state alpha^2 as a function of t/T; each beta is at most ``max_beta``."""

    max_beta: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        options.real(self, "max_beta", low=0.0, high=0.9999, above=True)

    def alpha_bar(self, t: Float64) -> Float64:
        """alpha^2 at the times ``t`` in 0 … 1."""
        raise TypeError(f"{type(self).__name__} does not define alpha_bar")

    def betas(self) -> Float64:
        """1 - abar(t+1)/abar(t), at most ``max_beta``."""
        abar = self.alpha_bar(np.arange(self.train_steps + 1) / self.train_steps)
        return np.minimum(1.0 - abar[1:] / abar[:-1], self.max_beta)


@dataclass(frozen=True)
class Cosine(AlphaBar):
    """alpha^2 follows a squared cosine (Nichol and Dhariwal 2021; diffusers' ``squaredcos_cap_v2``)."""

    name: ClassVar[str] = "cosine"

    def alpha_bar(self, t: Float64) -> Float64:
        """cos((t + 0.008) / 1.008 * pi/2)^2."""
        return np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2


@dataclass(frozen=True)
class ExponentialDecay(AlphaBar):
    """alpha^2 = e^(-12 t) (diffusers' ``exp``)."""

    name: ClassVar[str] = "exponential_decay"

    def alpha_bar(self, t: Float64) -> Float64:
        """e^(-12 t)."""
        return np.exp(-12.0 * t)


@dataclass(frozen=True)
class Laplace(AlphaBar):
    """The log signal-to-noise ratio has a Laplace distribution over the training times (Hang et al. 2024).

    diffusers' ``laplace``, its square root included: it takes sqrt(snr / (1 + snr)) as alpha^2.
    """

    name: ClassVar[str] = "laplace"

    def alpha_bar(self, t: Float64) -> Float64:
        """sqrt(snr / (1 + snr)), ln snr = -sign(1/2 - t) ln(1 - 2 |1/2 - t| + 1e-6) / 2."""
        log_snr = -0.5 * np.copysign(1.0, 0.5 - t) * np.log(1.0 - 2.0 * np.abs(0.5 - t) + 1e-6)
        return np.sqrt(1.0 / (1.0 + np.exp(-log_snr)))


@dataclass(frozen=True)
class Betas(Discrete):
    """The betas of one's own training run, one for each training timestep: ``betas(steps=20, values=(…))``."""

    name: ClassVar[str] = "betas"
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        options.reals(self, "values")
        object.__setattr__(self, "train_steps", len(self.values))
        object.__setattr__(self, "distilled_steps", min(self.distilled_steps, len(self.values)))
        super().__post_init__()

    def betas(self) -> Float64:
        """As given."""
        return np.array(self.values)
