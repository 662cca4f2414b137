"""Cross-attention of a text: its keys and values, in all blocks, are made once and leave the loop as one product."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from toys import captured_once

import scoregraph as sg
from scoregraph.backends.reference import eager
from scoregraph.graph import guidance, samplers, schedules
from scoregraph.graph.builder import GraphBuilder
from scoregraph.models import from_module
from scoregraph.models.network import Network

BLOCKS = 3


class Cross(nn.Module):
    """A block: the state's tokens look at the text's."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(8, 8), nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        def heads(value: Tensor) -> Tensor:
            return value.unflatten(2, (2, 4)).transpose(1, 2)

        found = functional.scaled_dot_product_attention(heads(self.q(x)), heads(self.k(text)), heads(self.v(text)))
        return x + self.out(found.transpose(1, 2).flatten(2))


class Text(nn.Module):
    """Blocks of cross-attention, told the time by a shift of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Cross() for _ in range(BLOCKS))
        self.time = nn.Linear(1, 8)

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        x = x + self.time(0.001 * t[:, None])[:, None]
        for block in self.blocks:
            x = block(x, text)
        return x


@functools.cache
def network() -> Network:
    torch.manual_seed(0)
    example = {"x": torch.randn(3, 5, 8), "t": torch.tensor([900.0, 500.0, 10.0]), "text": torch.randn(3, 4, 6)}
    bounds = {"text": {"low": -9.0, "high": 9.0, "null": 0.0}}
    return captured_once(from_module(Text().eval(), example, prediction="eps", conds=bounds, name="text"))


def graph() -> GraphBuilder:
    net = network()
    g = GraphBuilder("crossed")
    text, blank = g.condition(net, g.input("text")), g.condition(net, None)
    with g.loop(schedules.linear(steps=3), g.noise(net)) as step:
        guided = g.fuse(guidance.cfg(2.0), g.score(net, step, text), g.score(net, step, blank))
        step.advance(samplers.ddim(), guided)
    g.output(x=step.result)
    return g


@pytest.fixture(scope="module")
def plan() -> sg.CompiledPlan:
    return sg.compile(graph(), device="reference", use_cache=False)


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
    expected = eager.run(graph().build(), {"text": network()}, {"text": text}, seeds)
    np.testing.assert_allclose(plan.run(text=text, seeds=[5, 6])["x"], expected["x"], atol=2e-6)
