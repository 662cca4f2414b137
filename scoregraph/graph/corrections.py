"""Corrections: what is made of the clean sample x0 that a prediction implies, before the sampler uses it.

A correction is written once, on symbols (``scoregraph.graph.expression``), element by element. It may ask for quantiles
of |x0| over a sample. A new one is a class::

    @dataclass(frozen=True)
    class Soft(Correction):
        name: ClassVar[str] = "soft"

        def apply(self, x0, quantile):
            return x0 / (1.0 + absolute(x0))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from scoregraph.graph import options
from scoregraph.graph.expression import Expr, maximum, minimum
from scoregraph.graph.expression import clamp as between
from scoregraph.graph.spec import Spec

Quantile = Callable[[float], Expr]
"""The q-quantile of |x0| over the elements of a sample, linear between order statistics: one number per sample."""


@dataclass(frozen=True)
class Correction(Spec):
    """Family of corrections."""

    family: ClassVar[str] = "correction"

    def apply(self, x0: Expr, quantile: Quantile) -> Expr:
        """The corrected element for the element ``x0``."""
        raise TypeError(f"{type(self).__name__} does not define apply")


@dataclass(frozen=True)
class Clamp(Correction):
    """x0 from ``low`` to ``high``: the range of the data (Ho et al. 2020; diffusers' ``clip_sample``)."""

    name: ClassVar[str] = "clamp"
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        options.real(self, "low")
        options.real(self, "high")
        options.ordered(self, "low", "high")

    def apply(self, x0: Expr, quantile: Quantile) -> Expr:
        """min(max(x0, low), high)."""
        return between(x0, self.low, self.high)


@dataclass(frozen=True)
class DynamicThreshold(Correction):
    """x0 clamped to [-s, s] and divided by s, where s is a quantile of |x0|, and at least 1 (Saharia et al. 2022, 2.3).

    ``ratio`` is the quantile, ``limit`` the largest s. diffusers calls it ``sample_max_value``; its default there, 1,
    makes this a clamp to [-1, 1].
    """

    name: ClassVar[str] = "dynamic_threshold"
    ratio: float = 0.995
    limit: float | None = None

    def __post_init__(self) -> None:
        options.real(self, "ratio", low=0.0, high=1.0)
        options.optional_real(self, "limit", low=1.0)

    def apply(self, x0: Expr, quantile: Quantile) -> Expr:
        """clamp(x0, -s, s) / s."""
        s = maximum(quantile(self.ratio), 1.0)
        s = s if self.limit is None else minimum(s, self.limit)
        return minimum(maximum(x0, -s), s) / s


clamp = Clamp
dynamic_threshold = DynamicThreshold
