"""Plans whose time embedding is a table: made for one list of times, and made anew from their draft for others."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import captured_once

import scoregraph as sg
from scoregraph import cache
from scoregraph.backends.reference import eager
from scoregraph.graph import guidance, samplers, schedules
from scoregraph.graph.builder import GraphBuilder
from scoregraph.models import from_module
from scoregraph.models.network import Network


class Modulated(nn.Module):
    """A linear answer, modulated by the sum of embeddings of the time and of a label."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(8, 16), nn.Linear(16, 8)
        self.time = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 16))
        self.label, self.modulation = nn.Embedding(5, 16), nn.Linear(16, 32)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        angles = t[:, None] * torch.tensor([0.01, 0.1])
        embedded = nn.functional.silu(self.time(torch.sin(angles)) + self.label(label))
        scale, shift = self.modulation(embedded).chunk(2, dim=1)
        return self.leave(nn.functional.silu(self.enter(x) * (1 + scale) + shift))


@functools.cache
def network() -> Network:
    torch.manual_seed(0)
    example = {"x": torch.randn(3, 8), "t": torch.tensor([900.0, 500.0, 10.0]), "label": torch.tensor([1, 2, 3])}
    bounds = {"label": {"low": 0, "high": 4, "null": 4}}
    return captured_once(from_module(Modulated().eval(), example, prediction="eps", conds=bounds, name="modulated"))


def graph(steps: int = 4, scale: float = 2.0) -> GraphBuilder:
    net = network()
    g = GraphBuilder("timed")
    label, blank = g.condition(net, g.input("label")), g.condition(net, None)
    with g.loop(schedules.linear(steps=steps), g.noise(net)) as step:
        step.advance(samplers.ddim(), g.fuse(guidance.cfg(scale), g.score(net, step, label), g.score(net, step, blank)))
    g.output(x=step.result)
    return g


def sample(plan: sg.CompiledPlan) -> np.ndarray:
    return plan.run(label=3, seeds=[5, 6])["x"]


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("SCOREGRAPH_CACHE", str(tmp_path))


@pytest.fixture
def captures(monkeypatch):
    """How often a network was asked for its programs."""
    counted = list[str]()
    capture = network().capture_part

    def counting(part, energies=None):
        counted.append(part)
        return capture(part, energies)

    monkeypatch.setitem(network().__dict__, "capture_part", counting)
    return counted


def test_the_loop_has_no_time_embedding_left():
    plan = sg.compile(graph(), device="reference")
    (loop,) = [segment for segment in plan.plan.segments if segment.table is not None]
    ops = [call.op for call in loop.calls]
    assert ops.count("linear") == 2, "into the network and out of it"
    assert ops.count("select_row") == 2, "1 + scale, and shift"
    assert "step_time" not in ops
    assert not [constant for constant in plan.plan.constants if ".time." in constant.name]


def test_it_computes_what_the_graph_says():
    plan = sg.compile(graph(), device="reference", use_cache=False)
    seeds = np.array([5, 6], np.uint64)
    expected = eager.run(graph().build(), {"modulated": network()}, {"label": np.array([3, 3])}, seeds)
    np.testing.assert_allclose(sample(plan), expected["x"], atol=1e-5)


def test_the_same_times_are_the_same_plan(captures):
    first = sg.compile(graph(), device="reference")
    asked = len(captures)
    again, other_scale = sg.compile(graph(), device="reference"), sg.compile(graph(scale=3.0), device="reference")
    assert len(captures) == asked
    assert again.plan == first.plan
    np.testing.assert_array_equal(sample(again), sample(first))
    fresh = sg.compile(graph(scale=3.0), device="reference", use_cache=False)
    np.testing.assert_array_equal(sample(other_scale), sample(fresh))
    assert sorted(entry.parts["times"] == cache.DRAFT for entry in cache.entries()) == [False, True]


def test_other_times_are_planned_from_the_draft(captures):
    sg.compile(graph(steps=4), device="reference")
    asked = len(captures)
    longer = sg.compile(graph(steps=7), device="reference")
    assert len(captures) == asked
    fresh = sg.compile(graph(steps=7), device="reference", use_cache=False)
    np.testing.assert_array_equal(sample(longer), sample(fresh))
    assert longer.plan.tables[0].rows == 7
    assert longer.stages.keys() == fresh.stages.keys()
    assert [stage.name for stage in longer.plan.stages] == [stage.name for stage in fresh.plan.stages]
    assert len(cache.entries()) == 3
    served = sg.compile(graph(steps=7), device="reference")
    assert served.plan == longer.plan


def test_a_damaged_draft_is_replaced(captures):
    sg.compile(graph(steps=4), device="reference")
    (draft,) = [entry.folder for entry in cache.entries() if entry.parts["times"] == cache.DRAFT]
    (draft / "constants.arrow").write_bytes(b"")
    asked = len(captures)
    sg.compile(graph(steps=5), device="reference")
    assert len(captures) > asked
    asked = len(captures)
    sg.compile(graph(steps=6), device="reference")
    assert len(captures) == asked
