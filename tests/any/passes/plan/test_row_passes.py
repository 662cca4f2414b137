"""split-residuals, tabulate-time, batch-rows: what the state has no part in leaves the loop, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from drafts import conditioned, drafts, evaluate, given, loop, output, pointwise, product, run
from hypothesis import HealthCheck, settings
from hypothesis import given as for_all

from scoregraph.passes.base import Fuel, Pass
from scoregraph.passes.plan.batch_rows import BatchRows
from scoregraph.passes.plan.dependence import Depends, dependence
from scoregraph.passes.plan.drop_unread import DropUnread
from scoregraph.passes.plan.hoist_invariants import HoistInvariants
from scoregraph.passes.plan.merge_products import MergeProducts
from scoregraph.passes.plan.plan_memory import PlanMemory
from scoregraph.passes.plan.split_residuals import SplitResiduals
from scoregraph.passes.plan.tabulate_time import TabulateTime
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Draft, Drafter

PASSES: tuple[Pass[Draft], ...] = (
    SplitResiduals(), MergeProducts(), TabulateTime(evaluate), HoistInvariants(), BatchRows(), DropUnread(),
)  # fmt: skip


def sites(draft: Draft, segment: str = "steps") -> list[str]:
    found = next(each for each in draft.plan.segments if each.name == segment)
    return [call.site if call.op not in ("select_row", "copy") else call.op for call in found.calls]


def close(a: dict[str, np.ndarray], b: dict[str, np.ndarray], tolerance: float = 1e-6) -> bool:
    """Equal up to the rounding of tables to float32."""
    return a.keys() == b.keys() and all(np.allclose(a[n], b[n], rtol=0, atol=tolerance) for n in a)


def through(draft: Draft, *passes: Pass[Draft]) -> Draft:
    """``draft`` after these passes, each of which keeps the numbers and has nothing left to do a second time."""
    expected = run(draft)
    for each in passes:
        draft = each.run(draft).module
        assert close(run(draft), expected), each.name
        again = each.run(draft)
        assert again.rewrites == 0, each.name
        assert again.module == draft, each.name
    assert close(run(PlanMemory().run(draft).module, planned=True), expected)
    return draft


def test_what_a_value_depends_on():
    draft = conditioned()
    found = dependence(draft.plan, 1)
    calls = draft.plan.segments[1].calls
    by_site = {call.site: found.made(call) for call in calls}
    assert by_site["time"] == by_site["time2"] == by_site["waves"] == Depends.ROW
    assert by_site["modulation"] == by_site["label"] == Depends.ROW | Depends.GIVEN
    assert all(Depends.STATE in by_site[site] for site in ("states", "norm", "attention", "carry"))


def test_the_step_is_left_with_what_reads_the_state():
    draft = through(conditioned(), *PASSES)
    assert sites(draft) == ["select_row", "copy", "copy", "norm", "q", "attention", "copy"]
    assert [call.op for call in draft.plan.segments[0].calls].count("linear") == 2, "label and modulation"


@pytest.mark.parametrize("branches", [1, 2, 3])
def test_any_number_of_branches(branches):
    draft = through(conditioned(branches), *PASSES)
    assert "modulation" not in sites(draft)


def test_rows_of_several_kinds():
    draft = through(conditioned(kinds=(0, 1, 0, 2)), *PASSES)
    reading = [call for call in draft.plan.segments[1].calls if call.op == "select_row"]
    assert [call.variants for call in reading] == [(0, 2)]


def test_loops_of_rounds_are_left_alone():
    draft = conditioned(rounds=True)
    for each in (SplitResiduals(), TabulateTime(evaluate), BatchRows()):
        assert each.run(draft).module == draft


def test_a_residual_stays_with_a_product_that_reads_the_state():
    d = Drafter("state", "reference")
    d.begin("before")
    state, label = d.new((Batch(), 4)), given(d, "label", 4)
    d.call("fill", {}, {"x": state}, {"value": 0.5}, "fill")
    loop(d)
    moved = product(d, state, 4, residual=label)
    d.call("copy", {"x": moved}, {"y": state}, site="carry")
    d.begin("after")
    output(d, "y", state)
    assert SplitResiduals().run(d.build()).rewrites == 0


def test_a_split_residual_lets_the_product_leave_the_loop():
    d = Drafter("label", "reference")
    d.begin("before")
    state, label = d.new((Batch(), 4)), given(d, "label", 4)
    d.call("fill", {}, {"x": state}, {"value": 0.5}, "fill")
    loop(d)
    moved = product(d, label, 4, residual=pointwise(d, [["tanh", 0]], state), site="label")
    d.call("copy", {"x": moved}, {"y": state}, site="carry")
    d.begin("after")
    output(d, "y", state)
    draft = through(d.build(), SplitResiduals(), HoistInvariants())
    assert [call.op for call in draft.plan.segments[1].calls] == ["pointwise", "pointwise", "copy"]


def tabulated(draft: Draft, limit: int = 1 << 20):
    return TabulateTime(evaluate, limit).run(SplitResiduals().run(draft).module)


def test_tables_hold_one_branch_where_branches_are_alike():
    result = tabulated(conditioned(3))
    assert (result.rewrites, result.counters["bytes"]) == (1, 3 * 8 * 4)
    (table,) = [c for c in result.module.plan.constants if c.name.endswith("by row")]
    assert table.shape == (3, 1, 8)


def test_the_weights_of_the_time_are_dropped_from_the_plan():
    before = conditioned()
    result = DropUnread().run(tabulated(before).module)
    names = {constant.name for constant in result.module.plan.constants}
    assert {"time.w", "time.b", "time2.w", "time2.b"} & names == set()
    assert result.counters["constants"] == 4
    assert result.counters["constant_bytes"] == 4 * (2 * 8 + 8 + 8 * 8 + 8)


def test_a_table_beyond_the_limit_is_a_miss():
    result = tabulated(conditioned(), limit=50)
    assert result.rewrites == 0
    assert [str(miss) for miss in result.misses] == ["time2: its 3 rows would take 0.0 MB"]


def test_values_without_weights_are_not_tabulated():
    d = Drafter("cheap", "reference")
    table = loop(d)
    t = d.new((Batch(),))
    d.call("step_time", {}, {"t": t}, {"table": table, "column": 0}, "time")
    waves = pointwise(d, [["sin", 0]], t)
    d.begin("after")
    output(d, "y", waves)
    assert tabulated(d.build()).rewrites == 0


def test_rows_beyond_the_limit_stay_in_the_loop():
    draft = through(conditioned(), *PASSES[:4])
    result = BatchRows(limit=1000).run(draft)
    assert result.rewrites == 0
    assert "would take 1 kB more" in str(result.misses[0])
    assert BatchRows().run(draft).counters["bytes"] > 1000


def test_without_tables_the_times_themselves_are_batched():
    draft = through(conditioned(), BatchRows())
    assert "time2" not in sites(DropUnread().run(draft).module)


def test_fuel():
    draft = conditioned()
    assert [SplitResiduals().run(draft, Fuel(n)).rewrites for n in range(2)] == [0, 1]
    split = SplitResiduals().run(draft).module
    assert [TabulateTime(evaluate).run(split, Fuel(n)).rewrites for n in range(2)] == [0, 1]
    assert [BatchRows().run(split, Fuel(n)).rewrites > 0 for n in range(2)] == [False, True]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@for_all(drafts())
def test_random_drafts_give_the_same_numbers(draft: Draft):
    expected = run(draft)
    for each in PASSES:
        draft = each.run(draft).module
        assert close(run(draft), expected), each.name
