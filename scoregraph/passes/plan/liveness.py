"""When each buffer of a draft holds a value somebody still needs.

Positions number the calls of all segments in order. A buffer made before a loop and read inside it is needed until the
loop's last call, since the next turn reads it again; one made inside a loop is needed up to its last reader.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from scoregraph.plan.schema import Buffer, Call, Plan


@dataclass(frozen=True)
class Interval:
    """First and last position (inclusive) at which a buffer is in use."""

    first: int
    last: int

    def overlaps(self, other: Interval) -> bool:
        """Whether both are in use at some position."""
        return self.first <= other.last and other.first <= self.last


def calls(plan: Plan) -> Iterator[tuple[int, Call]]:
    """Every call with its position."""
    position = 0
    for segment in plan.segments:
        for call in segment.calls:
            yield position, call
            position += 1


def owner(plan: Plan, ref: str) -> int | None:
    """The buffer whose memory ``ref`` names (through views), or None for a constant."""
    if ref[0] == "c":
        return None
    buffer: Buffer = plan.buffers[int(ref[1:])]
    return buffer.view.base if buffer.view else buffer.id


def intervals(plan: Plan) -> dict[int, Interval]:
    """The interval of every buffer that some call or the caller uses."""
    touched: dict[int, list[int]] = {}
    written: dict[int, int] = {}
    last_position = -1
    for position, call in calls(plan):
        last_position = position
        for ref in call.ins.values():
            if (number := owner(plan, ref)) is not None:
                touched.setdefault(number, []).append(position)
        for ref in call.outs.values():
            if (number := owner(plan, ref)) is not None:
                touched.setdefault(number, []).append(position)
                written.setdefault(number, position)
    for spec in plan.inputs:
        touched.setdefault(spec.buffer, []).append(0)
        written[spec.buffer] = -1
    for spec in plan.outputs:
        touched.setdefault(owner_of_output(plan, spec.buffer), []).append(max(last_position, 0))

    found = {number: Interval(min(at), max(at)) for number, at in touched.items()}
    start = 0
    for segment in plan.segments:
        end = start + len(segment.calls) - 1
        if segment.table is not None:
            for number, span in found.items():
                carried = written.get(number, start) < start or _read_before_written(plan, number, start, end)
                if carried and any(start <= at <= end for at in touched[number]):
                    found[number] = Interval(min(span.first, start), max(span.last, end))
        start = end + 1
    for spec in plan.inputs:
        found[spec.buffer] = Interval(0, found[spec.buffer].last)
    return found


def owner_of_output(plan: Plan, number: int) -> int:
    """The buffer that holds an output (outputs may be views)."""
    view = plan.buffers[number].view
    return view.base if view else number


def _read_before_written(plan: Plan, number: int, start: int, end: int) -> bool:
    """Whether one turn of a loop reads what an earlier turn wrote."""
    for position, call in calls(plan):
        if start <= position <= end:
            if any(owner(plan, ref) == number for ref in call.ins.values()):
                return True
            if any(owner(plan, ref) == number for ref in call.outs.values()):
                return False
    return False
