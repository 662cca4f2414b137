"""Cross-attention of a text: its keys and values, in all blocks, are made once and leave the loop as one product."""

from __future__ import annotations

import numpy as np
import pytest
from conditioned_networks import BLOCKS, crossed, reading

import scoregraph as sg
from scoregraph.backends.reference import eager


@pytest.fixture(scope="module")
def plan() -> sg.CompiledPlan:
    return sg.compile(crossed(), device="reference", use_cache=False)


def test_the_loop_makes_queries_only(plan):
    (loop,) = [segment for segment in plan.plan.segments if segment.table is not None]
    assert [call.op for call in loop.calls].count("linear") == 2 * BLOCKS, "queries and projections of the blocks"
    before = [call for segment in plan.plan.segments if segment.table is None for call in segment.calls]
    (keys,) = [call for call in before if call.op == "linear"]
    assert plan.plan.constants[int(keys.ins["w"][1:])].shape == (BLOCKS * 2 * 8, 6)


def test_the_stages_count_it(plan):
    stages = {stage.name: stage for stage in plan.plan.stages}
    assert stages["merge-products"].counters["calls_saved"] == 2 * BLOCKS - 1
    assert stages["hoist-invariants"].rewrites == 1
    assert stages["tabulate-time"].rewrites == 1


def test_it_computes_what_the_graph_says(plan):
    text, seeds = np.random.default_rng(0).standard_normal((2, 4, 6)), np.array([5, 6], np.uint64)
    expected = eager.run(crossed().build(), {"text": reading()}, {"text": text}, seeds)
    np.testing.assert_allclose(plan.run(text=text, seeds=[5, 6])["x"], expected["x"], atol=2e-6)
