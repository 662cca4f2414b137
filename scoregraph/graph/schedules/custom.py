"""Points of one's own: what a training run, another library or a search has found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from scoregraph.errors import Location, NoTimestep, OptionOutOfRange, here
from scoregraph.graph import options
from scoregraph.graph.prediction import SPACES
from scoregraph.graph.schedules.base import Grid, Schedule, scale_of


@dataclass(frozen=True)
class Custom(Schedule):
    """The points as they are given: N + 1 ``sigmas``, with their ``alphas``, in ``space``.

    ``alphas`` may be left out: a point's alpha follows from its sigma and the space (sqrt(1 - sigma^2) in vp, 1 in
    kappa, 1 - sigma in flow). ``timesteps``, one for each of the N points at which the network is called or for all
    N + 1, are what a network with time "timestep" is told; between the points they are interpolated in ln kappa.
    """

    name: ClassVar[str] = "custom"
    alphas: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] = ()
    timesteps: tuple[float, ...] | None = None
    space: str = "vp"

    def __post_init__(self) -> None:
        super().__post_init__()
        options.choice(self, "space", SPACES)
        options.reals(self, "sigmas", at_least=2)
        if self.alphas is None:
            object.__setattr__(self, "alphas", tuple(_alpha_of(self.space, sigma) for sigma in self.sigmas))
        options.reals(self, "alphas")
        assert self.alphas is not None
        count = len(self.sigmas)
        self._expect("alphas", len(self.alphas) == count, f"{count} numbers, one for each sigma")
        scales = [scale_of(self.space, a, s) for a, s in zip(self.alphas, self.sigmas, strict=True)]
        held = all(a >= 0.0 and s >= 0.0 for a, s in zip(self.alphas, self.sigmas, strict=True))
        # Libraries compute in float32, and round sqrt(1 - sigma^2) with it.
        held = held and all(abs(scale - 1.0) < 1e-4 for scale in scales)
        rule = {"vp": "alpha^2 + sigma^2 = 1", "kappa": "alpha = 1", "flow": "alpha + sigma = 1"}[self.space]
        self._expect("sigmas", held, f"such that {rule} in space {self.space!r}, none negative")
        if self.timesteps is not None:
            options.reals(self, "timesteps")
            count_ok = len(self.timesteps) in (count - 1, count)
            self._expect("timesteps", count_ok, f"{count - 1} numbers, one for each point but the last (or {count})")

    def _expect(self, option: str, holds: bool, expected: str) -> None:
        if not holds:
            value = getattr(self, option)
            raise OptionOutOfRange(spec=self.name, option=option, expected=expected, value=value, where=here())

    @property
    def steps(self) -> int:
        """N."""
        return len(self.sigmas) - 1

    def whole_grid(self) -> Grid:
        """The points as they were given."""
        assert self.alphas is not None
        times = None if self.timesteps is None else self.timesteps[: self.steps]
        return Grid(self, self.alphas, self.sigmas, times, self.space)

    def timestep_at(self, kappa: float, where: Location | None = None) -> float:
        """Linear in ln kappa between the points that were given a timestep, and constant beyond them."""
        if self.timesteps is None:
            raise NoTimestep(schedule=self, where=where)
        points = [math.log(max(k, 1e-300)) for k in self.whole_grid().kappa[: len(self.timesteps)]]
        order = np.argsort(points)
        return float(np.interp(math.log(max(kappa, 1e-300)), np.array(points)[order], np.array(self.timesteps)[order]))


def _alpha_of(space: str, sigma: float) -> float:
    """The alpha of a point whose sigma is given."""
    if space == "vp":
        return math.sqrt(max(1.0 - sigma * sigma, 0.0))
    return 1.0 if space == "kappa" else 1.0 - sigma
