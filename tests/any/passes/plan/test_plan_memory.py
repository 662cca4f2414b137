"""Memory: whatever is needed at the same time lies apart, checked by unrolling the loops, and by running."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from drafts import conditioned, drafts, given, loop, output, pointwise, run, same, trace
from hypothesis import HealthCheck, settings
from hypothesis import given as for_all
from hypothesis import strategies as st

from scoregraph.passes.plan.liveness import intervals
from scoregraph.passes.plan.plan_memory import PlanMemory, memory, nbytes
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Draft, Drafter

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


def needed(draft: Draft) -> dict[int, list[tuple[int, int]]]:
    """For every buffer the spans of time, in calls of the unrolled program, over which its bytes must not change.

    Worked out from reads and writes alone: a value is needed from the oldest of its parts to its last read.
    """

    plan = draft.plan

    def owner(ref: str) -> int:
        view = plan.buffers[int(ref[1:])].view
        return view.base if view else int(ref[1:])

    ran = trace(draft)
    spans: dict[int, list[tuple[int, int]]] = defaultdict(list)
    parts: dict[int, dict[str, int]] = defaultdict(dict)  # when each window of a buffer was last written
    for spec in plan.inputs:
        parts[spec.buffer][f"b{spec.buffer}"] = -1
    for time, call in enumerate(ran):
        if isinstance(call, int):
            spans[call].append((min(parts[call].values()), time))
            continue
        for number in {owner(ref) for ref in call.ins.values() if ref[0] == "b"}:
            spans[number].append((min(parts[number].values()), time))
        for ref in call.outs.values():
            number = owner(ref)
            if plan.buffers[int(ref[1:])].view is None:
                parts[number].clear()
            parts[number][ref] = time
            spans[number].append((time, time))
    for spec in plan.outputs:
        number = owner(f"b{spec.buffer}")
        spans[number].append((min(parts[number].values()), len(ran)))
    return spans


def assert_apart(draft: Draft) -> None:
    plan, spans = draft.plan, needed(draft)
    placed = [plan.buffers[number] for number in spans]
    for i, a in enumerate(placed):
        assert a.slot is not None
        assert a.slot.offset % 64 == 0
        for b in placed[:i]:
            assert b.slot is not None
            together = a.slot.space == b.slot.space and (
                a.slot.offset < b.slot.offset + nbytes(b) and b.slot.offset < a.slot.offset + nbytes(a)
            )
            if together:
                clash = [(s, t) for s in spans[a.id] for t in spans[b.id] if s[0] <= t[1] and t[0] <= s[1]]
                assert not clash, f"b{a.id} and b{b.id} are both needed at {clash[0]} and share memory"


@FEW
@for_all(drafts())
def test_what_is_needed_at_the_same_time_lies_apart(draft: Draft):
    result = PlanMemory().run(draft)
    assert_apart(result.module)
    for space in ("batch", "fixed"):
        assert result.counters[f"{space}_bytes"] <= result.counters[f"{space}_bytes_unshared"]


@FEW
@for_all(drafts())
def test_a_run_in_shared_memory_gives_the_same_numbers(draft: Draft):
    planned = PlanMemory().run(draft).module
    assert same(run(planned, planned=True), run(draft))
    assert PlanMemory().run(planned).module == planned


def test_the_check_finds_a_clash():
    """The check of this file must be able to fail: a plan whose buffers all lie at 0 does."""
    draft = PlanMemory().run(chain()).module
    buffers = tuple(
        b.model_copy(update={"slot": b.slot and b.slot.model_copy(update={"offset": 0})}) for b in draft.plan.buffers
    )
    with pytest.raises(AssertionError, match="share memory"):
        assert_apart(Draft(draft.plan.model_copy(update={"buffers": buffers}), draft.arrays))


def chain() -> Draft:
    """input → five functions, one after the other → output."""
    d = Drafter("chain", "reference")
    d.begin("once")
    value = given(d, "a", 4)
    for _ in range(5):
        value = pointwise(d, [["silu", 0]], value)
    output(d, "y", value)
    return d.build()


def test_a_chain_needs_two_places():
    result = PlanMemory().run(chain())
    assert result.counters["batch_bytes"] == 2 * 64
    assert result.counters["batch_bytes_unshared"] == 6 * 64
    assert result.rewrites == 6


@FEW
@for_all(drafts(), st.integers(1, 4))
def test_the_largest_live_set_is_what_is_needed_at_one_call(draft: Draft, batch: int):
    plan = PlanMemory().run(draft).module.plan
    found, live = memory(plan, batch), intervals(plan)
    calls = sum(len(segment.calls) for segment in plan.segments)
    needed = [
        sum(
            nbytes(b) * (batch if b.slot is not None and b.slot.space == "batch" else 1)
            for b in plan.buffers
            if b.view is None and b.id in live and live[b.id].first <= position <= live[b.id].last
        )
        for position in range(calls + 1)
    ]
    assert found.largest_live_set == max(needed)
    assert found.arena >= found.largest_live_set


def test_the_arena_of_a_network_is_its_largest_live_set():
    plan = PlanMemory().run(conditioned()).module.plan
    found = memory(plan, 3)
    assert found.largest_live_set <= found.arena <= 1.2 * found.largest_live_set
    assert memory(plan, 6).arena - found.arena == 3 * PlanMemory().run(conditioned()).counters["batch_bytes"]


def test_a_carried_value_keeps_its_place_through_the_loop():
    d = Drafter("carry", "reference")
    d.begin("before")
    state = d.new((4,))
    d.call("fill", {}, {"x": state}, {"value": 1.0}, "fill")
    loop(d)
    first = pointwise(d, [["silu", 0]], state)
    second = pointwise(d, [["silu", 0]], first)
    d.call("copy", {"x": second}, {"y": state}, site="carry")
    third = pointwise(d, [["silu", 0]], state)
    pointwise(d, [["silu", 0]], third)
    d.begin("after")
    output(d, "y", pointwise(d, [["silu", 0]], state))
    draft = d.build()
    planned = PlanMemory().run(draft).module
    assert_apart(planned)
    assert same(run(planned, planned=True), run(draft))


def test_a_record_keeps_its_place_from_the_first_row_on():
    """It is written a slot at a time, so nobody may have its memory between two rows."""
    d = Drafter("record", "reference")
    d.begin("before")
    x, seen = given(d, "a", 4), d.new((Batch(), 3, 4))
    d.call("fill", {}, {"x": seen}, {"value": 0.0}, "fill")
    table = d.table("loop", ("slot",), np.array([[0], [1], [2]], np.float32))
    d.begin("loop", table)
    moved = pointwise(d, [["neg", 0]], pointwise(d, [["silu", 0]], x))
    d.call("record", {"x": moved}, {"y": seen}, {"table": table, "column": 0}, "seen")
    d.begin("after")
    output(d, "seen", seen)
    spans = intervals(d.build().plan)
    assert (spans[int(seen.storage[1:])].first, spans[int(seen.storage[1:])].last) == (0, 4)
    only_recorded = Drafter("bare", "reference")
    only_recorded.begin("loop", only_recorded.table("loop", ("slot",), np.array([[0], [1]], np.float32)))
    x, seen = given(only_recorded, "a", 4), only_recorded.new((Batch(), 2, 4))
    later = pointwise(only_recorded, [["neg", 0]], pointwise(only_recorded, [["silu", 0]], x))
    only_recorded.call("record", {"x": later}, {"y": seen}, {"table": 0, "column": 0}, "seen")
    output(only_recorded, "seen", seen)
    assert intervals(only_recorded.build().plan)[int(seen.storage[1:])].first == 0


def test_the_input_of_the_next_row_lives_until_that_row():
    """A sampler step writes the input of the next row's variant only: the loop needs both inputs all the time."""
    d = Drafter("inputs", "reference")
    d.begin("before")
    x, xins = given(d, "a", 4), [d.new((Batch(), 4)), d.new((Batch(), 4))]
    table = d.table("loop", ("c_in", "a", "b", "c", "kind"), np.array([[1, 1, 0, 0, 0]] * 3, np.float32))
    d.call("step_input", {"x": x}, {"xin": xins[0]}, {"table": table, "column": 0, "row": 0}, "start")
    d.begin("loop", table, variant=4)
    for kind, xin in enumerate(xins):
        with d.only_in(kind):
            answer = pointwise(d, [["neg", 0]], xin)
            outs = {"r0": x, "xin0": xins[0], "xin1": xins[1]}
            attrs = {"table": table, "a": 1, "b": 2, "c": 3, "cin": 0, "site": 1}
            d.call("sampler_step", {"r0": x, "p0": answer}, outs, attrs, "step")
    output(d, "x", x)
    spans = intervals(d.build().plan)
    assert [(spans[int(xin.storage[1:])].first, spans[int(xin.storage[1:])].last) for xin in xins] == [(0, 4), (1, 4)]


def test_a_buffer_nobody_uses_has_no_place():
    d = Drafter("idle", "reference")
    d.begin("once")
    x = given(d, "a", 4)
    unused = d.new((1000,))
    output(d, "y", pointwise(d, [["neg", 0]], x))
    planned = PlanMemory().run(d.build())
    assert planned.module.plan.buffers[int(unused.storage[1:])].slot is None
    assert planned.counters["fixed_bytes"] == 0
