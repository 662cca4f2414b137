"""Where a graph's interpretation stands: the noise level of a network call, and the values that hold there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from scoregraph.backends.reference.textbook import Point
from scoregraph.errors import UncoveredNode
from scoregraph.graph import nodes as n
from scoregraph.graph import values as v
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.schedules import Grid
from scoregraph.graph.schedules import Point as GridPoint
from scoregraph.graph.table import StepTable


@dataclass(frozen=True)
class Moment:
    """One point of a schedule, at which networks are called and guidance is weighed.

    Attributes:
        grid: the schedule's points in the space in which ``at`` is given.
        step: the loop's step, during which networks may be called at other points than its first.
        at: alpha and sigma of the point.
        table, row: in a step that follows a table, the row that tells networks their time and scale.
        told: the first network of that step, whose conventions the table's plain columns have; None where the columns
            of others stand beside them.
    """

    grid: Grid
    step: int
    at: Point
    table: StepTable | None = None
    row: int = 0
    told: v.NetRef | None = None

    @classmethod
    def start(cls, grid: Grid, step: int) -> Moment:
        """The first point of a step."""
        return cls(grid, step, Point(grid.alpha[step], grid.sigma[step]))

    def point(self, space: str) -> Point:
        """alpha and sigma in the space of a latent."""
        norm = {"vp": self.at.vp, "flow": self.at.flow, "kappa": self.at.alpha}[space]
        return self.at if space == self.grid.space else Point(self.at.alpha / norm, self.at.sigma / norm)

    def end(self, space: str) -> Point:
        """alpha and sigma of the point at which the step ends."""
        grid = self.grid.in_space(space)
        return Point(grid.alpha[self.step + 1], grid.sigma[self.step + 1])

    def time(self, net: v.NetRef) -> float:
        """What a network is told; one without a time reads none."""
        if net.time == "none":
            return 0.0
        plain = self.told is None or self.told.time == net.time
        found = self._entry(f"t.{net.time}", "t" if plain else "")
        return found if found is not None else self.grid.time_at(GridPoint(self.at.alpha, self.at.sigma), net.time)

    def c_in(self, net: v.NetRef) -> float:
        """The factor on the state at a network's input."""
        assert isinstance(net.latent, v.Latent), "only latents are scaled"
        assert isinstance(net.prediction, Prediction), "a network of latents has a prediction"
        plain = self.told is None or self.told.prediction == net.prediction
        found = self._entry(f"c_in.{net.prediction.name}", "c_in" if plain else "")
        point = self.point(net.latent.space)
        return found if found is not None else net.prediction.c_in(point.alpha, point.sigma)

    def _entry(self, *columns: str) -> float | None:
        """The row's entry in the first of some columns that there is."""
        columns_here = () if self.table is None else self.table.columns
        found = next((name for name in columns if name in columns_here), None)
        return None if found is None or self.table is None else self.table.values(found)[self.row]


Memory = dict[n.Node, dict[str, Tensor]]
"""What guidance rules remember from one network call to the next, by fusion and name."""


@dataclass
class Scope:
    """Values that hold while a loop stands at one moment; what does not depend on the loop is kept further out.

    Attributes:
        memory: what rules remember as this moment begins.
        remembered: what they will remember at the next one.
    """

    loop: str | None = None
    outer: Scope | None = None
    known: dict[n.Node, Any] = field(default_factory=dict[n.Node, Any])
    memory: Memory = field(default_factory=Memory)
    remembered: Memory = field(default_factory=Memory)

    def holder(self, node: n.Node) -> Scope:
        """The outermost scope in which the value of ``node`` is fixed."""
        if self.loop is None or self.loop in node.free or self.outer is None:
            return self
        return self.outer.holder(node)

    def with_state(self, var: n.Node, value: Any) -> Scope:
        """The same moment with another value of a loop's variable; nothing computed is kept."""
        given = {node: found for node, found in self.known.items() if isinstance(node, n.LoopVar | n.StepTime)}
        return Scope(self.loop, self.outer, {**given, var: value}, self.memory)


class Module(Protocol):
    """A torch module or function."""

    def __call__(self, *args: Tensor) -> Any:
        """Its value."""
        ...


class Interpreter(Protocol):
    """What the parts of the interpreter need of each other."""

    networks: Mapping[str, Any]
    dtype: torch.dtype

    @property
    def batch(self) -> int:
        """The number of samples."""
        ...

    def value(self, node: n.Node, scope: Scope) -> Any:
        """The value of a node, computed once where it is fixed."""
        ...

    def module(self, module: Any) -> Module:
        """A torch module in the interpreter's precision."""
        ...

    def normals(self, latent: v.Latent, site: int, micro: int) -> Tensor:
        """Unit normals [B, *latent.shape]."""
        ...

    def refusal(self, node: n.Node, reason: str) -> UncoveredNode:
        """The error about a node that has no interpretation here."""
        ...
