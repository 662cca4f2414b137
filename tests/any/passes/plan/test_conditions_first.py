"""conditions-first: the same values in another order, level by level; and memory that lets a level run at once."""

from __future__ import annotations

from collections.abc import Iterable

from drafts import drafts, given, output, pointwise, product, run, same
from hypothesis import HealthCheck, settings
from hypothesis import given as for_all

from scoregraph.passes.base import Fuel
from scoregraph.passes.plan.conditions_first import ConditionsFirst, beside_each_other, few_rows
from scoregraph.passes.plan.liveness import reads, writes
from scoregraph.passes.plan.merge_products import MergeProducts
from scoregraph.passes.plan.plan_memory import PlanMemory, nbytes
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Draft, Drafter, Value
from scoregraph.plan.schema import Plan

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
TOKENS = 6


def for_tokens(d: Drafter, row: Value) -> Value:
    """A row [B, 4] repeated for every token."""
    return Value(d.ref(row), (Batch(), TOKENS, 4), (4, 0, 1))


def blocks(count: int) -> Draft:
    """A state [B, 6, 4] that every block multiplies by its own modulation: two layers and a SiLU of the time [B, 4]."""
    d = Drafter("blocks", "reference")
    d.begin("once")
    x, time = given(d, "x", TOKENS, 4), given(d, "time", 4)
    for _ in range(count):
        m = product(d, pointwise(d, [["silu", 0]], product(d, time, 4)), 4)
        x = pointwise(d, [["mul", 0, 1], ["add", 2, 0]], x, for_tokens(d, m))
    output(d, "x", x)
    return d.build()


def places(plan: Plan, buffers: Iterable[int]) -> list[tuple[str, int, int]]:
    """Where each of the buffers lies: its space, its first byte and the one behind its last."""
    slots = [(plan.buffers[number].slot, nbytes(plan.buffers[number])) for number in buffers]
    return [(slot.space, slot.offset, slot.offset + size) for slot, size in slots if slot is not None]


def ops(draft: Draft) -> list[str]:
    return [call.op if few_rows(draft.plan, call) else "block" for call in draft.plan.segments[0].calls]


def test_modulations_of_all_blocks_come_before_the_first():
    draft = blocks(3)
    result = ConditionsFirst().run(draft)
    assert result.counters == {"calls_first": 9}
    assert ops(result.module) == [*["linear"] * 3, *["pointwise"] * 3, *["linear"] * 3, *["block"] * 3]
    assert same(run(result.module), run(draft))
    again = ConditionsFirst().run(result.module)
    assert (again.rewrites, again.module) == (0, result.module)
    merged = MergeProducts().run(result.module)
    assert merged.counters["calls_saved"] == 2, "the first layers read the same row"
    assert MergeProducts().run(draft).rewrites == 0, "which a block in between hid"


def test_fuel_leaves_the_order_alone():
    draft = blocks(2)
    assert ConditionsFirst().run(draft, Fuel(0)).module is draft


def test_what_an_earlier_call_still_reads_is_not_overwritten():
    """A row that the state is shifted by, and that is written anew afterwards."""
    d = Drafter("again", "reference")
    d.begin("once")
    x, time = given(d, "x", TOKENS, 4), given(d, "time", 4)
    row = d.new((Batch(), 4))
    window = for_tokens(d, row)
    d.call("pointwise", {"x0": time}, {"y": row}, {"program": [["square", 0]]}, "row")
    first = pointwise(d, [["add", 0, 1]], x, window)
    d.call("pointwise", {"x0": time}, {"y": row}, {"program": [["silu", 0]]}, "row")
    output(d, "y", pointwise(d, [["mul", 0, 1]], first, window))
    draft = d.build()
    result = ConditionsFirst().run(draft)
    assert result.rewrites == 0
    assert ops(draft) == ["pointwise", "block", "pointwise", "block"]


@FEW
@for_all(drafts())
def test_random_drafts_compute_the_same(draft: Draft):
    result = ConditionsFirst().run(draft)
    assert same(run(result.module), run(draft))
    assert same(run(PlanMemory().run(result.module).module, planned=True), run(draft))
    assert ConditionsFirst().run(result.module).rewrites == 0


@FEW
@for_all(drafts())
def test_neighbours_that_may_run_at_once_share_no_memory(draft: Draft):
    """Neither in the order as it was drawn nor in the one that the pass makes."""
    for module in (draft, ConditionsFirst().run(draft).module):
        plan = PlanMemory().run(module).module.plan
        for segment in plan.segments:
            groups = list(beside_each_other(plan, segment.calls))
            assert [at for group in groups for at in group] == list(range(len(segment.calls)))
            for group in groups:
                for a in group:
                    for b in set(group) - {a}:
                        others = reads(plan, segment.calls[b]) | writes(plan, segment.calls[b])
                        for space, start, end in places(plan, writes(plan, segment.calls[a])):
                            for other_space, other_start, other_end in places(plan, others):
                                assert space != other_space or end <= other_start or other_end <= start


def test_a_level_is_a_group():
    draft = ConditionsFirst().run(blocks(4)).module
    calls = draft.plan.segments[0].calls
    sizes = [len(group) for group in beside_each_other(draft.plan, calls) if len(group)]
    assert sizes == [4, 4, 4, 1, 1, 1, 1]
    plan = PlanMemory().run(draft).module.plan
    slots = [plan.buffers[int(call.outs["y"][1:])].slot for call in calls[:4]]
    assert len({slot.offset for slot in slots if slot is not None}) == 4
