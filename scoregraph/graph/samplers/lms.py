"""LMS: the linear multistep method in kappa (Adams-Bashforth with uneven steps; k-diffusion's sampler)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from scoregraph.graph import options
from scoregraph.graph.samplers.base import MicroStep, Sampler, Walk
from scoregraph.graph.samplers.exponential import reach, weights
from scoregraph.graph.samplers.history import History, slots


@dataclass(frozen=True)
class Lms(Sampler):
    """X' = X + sum_j eps_j int_kappa^kappa' L_j(r) dr, with X = x/alpha and L_j the Lagrange polynomials in kappa.

    The integrals are exact. ``order`` 1 to 4 values of eps, as many as there are at first; one call per step. The state
    is scaled on the way in and out, so that a start without signal, where kappa is infinite, is an ordinary first step.
    """

    name: ClassVar[str] = "lms"
    order: int = 4

    def __post_init__(self) -> None:
        options.whole(self, "order", low=1, high=4)

    def memory(self) -> tuple[str, ...]:
        """eps of earlier calls."""
        return slots("eps", self.order - 1)

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """One call per step."""
        grid = walk.grid
        orders = [reach(grid, i, self.order if grid.alpha[i + 1] else 1) for i in range(grid.steps)]
        history = History(self.memory(), [order - 1 for order in orders])
        for i, order in enumerate(orders):
            at, to = grid.point(i), grid.point(i + 1)
            x0, eps = walk.estimates(at)
            x = to.alpha * x0 + to.sigma * eps
            if order > 1:
                step = to.kappa - at.kappa
                offsets = [grid.kappa[i - age] - at.kappa for age in range(order)]
                w = weights(offsets, [step ** (q + 1) / (q + 1) for q in range(order)])
                x = x + to.alpha * sum(w[age] * (history.past(walk, i, age) - eps) for age in range(1, order))
            yield walk.call(i, at, x=x, kept=history.kept(walk, i, eps))
