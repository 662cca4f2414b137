"""What the values of a loop depend on: the number of the row, what a run was given, the state that the loop moves.

Time embeddings depend on the row alone, embeddings of a text on what the run was given, their sum on both; everything
behind the first layer that reads the image depends on the state. Calls that do not can be made for all rows at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Flag, auto

from scoregraph.passes.plan.liveness import owner, owner_of, reads, writes
from scoregraph.plan.dims import has_batch, parse_dim
from scoregraph.plan.schema import Call, Plan, Segment

PER_ROW = frozenset(
    {"step_time", "step_input", "sampler_step", "noise", "gram", "quantile", "scalars", "record", "select_row"}
)
"""Operations that may read the current row of the loop's table, or that keep part of their result."""

PRODUCTS = frozenset({"linear", "conv2d", "matmul", "attention"})
"""Calls that are worth memory, or time while compiling, to run them less often."""


class Depends(Flag):
    """A set of the things that may change a value; none of them: it is always the same."""

    NOTHING = 0
    ROW = auto()
    GIVEN = auto()
    STATE = auto()


@dataclass(frozen=True)
class Dependence:
    """What each buffer of one loop depends on while the loop runs.

    ``buffers`` speaks of every buffer that is written before the loop or in it.
    """

    plan: Plan
    buffers: Mapping[int, Depends]

    def of(self, refs: Iterable[str]) -> Depends:
        """What any of these operands depends on; a constant on nothing."""
        found = Depends.NOTHING
        for ref in refs:
            if (number := owner(self.plan, ref)) is not None:
                found |= self.buffers.get(number, Depends.NOTHING)
        return found

    def made(self, call: Call) -> Depends:
        """What the results of a call of the loop depend on."""
        return self.of(call.outs.values())


def dependence(plan: Plan, turn: int) -> Dependence:
    """Of the loop that is segment number ``turn``, one without rounds."""
    segment = plan.segments[turn]
    known = _before(plan, turn)
    state = carried(plan, segment) | _shared(plan, turn)
    buffers = {**known, **dict.fromkeys(state, Depends.STATE)}
    found = Dependence(plan, buffers)
    for call in segment.calls:
        depends = found.of(call.ins.values()) | _own(plan, segment, call)
        for number in writes(plan, call):
            buffers[number] = buffers.get(number, Depends.NOTHING) | depends
    return found


def makers(plan: Plan, segment: Segment) -> dict[int, list[int]]:
    """The positions of the calls that write each buffer."""
    found: dict[int, list[int]] = {}
    for at, call in enumerate(segment.calls):
        for number in writes(plan, call):
            found.setdefault(number, []).append(at)
    return found


def needed_for(plan: Plan, segment: Segment, made: Mapping[int, list[int]], number: int) -> frozenset[int]:
    """The positions of all calls of a segment that make a buffer, and what they read, and so on (``makers``)."""
    wanted, found = [number], set[int]()
    while wanted:
        for at in made.get(wanted.pop(), ()):
            if at not in found:
                found.add(at)
                wanted += reads(plan, segment.calls[at])
    return frozenset(found)


def carried(plan: Plan, segment: Segment) -> set[int]:
    """The buffers that are read before they are written for the last time: a turn may see what the one before left."""
    read = set[int]() if segment.repeat is None else {owner_of(plan, segment.repeat.active)}
    found = set(read)
    for call in segment.calls:
        read |= reads(plan, call)
        found |= read & writes(plan, call)
    return found


def written_elsewhere(plan: Plan, segment: Segment) -> set[int]:
    """The buffers that hold a value even if ``segment`` does not run."""
    others = [call for other in plan.segments if other is not segment for call in other.calls]
    return {owner_of(plan, spec.buffer) for spec in plan.inputs}.union(*(writes(plan, call) for call in others))


def _before(plan: Plan, turn: int) -> dict[int, Depends]:
    known = {owner_of(plan, spec.buffer): Depends.GIVEN for spec in plan.inputs}
    for segment in plan.segments[:turn]:
        for call in segment.calls:
            numbers = reads(plan, call)
            depends = Depends.GIVEN if segment.is_loop or call.op in PER_ROW else Depends.NOTHING
            for number in numbers:
                depends |= known.get(number, Depends.NOTHING)
            for number in writes(plan, call):
                known[number] = known.get(number, Depends.NOTHING) | depends
    return known


def _shared(plan: Plan, turn: int) -> set[int]:
    """The buffers of the loop whose value is not simply that of the row: also written outside of it, or by calls of
    some variants and read by calls of others."""
    segment = plan.segments[turn]
    writers: dict[int, set[tuple[int, ...]]] = {}
    for call in segment.calls:
        for number in writes(plan, call):
            writers.setdefault(number, set()).add(call.variants)
    shared = writers.keys() & written_elsewhere(plan, segment)
    shared |= {number for number, kinds in writers.items() if len(kinds) > 1}
    for call in segment.calls:
        for number in reads(plan, call) & writers.keys():
            for kinds in writers[number]:
                if kinds and not (call.variants and set(call.variants) <= set(kinds)):
                    shared.add(number)
    return shared


def _own(plan: Plan, segment: Segment, call: Call) -> Depends:
    """What a call depends on beside its operands."""
    if call.op == "select_row":
        return Depends.ROW if call.attrs["table"] == segment.table else Depends.STATE
    if call.op == "step_time" and "time" not in call.ins and "row" not in call.attrs:
        batched = all(has_batch(map(parse_dim, plan.buffers[n].shape)) for n in writes(plan, call))
        return Depends.ROW if call.attrs["table"] == segment.table and batched else Depends.STATE
    return Depends.STATE if call.op in PER_ROW else Depends.NOTHING
