"""UniPC: a predictor and a corrector that costs no call, of any order, for x0 or eps (Zhao et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import ClassVar

from scoregraph.graph import options
from scoregraph.graph.samplers.base import MicroStep, Sampler, Vector, Walk
from scoregraph.graph.samplers.exponential import lam, moments, order_of, step_length, weights
from scoregraph.graph.samplers.history import History, slots
from scoregraph.graph.schedules import Grid


@dataclass(frozen=True)
class UniPC(Sampler):
    """Every call at a predicted x first corrects it, and predicts the next one from there.

    With f = x0 (``predict="x0"``) or eps: the predictor UniP-p passes a polynomial through the last p values of f, the
    corrector UniC-p through these and the value at the predicted state. ``solver`` is B(h), which only the simplified
    UniP-2 and UniC-1 contain: "bh1" is h, "bh2" e^h - 1; all other orders are solved exactly and do not depend on it.
    ``uncorrected`` are the steps whose result is not corrected (diffusers' disable_corrector), ``corrector=False``
    means all. ``lower_order_final``: the order falls to 1 at the end. Registers: ``start``, the corrected state before
    the step, and the values of f. Order p + 1 with the corrector, p without.
    """

    name: ClassVar[str] = "unipc"
    order: int = 2
    solver: str = "bh2"
    predict: str = "x0"
    corrector: bool = True
    uncorrected: tuple[int, ...] = field(default=(), kw_only=True)
    lower_order_final: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        options.whole(self, "order", low=1, high=4)
        options.choice(self, "solver", ("bh1", "bh2"))
        options.choice(self, "predict", ("x0", "eps"))
        options.flag(self, "corrector")
        options.wholes(self, "uncorrected", low=0)
        options.flag(self, "lower_order_final")

    @property
    def rate(self) -> float:
        """Of the exponential in the integral over f."""
        return 1.0 if self.predict == "x0" else -1.0

    def values(self) -> tuple[str, ...]:
        """The registers of f at earlier points: the corrector reads one more than the predictor."""
        return slots(self.predict, self.order if self.corrector else self.order - 1)

    def memory(self) -> tuple[str, ...]:
        """The corrected state before the step, and values of f."""
        return ("start", *self.values()) if self.corrector else self.values()

    def wanted(self, i: int, steps: int) -> int:
        """The order of step ``i`` if every point told of slopes: 1, 2, … at first, … 2, 1 at last."""
        left = steps - i if self.lower_order_final else self.order
        return min(self.order, left, i + 1)

    def corrects(self, grid: Grid, i: int) -> bool:
        """Whether the result of step ``i`` is corrected by the call behind it."""
        if not self.corrector or i in self.uncorrected or not 0 <= i < grid.steps - 1:
            return False
        # From a point without signal h is infinite; only B(h) = 1 - e^-h of x0 has a limit there.
        return isfinite(lam(grid, i)) or (self.predict == "x0" and self.solver == "bh2")

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        """One call per step: correct, then predict."""
        grid = walk.grid
        wanted = [self.wanted(i, grid.steps) for i in range(grid.steps)]
        orders = [order_of(grid, i, wanted[i]) for i in range(grid.steps)]
        corrects = [self.corrects(grid, i - 1) for i in range(grid.steps)]
        reads = [max(orders[i] - 1, wanted[i - 1] if corrects[i] else 0) for i in range(grid.steps)]
        history = History(self.values(), reads)
        for i, order in enumerate(orders):
            at, to = grid.point(i), grid.point(i + 1)
            x0, eps = walk.estimates(at)
            f = x0 if self.predict == "x0" else eps
            state = walk["x"]
            x = to.alpha * x0 + to.sigma * eps
            if corrects[i]:
                nodes = [history.past(walk, i, age) for age in range(1, orders[i - 1] + 1)]
                state = self.corrected(walk, i, wanted[i - 1], f, nodes)
                # The first-order step from the corrected state with the same f.
                gain = to.sigma / at.sigma if self.predict == "x0" else to.alpha / at.alpha
                x = x + gain * (state - walk["x"])
            if order > 1:
                h = step_length(grid, i)
                used = self.simplified(h, order, wanted[i] == 2)
                w = weights([lam(grid, i - age) - at.lam for age in range(order)], used)
                scale = to.alpha if self.predict == "x0" else to.sigma
                x = x + scale * sum(w[age] * (history.past(walk, i, age) - f) for age in range(1, order))
            kept = history.kept(walk, i, f)
            if i + 1 < grid.steps and corrects[i + 1]:
                kept["start"] = state
            yield walk.call(i, at, x=x, kept=kept)

    def simplified(self, h: float, order: int, simple: bool) -> list[float]:
        """The moments for ``order`` values, the corrector's new one among them; ``simple``: M_1 = B(h) h/2."""
        used = moments(h, self.rate, order)
        if simple:
            used[1] = h / 2 * (self.rate * h if self.solver == "bh1" else used[0])
        return used

    def corrected(self, walk: Walk, i: int, wanted: int, f: Vector, past: list[Vector]) -> Vector:
        """UniC of the step that led to point ``i``: from its start, with the values f there and at earlier points."""
        grid = walk.grid
        at, to, first = grid.point(i - 1), grid.point(i), past[0]
        h = to.lam - at.lam
        if self.predict == "x0":
            scale, x = to.alpha, to.sigma / at.sigma * walk["start"]
        else:
            scale, x = to.sigma, to.alpha / at.alpha * walk["start"]
        x = x + scale * moments(h, self.rate, 1)[0] * first
        if h == inf:  # wanted is 1: half of B(h) = 1
            return x + scale * 0.5 * (f - first)
        if h == 0.0:
            return x
        offsets = [h, *(lam(grid, i - 1 - age) - at.lam for age in range(len(past)))]
        w = weights(offsets, self.simplified(h, len(offsets), wanted == 1))
        return x + scale * sum(w_j * (f_j - first) for w_j, f_j in zip(w, [f, *past], strict=True))
