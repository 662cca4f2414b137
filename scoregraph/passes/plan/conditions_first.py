"""What is computed for a sample as a whole comes first: embeddings of its time and label, modulations of all blocks.

    block 1: m1 = W1 embed1(t);  x = f1(x, m1)        ──▶     embed1(t), embed2(t);  m1, m2;
    block 2: m2 = W2 embed2(t);  x = f2(x, m2)                x = f1(x, m1);  x = f2(x, m2)

These are calls of one row, bound by reading weights or by handing them out. Level by level beside each other, those
that read the same row become one product (``merge-products``), and a device may run the others at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from scoregraph.passes.base import Fuel, PassResult
from scoregraph.passes.plan.liveness import reads, writes
from scoregraph.plan.dims import parse_dim, per_unit
from scoregraph.plan.draft import Draft
from scoregraph.plan.schema import Call, Plan, Segment

OPS = frozenset({"copy", "embedding", "layer_norm", "linear", "pointwise", "quantize", "rms_norm", "step_time"})
"""Calls that do nothing but write their results, the same ones wherever in a row of a loop they run."""

FEW_ROWS = 4
"""Rows of a sample, which guided branches multiply, that count as a row: what lives longer for being first is small."""


@dataclass(frozen=True)
class ConditionsFirst:
    """Calls of one row a sample that wait for no other calls → the front of their segment, by depth."""

    name: ClassVar[str] = "conditions-first"

    def run(self, module: Draft, fuel: Fuel | None = None) -> PassResult[Draft]:
        """Rewrites: segments in another order. Counters: ``calls_first``, how many stand in front there."""
        fuel, plan = fuel or Fuel(), module.plan
        segments = list(plan.segments)
        changed = first = 0
        for turn, segment in enumerate(segments):
            front, rest = _split(plan, segment)
            calls = (*(call for level in front for call in level), *rest)
            if calls != segment.calls and fuel.spend():
                segments[turn] = segment.model_copy(update={"calls": calls})
                changed, first = changed + 1, first + len(calls) - len(rest)
        if not changed:
            return PassResult(module)
        draft = Draft(plan.model_copy(update={"segments": tuple(segments)}), module.arrays)
        return PassResult(draft, rewrites=changed, counters={"calls_first": first})


def few_rows(plan: Plan, call: Call) -> bool:
    """Whether a call writes one row a sample, or not many more."""
    shapes = (plan.buffers[int(ref[1:])].shape for ref in call.outs.values())
    return call.op in OPS and all(per_unit(tuple(map(parse_dim, shape[:-1]))) <= FEW_ROWS for shape in shapes)


def beside_each_other(plan: Plan, calls: Sequence[Call]) -> Iterator[range]:
    """The positions of neighbours that write few rows, and of which none touches what another one writes."""
    start, read, written = 0, set[int](), set[int]()
    for at, call in enumerate(calls):
        mine, own = reads(plan, call), writes(plan, call)
        few = few_rows(plan, call)
        if not few or (mine | own) & written or own & read:
            yield range(start, at)
            start, read, written = at, set[int](), set[int]()
        read |= mine
        written |= own
        if not few:
            yield range(at, at + 1)
            start, read, written = at + 1, set[int](), set[int]()
    yield range(start, len(calls))


def _split(plan: Plan, segment: Segment) -> tuple[list[list[Call]], list[Call]]:
    """The calls that may come first, level by level, and the others; each in the order they had."""
    levels: list[list[Call]] = []
    rest: list[Call] = []
    rest_reads, rest_writes = set[int](), set[int]()
    read_at, written_at = dict[int, int](), dict[int, int]()  # the last level that does so to each buffer
    for call in segment.calls:
        mine, own = reads(plan, call), writes(plan, call)
        if few_rows(plan, call) and not (mine | own) & rest_writes and not own & rest_reads:
            after = [written_at[number] for number in mine | own if number in written_at]
            after += [read_at[number] for number in own if number in read_at]
            level = max(after, default=-1) + 1
            if level == len(levels):
                levels.append([])
            levels[level].append(call)
            read_at.update((number, max(level, read_at.get(number, level))) for number in mine)
            written_at.update((number, level) for number in own)
        else:
            rest.append(call)
            rest_reads |= mine
            rest_writes |= own
    return levels, rest
