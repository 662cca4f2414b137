"""hoist-invariants: what does not change from turn to turn is computed once, everything else stays."""

from __future__ import annotations

import numpy as np
from drafts import drafts, given, loop, output, run, same
from hypothesis import HealthCheck, settings
from hypothesis import given as for_all

from scoregraph.passes.base import Fuel
from scoregraph.passes.lower import shape as shapes
from scoregraph.passes.plan.hoist_invariants import HoistInvariants
from scoregraph.passes.plan.plan_memory import PlanMemory
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Draft, Drafter, Value
from scoregraph.plan.schema import Call, Repeat


def names(draft: Draft) -> dict[str, list[str]]:
    return {segment.name: [call.site for call in segment.calls] for segment in draft.plan.segments}


def check(draft: Draft) -> Draft:
    result = HoistInvariants().run(draft)
    assert same(run(result.module), run(draft))
    assert same(run(PlanMemory().run(result.module).module, planned=True), run(draft))
    again = HoistInvariants().run(result.module)
    assert again.rewrites == 0
    assert again.module == result.module
    return result.module


def started() -> tuple[Drafter, Value, Value, Value]:
    """A condition, a state, and the loop's time (a buffer that changes every turn)."""
    d = Drafter("hoist", "reference")
    d.begin("before")
    cond, state = given(d, "cond", 4), d.new((4,))
    d.call("fill", {}, {"x": state}, {"value": 0.5}, "fill")
    table = loop(d)
    time = d.new((4,))
    d.call("step_time", {}, {"t": time}, {"table": table, "column": 0}, "time")
    return d, cond, state, time


def act(d: Drafter, site: str, *operands: Value) -> Value:
    """One pointwise call by name."""
    made = d.new(operands[0].shape)
    program = [["silu", 0]] if len(operands) == 1 else [["add", 0, 1]]
    d.call("pointwise", {f"x{i}": o for i, o in enumerate(operands)}, {"y": made}, {"program": program}, site)
    return made


def test_a_chain_on_the_condition_leaves_the_loop():
    d, cond, state, time = started()
    embedded = act(d, "embed again", act(d, "embed", cond))
    wide = act(d, "wide", time)
    moved = act(d, "move", state, wide)
    d.call("copy", {"x": moved}, {"y": state}, site="carry")
    d.begin("after")
    output(d, "y", embedded)
    output(d, "state", state)
    draft = d.build()
    assert names(check(draft)) == {
        "before": ["fill", "embed", "embed again"],
        "loop": ["time", "wide", "move", "carry"],
        "after": [],
    }
    assert HoistInvariants().run(draft).rewrites == 2


def test_what_reads_the_carried_state_stays_even_before_it_is_written():
    d, _, state, _ = started()
    early = act(d, "early", state)
    moved = act(d, "move", state)
    d.call("copy", {"x": moved}, {"y": state}, site="carry")
    d.begin("after")
    output(d, "early", early)
    output(d, "state", state)
    draft = d.build()
    assert HoistInvariants().run(draft).rewrites == 0
    check(draft)


def test_a_carried_value_that_becomes_invariant_is_still_carried():
    """The first turn reads the state from before the loop, the others what the loop set."""
    d, cond, state, _ = started()
    fixed = act(d, "fixed", d.as_buffer(d.constant(np.full((4,), 3.0, np.float32), "three")))
    total = d.new((4,))
    d.segments[0].calls.append(Call(op="fill", outs={"x": total.storage}, attrs={"value": 0.0}, site="fill"))
    summed = act(d, "sum", total, state)
    d.call("copy", {"x": summed}, {"y": total}, site="carry")
    d.call("copy", {"x": fixed}, {"y": state}, site="set")
    d.begin("after")
    output(d, "y", act(d, "add", cond, shapes.expand(total, cond.shape)))
    made = check(d.build())
    assert names(made)["loop"] == ["time", "sum", "carry", "set"]


def test_an_invariant_concatenation_moves_as_a_whole():
    d, cond, _, _ = started()
    parts = [act(d, "left", cond), act(d, "right", cond)]
    wide = shapes.concatenate(d, parts, 1, "cat")
    used = act(d, "use", wide)
    d.begin("after")
    output(d, "y", used)
    made = check(d.build())
    assert names(made)["loop"] == ["time"]
    assert names(made)["before"] == ["fill", "left", "right", "cat", "cat", "use"]


def test_a_partly_invariant_concatenation_is_rebuilt_each_turn():
    for order in ((0, 1), (1, 0)):
        d, cond, state, _ = started()
        fixed = act(d, "fixed", cond)
        # The state is shared by the batch; broadcast it to the condition's shape.
        varying = act(d, "varying", fixed, shapes.expand(state, fixed.shape))
        parts = (fixed, varying)
        wide = shapes.concatenate(d, [parts[i] for i in order], 1, "cat")
        used = act(d, "use", wide)
        moved = act(d, "move", state)
        d.call("copy", {"x": moved}, {"y": state}, site="carry")
        d.begin("after")
        output(d, "y", used)
        made = check(d.build())
        assert names(made)["before"] == ["fill", "fixed"]
        assert names(made)["loop"] == ["time", "varying", "cat", "cat", "use", "move", "carry"]


