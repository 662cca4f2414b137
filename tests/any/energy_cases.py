"""Energies of many kinds of layers, for tests that compile their gradients, and what torch says of each in float64."""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor, nn
from torch.nn import functional

from scoregraph import models
from scoregraph.models.energies import EnergyNetwork

IMAGE = (3, 8, 8)
ACTIVATIONS = (
    torch.tanh,
    torch.sigmoid,
    functional.relu,
    functional.silu,
    functional.softplus,
    functional.logsigmoid,
    functional.leaky_relu,
    functional.hardtanh,
    functional.mish,
    functional.elu,
    functools.partial(functional.gelu, approximate="tanh"),
)


class Activations(nn.Module):
    """Two-layer networks on [n, 6], one for each activation, their outputs squared."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 8 * len(ACTIVATIONS)), nn.Linear(8 * len(ACTIVATIONS), 4)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.enter(x).chunk(len(ACTIVATIONS), dim=1)
        hidden = torch.cat([act(2 * part) for act, part in zip(ACTIVATIONS, parts, strict=True)], dim=1)
        return self.leave(hidden).square().sum(1) / 2


class Classifier(nn.Module):
    """-log p(label | x, t): convolutions (one of stride 2), group norms, SiLU, and attention over the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8)
        self.down, self.layer_norm = nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.LayerNorm(8)
        self.qkv, self.leave = nn.Linear(8, 24), nn.Linear(8, 5)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        h = functional.silu(self.norm(self.enter(x)) + t[:, None, None, None])
        h = self.layer_norm(self.down(h).flatten(2).transpose(1, 2))
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(h).chunk(3, dim=-1))
        h = h + functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return functional.cross_entropy(self.leave(functional.gelu(h).mean(1)), label, reduction="none")


class Looked(nn.Module):
    """Log-probabilities looked up with gather, as OpenAI's classifier guidance does with an index."""

    def __init__(self) -> None:
        super().__init__()
        self.leave = nn.Linear(6, 5)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return -functional.log_softmax(self.leave(x), -1).gather(-1, label[:, None])[:, 0]


class Blurred(nn.Module):
    """|y - A x|^2 / 2 of a 4 x average pooling A of the last channel, inside a frame that is cut off."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        seen = functional.avg_pool2d(x[:, 2:3, 2:-2, 2:-2], 2)
        return (y - seen).square().flatten(1).sum(1) / 2


class Shapes(nn.Module):
    """Padding, nearest upsampling, concatenation, slices with a step, selection, clamping and comparisons."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(6, 4, 5, stride=3, padding=1)
        self.register_buffer("mask", torch.arange(8) % 3 == 0)

    def forward(self, x: Tensor) -> Tensor:
        wide = functional.interpolate(functional.avg_pool2d(x, 2), scale_factor=2, mode="nearest")
        h = functional.pad(torch.cat([x, wide], 1), (1, 2, 0, 1), value=0.25)
        h = self.convolution(h)
        odd = x.roll((1, -2), (2, 3))[:, 0, ::2, 1::3].clamp(-0.5, 0.8)
        kept = torch.where(self.mask, x[:, 1], x[:, 1].abs())
        hinge = torch.where(x[:, 2] > 0.1, x[:, 2] ** 2, 0.3 * x[:, 2])
        return h.sin().flatten(1).mean(1) + odd.sum((1, 2)) + (kept * hinge).sum((1, 2)) + x.std((1, 2, 3))


class InPlace(nn.Module):
    """Writes into its own intermediate values."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = x * 2
        h += 1
        h = functional.relu(self.enter(h), inplace=True)
        return (
            (h - h.mean(1, keepdim=True)).norm(dim=1)
            + h.var(1)
            + torch.logsumexp(x, 1)
            - functional.cosine_similarity(h, x)
        )


MODULES = {
    "activations": Activations,
    "classifier": Classifier,
    "looked-up": Looked,
    "measurement": Blurred,
    "shapes": Shapes,
    "in-place": InPlace,
}


@functools.cache
def energy(name: str) -> EnergyNetwork:
    """The energy of that name, with seeded weights."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = MODULES[name]().requires_grad_(False)
        x = torch.randn(3, *(IMAGE if name in ("classifier", "measurement", "shapes") else (6,)))
        label = torch.tensor([0, 4, 2])
        if name == "classifier":
            bounds = {"label": {"low": 0, "high": 4}}
            return models.energy(module, (x, torch.rand(3), label), values=bounds, time="flow", name=name)
        if name == "looked-up":
            return models.energy(module, (x, label), values={"label": {"low": 0, "high": 4}}, name=name)
        if name == "measurement":
            return models.energy(module, (x, torch.randn(3, 1, 2, 2)), values=["y"], name=name)
        return models.energy(module, (x,), name=name)


def oracle(network: EnergyNetwork, *inputs: Tensor, rooted: bool = False) -> tuple[Tensor, Tensor]:
    """E [n] and dE/dx by autograd in float64, or of sqrt(2 E)."""
    module = copy.deepcopy(network.energy).double()
    x, *rest = (value.double() if value.is_floating_point() else value for value in inputs)
    x = x.clone().requires_grad_()
    value = module(x, *rest)
    shown = (2 * value).sqrt() if rooted else value
    (gradient,) = torch.autograd.grad(shown.sum(), x)
    return value.detach(), gradient
