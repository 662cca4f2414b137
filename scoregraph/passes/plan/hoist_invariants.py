"""Move what does not change from step to step in front of the loop: encoders, label embeddings, their projections.

loop: e = silu(linear(label))   ──▶   e = silu(linear(label))
      y = net(x, e)                   loop: y = net(x, e)

A call that only some rows make (of a variant), or a loop that may make no round at all, would not have run every time.
It still may move: the operations that do are functions of their operands, so computing one early, or in vain, changes
nothing, provided that nobody sees its result without it. Hence its buffers must be its own: not written elsewhere, nor
in the loop by calls of other variants. (An embedding looks its index up once more often than asked: an index out of
range, which is a mistake of the inputs anyway, is then reported even if no row uses it.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scoregraph.passes.base import Fuel, PassResult
from scoregraph.passes.plan.dependence import PER_ROW, carried, written_elsewhere
from scoregraph.passes.plan.liveness import reads, writes
from scoregraph.plan.draft import Draft
from scoregraph.plan.schema import Call, Plan, Segment


@dataclass(frozen=True)
class HoistInvariants:
    """A call of a loop whose operands are all written outside of it moves to the segment before."""

    name: ClassVar[str] = "hoist-invariants"

    def run(self, module: Draft, fuel: Fuel | None = None) -> PassResult[Draft]:
        """Rewrites: calls moved. Calls that depend on each other move together, so a loop costs one unit of fuel."""
        fuel = fuel or Fuel()
        plan, moved = module.plan, 0
        segments: list[Segment] = []
        for segment in plan.segments:
            if not segment.is_loop:
                segments.append(segment)
                continue
            invariant, varying = _split(plan, segment)
            if not invariant or not fuel.spend():
                segments.append(segment)
                continue
            moved += len(invariant)
            once = tuple(call.model_copy(update={"variants": ()}) for call in invariant)
            if segments and not segments[-1].is_loop:
                before = segments.pop()
                segments.append(before.model_copy(update={"calls": before.calls + once}))
            else:
                segments.append(Segment(name=f"before-{segment.name}", calls=once))
            segments.append(segment.model_copy(update={"calls": tuple(varying)}))
        return PassResult(Draft(plan.model_copy(update={"segments": tuple(segments)}), module.arrays), rewrites=moved)


def _split(plan: Plan, segment: Segment) -> tuple[list[Call], list[Call]]:
    """The calls that compute the same every turn, and the others; each in order."""
    writers: dict[int, list[Call]] = {}
    for call in segment.calls:
        for number in writes(plan, call):
            writers.setdefault(number, []).append(call)
    varying_buffers = carried(plan, segment)
    elsewhere = written_elsewhere(plan, segment)
    pending: dict[int, int] = {}
    invariant: list[Call] = []
    varying: list[Call] = []
    for call in segment.calls:
        reading, writing = reads(plan, call), writes(plan, call)
        optional = bool(call.variants) or segment.repeat is not None
        # A buffer with several writers (a concatenation) is invariant only if all of them are; deciding that needs
        # them in one piece, so a partly written buffer counts as varying for its readers.
        fixed = (
            call.op not in PER_ROW
            and not any(n in varying_buffers for n in reading | writing)
            and not any(pending.get(n, 0) < len(writers[n]) for n in reading if n in writers)
            and not (optional and writing & elsewhere)
            and all(other.variants == call.variants for n in writing for other in writers[n])
        )
        if fixed:
            invariant.append(call)
            for n in writing:
                pending[n] = pending.get(n, 0) + 1
        else:
            varying.append(call)
            varying_buffers |= writing
    # A concatenation that mixes both kinds must be rebuilt each turn as one: take its invariant parts back.
    split = {n for n in varying_buffers if pending.get(n, 0)}
    if split:
        keep = [c for c in invariant if not (writes(plan, c) & split)]
        back = [c for c in invariant if writes(plan, c) & split]
        order = {id(c): i for i, c in enumerate(segment.calls)}
        return keep, sorted(varying + back, key=lambda c: order[id(c)])
    return invariant, varying
