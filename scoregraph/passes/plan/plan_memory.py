"""Give every buffer its place in one of two arenas, so that nothing is allocated while a plan runs.

Greedy by size (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", arXiv:2001.03288, §4):
the largest buffer first, each at the lowest offset where it overlaps no buffer that is live at the same time.
Buffers that grow with the batch live in an arena of their own whose offsets are multiplied by B: two of them are apart
for every B if they are apart for B = 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

from scoregraph.passes.base import Fuel, PassResult
from scoregraph.passes.plan.conditions_first import beside_each_other
from scoregraph.passes.plan.liveness import Interval, intervals
from scoregraph.plan.dims import has_batch, parse_dim, per_unit
from scoregraph.plan.draft import Draft
from scoregraph.plan.schema import Buffer, Plan, Slot

ALIGN = 64
ITEM = {"f32": 4, "i64": 8, "u8": 1, "u7": 1, "bf16": 2}


@dataclass(frozen=True)
class PlanMemory:
    """Buffers without a place → buffers with a ``slot``; unused buffers are left without one."""

    name: ClassVar[str] = "plan-memory"

    def run(self, module: Draft, fuel: Fuel | None = None) -> PassResult[Draft]:
        """Counters: bytes per sample and fixed bytes of the arenas, and what they would be without sharing; and the
        bytes that are in use at once for one sample, below which no arrangement can go.

        Every buffer needs its place, so this takes no fuel."""
        plan = module.plan
        live = intervals(plan)
        apart = _lasting_through_groups(plan, live)
        slots: dict[int, Slot] = {}
        counters: dict[str, int] = {}
        for space in ("batch", "fixed"):
            members = [
                (nbytes(b), b.id) for b in plan.buffers if b.view is None and b.id in live and _space(b) == space
            ]
            placed: list[tuple[int, int, Interval]] = []
            for size, number in sorted(members, key=lambda m: (-m[0], live[m[1]].first, m[1])):
                offset = _lowest_gap(size, [(o, s) for o, s, span in placed if span.overlaps(apart[number])])
                placed.append((offset, size, apart[number]))
                slots[number] = Slot(space=space, offset=offset)
            counters[f"{space}_bytes"] = max((o + s for o, s, _ in placed), default=0)
            counters[f"{space}_bytes_unshared"] = sum(size for size, _ in members)
        counters["largest_live_set"] = largest_live_set(plan, live, 1)
        buffers = tuple(b.model_copy(update={"slot": slots[b.id]}) if b.id in slots else b for b in plan.buffers)
        return PassResult(
            Draft(plan.model_copy(update={"buffers": buffers}), module.arrays), rewrites=len(slots), counters=counters
        )


@dataclass(frozen=True)
class Memory:
    """What a run takes, in bytes. The arena is at least the largest live set; gaps between buffers make it larger."""

    weights: int
    largest_live_set: int
    arena: int

    @property
    def total(self) -> int:
        """Weights and arena."""
        return self.weights + self.arena


def memory(plan: Plan, batch: int) -> Memory:
    """What a run of ``batch`` samples of a planned plan takes, beside scratch space of the device's kernels."""
    ends = {"batch": 0, "fixed": 0}
    for buffer in plan.buffers:
        if buffer.slot is not None:
            ends[buffer.slot.space] = max(ends[buffer.slot.space], buffer.slot.offset + nbytes(buffer))
    weights = sum(constant.nbytes for constant in plan.constants)
    return Memory(weights, largest_live_set(plan, intervals(plan), batch), ends["batch"] * batch + ends["fixed"])


def largest_live_set(plan: Plan, live: Mapping[int, Interval], batch: int) -> int:
    """The most bytes that hold values somebody still needs at any one call of a run of ``batch`` samples."""
    changes: dict[int, int] = {}
    for buffer in plan.buffers:
        if buffer.view is None and buffer.id in live:
            size = nbytes(buffer) * (batch if _space(buffer) == "batch" else 1)
            first, last = live[buffer.id].first, live[buffer.id].last
            changes[first] = changes.get(first, 0) + size
            changes[last + 1] = changes.get(last + 1, 0) - size
    return max(accumulate(changes[position] for position in sorted(changes)), default=0)


def _lasting_through_groups(plan: Plan, live: Mapping[int, Interval]) -> dict[int, Interval]:
    """The intervals as if calls that may run at the same time were one: what one of them reads for the last time is no
    place for what another one writes."""
    begin: dict[int, int] = {}
    end: dict[int, int] = {}
    position = 0
    for segment in plan.segments:
        for group in beside_each_other(plan, segment.calls):
            for at in group:
                begin[position + at], end[position + at] = position + group.start, position + group.stop - 1
        position += len(segment.calls)
    return {
        number: Interval(begin.get(span.first, span.first), end.get(span.last, span.last))
        for number, span in live.items()
    }


def nbytes(buffer: Buffer) -> int:
    """Bytes per unit of B (or in all), rounded up to the alignment."""
    size = per_unit(tuple(parse_dim(d) for d in buffer.shape)) * ITEM[buffer.dtype]
    return max(ALIGN, -(-size // ALIGN) * ALIGN)


def _space(buffer: Buffer) -> str:
    return "batch" if has_batch(tuple(parse_dim(d) for d in buffer.shape)) else "fixed"


def _lowest_gap(size: int, taken: list[tuple[int, int]]) -> int:
    offset = 0
    for start, length in sorted(taken):
        if offset + size <= start:
            break
        offset = max(offset, start + length)
    return offset
