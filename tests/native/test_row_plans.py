"""Plans that read rows of tables and of what was computed for all rows, on the processor: as the reference has them."""

from __future__ import annotations

import numpy as np
import pytest
from conditioned_networks import crossed, modulated, timed
from subjects import ISAS, program

import scoregraph as sg
from scoregraph.backends.reference import eager

TEXT = np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float32)
SEEDS = np.array([5, 6], np.uint64)


@pytest.fixture(scope="module")
def plans() -> dict[str, sg.CompiledPlan]:
    graphs = {"label": timed(), "text": crossed()}
    return {name: sg.compile(graph, device="cpu", use_cache=False) for name, graph in graphs.items()}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["label", "text"])
def test_every_instruction_set_reads_the_right_rows(plans, name, isa):
    given = {"label": np.array([3, 3], np.int64)} if name == "label" else {"text": TEXT}
    reference = sg.compile(timed() if name == "label" else crossed(), device="reference", use_cache=False)
    expected = reference.run(**given, seeds=SEEDS)["x"]
    found = program(plans[name], isa=isa).run(given, SEEDS)["x"]
    np.testing.assert_allclose(found, expected, atol=3e-6)


def test_rows_come_before_the_loop(plans):
    assert any(call.op == "select_row" for segment in plans["label"].plan.segments for call in segment.calls)
    assert program(plans["label"]).run({"label": np.array([1, 2], np.int64)}, SEEDS)["x"].shape == (2, 8)


def test_the_interpreted_graph_agrees(plans):
    labels = np.array([0, 4], np.int64)
    expected = eager.run(timed().build(), {"modulated": modulated()}, {"label": labels}, SEEDS)["x"]
    np.testing.assert_allclose(program(plans["label"]).run({"label": labels}, SEEDS)["x"], expected, atol=1e-5)
