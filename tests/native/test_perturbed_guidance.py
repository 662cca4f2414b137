"""Skip-layer guidance: the third branch is the same network with a layer left out, compiled beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from subjects import captured_once, error
from torch import Tensor, nn

import scoregraph as sg
from scoregraph.backends.reference import eager
from scoregraph.errors import UnknownName
from scoregraph.graph import guidance, noise, samplers, schedules

pytestmark = pytest.mark.native

SEEDS = noise.sample_seeds(3, 2)


class Blocks(nn.Module):
    """A stack of residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12)) for _ in range(3))

    def forward(self, x: Tensor, t: Tensor, level: Tensor) -> Tensor:
        """``x`` [n, 12], ``t`` [n], ``level`` [n] to [n, 12]."""
        for block in self.blocks:
            x = x + block(x + level[:, None]) + 1e-4 * t[:, None]
        return x


def networks():
    torch.manual_seed(1)
    whole = Blocks().eval()
    example = {"x": torch.randn(3, 12), "t": torch.tensor([900.0, 400.0, 10.0]), "level": torch.randn(3)}
    options = {"prediction": "v", "space": "vp", "time": "t", "conds": {"level": {"null": 0.0}}}
    damaged = sg.models.without_layers(whole, ["blocks.1"])
    return [
        captured_once(sg.models.from_module(module, example, name=name, **options))
        for name, module in (("whole", whole), ("damaged", damaged))
    ]


def test_a_skipped_layer_guides():
    whole, damaged = networks()
    rule = guidance.slg(2.0, cfg=3.0, stop=0.6)
    g = sg.GraphBuilder("slg")
    level, blank = g.condition(whole, g.input("level")), g.condition(whole, None)
    other = g.condition(damaged, g.input("again"))
    with g.loop(schedules.scaled_linear(steps=10), g.noise(whole)) as step:
        answers = [g.score(whole, step, level), g.score(whole, step, blank), g.score(damaged, step, other)]
        step.advance(samplers.dpmpp_2m(), g.fuse(rule, *answers))
    g.output(x=step.result)
    graph = g.build()
    plan = sg.compile(graph, networks={net.ref.fingerprint: net for net in (whole, damaged)}, use_cache=False)
    given = {name: np.array([0.5, -0.2], np.float32) for name in ("level", "again")}
    got = plan.run(seeds=SEEDS, **given)["x"]
    exact = eager.run(graph, {net.ref.name: net for net in (whole, damaged)}, given, SEEDS)["x"]
    assert error(got, exact) <= 1e-5
    # Ten calls of the whole network for two branches, and the damaged one in the first six steps.
    assert plan.counters()["network_calls"] == 16
    assert plan.counters()["branch_evaluations"] == 26
    weights = [constant.name for constant in plan.plan.constants if constant.shape == (12, 12)]
    assert len(weights) == 6, "the copy's weights are those of the whole network"


def test_a_layer_that_is_not_there():
    with pytest.raises(UnknownName, match=r"blocks\.1"):
        sg.models.without_layers(Blocks(), ["block.1"])
