"""What a pass is: a named, frozen value that rewrites a program and can prove what it did.

A pass takes a program (a sampling graph, a tensor program) and returns a new one; it never changes its argument.
It counts every rewrite, and a rewrite that almost applied says why it did not. ``SCOREGRAPH_FUEL=n`` lets only the
first n rewrites of a whole compilation happen, so that a wrong number is found by bisection.
``SCOREGRAPH_EXPLAIN=1`` logs every miss through the logger ``scoregraph.passes``.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Protocol, TypeVar

from scoregraph.errors import InvalidFuel
from scoregraph.plan.schema import Stage

_log = logging.getLogger("scoregraph.passes")

P = TypeVar("P")
"""The program that is rewritten: ``graph.Graph`` or ``torch.fx.GraphModule``."""


@dataclass(frozen=True, slots=True)
class Miss:
    """A rewrite that was considered and refused: why, and at which node."""

    reason: str
    node: str = ""

    def __str__(self) -> str:
        return f"{self.node}: {self.reason}" if self.node else self.reason


@dataclass(frozen=True, slots=True)
class PassResult(Generic[P]):
    """What one pass did. ``counters`` splits ``rewrites`` by kind, e.g. ``{"conv2d+silu": 12}``."""

    module: P
    rewrites: int = 0
    counters: Mapping[str, int] = field(default_factory=dict[str, int])
    misses: tuple[Miss, ...] = ()


class Fuel:
    """How many rewrites a compilation may still make; one object is passed through all of its passes."""

    def __init__(self, limit: int | None = None) -> None:
        """``limit`` rewrites in all; None is unlimited."""
        self.left = limit

    @classmethod
    def from_environment(cls) -> Fuel:
        """Fuel as ``SCOREGRAPH_FUEL`` says, unlimited if it is unset; raises ``InvalidFuel``."""
        text = os.environ.get("SCOREGRAPH_FUEL", "").strip()
        if not text:
            return cls()
        if not text.isdecimal():
            raise InvalidFuel(text=text)
        return cls(int(text))

    def spend(self) -> bool:
        """Take the price of one rewrite; False when nothing is left, and then the rewrite must not happen."""
        if self.left is None:
            return True
        if self.left == 0:
            return False
        self.left -= 1
        return True


class Pass(Protocol[P]):
    """A frozen dataclass whose fields are the pass's options."""

    name: ClassVar[str]

    def run(self, module: P, fuel: Fuel | None = None) -> PassResult[P]:
        """Rewrite ``module`` while ``fuel`` lasts (None: unlimited). The argument stays as it was."""
        ...


@dataclass(frozen=True, slots=True)
class StageReport(Generic[P]):
    """One stage of a pipeline: the pass's result, how long it took, and the program after it as text."""

    name: str
    result: PassResult[P]
    ms: float
    text: str

    def data(self) -> Stage:
        """The stage as the plan keeps it."""
        return Stage(
            name=self.name,
            rewrites=self.result.rewrites,
            ms=round(self.ms, 3),
            counters=dict(self.result.counters),
            misses=tuple(str(miss) for miss in self.result.misses),
        )

    def __str__(self) -> str:
        return f"# after {self.name} ({self.result.rewrites} rewrites, {self.ms:.1f} ms)\n{self.text}"


def run_passes(
    passes: Sequence[Pass[P]], module: P, *, show: Callable[[P], str], fuel: Fuel | None = None
) -> tuple[P, tuple[StageReport[P], ...]]:
    """Run ``passes`` in order. Returns the last program and a report per pass, with ``show(program)`` as its text."""
    fuel = fuel or Fuel()
    explain = os.environ.get("SCOREGRAPH_EXPLAIN", "") not in ("", "0")
    reports: list[StageReport[P]] = []
    for each in passes:
        started = time.perf_counter()
        result = each.run(module, fuel)
        elapsed = (time.perf_counter() - started) * 1e3
        module = result.module
        reports.append(StageReport(each.name, result, elapsed, show(module)))
        if explain:
            for miss in result.misses:
                _log.warning("%s: %s", each.name, miss)
    return module, tuple(reports)
