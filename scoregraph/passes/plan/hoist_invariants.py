"""Move what does not change from step to step in front of the loop: encoders, label embeddings, their projections.

loop: e = silu(linear(label))   ──▶   e = silu(linear(label))
      y = net(x, e)                   loop: y = net(x, e)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scoregraph.passes.base import Fuel, PassResult
from scoregraph.passes.plan.liveness import owner
from scoregraph.plan.draft import Draft
from scoregraph.plan.schema import Call, Plan, Segment

PER_ROW = frozenset({"step_time", "step_input", "sampler_step", "noise"})
"""Operations that read the current row of the loop's table."""


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
            if segment.table is None:
                segments.append(segment)
                continue
            invariant, varying = _split(plan, segment)
            if not invariant or not fuel.spend():
                segments.append(segment)
                continue
            moved += len(invariant)
            if segments and segments[-1].table is None:
                before = segments.pop()
                segments.append(before.model_copy(update={"calls": before.calls + tuple(invariant)}))
            else:
                segments.append(Segment(name=f"before-{segment.name}", calls=tuple(invariant)))
            segments.append(segment.model_copy(update={"calls": tuple(varying)}))
        return PassResult(Draft(plan.model_copy(update={"segments": tuple(segments)}), module.arrays), rewrites=moved)


def _split(plan: Plan, segment: Segment) -> tuple[list[Call], list[Call]]:
    """The calls that compute the same every turn, and the others; each in order."""
    writers: dict[int, int] = {}
    for call in segment.calls:
        for number in _owners(plan, call.outs):
            writers[number] = writers.get(number, 0) + 1
    varying_buffers = _carried(plan, segment)
    pending: dict[int, int] = {}
    invariant: list[Call] = []
    varying: list[Call] = []
    for call in segment.calls:
        reads, writes = _owners(plan, call.ins), _owners(plan, call.outs)
        # A buffer with several writers (a concatenation) is invariant only if all of them are; deciding that needs
        # them in one piece, so a partly written buffer counts as varying for its readers.
        fixed = (
            call.op not in PER_ROW
            and not any(n in varying_buffers for n in reads | writes)
            and not any(pending.get(n, 0) < writers[n] for n in reads if n in writers)
        )
        if fixed:
            invariant.append(call)
            for n in writes:
                pending[n] = pending.get(n, 0) + 1
        else:
            varying.append(call)
            varying_buffers |= writes
    # A concatenation that mixes both kinds must be rebuilt each turn as one: take its invariant parts back.
    split = {n for n in varying_buffers if pending.get(n, 0)}
    if split:
        keep = [c for c in invariant if not (_owners(plan, c.outs) & split)]
        back = [c for c in invariant if _owners(plan, c.outs) & split]
        order = {id(c): i for i, c in enumerate(segment.calls)}
        return keep, sorted(varying + back, key=lambda c: order[id(c)])
    return invariant, varying


def _carried(plan: Plan, segment: Segment) -> set[int]:
    """The buffers that are read before they are written for the last time: a turn may see what the one before left."""
    read: set[int] = set()
    carried: set[int] = set()
    for call in segment.calls:
        read |= _owners(plan, call.ins)
        carried |= read & _owners(plan, call.outs)
    return carried


def _owners(plan: Plan, refs: dict[str, str]) -> set[int]:
    return {n for ref in refs.values() if (n := owner(plan, ref)) is not None}