def test_a_segment_is_made_where_there_is_none_before_the_loop():
    d = Drafter("first", "reference")
    loop(d)
    embedded = act(d, "embed", given(d, "cond", 4))
    d.begin("after")
    output(d, "y", embedded)
    assert names(check(d.build())) == {"before-loop": ["embed"], "loop": [], "after": []}


def kinds_of_rows(*kinds: int) -> tuple[Drafter, Value, Value]:
    """A condition, a value made before the loop, and a loop of rows of these variants."""
    d = Drafter("kinds", "reference")
    d.begin("before")
    cond, kept = given(d, "cond", 4), d.new((Batch(), 4))
    d.call("fill", {}, {"x": kept}, {"value": 0.5}, "fill")
    d.begin("loop", d.table("loop", ("kind",), np.array(kinds, np.float32)[:, None]), variant=0)
    return d, cond, kept


def test_what_one_kind_of_row_computes_moves_for_all():
    d, cond, kept = kinds_of_rows(1, 0)
    with d.only_in(0):
        d.call("copy", {"x": act(d, "use", act(d, "embed", cond), kept)}, {"y": kept}, site="carry")
    d.begin("after")
    output(d, "y", kept)
    made = check(d.build())
    assert names(made) == {"before": ["fill", "embed"], "loop": ["use", "carry"], "after": []}
    assert made.plan.segments[0].calls[1].variants == ()


def test_what_two_kinds_of_rows_write_stays():
    """Moved, the second would write over the first."""
    d, cond, kept = kinds_of_rows(0, 1, 0)
    shared = d.new((Batch(), 4))
    for kind, op in enumerate(("silu", "neg")):
        with d.only_in(kind):
            d.call("pointwise", {"x0": cond}, {"y": shared}, {"program": [[op, 0]]}, op)
    d.call("copy", {"x": act(d, "use", shared, kept)}, {"y": kept}, site="carry")
    d.begin("after")
    output(d, "y", kept)
    assert names(check(d.build()))["loop"] == ["silu", "neg", "use", "carry"]


def test_what_a_row_may_leave_as_it_is_stays():
    """No row is of the kind that writes ``kept``, so it is what it was before the loop."""
    d, cond, kept = kinds_of_rows(0)
    with d.only_in(1):
        d.call("pointwise", {"x0": cond}, {"y": kept}, {"program": [["neg", 0]]}, "set")
    d.begin("after")
    output(d, "y", kept)
    draft = d.build()
    assert names(check(draft))["loop"] == ["set"]
    assert (run(draft)["y"] == 0.5).all()


def rounds(count: float) -> tuple[Drafter, Value, Value, Value]:
    """A condition, a value made before the loop, and a loop of so many rounds."""
    d = Drafter("rounds", "reference")
    d.begin("before")
    cond, kept, left = given(d, "cond", 4), d.new((Batch(), 4)), d.new((Batch(), 1))
    d.call("fill", {}, {"x": kept}, {"value": 0.5}, "fill")
    d.call("fill", {}, {"x": left}, {"value": count}, "rounds")
    d.begin("loop", repeat=Repeat(active=int(left.storage[1:]), limit=9))
    return d, cond, kept, left


def test_the_condition_of_a_loop_is_not_decided_before_it():
    d, cond, kept, left = rounds(1.0)
    d.call("fill", {}, {"x": left}, {"value": 0.0}, "stop")
    d.call("copy", {"x": act(d, "use", act(d, "embed", cond), kept)}, {"y": kept}, site="carry")
    d.begin("after")
    output(d, "y", kept)
    made = check(d.build())
    assert names(made) == {"before": ["fill", "rounds", "embed"], "loop": ["stop", "use", "carry"], "after": []}


def test_what_no_round_may_leave_as_it_is_stays():
    for count in (0.0, 1.0):
        d, cond, kept, left = rounds(count)
        d.call("pointwise", {"x0": cond}, {"y": kept}, {"program": [["neg", 0]]}, "set")
        d.call("fill", {}, {"x": left}, {"value": 0.0}, "stop")
        d.begin("after")
        output(d, "y", kept)
        draft = d.build()
        assert names(check(draft))["loop"] == ["set", "stop"]
        assert (run(draft)["y"] == 0.5).all() == (count == 0.0)


def test_fuel_is_spent_per_loop():
    d, cond, _, _ = started()
    embedded = act(d, "embed", cond)
    loop(d, "second")
    again = act(d, "embed more", cond)
    d.begin("after")
    output(d, "y", embedded)
    output(d, "z", again)
    draft = d.build()
    assert [HoistInvariants().run(draft, Fuel(n)).rewrites for n in range(3)] == [0, 1, 2]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@for_all(drafts())
def test_random_drafts_give_the_same_numbers(draft: Draft):
    check(draft)
