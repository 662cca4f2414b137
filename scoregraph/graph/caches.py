"""Cache policies: when an approximated value is computed afresh. They change numbers, so none is inserted unasked.

A ``Cache`` node gives its value as it was at the last refresh; its policy says when that is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scoregraph.graph import options
from scoregraph.graph.spec import Spec


@dataclass(frozen=True)
class CachePolicy(Spec):
    """Family of cache policies."""

    family: ClassVar[str] = "cache"


@dataclass(frozen=True)
class Every(CachePolicy):
    """Refresh at every ``interval``-th step from step ``start`` on, and at every step before (DeepCache, FORA, PAB)."""

    name: ClassVar[str] = "every"
    interval: int
    start: int = 0

    def __post_init__(self) -> None:
        options.whole(self, "interval", low=1)
        options.whole(self, "start", low=0)


@dataclass(frozen=True)
class Taylor(CachePolicy):
    """As ``every``; between refreshes, extrapolate with finite differences up to ``order`` (TaylorSeer)."""

    name: ClassVar[str] = "taylor"
    interval: int
    order: int = 1

    def __post_init__(self) -> None:
        options.whole(self, "interval", low=1)
        options.whole(self, "order", low=0, high=4)


@dataclass(frozen=True)
class Change(CachePolicy):
    """Refresh when the input's relative L1 change since the last refresh exceeds ``threshold`` (TeaCache)."""

    name: ClassVar[str] = "change"
    threshold: float

    def __post_init__(self) -> None:
        options.real(self, "threshold", low=0.0, above=True)


@dataclass(frozen=True)
class Prefix(CachePolicy):
    """Keys and values of tokens before the active block, refreshed when a block is complete (Fast-dLLM)."""

    name: ClassVar[str] = "prefix"
    block: int

    def __post_init__(self) -> None:
        options.whole(self, "block", low=1)


@dataclass(frozen=True)
class Dual(CachePolicy):
    """Keys and values of all tokens outside the active block, refreshed when a block is complete (Fast-dLLM)."""

    name: ClassVar[str] = "dual"
    block: int

    def __post_init__(self) -> None:
        options.whole(self, "block", low=1)


every = Every
taylor = Taylor
change = Change
prefix = Prefix
dual = Dual
