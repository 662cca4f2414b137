"""Networks with a time embedding and a label, or a text, and guided loops over them: what plans take out of loops."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional
from toys import captured_once

from scoregraph.graph import guidance, samplers, schedules
from scoregraph.graph.builder import GraphBuilder
from scoregraph.models import from_module
from scoregraph.models.network import Network

BLOCKS = 3
"""Of the network that reads a text."""


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
def modulated() -> Network:
    torch.manual_seed(0)
    example = {"x": torch.randn(3, 8), "t": torch.tensor([900.0, 500.0, 10.0]), "label": torch.tensor([1, 2, 3])}
    bounds = {"label": {"low": 0, "high": 4, "null": 4}}
    return captured_once(from_module(Modulated().eval(), example, prediction="eps", conds=bounds, name="modulated"))


def timed(steps: int = 4, scale: float = 2.0) -> GraphBuilder:
    net = modulated()
    g = GraphBuilder("timed")
    label, blank = g.condition(net, g.input("label")), g.condition(net, None)
    with g.loop(schedules.linear(steps=steps), g.noise(net)) as step:
        step.advance(samplers.ddim(), g.fuse(guidance.cfg(scale), g.score(net, step, label), g.score(net, step, blank)))
    g.output(x=step.result)
    return g


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
def reading() -> Network:
    torch.manual_seed(0)
    example = {"x": torch.randn(3, 5, 8), "t": torch.tensor([900.0, 500.0, 10.0]), "text": torch.randn(3, 4, 6)}
    bounds = {"text": {"low": -9.0, "high": 9.0, "null": 0.0}}
    return captured_once(from_module(Text().eval(), example, prediction="eps", conds=bounds, name="text"))


def crossed() -> GraphBuilder:
    net = reading()
    g = GraphBuilder("crossed")
    text, blank = g.condition(net, g.input("text")), g.condition(net, None)
    with g.loop(schedules.linear(steps=3), g.noise(net)) as step:
        guided = g.fuse(guidance.cfg(2.0), g.score(net, step, text), g.score(net, step, blank))
        step.advance(samplers.ddim(), guided)
    g.output(x=step.result)
    return g
