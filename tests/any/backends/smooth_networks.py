"""Small smooth networks as graphs and the interpreter know them, and a check that passes keep what a graph means."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from scoregraph.backends.reference import eager
from scoregraph.graph import noise
from scoregraph.graph.graph import Graph
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.values import CondInput, HeadRef, Latent, NetRef
from scoregraph.passes.sampling.pipeline import SAMPLING_PASSES

WIDTH, STEPS, BATCH = 6, 8, 3
SEEDS = noise.sample_seeds(5, BATCH)
LABEL = np.array([0.25, -1.0, 2.0], dtype=np.float32)


class Score(nn.Module):
    """A small smooth network of state, time and an embedded label."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5)
        self.u = nn.Parameter(torch.randn(WIDTH, generator=generator) / 10)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return 0.3 * x + 0.7 * torch.tanh(x @ self.w + t[:, None] * self.u + label)


class Encode(nn.Module):
    """The label, spread over the width."""

    def forward(self, label: Tensor) -> Tensor:
        return label[:, None] * torch.linspace(-1, 1, WIDTH, dtype=label.dtype)


@dataclass
class FakeNet:
    """A network as graphs and the interpreter know it."""

    ref: NetRef
    score: Score = field(default_factory=Score)
    encoder: Encode = field(default_factory=Encode)
    heads: dict[str, object] = field(default_factory=lambda: {"square": lambda x: x**2})

    def __call__(self, x: Tensor, t: float, label: Tensor) -> Tensor:
        """Its answer in float64, called as a function."""
        score = copy.deepcopy(self.score).double()
        times = torch.full((len(x),), t, dtype=torch.float64)
        with torch.set_grad_enabled(x.requires_grad):
            return score(x, times, self.encoder(label.double()))


def network(pred: Prediction, time: str, space: str, name: str = "toy") -> FakeNet:
    ref = NetRef(
        name,
        "0" * 16,
        Latent(space, (WIDTH,)),
        pred,
        time,
        (CondInput("label", null=0.0),),
        (HeadRef("square", (WIDTH,)),),
    )
    return FakeNet(ref)


@dataclass
class FakeEnergy:
    """An energy of one value per sample."""

    ref: NetRef
    energy: nn.Module


def energy(module: nn.Module, space: str, *values: CondInput, time: str = "none") -> FakeEnergy:
    ref = NetRef("energy", "1" * 16, Latent(space, (WIDTH,)), time=time, conds=values, energy=True)
    return FakeEnergy(ref, module)


def keeps(graph: Graph, nets: Mapping[str, object], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a graph means, having seen that it means the same after every pass over sampling graphs."""
    expected = eager.run(graph, nets, inputs, SEEDS)
    rewrites = 0
    for step in SAMPLING_PASSES:
        result = step.run(graph)
        assert not result.misses or step.name not in ("fold-tables", "fold-step"), result.misses
        rewrites += result.rewrites
        graph = result.module
        got = eager.run(graph, nets, inputs, SEEDS)
        assert got.keys() == expected.keys()
        for name, want in expected.items():
            scale = max(1e-3, float(np.abs(want).max()))
            assert np.abs(got[name] - want).max() < 1e-9 * scale, (step.name, name)
    assert rewrites > 1
    return expected
