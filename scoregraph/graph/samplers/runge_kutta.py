"""Embedded Runge-Kutta methods: they choose their own steps between the ends of a schedule, for every sample by itself.

The probability-flow ODE is solved on the straight path, x_f = x / (alpha + sigma) over s = sigma / (alpha + sigma):

    dx_f / ds = eps - x0

which is finite everywhere from s = 1 (pure noise) on. A step of length h gives a solution y' and an error estimate e;
it is accepted if rms(e / (atol + rtol max(|y|, |y'|))) < 1, and in any case the next length is

    h * clamp(0.9 rms^(-1/order), 0.2, 10)           (Hairer, Norsett and Wanner 1993, II.4)

with at most 1 after a rejection. The solver stops at the schedule's last point with noise; if the schedule ends at the
clean sample, it jumps from there to the network's x0. Samples are independent: one that is done waits for the others
without being changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scoregraph.errors import Location
from scoregraph.graph import options
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers.base import Sampler
from scoregraph.graph.schedules import Schedule

SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0
"""The constants of the step length control."""


@dataclass(frozen=True)
class Tableau:
    """A Butcher tableau with an embedded error estimate.

    Stage i is evaluated at s + c_i h and y + h sum_j a_ij k_j; y' = y + h sum b_j k_j; e = h sum e_j k_j. With
    ``first_same_as_last`` the last stage is the slope at y', the first one of the next step.
    """

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    e: tuple[float, ...]
    order: int
    first_same_as_last: bool


HEUN_EULER = Tableau(
    c=(0.0, 1.0), a=((), (1.0,)), b=(1 / 2, 1 / 2), e=(-1 / 2, 1 / 2), order=2, first_same_as_last=False
)
BOGACKI_SHAMPINE = Tableau(
    c=(0.0, 1 / 2, 3 / 4, 1.0),
    a=((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    b=(2 / 9, 1 / 3, 4 / 9, 0.0),
    e=(-5 / 72, 1 / 12, 1 / 9, -1 / 8),
    order=3,
    first_same_as_last=True,
)
DORMAND_PRINCE = Tableau(
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    e=(-71 / 57600, 0.0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40),
    order=5,
    first_same_as_last=True,
)


@dataclass(frozen=True)
class RungeKutta(Sampler):
    """Family of adaptive solvers.

    ``rtol`` and ``atol`` bound the error of a step; ``first`` is the first step's share of the whole way; a run that is
    not done after ``max_rounds`` steps, accepted or not, ends in an error.
    """

    adaptive: ClassVar[bool] = True
    tableau: ClassVar[Tableau]
    rtol: float = 1e-3
    atol: float = 1e-4
    first: float = 0.02
    max_rounds: int = 1000

    def __post_init__(self) -> None:
        options.real(self, "rtol", low=0.0)
        options.real(self, "atol", low=0.0, above=True)
        options.real(self, "first", low=0.0, high=1.0, above=True)
        options.whole(self, "max_rounds", low=1)

    def check(self, schedule: Schedule, prediction: Prediction, where: Location | None = None) -> None:
        """Raise if the schedule begins where such a network says nothing of x0."""
        schedule.check_prediction(prediction, where)


@dataclass(frozen=True)
class HeunEuler(RungeKutta):
    """Heun's method with Euler's as error estimate, order 2(1): 2 network calls per step."""

    name: ClassVar[str] = "heun_adaptive"
    tableau: ClassVar[Tableau] = HEUN_EULER


@dataclass(frozen=True)
class Rk23(RungeKutta):
    """Bogacki and Shampine 1989, order 3(2): 3 network calls per step."""

    name: ClassVar[str] = "rk23"
    tableau: ClassVar[Tableau] = BOGACKI_SHAMPINE


@dataclass(frozen=True)
class Rk45(RungeKutta):
    """Dormand and Prince 1980, order 5(4): 6 network calls per step (scipy's RK45; Song et al. 2021, section D.4)."""

    name: ClassVar[str] = "rk45"
    tableau: ClassVar[Tableau] = DORMAND_PRINCE
