"""Plans whose time embedding is a table: made for one list of times, and made anew from their draft for others."""

from __future__ import annotations

import numpy as np
import pytest
from conditioned_networks import modulated, timed

import scoregraph as sg
from scoregraph import cache
from scoregraph.backends.reference import eager


def sample(plan: sg.CompiledPlan) -> np.ndarray:
    return plan.run(label=3, seeds=[5, 6])["x"]


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("SCOREGRAPH_CACHE", str(tmp_path))


@pytest.fixture
def captures(monkeypatch):
    """How often a network was asked for its programs."""
    counted = list[str]()
    capture = modulated().capture_part

    def counting(part, energies=None):
        counted.append(part)
        return capture(part, energies)

    monkeypatch.setitem(modulated().__dict__, "capture_part", counting)
    return counted


def test_the_loop_has_no_time_embedding_left():
    plan = sg.compile(timed(), device="reference")
    (loop,) = [segment for segment in plan.plan.segments if segment.table is not None]
    ops = [call.op for call in loop.calls]
    assert ops.count("linear") == 2, "into the network and out of it"
    assert ops.count("select_row") == 2, "1 + scale, and shift"
    assert "step_time" not in ops
    assert not [constant for constant in plan.plan.constants if ".time." in constant.name]


def test_it_computes_what_the_graph_says():
    plan = sg.compile(timed(), device="reference", use_cache=False)
    seeds = np.array([5, 6], np.uint64)
    expected = eager.run(timed().build(), {"modulated": modulated()}, {"label": np.array([3, 3])}, seeds)
    np.testing.assert_allclose(sample(plan), expected["x"], atol=1e-5)


def test_the_same_times_are_the_same_plan(captures):
    first = sg.compile(timed(), device="reference")
    asked = len(captures)
    again, other_scale = sg.compile(timed(), device="reference"), sg.compile(timed(scale=3.0), device="reference")
    assert len(captures) == asked
    assert again.plan == first.plan
    np.testing.assert_array_equal(sample(again), sample(first))
    fresh = sg.compile(timed(scale=3.0), device="reference", use_cache=False)
    np.testing.assert_array_equal(sample(other_scale), sample(fresh))
    assert sorted(entry.parts["times"] == cache.DRAFT for entry in cache.entries()) == [False, True]


def test_other_times_are_planned_from_the_draft(captures):
    sg.compile(timed(steps=4), device="reference")
    asked = len(captures)
    longer = sg.compile(timed(steps=7), device="reference")
    assert len(captures) == asked
    fresh = sg.compile(timed(steps=7), device="reference", use_cache=False)
    np.testing.assert_array_equal(sample(longer), sample(fresh))
    assert longer.plan.tables[0].rows == 7
    assert longer.stages.keys() == fresh.stages.keys()
    assert [stage.name for stage in longer.plan.stages] == [stage.name for stage in fresh.plan.stages]
    assert len(cache.entries()) == 3
    served = sg.compile(timed(steps=7), device="reference")
    assert served.plan == longer.plan


def test_a_damaged_draft_is_replaced(captures):
    sg.compile(timed(steps=4), device="reference")
    (draft,) = [entry.folder for entry in cache.entries() if entry.parts["times"] == cache.DRAFT]
    (draft / "constants.arrow").write_bytes(b"")
    asked = len(captures)
    sg.compile(timed(steps=5), device="reference")
    assert len(captures) > asked
    asked = len(captures)
    sg.compile(timed(steps=6), device="reference")
    assert len(captures) == asked
