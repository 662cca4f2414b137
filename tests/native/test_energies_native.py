"""Energies in loops, compiled for the CPU: each way of taking the gradient against torch's autograd, and a product."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import scoregraph as sg
from scoregraph.backends.reference import eager

EXAMPLE = Path(__file__).parents[2] / "examples" / "product_of_experts.py"


class Score(nn.Module):
    """A small random network on [n, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(5, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.leave(torch.tanh(self.enter(torch.cat([x, 0.001 * t[:, None]], 1))))


class Misfit(nn.Module):
    """|y - tanh(A x)|^2 / 2 of two numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (y - torch.tanh(self.seen(x))).square().sum(1) / 2


TERMS = {
    "x": sg.energies.energy(0.7),
    "x0": sg.energies.energy(0.7, wrt="x0"),
    "x0 through the network": sg.energies.energy(0.7, wrt="x0", through=True),
    "DPS": sg.energies.measurement(0.7, normalize=True),
}


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("term", TERMS)
def test_guided_trajectories_are_those_of_autograd(term, prediction):
    torch.manual_seed(2)
    net = sg.models.from_module(Score(), (torch.randn(2, 4), torch.rand(2)), prediction=prediction, name="net")
    y = torch.randn(5, 2)
    misfit = sg.models.energy(Misfit(), (torch.randn(5, 4), y), values=["y"], name="misfit")
    g = sg.GraphBuilder("guided")
    given = g.input("y")
    with g.loop(sg.schedules.cosine(steps=8), g.noise(net)) as step:
        pred = g.score(net, step)
        chosen = TERMS[term]
        pull = g.energy(chosen, step, given, pred=pred if chosen.wrt == "x0" else None, net=misfit)
        step.advance(sg.samplers.ddim(), g.fuse(sg.guidance.single(), pred, grads=[pull]))
    g.output(x=step.result, misfit=g.validate(sg.energies.energy(1.0), step.result, given, net=misfit))
    seeds = np.arange(5, dtype=np.uint64) + 11
    expected = eager.run(g.build(), {"net": net, "misfit": misfit}, {"y": y.numpy()}, seeds)
    made = sg.compile(g, use_cache=False).run(y=y.numpy(), seed=11)
    for name in ("x", "misfit"):
        np.testing.assert_allclose(made[name], expected[name], rtol=2e-5, atol=2e-5 * np.abs(expected[name]).max())


def test_a_product_of_experts_is_sampled_within_two_percent():
    example = runpy.run_path(str(EXAMPLE))
    plan = sg.compile(example["build"](), use_cache=False)
    points = plan.run(y=np.full(10_000, example["KNOWN"][2][1], np.float32), seed=0)["points"].astype(np.float64)
    of_mean, of_covariance = example["errors"](points)
    assert of_mean < 0.02
    assert of_covariance < 0.02
