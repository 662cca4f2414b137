"""What a sampling step computes beyond sums of table entries, as one plain value of a ``SamplerStep``.

``elementwise`` makes Y values y of the estimates e, the noise z and the step's extra operands; ``statistics`` are inner
products of the table's forms, ``quantiles`` those of |e_i|; ``per_sample`` makes, from these, the coefficients of the
machine (A, B, C, E, H in the order of the columns), one set per sample. All in the instructions of
docs/plan-format.md, with columns by name; ``graph.expression`` writes them.

Operands of ``elementwise``: e_0 …, then z, then the extras, then the quantiles. Sources of ``per_sample``
(``["in", source, i]``): 0 the statistics in their order, 1 … the per-sample extras of the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scoregraph.graph.expression import Instruction
from scoregraph.graph.spec import Spec


@dataclass(frozen=True)
class Formula(Spec):
    """See the module. Empty fields are absent: a step without a formula is linear, with the table's own numbers."""

    family: ClassVar[str] = "formula"
    name: ClassVar[str] = "formula"
    elementwise: tuple[Instruction, ...] = ()
    results: tuple[int, ...] = ()
    draws: bool = False
    """Whether ``elementwise`` reads z."""
    statistics: tuple[tuple[int, ...], ...] = ()
    quantiles: tuple[tuple[int, float], ...] = ()
    """(number of the estimate, q): the q-quantile of its absolute values over the sample."""
    per_sample: tuple[Instruction, ...] = ()
    coefficients: tuple[int, ...] = ()
    """Which values of ``per_sample`` the machine's entries are; none: the table's own numbers are used."""
    observations: tuple[int, ...] = ()
    """Which values of ``per_sample`` are recorded for the caller."""
