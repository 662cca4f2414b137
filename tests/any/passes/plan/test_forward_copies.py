"""forward-copies: a kernel writes where the copy of its result would have been, or the reason why not."""

from __future__ import annotations

import numpy as np
import pytest
from drafts import drafts, given, loop, output, pointwise, run, same
from hypothesis import HealthCheck, settings
from hypothesis import given as for_all

from scoregraph.passes.base import Fuel
from scoregraph.passes.lower import shape as shapes
from scoregraph.passes.plan.forward_copies import ForwardCopies
from scoregraph.passes.plan.plan_memory import PlanMemory
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Draft, Drafter, Value
from scoregraph.plan.schema import Repeat
from scoregraph.plan.text import plan_text


def ops(draft: Draft) -> list[str]:
    return [call.op for segment in draft.plan.segments for call in segment.calls]


def check(draft: Draft) -> Draft:
    """Run the pass: same numbers, in shared memory too, and nothing more to do."""
    before = plan_text(draft.plan)
    result = ForwardCopies().run(draft)
    assert plan_text(draft.plan) == before, "the pass changed its argument"
    assert same(run(result.module), run(draft))
    assert same(run(PlanMemory().run(result.module).module, planned=True), run(draft))
    assert ForwardCopies().run(result.module).rewrites == 0
    assert ops(draft).count("copy") - ops(result.module).count("copy") == result.rewrites
    return result.module


def concatenation() -> Draft:
    d = Drafter("concatenation", "reference")
    d.begin("once")
    parts = [pointwise(d, [["silu", 0]], given(d, "a", 3, 2)), pointwise(d, [["exp", 0]], given(d, "b", 3, 4))]
    output(d, "y", shapes.concatenate(d, parts, 2, "cat"))
    return d.build()


def test_parts_of_a_concatenation_are_written_in_place():
    made = check(concatenation())
    assert ops(made) == ["pointwise", "pointwise"]
    assert "b4[0:18x6x1] : f32[B, 3, 2] = pointwise(x0=b0, program=silu 0)" in plan_text(made.plan)
    assert "b4[2:18x6x1] : f32[B, 3, 4] = pointwise(x0=b2, program=exp 0)" in plan_text(made.plan)


def convolved(order: tuple[int, ...]) -> Draft:
    """Two convolutions side by side in one image, of which the second is permuted first."""
    d = Drafter("convolved", "reference")
    d.begin("once")
    parts = list[Value]()
    for name, turn in (("a", (0, 1, 2, 3)), ("b", order)):
        x = given(d, name, 2, 4, 4)
        y = d.new(x.shape, name=f"of {name}")
        w = d.constant(np.linspace(-1, 1, 36).reshape(2, 2, 3, 3).astype(np.float32), "w")
        attrs = {"stride": [1, 1], "padding": [1, 1, 1, 1], "up": [1, 1], "act": "none"}
        d.call("conv2d", {"x": x, "w": w}, {"y": y}, attrs, name)
        parts.append(shapes.permute(y, turn))
    output(d, "y", shapes.concatenate(d, parts, 1, "cat"))
    return d.build()


def test_convolutions_write_slices_of_channels_but_no_permuted_pixels():
    assert ops(check(convolved((0, 1, 2, 3)))) == ["conv2d", "conv2d"]
    assert ops(check(convolved((0, 1, 3, 2)))) == ["conv2d", "conv2d", "copy"]


@pytest.mark.parametrize("order", [(0, 2, 1, 3), (0, 3, 1, 2), (0, 1, 3, 2), (0, 3, 2, 1)])
def test_permuted_results_are_written_permuted(order):
    d = Drafter("permuted", "reference")
    d.begin("once")
    y = shapes.permute(pointwise(d, [["silu", 0]], given(d, "a", 2, 3, 4)), order)
    output(d, "y", d.dense(y, "permuted"))
    assert ops(check(d.build())) == ["pointwise"]


def heads(batch_first: bool) -> Draft:
    """Attention over 2 heads of width 3, whose result [B, S, 2, 3] is merged to [B, S, 6] and copied."""
    d = Drafter("heads", "reference")
    d.begin("once")
    q, k, v = (shapes.permute(given(d, name, 5, 2, 3), (0, 2, 1, 3)) for name in "qkv")
    shape = (Batch(), 5, 2, 3) if batch_first else (Batch(), 2, 5, 3)
    made = d.new(shape)
    y = shapes.permute(made, (0, 2, 1, 3)) if batch_first else made
    d.call("attention", {"q": q, "k": k, "v": v}, {"y": y}, {"scale": 0.5}, "attention")
    merged = shapes.view(d, shapes.permute(y, (0, 2, 1, 3)), (Batch(), 5, 6), "merge")
    wide = shapes.concatenate(d, [merged, given(d, "beside", 5, 2)], 2, "cat")
    output(d, "y", wide)
    return d.build()


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_writes_merged_heads_into_a_concatenation(batch_first):
    made = check(heads(batch_first))
    assert ops(made) == ["attention", "copy"], "only the copy of the input is left"


