"""Leave out what nobody reads: calls whose results go nowhere, then buffers and constants that no call names.

What is left is numbered anew. A plan that other passes have changed holds old weights beside the new ones until this
has run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from scoregraph.passes.base import Fuel, PassResult
from scoregraph.passes.plan.liveness import owner, owner_of, reads, writes
from scoregraph.plan.draft import Draft
from scoregraph.plan.schema import Call, Plan, Segment


@dataclass(frozen=True)
class DropUnread:
    """Calls, buffers and constants that nothing needs disappear."""

    name: ClassVar[str] = "drop-unread"

    def run(self, module: Draft, fuel: Fuel | None = None) -> PassResult[Draft]:
        """Rewrites: calls dropped. Counters: ``constants`` dropped, their bytes. Takes no fuel: it changes no value."""
        segments, dropped = _needed_calls(module.plan)
        plan = module.plan.model_copy(update={"segments": segments})
        draft, counters = renumbered(plan, module.arrays)
        return PassResult(draft, rewrites=dropped, counters=counters)


def _needed_calls(plan: Plan) -> tuple[tuple[Segment, ...], int]:
    """The segments with the calls that somebody reads from, and how many those were that nobody does."""
    calls = [(turn, at, call) for turn, segment in enumerate(plan.segments) for at, call in enumerate(segment.calls)]
    makers: dict[int, list[int]] = {}
    for i, (_, _, call) in enumerate(calls):
        for number in writes(plan, call):
            makers.setdefault(number, []).append(i)
    conditions = [segment.repeat.active for segment in plan.segments if segment.repeat is not None]
    wanted = [owner_of(plan, number) for number in (*(spec.buffer for spec in plan.outputs), *conditions)]
    seen, needed = set(wanted), set[int]()
    while wanted:
        for i in makers.get(wanted.pop(), ()):
            if i not in needed:
                needed.add(i)
                more = reads(plan, calls[i][2]) - seen
                seen |= more
                wanted += more
    kept: list[list[Call]] = [[] for _ in plan.segments]
    for i, (turn, _, call) in enumerate(calls):
        if i in needed:
            kept[turn].append(call)
    segments = tuple(
        segment.model_copy(update={"calls": tuple(rest)}) for segment, rest in zip(plan.segments, kept, strict=True)
    )
    return segments, len(calls) - len(needed)


def renumbered(plan: Plan, arrays: Mapping[int, np.ndarray]) -> tuple[Draft, dict[str, int]]:
    """``plan`` with only the buffers and constants that its calls, tables, inputs and outputs name, numbered from 0."""
    used = {
        ref for segment in plan.segments for call in segment.calls for ref in (*call.ins.values(), *call.outs.values())
    }
    used |= {f"c{table.constant}" for table in plan.tables}
    used |= {f"b{spec.buffer}" for spec in (*plan.inputs, *plan.outputs)}
    used |= {f"b{segment.repeat.active}" for segment in plan.segments if segment.repeat is not None}
    used |= set() if plan.bank is None else {f"b{plan.bank}"}
    used |= {f"b{number}" for ref in used if (number := owner(plan, ref)) is not None}
    buffers = _numbers(buffer.id for buffer in plan.buffers if f"b{buffer.id}" in used)
    constants = _numbers(constant.id for constant in plan.constants if f"c{constant.id}" in used)
    bytes_before = sum(array.nbytes for array in arrays.values())
    kept = {constants[number]: array for number, array in arrays.items() if number in constants}
    counters = {
        "constants": len(plan.constants) - len(constants),
        "constant_bytes": bytes_before - sum(array.nbytes for array in kept.values()),
    }
    if len(buffers) == len(plan.buffers) and not counters["constants"]:
        return Draft(plan, arrays), counters

    def ref(old: str) -> str:
        return f"{old[0]}{(constants if old[0] == 'c' else buffers)[int(old[1:])]}"

    def refs(roles: Mapping[str, str]) -> dict[str, str]:
        return {role: ref(old) for role, old in roles.items()}

    new_buffers = [
        buffer.model_copy(
            update={
                "id": buffers[buffer.id],
                "view": buffer.view and buffer.view.model_copy(update={"base": buffers[buffer.view.base]}),
            }
        )
        for buffer in plan.buffers
        if buffer.id in buffers
    ]
    segments = [
        segment.model_copy(
            update={
                "repeat": segment.repeat
                and segment.repeat.model_copy(update={"active": buffers[segment.repeat.active]}),
                "calls": tuple(
                    call.model_copy(update={"ins": refs(call.ins), "outs": refs(call.outs)}) for call in segment.calls
                ),
            }
        )
        for segment in plan.segments
    ]
    update = {
        "buffers": tuple(new_buffers),
        "constants": tuple(c.model_copy(update={"id": constants[c.id]}) for c in plan.constants if c.id in constants),
        "tables": tuple(t.model_copy(update={"constant": constants[t.constant]}) for t in plan.tables),
        "inputs": tuple(i.model_copy(update={"buffer": buffers[i.buffer]}) for i in plan.inputs),
        "outputs": tuple(o.model_copy(update={"buffer": buffers[o.buffer]}) for o in plan.outputs),
        "segments": tuple(segments),
        "bank": None if plan.bank is None else buffers[plan.bank],
    }
    return Draft(plan.model_copy(update=update), kept), counters


def _numbers(ids: Iterable[int]) -> dict[int, int]:
    return {old: new for new, old in enumerate(ids)}
