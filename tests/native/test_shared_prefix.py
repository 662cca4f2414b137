"""What branches have in common is computed once: the same bits as computing it for each of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from subjects import captured_once, error
from torch import Tensor, nn
from torch.nn import functional

import scoregraph as sg
from scoregraph.backends.reference import eager
from scoregraph.graph import guidance, noise, samplers, schedules
from scoregraph.passes.lower import sampling

pytestmark = pytest.mark.native

SEEDS = noise.sample_seeds(1, 3)


class Late(nn.Module):
    """Two convolutions and a self-attention of x and t; then the condition, in a cross-attention; then the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(2, 16, 3, padding=1)
        self.time = nn.Linear(8, 16)
        self.norm = nn.GroupNorm(4, 16)
        self.inner = nn.Conv2d(16, 16, 3, padding=1)
        self.qkv = nn.Linear(16, 48)
        self.to_q, self.to_kv = nn.Linear(16, 16), nn.Linear(6, 32)
        self.leave = nn.Conv2d(16, 2, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """``x`` [n, 2, 8, 8], ``t`` [n], ``text`` [n, 5, 6] to [n, 2, 8, 8]."""
        clock = torch.sin(t[:, None] * torch.arange(1, 9) / 300)
        h = functional.silu(self.norm(self.enter(x) + self.time(clock)[:, :, None, None]))
        h = h + self.inner(h)
        tokens = h.flatten(2).transpose(1, 2)
        q, k, v = (part.unflatten(2, (2, 8)).transpose(1, 2) for part in self.qkv(tokens).chunk(3, dim=2))
        tokens = tokens + functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        q = self.to_q(tokens).unflatten(2, (2, 8)).transpose(1, 2)
        k, v = (part.unflatten(2, (2, 8)).transpose(1, 2) for part in self.to_kv(text).chunk(2, dim=2))
        tokens = tokens + functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.leave(tokens.transpose(1, 2).reshape(h.shape))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    example = {"x": torch.randn(3, 2, 8, 8), "t": torch.tensor([900.0, 400.0, 10.0]), "text": torch.randn(3, 5, 6)}
    made = sg.models.from_module(
        Late().eval(), example, prediction="eps", space="vp", time="t", conds={"text": {"null": 0.0}}, name="late"
    )
    return captured_once(made)


def graph(net) -> sg.Graph:
    g = sg.GraphBuilder("shared")
    texts = [g.condition(net, g.input(name)) for name in ("first", "second")]
    conditions = [*texts, g.condition(net, None)]
    with g.loop(schedules.scaled_linear(steps=4), g.noise(net)) as step:
        step.advance(
            samplers.dpmpp_2m(), g.fuse(guidance.compose((2.0, 1.0)), *(g.score(net, step, c) for c in conditions))
        )
    g.output(x=step.result)
    return g.build()


def test_a_prefix_is_computed_once_with_the_same_bits(net, monkeypatch):
    rng = np.random.default_rng(0)
    given = {name: rng.normal(size=(3, 5, 6)).astype(np.float32) for name in ("first", "second")}
    networks = {net.ref.fingerprint: net}
    shared = sg.compile(graph(net), networks=networks, use_cache=False)
    monkeypatch.setattr(sampling, "shares_prefix", lambda module, varying: False)
    apart = sg.compile(graph(net), networks=networks, use_cache=False)

    got, expected = (plan.run(seeds=SEEDS, **given)["x"] for plan in (shared, apart))
    np.testing.assert_array_equal(got, expected)
    exact = eager.run(graph(net), {net.ref.name: net}, given, SEEDS)["x"]
    assert error(got, exact) <= 1e-5

    counters = next(stage.counters for stage in shared.plan.stages if stage.name == "lower")
    assert counters["calls_shared"] > 5
    work = {call.site.rpartition("/")[2]: call for segment in shared.plan.segments for call in segment.calls}
    sizes = {f"b{buffer.id}": buffer.shape[0] for buffer in shared.plan.buffers}
    convolutions = [sizes[call.outs["y"]] for call in work.values() if call.op == "conv2d"]
    assert convolutions == ["B", "B", "3B"], "two convolutions before the text comes in, one after it"


class Early(nn.Module):
    """The condition comes in before anything else happens."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor, t: Tensor, gain: Tensor) -> Tensor:
        """``x`` [n, 8], ``t`` [n], ``gain`` [n] to [n, 8]."""
        return self.inner(x * gain[:, None]) + 0.0 * t[:, None]


def test_nothing_is_shared_where_the_condition_comes_first():
    example = {"x": torch.randn(3, 8), "t": torch.tensor([900.0, 400.0, 10.0]), "gain": torch.randn(3)}
    net = sg.models.from_module(
        Early(), example, prediction="eps", space="vp", time="t", conds={"gain": {"null": 1.0}}, name="early"
    )
    g = sg.GraphBuilder("unshared")
    cond, null = g.condition(net, g.input("gain")), g.condition(net, None)
    with g.loop(schedules.linear(steps=3), g.noise(net)) as step:
        step.advance(samplers.ddim(), g.fuse(guidance.cfg(2.0), g.score(net, step, cond), g.score(net, step, null)))
    g.output(x=step.result)
    plan = sg.compile(g, use_cache=False)
    stage = next(stage for stage in plan.plan.stages if stage.name == "lower")
    assert "calls_shared" not in stage.counters
