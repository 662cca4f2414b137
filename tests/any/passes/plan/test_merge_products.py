"""merge-products and drop-unread: one product in place of several, and nothing kept that nobody reads."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from drafts import conditioned, drafts, given, loop, output, pointwise, product, run, same
from hypothesis import HealthCheck, settings
from hypothesis import given as for_all
from hypothesis import strategies as st

from scoregraph.passes.base import Fuel
from scoregraph.passes.lower import shape as shapes
from scoregraph.passes.plan.drop_unread import DropUnread
from scoregraph.passes.plan.merge_products import MergeProducts
from scoregraph.passes.plan.plan_memory import PlanMemory
from scoregraph.passes.plan.strides import even_rows, onto_columns, readable
from scoregraph.plan.dims import Batch, at
from scoregraph.plan.draft import Draft, Drafter, Value


def linears(draft: Draft) -> list[tuple[str, int]]:
    """The products of a plan and their widths."""
    calls = [call for segment in draft.plan.segments for call in segment.calls if call.op == "linear"]
    return [(call.site, draft.plan.constants[int(call.ins["w"][1:])].shape[0]) for call in calls]


def merged(draft: Draft) -> Draft:
    result = MergeProducts().run(draft)
    assert same(run(result.module), run(draft)), "every column is the same sum"
    assert same(run(PlanMemory().run(result.module).module, planned=True), run(draft))
    again = MergeProducts().run(result.module)
    assert (again.rewrites, again.module) == (0, result.module)
    return result.module


def test_queries_keys_and_values():
    draft = merged(conditioned())
    assert ("q", 24) in linears(draft)
    assert not {("k", 8), ("v", 8)} & set(linears(draft))
    dropped = DropUnread().run(draft)
    assert dropped.counters["constants"] == 6
    assert same(run(dropped.module), run(conditioned()))


def test_a_missing_bias_is_zero():
    d = Drafter("bias", "reference")
    d.begin("once")
    x = given(d, "x", 4)
    a, b = product(d, x, 3), d.new((Batch(), 5))
    d.call("linear", {"x": x, "w": d.constant(np.ones((5, 4), np.float32), "w")}, {"y": b}, {"act": "none"}, "b")
    output(d, "y", shapes.concatenate(d, [a, b], 1, "cat"))
    assert linears(merged(d.build())) == [("linear", 8)]


def refused(reader: str) -> Draft:
    """Two products of x, the first of which is read in a way that needs its rows dense."""
    d = Drafter("refused", "reference")
    d.begin("once")
    x = given(d, "x", 4)
    a, b = product(d, x, 4, site="a"), product(d, x, 4, site="b")
    if reader == "softmax":
        made = d.new(a.shape)
        d.call("softmax", {"x": a}, {"y": made}, site="softmax")
        output(d, "a", made)
    elif reader == "output":
        output(d, "a", a)
    elif reader == "rows that run on":
        output(d, "a", pointwise(d, [["neg", 0]], Value(a.storage, (Batch(4),), (1,))))
    else:
        made = d.new((Batch(), 4))
        d.call("linear", {"x": b, "w": Value("c0", (4, 4), (4, 1))}, {"y": made}, {"act": "none"}, "tied")
        output(d, "a", pointwise(d, [["neg", 0]], made))
    output(d, "b", pointwise(d, [["neg", 0]], b))
    return d.build()


@pytest.mark.parametrize(
    ("reader", "reason"),
    [
        ("softmax", "softmax reads a result as x, which cannot be columns of a wider one"),
        ("output", "a result is seen outside of the calls, or written twice"),
        ("rows that run on", "pointwise reads a result as x0, which cannot be columns of a wider one"),
        ("weights", "its weights are read elsewhere, too"),
    ],
)
def test_what_keeps_products_apart(reader, reason):
    draft = refused(reader)
    result = MergeProducts().run(draft)
    assert result.module is draft
    assert [str(miss) for miss in result.misses] == [f"a: {reason}"]


def apart(*, state: bool, act: str = "none", between: str = "") -> Draft:
    """Two products of x in a loop, the first read before the second is made."""
    d = Drafter("apart", "reference")
    d.begin("before")
    x, carried = given(d, "x", 4), d.new((Batch(), 4))
    d.call("fill", {}, {"x": carried}, {"value": 0.5}, "fill")
    loop(d)
    source = carried if state else x
    moved = pointwise(d, [["add", 0, 1], ["tanh", 2]], product(d, source, 4, site="a"), carried)
    if between:
        d.call("fill", {}, {"x": source}, {"value": 0.25}, "overwrite")
    moved = pointwise(d, [["add", 0, 1]], moved, product(d, source, 4, act=act, site="b"))
    d.call("copy", {"x": moved}, {"y": carried}, site="carry")
    d.begin("after")
    output(d, "y", carried)
    return d.build()


def test_results_of_the_state_do_not_live_longer_for_being_merged():
    assert len(linears(merged(apart(state=True)))) == 2
    assert len(linears(merged(apart(state=False)))) == 1


def test_other_activations_and_other_values_stay_apart():
    assert len(linears(merged(apart(state=False, act="silu")))) == 2
    assert len(linears(merged(apart(state=False, between="fill")))) == 2


def test_fuel():
    draft = conditioned()
    assert [MergeProducts().run(draft, Fuel(n)).rewrites for n in range(3)] == [0, 1, 1]


@settings(max_examples=300, deadline=None, derandomize=True)
@for_all(st.data())
def test_a_window_onto_columns_shows_the_same_elements(data):
    """Every element that a random window shows of a [6, width] matrix is where the wider matrix has it."""
    width = data.draw(st.sampled_from([4, 6]))
    start, total = data.draw(st.integers(0, 5)), width + 7
    narrow = np.arange(6 * width).reshape(6, width)
    wide = np.full((6, total), -1)
    wide[:, start : start + width] = narrow
    dims = data.draw(st.lists(st.tuples(st.integers(1, 3), st.sampled_from([0, 1, 2, width, 2 * width])), max_size=3))
    offset = data.draw(st.integers(0, 5))
    window = Value("b0", tuple(n for n, _ in dims), tuple(s for _, s in dims), offset)
    places = [
        offset + sum(i * s for i, (_, s) in zip(index, dims, strict=True)) for index in np.ndindex(*at(window.shape, 1))
    ]
    if places[-1] >= narrow.size:
        return
    found = onto_columns(window, width, "b1", total, start)
    if found is None:
        assert offset % width + sum((n - 1) * s for n, s in dims if s % width) >= width, "it runs over the end of a row"
        return
    moved = [
        found.offset + sum(i * s for i, s in zip(index, found.strides, strict=True))
        for index in np.ndindex(*at(found.shape, 1))
    ]
    assert wide.reshape(-1)[moved].tolist() == narrow.reshape(-1)[places].tolist()


def test_rows_may_lie_apart_evenly():
    assert even_rows(Value("b0", (Batch(), 5, 4), (50, 10, 1)))
    assert even_rows(Value("b0", (Batch(2), 4), (0, 1)))
    assert not even_rows(Value("b0", (Batch(), 5, 4), (60, 10, 1)))
    assert not even_rows(Value("b0", (Batch(), 5, 4), (50, 10, 2)))
    assert not even_rows(Value("b0", (5, Batch(), 4), (4, 20, 1)))
    rows, gaps = Value("b0", (Batch(), 4), (9, 1)), Value("b0", (Batch(), 4), (9, 2))
    assert readable("layer_norm", "x", rows)
    assert not readable("layer_norm", "x", gaps)
    assert readable("attention", "k", gaps)
    assert readable("pointwise", "x3", gaps)
    assert not readable("softmax", "x", rows)


def test_what_nobody_reads_is_dropped_with_what_only_it_reads():
    d = Drafter("unread", "reference")
    d.begin("once")
    x = given(d, "x", 4)
    product(d, product(d, x, 4, site="first"), 4, site="second")
    output(d, "y", pointwise(d, [["neg", 0]], x))
    draft = d.build()
    result = DropUnread().run(draft)
    assert (result.rewrites, result.counters["constants"]) == (2, 4)
    assert [b.id for b in result.module.plan.buffers] == list(range(len(result.module.plan.buffers)))
    assert len(result.module.plan.buffers) == 2
    assert same(run(result.module), run(draft))
    assert DropUnread().run(result.module).module == result.module


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@for_all(drafts())
def test_random_drafts_give_the_same_numbers_without_what_is_unread(draft: Draft):
    result = DropUnread().run(draft)
    assert same(run(result.module), run(draft))
    plan = result.module.plan
    used = {ref for s in plan.segments for c in s.calls for ref in itertools.chain(c.ins.values(), c.outs.values())}
    bases = {f"b{b.view.base}" for b in plan.buffers if b.view is not None}
    outside = {f"b{spec.buffer}" for spec in (*plan.inputs, *plan.outputs)}
    outside |= {f"b{s.repeat.active}" for s in plan.segments if s.repeat is not None}
    assert {f"b{b.id}" for b in plan.buffers} == {ref for ref in used if ref[0] == "b"} | bases | outside
