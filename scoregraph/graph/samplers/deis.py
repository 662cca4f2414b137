"""DEIS: exponential Adams-Bashforth in eps, with polynomials in ln kappa (Zhang and Chen 2023, "log-rho" multistep)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from scoregraph.graph import options
from scoregraph.graph.samplers.base import MicroStep, Sampler, Walk
from scoregraph.graph.samplers.exponential import FEW_STEPS, lam, moments, order_of, step_length, weights
from scoregraph.graph.samplers.history import History, slots


@dataclass(frozen=True)
class Deis(Sampler):
    """x'/alpha' = x/alpha + sum_j eps_j int_kappa^kappa' L_j(ln r) dr, L_j the Lagrange polynomials in ln kappa.

    ``order`` 1 to 4 values of eps; one call per step. ``lower_order_final``: with fewer than 15 steps the last one is
    of first order, the one before of at most second. A step that ends without noise is the estimate x0.
    """

    name: ClassVar[str] = "deis"
    order: int = 2
    lower_order_final: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        options.whole(self, "order", low=1, high=4)
        options.flag(self, "lower_order_final")

    def memory(self) -> tuple[str, ...]:
        """eps of earlier calls."""
        return slots("eps", self.order - 1)

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """One call per step."""
        grid, n = walk.grid, walk.grid.steps
        few = self.lower_order_final and n < FEW_STEPS
        orders = [order_of(grid, i, min(self.order, n - i) if few else self.order) for i in range(n)]
        history = History(self.memory(), [order - 1 for order in orders])
        for i, order in enumerate(orders):
            at, to = grid.point(i), grid.point(i + 1)
            x0, eps = walk.estimates(at)
            x = to.alpha * x0 + to.sigma * eps
            if order > 1:
                w = weights(
                    [lam(grid, i - age) - at.lam for age in range(order)], moments(step_length(grid, i), -1.0, order)
                )
                x = x + to.sigma * sum(w[age] * (history.past(walk, i, age) - eps) for age in range(1, order))
            yield walk.call(i, at, x=x, kept=history.kept(walk, i, eps))
