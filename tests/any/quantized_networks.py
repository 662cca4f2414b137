"""Small networks of the two kinds that recipes meet, captured once, and how close answers are."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from toys import captured_once

from scoregraph.graph import guidance, samplers, schedules
from scoregraph.graph.builder import GraphBuilder
from scoregraph.models import from_module
from scoregraph.models.network import Network

TOKENS, WIDTH = 12, 32


class Block(nn.Module):
    """AdaLN, attention and an MLP, as in DiT."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Linear(WIDTH, 6 * WIDTH)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x [n, TOKENS, WIDTH], emb [n, WIDTH]."""
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(functional.silu(emb))[:, None].chunk(6, dim=-1)
        h = functional.layer_norm(x, (WIDTH,)) * (1 + scale) + shift
        q, k, v = (layer(h).unflatten(-1, (4, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + gate * self.out(mixed)
        h = functional.layer_norm(x, (WIDTH,)) * (1 + scale2) + shift2
        return x + gate2 * self.down(functional.gelu(self.up(h), approximate="tanh"))


class Tokens(nn.Module):
    """Two blocks between a first and a last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 8)
        self.time, self.label = nn.Linear(1, WIDTH), nn.Linear(3, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        emb = self.time(t[:, None]) + self.label(label)
        h = self.first(x)
        for block in self.blocks:
            h = block(h, emb)
        return self.last(h)


class Image(nn.Module):
    """Convolutions with group norms, one of stride 2, one behind nearest upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
        self.norms = nn.ModuleList([nn.GroupNorm(4, 16), nn.GroupNorm(4, 24), nn.GroupNorm(4, 16)])
        self.down = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.up = nn.Conv2d(24, 16, 3, padding=1)
        self.time = nn.Linear(1, 24)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        h = self.first(x)
        low = self.down(functional.silu(self.norms[0](h))) + (self.time(t[:, None]) * label[:, :1])[..., None, None]
        low = functional.interpolate(functional.silu(self.norms[1](low)), scale_factor=2.0, mode="nearest")
        return self.last(functional.silu(self.norms[2](h + self.up(low))))


def lively(module: nn.Module) -> nn.Module:
    """Weights at the scale of trained ones, a few of them far out."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(0.3 * noise + ("norm" in name and name.endswith("weight")))
    return module.eval()


@functools.cache
def network(kind: str) -> Network:
    """``tokens`` or ``image``."""
    module, shape = {"tokens": (Tokens(), (TOKENS, 8)), "image": (Image(), (3, 8, 12))}[kind]
    example = {"x": torch.randn(3, *shape), "t": torch.rand(3), "label": torch.randn(3, 3)}
    bounds = {"label": {"low": -1.0, "high": 1.0, "null": 0.0}}
    return captured_once(from_module(lively(module), example, prediction="flow", conds=bounds, name=kind))


def guided(kind: str, steps: int = 6) -> GraphBuilder:
    """Guided sampling; the input is ``label``."""
    net = network(kind)
    g = GraphBuilder(f"{kind}-sampling")
    level, blank = g.condition(net, g.input("label")), g.condition(net, None)
    with g.loop(schedules.flow(steps=steps), g.noise(net)) as step:
        pred = g.fuse(guidance.cfg(1.5), g.score(net, step, level), g.score(net, step, blank))
        step.advance(samplers.flow_euler(), pred)
    g.output(sample=step.result)
    return g


def example(kind: str, batch: int = 3) -> dict[str, np.ndarray]:
    """Inputs of a network's own plan."""
    x, t, label = network(kind).score_example(batch)
    return {"x": x.numpy(), "t": t.numpy(), "label": label.numpy()}


def sqnr(got: np.ndarray, expected: np.ndarray) -> float:
    """Signal to quantization noise in decibels."""
    gap = np.square(got.astype(np.float64) - expected).sum()
    return float(10 * np.log10(np.square(expected.astype(np.float64)).sum() / gap)) if gap else np.inf
