"""The family of schedules: points of noise, grids of them, and what a network calls their time."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass, replace
from itertools import pairwise
from typing import ClassVar, TypeVar, get_args

from scoregraph.errors import InfiniteSigma, Location, NoTimestep, OptionOutOfRange, UnknownName, ZeroAlpha, here
from scoregraph.graph import options
from scoregraph.graph.prediction import SPACES, Prediction
from scoregraph.graph.spec import Spec
from scoregraph.graph.values import TimeConvention

TIMES = get_args(TimeConvention)
SPACINGS = ("leading", "trailing", "linspace", "distilled")


def scale_of(space: str, alpha: float, sigma: float) -> float:
    """What a point (alpha, sigma) is divided by to lie in a space: vp, kappa or flow. 0 where it cannot (alpha = 0)."""
    return {"kappa": alpha, "vp": math.hypot(alpha, sigma), "flow": alpha + sigma}[space]


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
        norm = scale_of(self.space, 1.0, kappa)
        return Point(1.0 / norm, kappa / norm)

    @property
    def kappa(self) -> tuple[float, ...]:
        """sigma / alpha of every point: the noise level in units of the signal; infinite at alpha = 0."""
        return tuple(s / a if a else math.inf for a, s in zip(self.alpha, self.sigma, strict=True))

    def after(self, steps: int) -> Grid:
        """The grid without its first ``steps`` points."""
        times = None if self.timesteps is None else self.timesteps[steps:]
        return replace(self, alpha=self.alpha[steps:], sigma=self.sigma[steps:], timesteps=times)

    def ascending(self) -> Grid:
        """The points with noise in the opposite order, from the least noise to the most."""
        noisy = [i for i in reversed(range(len(self.sigma))) if self.sigma[i] > 0.0]
        times = None
        if self.timesteps is not None:
            own, kappa = dict(enumerate(self.timesteps)), self.kappa
            times = tuple(own[i] if i in own else self.schedule.timestep_at(kappa[i]) for i in noisy[:-1])
        alpha, sigma = (tuple(values[i] for i in noisy) for values in (self.alpha, self.sigma))
        return replace(self, alpha=alpha, sigma=sigma, timesteps=times)

    def in_space(self, space: str, where: Location | None = None) -> Grid:
        """The same points for a latent of another scale: vp (a^2 + s^2 = 1), kappa (a = 1) or flow (a + s = 1)."""
        if space not in SPACES:
            raise UnknownName(kind="latent space", name=space, known=SPACES, where=where)
        if space == self.space:
            return self
        if space == "kappa" and 0.0 in self.alpha:
            raise InfiniteSigma(what="a latent in kappa space", schedule=self.schedule, where=where)
        scale = [scale_of(space, a, s) for a, s in zip(self.alpha, self.sigma, strict=True)]
        alpha = tuple(a / n for a, n in zip(self.alpha, scale, strict=True))
        sigma = tuple(s / n for s, n in zip(self.sigma, scale, strict=True))
        return replace(self, alpha=alpha, sigma=sigma, space=space)

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
        sigma), from 1 down to 0; ``flow1000``: 1000 times that; ``angle``: atan(kappa), from pi/2 down to 0 (TrigFlow);
        ``none``: 0, for networks without a time input.
        """
        if convention not in TIMES:
            raise UnknownName(kind="time convention", name=convention, known=TIMES, where=where)
        points = list(zip(self.alpha[:-1], self.sigma, strict=False))
        if convention == "none":
            return (0.0,) * self.steps
        if convention == "timestep":
            if self.timesteps is None:
                raise NoTimestep(schedule=self.schedule, where=where)
            return tuple(map(float, self.timesteps))
        if convention in ("flow", "flow1000"):
            unit = 1000.0 if convention == "flow1000" else 1.0
            return tuple(unit * s / (a + s) for a, s in points)
        if convention == "angle":
            return tuple(math.atan2(s, a) for a, s in points)
        kappa = self.kappa[:-1]
        if math.inf in kappa:
            raise InfiniteSigma(what=f"the network's time {convention!r}", schedule=self.schedule, where=where)
        return kappa if convention == "sigma" else tuple(0.25 * math.log(k) for k in kappa)


@dataclass(frozen=True)
class Schedule(Spec):
    """Family of schedules.

    Attributes:
        skip: how many of the first steps are left out. The state then starts at that point: a given image with the
            noise of its level (``g.renoise``), not noise alone.
        ascending: walk from the last point with noise up to the first, as likelihoods and inversions do. A final point
            without noise is not part of that walk.
    """

    family: ClassVar[str] = "schedule"
    _: KW_ONLY
    skip: int = 0
    ascending: bool = False

    def __post_init__(self) -> None:
        options.whole(self, "skip", low=0)
        options.flag(self, "ascending")

    @abstractmethod
    def whole_grid(self) -> Grid:
        """All N + 1 points from the most noise to the least, in the schedule's own space, nothing skipped."""
        raise TypeError(f"{type(self).__name__} does not define whole_grid")

    def grid(self) -> Grid:
        """The points that are walked, in their order, in the schedule's own space."""
        whole = self.whole_grid()
        if self.skip >= whole.steps:
            expected = f"an integer from 0 to {whole.steps - 1}, so that a step is left"
            raise OptionOutOfRange(spec=self.name, option="skip", expected=expected, value=self.skip, where=here())
        grid = whole.after(self.skip)
        if not self.ascending:
            return grid
        grid = grid.ascending()
        if grid.steps < 1:
            expected = "False where fewer than two points have noise"
            raise OptionOutOfRange(spec=self.name, option="ascending", expected=expected, value=True, where=here())
        return grid

    def timestep_at(self, kappa: float, where: Location | None = None) -> float:
        """The training timestep, not necessarily whole, of a noise level; raises ``NoTimestep``."""
        raise NoTimestep(schedule=self, where=where)

    def kappa_at(self, timestep: float, where: Location | None = None) -> float:
        """The noise level of a training timestep, not necessarily whole: the inverse of ``timestep_at``."""
        raise NoTimestep(schedule=self, where=where)

    def has_zero_alpha(self) -> bool:
        """Whether a point is pure noise, with nothing of x0 left."""
        return 0.0 in self.grid().alpha

    def rises(self) -> bool:
        """Whether some step leads to more noise."""
        kappa = self.grid().kappa
        return any(later > earlier for earlier, later in pairwise(kappa))

    def check_prediction(self, prediction: Prediction, where: Location | None = None) -> None:
        """Raise ``ZeroAlpha`` if the network's x0 would be a division by zero at a point of pure noise."""
        if prediction.singular and self.has_zero_alpha():
            raise ZeroAlpha(prediction=prediction.name, schedule=self, where=where)

    def check_network(self, time: str, space: str, where: Location | None = None) -> None:
        """Raise if the schedule cannot say the network's ``time``, or its latent ``space`` cannot hold a point."""
        self.grid().times(time, where)
        self.grid().in_space(space, where)


AnySchedule = TypeVar("AnySchedule", bound=Schedule)


def ascend(schedule: AnySchedule) -> AnySchedule:
    """The schedule walked upwards, from its last point with noise to its first: for likelihoods and inversions."""
    return replace(schedule, ascending=True)


FINALS = ("zero", "sigma_min")


@dataclass(frozen=True)
class Stepped(Schedule):
    """A schedule that is asked for a number of steps."""

    space: ClassVar[str] = ""
    """The space in which its numbers are given."""
    steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        options.whole(self, "steps", low=1)
