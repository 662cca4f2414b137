"""One sampler step of a loop while it is lowered, and what it needs of the lowering around the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from scoregraph.errors import UncoveredNode
from scoregraph.graph import nodes as n
from scoregraph.graph import values as v
from scoregraph.graph.formula import Formula
from scoregraph.graph.table import StepTable
from scoregraph.passes.lower import shape as shapes
from scoregraph.passes.sampling.batch_branches import answers_of
from scoregraph.passes.sampling.drop_dead_branches import variant_keys
from scoregraph.passes.sampling.fold_tables import scale_column
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Drafter, Value


class Outside(Protocol):
    """What a loop needs of the lowering around it."""

    drafter: Drafter
    draws: dict[int, int]
    bank_input: Value | None

    def refuse(self, node: n.Node, reason: str, cure: str) -> UncoveredNode:
        """The error for a node that no backend compiles."""
        ...

    def value(self, node: n.Node) -> Value:
        """The buffer of a value that stands outside of the loop."""
        ...

    def condition(self, node: n.Node) -> tuple[Value, ...]:
        """The encoded tensors of one branch, [B, …] each."""
        ...

    def noise(self, node: n.Noise, scale: float) -> Value:
        """Normals times a factor."""
        ...

    def branches(self, score: n.Score) -> list[Value]:
        """Each encoded condition for all branches of a score."""
        ...

    def start(self, node: n.Node, table: StepTable, number: int) -> Value:
        """The state before the first step."""
        ...

    def filled(self, shape: Sequence[int | Batch], value: float, dtype: str, name: str) -> Value:
        """A buffer with one number everywhere."""
        ...

    def program(self, net: v.NetRef, part: str, inputs: Sequence[Value], branches: int = 1) -> list[Value]:
        """The calls of one part of a network."""
        ...

    def shares_prefix(self, net: v.NetRef, varying: Sequence[bool]) -> bool:
        """Whether a score network does work that does not depend on its ``varying`` inputs."""
        ...


@dataclass
class Mover:
    """One sampler step of the loop while it is lowered.

    Attributes:
        number: of its table in the plan.
        registers: the buffers, the state first.
        inputs: what the sampler step fills for the first network of the next row, by that row's variant.
        observed: the numbers per sample that the step observes.
    """

    step: n.SamplerStep
    table: StepTable
    number: int
    registers: list[Value]
    inputs: dict[int, Value] = field(default_factory=dict[int, Value])
    observed: dict[int, Value] = field(default_factory=dict[int, Value])

    @property
    def formula(self) -> Formula | None:
        """What the step computes beyond sums of table entries."""
        assert self.step.formula is None or isinstance(self.step.formula, Formula)
        return self.step.formula

    def column(self, name: str) -> int:
        """The index of a column."""
        return self.table.columns.index(name)


@dataclass(frozen=True)
class Variant:
    """Rows that read the same answers, those numbered ``live``; if ``on``, every sample has coefficients of its own."""

    number: int
    live: tuple[int, ...]
    on: bool


def variants_of(table: StepTable) -> list[Variant]:
    """The variants of a folded table, in the order of their numbers; one if its rows are all alike."""
    if "variant" not in table.columns:
        everything = tuple(range(table.branches))
        return [Variant(0, everything, "on" in table.columns)]
    keys = variant_keys(table)
    return [
        Variant(i, tuple(k for k in range(table.branches) if mask >> k & 1), bool(on))
        for i, (mask, on) in enumerate(keys)
    ]


def live_leaves(step: n.SamplerStep, live: Sequence[int]) -> list[tuple[n.Node, tuple[int, ...]]]:
    """The operands of a step of which some answer is live, with the branches that are."""
    found: list[tuple[n.Node, tuple[int, ...]]] = []
    first = 0
    for leaf in step.preds:
        count = answers_of(leaf)
        branches = tuple(i for i in range(count) if first + i in live)
        if branches:
            found.append((leaf, branches))
        first += count
    return found


def prepared_leaf(mover: Mover, kind: Variant) -> tuple[n.Score, tuple[int, ...]] | None:
    """The score whose input the sampler step writes along with the state: the first one, if it reads c_in."""
    for leaf, branches in live_leaves(mover.step, kind.live):
        if isinstance(leaf, n.Score):
            return (leaf, branches) if scale_column(mover.table, leaf.net) == "c_in" else None
    return None


def drawing_rows(step: n.SamplerStep) -> list[bool]:
    """Which rows of a folded step draw noise."""
    assert step.table is not None
    always = isinstance(step.formula, Formula) and step.formula.draws
    return [always or bool(step.table.row(i).c.any()) for i in range(len(step.table.rows))]


def numbered(program: Sequence[Sequence[Any]], table: StepTable) -> list[list[Any]]:
    """A program with columns by number."""
    return [[op, table.columns.index(args[0])] if op in ("row", "next") else [op, *args] for op, *args in program]


def interleave(drafter: Drafter, parts: Sequence[Value]) -> Value:
    """One value per branch, [B, …] each, as [KB, …]: branch j of sample b in row b*K + j."""
    count, shape = len(parts), parts[0].shape[1:]
    if count == 1:
        return parts[0]
    whole = drafter.new((Batch(count), *shape), parts[0].dtype, "branches")
    split = shapes.view(drafter, whole, (Batch(), count, *shape), "branches")
    for j, part in enumerate(parts):
        drafter.call("copy", {"x": drafter.as_buffer(part)}, {"y": shapes.select(split, 1, j)}, site="branches")
    return whole