def test_a_kernel_that_writes_dense_results_is_a_miss():
    d = Drafter("dense", "reference")
    d.begin("once")
    y = d.new((Batch(), 4))
    d.call("softmax", {"x": given(d, "a", 4)}, {"y": y}, site="softmax")
    output(d, "y", shapes.concatenate(d, [y, given(d, "b", 4)], 1, "cat"))
    result = ForwardCopies().run(d.build())
    assert result.rewrites == 0
    assert [str(miss) for miss in result.misses] == ["cat: softmax writes dense results only"]


def test_a_value_with_another_reader_is_copied():
    d = Drafter("readers", "reference")
    d.begin("once")
    y = pointwise(d, [["silu", 0]], given(d, "a", 4))
    output(d, "wide", shapes.concatenate(d, [y, pointwise(d, [["neg", 0]], y)], 1, "cat"))
    made = check(d.build())
    assert ops(made) == ["pointwise", "pointwise", "copy"]


def test_an_output_keeps_its_own_memory():
    d = Drafter("outputs", "reference")
    d.begin("once")
    y = pointwise(d, [["silu", 0]], given(d, "a", 4))
    output(d, "y", y)
    output(d, "wide", shapes.concatenate(d, [y, y], 1, "cat"))
    assert ops(check(d.build())) == ["pointwise", "copy", "copy"]


def test_a_part_of_a_result_is_copied():
    d = Drafter("part", "reference")
    d.begin("once")
    y = pointwise(d, [["silu", 0]], given(d, "a", 4))
    output(d, "y", shapes.concatenate(d, [shapes.narrow(y, 1, 0, 2)], 1, "cat"))
    result = ForwardCopies().run(d.build())
    assert [miss.reason for miss in result.misses] == ["the copy regroups elements in a way strides cannot express"]
    check(d.build())


def test_the_old_value_of_the_target_is_read_before_it_is_overwritten():
    """state' = neg(neg(state)) + …: writing the first function's result to the state would spoil the second read."""
    d = Drafter("hazard", "reference")
    d.begin("before")
    state = d.new((Batch(), 4))
    d.call("fill", {}, {"x": state}, {"value": 2.0}, "fill")
    loop(d, "before")  # a loop may have the name of another segment
    moved = pointwise(d, [["square", 0]], state)
    seen = pointwise(d, [["neg", 0]], state)
    d.call("copy", {"x": moved}, {"y": state}, site="carry")
    d.begin("after")
    output(d, "state", d.dense(shapes.permute(state, (0, 1)), "out"))
    output(d, "seen", seen)
    draft = d.build()
    assert ops(check(draft)).count("copy") == 1
    np.testing.assert_array_equal(run(draft)["seen"], -16.0)


def test_a_copy_in_other_rows_than_its_source_stays():
    """Written through, ``kept`` would change in the rows that make the value and do not copy it."""
    for copied_in, reason in ((1, "the copy is made in rows of other variants than its source"), (0, None)):
        d = Drafter("kinds", "reference")
        d.begin("before")
        a, kept = given(d, "a", 4), d.new((Batch(), 4))
        d.call("fill", {}, {"x": kept}, {"value": 0.5}, "fill")
        d.begin("loop", d.table("loop", ("kind",), np.array([[0.0], [2.0]], np.float32)), variant=0)
        with d.only_in(0):
            made = pointwise(d, [["silu", 0]], a)
        with d.only_in(copied_in):
            d.call("copy", {"x": made}, {"y": kept}, site="keep")
        d.begin("after")
        output(d, "y", kept)
        draft = d.build()
        assert [miss.reason for miss in ForwardCopies().run(draft).misses] == ([reason] if reason else [])
        assert ops(check(draft)).count("copy") == bool(reason)


def test_the_condition_of_a_loop_keeps_its_own_memory():
    d = Drafter("condition", "reference")
    d.begin("before")
    x, left = d.new((Batch(), 1)), d.new((Batch(), 1))
    d.call("fill", {}, {"x": x}, {"value": 0.5}, "fill")
    d.call("fill", {}, {"x": left}, {"value": 0.0}, "left")
    d.call("copy", {"x": left}, {"y": x}, site="copy")
    d.begin("loop", repeat=Repeat(active=int(left.storage[1:]), limit=3))
    d.call("fill", {}, {"x": x}, {"value": 9.0}, "never")
    d.begin("after")
    output(d, "y", x)
    assert ops(check(d.build())).count("copy") == 1


def test_copies_of_constants_stay():
    d = Drafter("constant", "reference")
    d.begin("once")
    output(d, "y", pointwise(d, [["silu", 0]], d.as_buffer(d.constant(np.ones((4,), np.float32), "one"))))
    assert ForwardCopies().run(d.build()).rewrites == 0


def test_fuel_limits_the_copies_removed():
    assert [ForwardCopies().run(concatenation(), Fuel(n)).rewrites for n in range(4)] == [0, 1, 2, 2]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@for_all(drafts())
def test_random_drafts_give_the_same_numbers(draft: Draft):
    check(draft)
