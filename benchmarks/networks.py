"""The networks that are measured: a torch module, example inputs, and our network of the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scoregraph import models
from scoregraph.graph import prediction
from scoregraph.models.network import Network


@dataclass(frozen=True)
class Case:
    """One network at one batch size.

    ``inputs`` are the module's: x, t and the encoded conditions. ``raw`` are the conditions as a plan takes them.
    """

    name: str
    network: Network
    module: nn.Module
    inputs: tuple[Tensor, ...]
    raw: tuple[Tensor, ...]
    gflop: float


class _Answer(nn.Module):
    """A diffusers transformer as a function of plain tensors."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self.net(x, timestep=t, class_labels=label, return_dict=False)[0]


def terrain(batch: int = 1) -> Case:
    """The terrain U-Net, 128x128, batch 1: 15.03 GFLOP of convolution."""
    network = models.load("terrain")
    raw = network.raw_conditions(batch)
    x, t, *_ = network.score_example(batch)
    return Case("terrain", network, network.score.eval(), _same((x, t, *network.encode(*raw))), raw, 15.03 * batch)


def dit(batch: int = 1) -> Case:
    """DiT with AdaLN-Zero: 12 layers, width 384, 256 tokens, random weights: 12.1 GFLOP in its blocks."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    net = DiTTransformer2DModel(
        num_attention_heads=6,
        attention_head_dim=64,
        in_channels=4,
        out_channels=4,
        num_layers=12,
        sample_size=32,
        patch_size=2,
        num_embeds_ada_norm=1000,
    ).eval()
    inputs = (torch.randn(batch, 4, 32, 32), torch.full((batch,), 500), torch.arange(batch) % 1000)
    example = {"hidden_states": torch.randn(3, 4, 32, 32), "timestep": torch.tensor([900, 500, 10])}
    network = models.from_module(
        net, {**example, "class_labels": torch.tensor([1, 2, 3])}, prediction=prediction.Eps(), name="dit"
    )
    return Case("dit-384x12x256", network, _Answer(net).eval(), inputs, inputs[2:], 12.1 * batch)


def _same(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.clone() for value in inputs)


CASES: dict[str, Callable[[], Case]] = {"terrain": terrain, "dit": dit}
