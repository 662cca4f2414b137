"""Registers as a compiler allocates them: a history moves by renaming, not by copying, and what is dead is not written.

    d2' = d1;  d1' = x0      (two registers written per row)   ──▶   row 0 writes r1, row 1 writes r2, row 2 r1 …

A value of a table's row is live until the last row that reads it. Values that are alive at the same time get different
registers; a value that is kept stays where it is, so a row writes the state and what is new. The state is always
register 0, since the network's input is made of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from scoregraph.graph import nodes as n
from scoregraph.graph.graph import Graph
from scoregraph.graph.rewrite import rewrite
from scoregraph.graph.table import Float64, Row, StepTable
from scoregraph.passes.base import Fuel, Miss, PassResult
from scoregraph.passes.sampling.batch_branches import replace_step

Value = tuple[int, int]
"""A value by the row and the register that made it; row -1 is before the loop."""


@dataclass(frozen=True)
class AllocateRegisters:
    """Tables of folded steps get as few registers as are alive at the same time."""

    name: ClassVar[str] = "allocate-registers"

    def run(self, module: Graph, fuel: Fuel | None = None) -> PassResult[Graph]:
        """Counters: registers and rows written before and after. Misses: steps that others look into."""
        fuel = fuel or Fuel()
        misses: list[Miss] = []
        counters = {"registers": 0, "registers_before": 0, "writes": 0, "writes_before": 0, "patterns": 0}

        def rule(node: n.Node) -> n.Node | None:
            if not isinstance(node, n.SamplerStep) or node.table is None or "live" not in node.table.columns:
                return None
            table = node.table
            if len(table.registers) == 1:
                counters["patterns"] += patterns(table)
                return None
            if node.formula is not None and node.formula.options()["coefficients"]:
                misses.append(Miss("its coefficients differ by sample, in one order of registers", str(node.rule)))
                return None
            if any(name.startswith("emit") for name in table.registers):
                misses.append(Miss("the loop emits registers by number", str(node.rule)))
                return None
            new = allocate(table)
            if new == table or not fuel.spend():
                return None
            counters["registers"] += len(new.registers)
            counters["registers_before"] += len(table.registers)
            counters["writes"] += writes(new)
            counters["writes_before"] += writes(table)
            counters["patterns"] += patterns(new)
            return replace_step(node, node.preds, new, node.formula)

        graph, count = rewrite(module, rule)
        return PassResult(graph, count, {name: c for name, c in counters.items() if c}, tuple(misses))


def writes(table: StepTable) -> int:
    """How many registers all rows together write: those that do not stay as they are."""
    identity = np.eye(len(table.registers))
    return sum(
        not _is_unit(table.row(i), j, identity[j]) for i in range(len(table.rows)) for j in range(len(table.registers))
    )


def patterns(table: StepTable) -> int:
    """How many different patterns of nonzero entries the rows have."""
    return len({tuple(value != 0.0 for value in table.row(i).numbers()) for i in range(len(table.rows))})


def _is_unit(row: Row, register: int, unit: Float64) -> bool:
    """Whether a register becomes nothing but another one, times 1."""
    others = (row.b[register], row.h[register], row.c[register : register + 1])
    return np.array_equal(row.a[register], unit) and not any(part.any() for part in others)


def allocate(table: StepTable) -> StepTable:
    """The same machine with registers allocated by liveness."""
    rows = [table.row(i) for i in range(len(table.rows))]
    held = _values(rows)
    alive = _liveness(rows, held)
    slots = _places(rows, held, alive)
    count = 1 + max((slot for places in slots for slot in places.values()), default=0)
    made: list[Row] = []
    for i, row in enumerate(rows):
        source = slots[i]
        a, b = np.zeros((count, count)), np.zeros((count, row.b.shape[1]))
        c, h = np.zeros(count), np.zeros((count, row.h.shape[1]))
        e = _moved(row.e, len(table.registers), held[i], source, count)
        f = _moved(row.f, len(table.registers), held[i], source, count)
        written: set[int] = set()
        for value, slot in slots[i + 1].items():
            written.add(slot)
            if value in source:  # kept, or moved when the state takes its place
                a[slot, source[value]] = 1.0
                continue
            j = value[1]
            for register, known in held[i].items():
                if known in source:
                    a[slot, source[known]] += row.a[j, register]
            b[slot], c[slot], h[slot] = row.b[j], row.c[j], row.h[j]
        for slot in set(range(count)) - written:  # nothing lives there: it stays as it is, which costs nothing
            a[slot, slot] = 1.0
        made.append(Row(a, b, c, e, h, f))
    names = ["x", *(f"r{i}" for i in range(1, count))]
    return table.with_rows(made, names)


def _values(rows: Sequence[Row]) -> list[dict[int, Value]]:
    """Before every row and behind the last: which value each register holds; one that holds 0 is left out."""
    count = rows[0].a.shape[0]
    held: list[dict[int, Value]] = [{0: (-1, 0)}]
    for i, row in enumerate(rows):
        now: dict[int, Value] = {}
        for j in range(count):
            parts = [row.a[j, k] for k in held[-1]]
            if not (any(parts) or row.b[j].any() or row.c[j] or row.h[j].any()):
                continue
            copied = next((k for k in held[-1] if _is_unit(row, j, np.eye(count)[k])), None)
            now[j] = (i, j) if copied is None else held[-1][copied]
        now.setdefault(0, (i, 0))
        held.append(now)
    return held


def _liveness(rows: Sequence[Row], held: Sequence[dict[int, Value]]) -> list[set[Value]]:
    """Before every row and behind the last: the values that are read from there on. The last state is the result."""
    alive: list[set[Value]] = [{held[-1][0]}]
    for i in reversed(range(len(rows))):
        row, needed = rows[i], alive[0]
        reads = {value for value in needed if value[0] < i}
        made = [value[1] for value in needed if value[0] == i]
        for register, value in held[i].items():
            used = any(row.a[j, register] for j in made) or row.e[:, register].any() or row.f[:, register].any()
            if used:
                reads.add(value)
        reads.add(held[i][0])  # the network looks at the state
        alive.insert(0, reads)
    return alive


def _places(
    rows: Sequence[Row], held: Sequence[dict[int, Value]], alive: Sequence[set[Value]]
) -> list[dict[Value, int]]:
    """Before every row and behind the last: the register of every live value; the state's is 0."""
    places: list[dict[Value, int]] = [{held[0][0]: 0}]
    for i in range(len(rows)):
        before, state = places[-1], held[i + 1][0]
        now: dict[Value, int] = {state: 0}
        kept = [value for value in alive[i + 1] if value != state and before.get(value, 0) != 0]
        for value in kept:
            now[value] = before[value]
        for value in sorted(alive[i + 1] - set(now)):
            taken = set(now.values())
            now[value] = next(slot for slot in range(1, len(taken) + 2) if slot not in taken)
        places.append(now)
    return places


def _moved(matrix: Float64, registers: int, held: dict[int, Value], source: dict[Value, int], count: int) -> Float64:
    """Columns over (old registers, answers) as columns over (new registers, answers)."""
    made = np.zeros((matrix.shape[0], count + matrix.shape[1] - registers))
    made[:, count:] = matrix[:, registers:]
    for register, value in held.items():
        if value in source:
            made[:, source[value]] += matrix[:, register]
    return made
