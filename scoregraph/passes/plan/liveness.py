"""When each buffer of a draft holds a value somebody still needs.

Positions number the calls of all segments in order. A loop's later turns run its earlier calls again, so a buffer is
needed through all of a loop that uses it if its value comes from before the loop, or from another row than the one that
reads it; any other is needed from its first call to its last one. Nothing here depends on the numbers in a table: the
same memory serves a plan whose table was replaced, with its rows of other variants or in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from scoregraph.plan.schema import Buffer, Call, Plan, Segment

UNLISTED = -1
"""A row of a variant that no call lists: only the calls that list none run in it."""


@dataclass(frozen=True)
class Interval:
    """First and last position (inclusive) at which a buffer is in use."""

    first: int
    last: int

    def overlaps(self, other: Interval) -> bool:
        """Whether both are in use at some position."""
        return self.first <= other.last and other.first <= self.last

    def with_all_of(self, first: int, last: int) -> Interval:
        """The interval that also covers ``first`` … ``last``."""
        return Interval(min(self.first, first), max(self.last, last))


def owner(plan: Plan, ref: str) -> int | None:
    """The buffer whose memory ``ref`` names (through views), or None for a constant."""
    return None if ref[0] == "c" else owner_of(plan, int(ref[1:]))


def owner_of(plan: Plan, number: int) -> int:
    """The buffer whose memory a buffer uses: itself, or the base of a view."""
    buffer: Buffer = plan.buffers[number]
    return buffer.view.base if buffer.view else buffer.id


def reads(plan: Plan, call: Call) -> set[int]:
    """The buffers a call reads. ``record`` fills one slot of its result and keeps the others, so it reads it too."""
    refs = [*call.ins.values(), *(call.outs.values() if call.op == "record" else ())]
    return {n for ref in refs if (n := owner(plan, ref)) is not None}


def writes(plan: Plan, call: Call) -> set[int]:
    """The buffers a call writes, always or sometimes."""
    return {n for ref in call.outs.values() if (n := owner(plan, ref)) is not None}


def sure_writes(plan: Plan, call: Call) -> set[int]:
    """The buffers a call writes whenever it runs: a sampler step writes the input of the next row's variant only."""
    sure = {role: ref for role, ref in call.outs.items() if call.op != "sampler_step" or not role.startswith("xin")}
    return {n for ref in sure.values() if (n := owner(plan, ref)) is not None}


def variants(segment: Segment) -> tuple[int, ...]:
    """The kinds of rows there may be, as far as the calls tell them apart."""
    listed = sorted({variant for call in segment.calls for variant in call.variants})
    return (*listed, UNLISTED)


def runs_in(call: Call, variant: int) -> bool:
    """Whether a call runs in rows of that variant."""
    return not call.variants or variant in call.variants


def intervals(plan: Plan) -> dict[int, Interval]:
    """The interval of every buffer that some call or the caller uses."""
    touched: dict[int, tuple[int, int]] = {}  # first and last position
    known: set[int] = set()  # written, or given by the caller

    def touch(number: int, position: int) -> None:
        first, last = touched.get(number, (position, position))
        touched[number] = (min(first, position), max(last, position))

    for spec in plan.inputs:
        touch(spec.buffer, 0)
        known.add(spec.buffer)
    loops: list[tuple[int, int, set[int], set[int]]] = []  # first, last, needed throughout, perhaps of an earlier row
    position = 0
    for segment in plan.segments:
        start = position
        used: set[int] = set()
        for call in segment.calls:
            for number in reads(plan, call) | writes(plan, call):
                touch(number, position)
                used.add(number)
            position += 1
        if segment.repeat is not None:
            active = owner_of(plan, segment.repeat.active)
            touch(active, start)
            used.add(active)
        if segment.is_loop:
            settled = _settled(plan, segment)
            carried = used & (known | _carried(plan, segment))
            loops.append((start, position - 1, carried, used - carried - settled))
        known |= used
    for spec in plan.outputs:
        touch(owner_of(plan, spec.buffer), position)  # after every call

    found = {number: Interval(first, last) for number, (first, last) in touched.items()}
    for start, end, carried, lasting in loops:
        for number in carried:
            found[number] = found[number].with_all_of(start, end)
        for number in lasting:
            if found[number].last > end:
                found[number] = found[number].with_all_of(start, end)
    return found


def _carried(plan: Plan, segment: Segment) -> set[int]:
    """The buffers that some row reads before it has written them."""
    carried: set[int] = set()
    for variant in variants(segment):
        written: set[int] = set()
        for call in _running(segment, variant):
            carried |= reads(plan, call) - written
            written |= sure_writes(plan, call)
    return carried


def _settled(plan: Plan, segment: Segment) -> set[int]:
    """The buffers that every row writes, so that the value after the loop is the last row's."""
    first, *others = (
        set[int]().union(*(sure_writes(plan, call) for call in _running(segment, variant)))
        for variant in variants(segment)
    )
    return first.intersection(*others)


def _running(segment: Segment, variant: int) -> Iterator[Call]:
    return (call for call in segment.calls if runs_in(call, variant))
