"""What depends on the row of a loop alone is evaluated while compiling: one more constant, read a row at a time.

    loop: t = step_time;  e = silu(linear(sinusoids(t)))    ──▶    loop: e = select_row(c)      c = [e(t_0); e(t_1); …]

Evaluated in float64 for all rows at once, as samples of one batch whose times are given. The weights that only such
calls read are then needed no more. Values that take no weights stay: they cost little, and a plan without tabulated
values serves any list of times (``replace-tables``), one with them serves its own only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from scoregraph.passes.base import Fuel, Miss, PassResult
from scoregraph.passes.plan.dependence import PRODUCTS, Depends, dependence, makers, needed_for
from scoregraph.passes.plan.drop_unread import DropUnread
from scoregraph.passes.plan.liveness import owner_of, reads, writes
from scoregraph.passes.plan.replace_tables import is_time
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Draft, Drafter, Value
from scoregraph.plan.schema import Call, InputSpec, OutputSpec, Plan, Segment

Evaluator = Callable[[Draft, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
"""Runs a draft in float64: its inputs by name, one row per sample, to its outputs."""

MEGABYTES = 64
"""All tabulated values of a plan together take at most this much."""


@dataclass(frozen=True)
class TabulateTime:
    """Values of a loop that depend on its row and on constants → rows of a constant."""

    evaluate: Evaluator
    limit: int = MEGABYTES << 20
    name: ClassVar[str] = "tabulate-time"

    def run(self, module: Draft, fuel: Fuel | None = None) -> PassResult[Draft]:
        """Rewrites: values tabulated. Counters: ``bytes`` of them. Misses: a value too large for the limit.

        A loop costs one unit of fuel. Loops that go round after round tell each sample its own time and are left alone.
        """
        fuel = fuel or Fuel()
        draft, misses, left, tabulated = module, list[Miss](), self.limit, 0
        for turn, segment in enumerate(module.plan.segments):
            if segment.table is None or segment.repeat is not None:
                continue
            chosen, refused = _choose(draft, turn, left)
            misses += refused
            if not chosen or not fuel.spend():
                continue
            tables = _evaluate(draft, turn, chosen, self.evaluate)
            left -= sum(table.nbytes for table in tables.values())
            tabulated += len(tables)
            draft = _replace(draft, turn, tables)
        counters = {"bytes": self.limit - left} if tabulated else {}
        return PassResult(draft, rewrites=tabulated, counters=counters, misses=tuple(misses))


def _choose(draft: Draft, turn: int, left: int) -> tuple[list[int], list[Miss]]:
    """The buffers to tabulate: what the row decides by a product, and calls read that know more than the row."""
    plan = draft.plan
    segment = plan.segments[turn]
    depends = dependence(plan, turn)
    made = makers(plan, segment)
    outside = {owner_of(plan, spec.buffer) for spec in plan.outputs}
    for i, other in enumerate(plan.segments):
        readers = [call for call in other.calls if i != turn or depends.made(call) != Depends.ROW]
        outside |= {number for call in readers for number in reads(plan, call)}
    chosen, misses = list[int](), list[Miss]()
    for number in made:
        if depends.buffers[number] != Depends.ROW or number not in outside:
            continue
        calls = [segment.calls[at] for at in sorted(needed_for(plan, segment, made, number))]
        per_row = _unit(plan, number)
        if per_row is None or not any(call.op in PRODUCTS for call in calls) or not _of_times(plan, calls):
            continue
        nbytes = 4 * per_row * _rows(plan, segment)
        if nbytes > left:
            misses.append(Miss(f"its {_rows(plan, segment)} rows would take {nbytes / 1e6:.1f} MB", calls[-1].site))
            continue
        left -= nbytes
        chosen.append(number)
    return chosen, misses


def _of_times(plan: Plan, calls: Sequence[Call]) -> bool:
    """Whether the columns that these calls read hold times: the digest of what a plan was made for covers no others."""
    read = [(int(call.attrs["table"]), int(call.attrs["column"])) for call in calls if call.op == "step_time"]
    return all(is_time(plan.tables[table].columns[column]) for table, column in read)


def _rows(plan: Plan, segment: Segment) -> int:
    assert segment.table is not None
    return plan.tables[segment.table].rows


def _unit(plan: Plan, number: int) -> int | None:
    """Elements per sample of a float buffer with the batch in front, else None."""
    buffer = plan.buffers[number]
    value = Drafter.reopen(Draft(plan, {})).value(f"b{number}")
    if not value.shape or not isinstance(value.shape[0], Batch) or buffer.dtype != "f32":
        return None
    return value.shape[0].k * int(np.prod([d for d in value.shape[1:] if isinstance(d, int)]))


def _evaluate(draft: Draft, turn: int, chosen: list[int], evaluate: Evaluator) -> dict[int, np.ndarray]:
    """Each chosen buffer in all rows, float32 [rows, branches, …]; one branch where they are all alike."""
    plan = draft.plan
    segment = plan.segments[turn]
    depends = dependence(plan, turn)
    table = plan.tables[segment.table or 0]
    drafter, times = Drafter.reopen(draft), dict[int, Value]()
    calls: list[Call] = []
    for i, other in enumerate(plan.segments[: turn + 1]):
        for call in other.calls:
            if depends.made(call) not in (Depends.NOTHING, Depends.ROW) or (other.is_loop and i != turn):
                continue
            if call.op == "step_time":
                column = call.attrs["column"]
                time = times.setdefault(column, drafter.new((Batch(),), name=f"time{column}"))
                call = call.model_copy(update={"ins": {"time": time.storage}})
            calls.append(call.model_copy(update={"variants": ()}))
    inputs = {f"time{column}": draft.arrays[table.constant][:, column] for column in times}
    alone = plan.model_copy(
        update={
            "inputs": tuple(InputSpec(name=f"time{c}", buffer=int(time.storage[1:])) for c, time in times.items()),
            "outputs": tuple(OutputSpec(name=f"b{number}", buffer=number) for number in chosen),
            "bank": None,
        }
    )
    once = Segment(name=segment.name, calls=tuple(calls))
    small = DropUnread().run(drafter.closed(alone, [once])).module
    found = evaluate(small, inputs)
    tables: dict[int, np.ndarray] = {}
    for number in chosen:
        every = found[f"b{number}"]
        every = every.reshape(table.rows, -1, *every.shape[1:]).astype(np.float32)
        alike = bool((every == every[:, :1]).all())
        tables[number] = every[:, :1] if alike else every
    return tables


def _replace(draft: Draft, turn: int, tables: Mapping[int, np.ndarray]) -> Draft:
    """The loop with each of these buffers read from a table; what made them is left for drop-unread."""
    plan = draft.plan
    segment = plan.segments[turn]
    drafter = Drafter.reopen(draft)
    calls, placed = list[Call](), set[int]()
    for call in segment.calls:
        numbers = writes(plan, call) & tables.keys()
        if not numbers:
            calls.append(call)
            continue
        for number in numbers - placed:
            placed.add(number)
            calls += _read_row(drafter, segment, number, tables[number], call)
    segments = list(plan.segments)
    segments[turn] = segment.model_copy(update={"calls": tuple(calls)})
    return drafter.closed(plan, segments)


def _read_row(drafter: Drafter, segment: Segment, number: int, table: np.ndarray, maker: Call) -> list[Call]:
    """select_row, and its result for every sample and branch."""
    values = drafter.constant(table, f"{maker.site} by row")
    row = drafter.new(table.shape[1:], name=maker.site)
    whole = drafter.value(f"b{number}")
    size = whole.shape[0]
    assert isinstance(size, Batch)
    shape, inner = (Batch(), size.k, *whole.shape[1:]), whole.strides[0]
    spread = Value(row.storage, shape, (0, inner if table.shape[1] > 1 else 0, *row.strides[1:]))
    target = Value(whole.storage, shape, (inner * size.k, *whole.strides))
    attrs = {"table": segment.table, "axis": 0}
    return [
        maker.model_copy(
            update={"op": "select_row", "ins": {"x": values.storage}, "outs": {"y": row.storage}, "attrs": attrs}
        ),
        maker.model_copy(
            update={"op": "copy", "ins": {"x": drafter.ref(spread)}, "outs": {"y": drafter.ref(target)}, "attrs": {}}
        ),
    ]
