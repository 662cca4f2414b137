"""Operators without a kernel: what they are written as computes the same, and only covered operators are left."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tensor_programs import Lambda, Lambda2, before, capture, largest_difference, run_and_check
from torch import Tensor, nn
from torch.nn import functional

from scoregraph.passes.lower.program import REGISTERED, operator_name
from scoregraph.passes.lower.rules import RULES
from scoregraph.passes.tensor import pipeline
from scoregraph.passes.tensor.expand_operators import ExpandOperators
from scoregraph.passes.tensor.listing import listing

assert REGISTERED


def image(channels: int = 4, height: int = 6, width: int = 8) -> Tensor:
    return torch.randn(3, channels, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def heads() -> Tensor:
    return torch.randn(3, 4, 6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def layer(made: nn.Module) -> nn.Module:
    """A module that is one layer, its weights normal."""
    generator = torch.Generator().manual_seed(2)
    for parameter in made.parameters():
        nn.init.normal_(parameter, generator=generator)
    return Lambda(lambda p, x: p["layer"](x), layer=made)


class Masked(nn.Module):
    """Attention under a mask that is a constant."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return sdpa(x, x, x, attn_mask=self.mask.expand(x.shape[0], 1, *self.mask.shape))


sdpa = functional.scaled_dot_product_attention
CODES = torch.randn(11, 4, generator=torch.Generator().manual_seed(3))

CASES: dict[str, tuple[nn.Module, Callable[[], Tensor], str]] = {
    "grouped": (layer(nn.Conv2d(4, 6, 3, padding=1, groups=2)), image, "groups"),
    "depthwise": (layer(nn.Conv2d(4, 4, 3, padding=(1, 0), stride=(1, 2), groups=4)), image, "depthwise"),
    "depthwise without bias": (layer(nn.Conv2d(4, 4, 5, bias=False, groups=4)), image, "depthwise"),
    "depthwise, dilated": (layer(nn.Conv2d(4, 4, 3, dilation=2, padding=2, groups=4)), image, "depthwise"),
    "depthwise, two answers a channel": (layer(nn.Conv2d(4, 8, 3, groups=4)), image, "groups"),
    "dilated": (layer(nn.Conv2d(4, 5, (3, 2), dilation=(2, 3), padding=1, stride=2)), image, "dilated"),
    "same, even": (layer(nn.Conv2d(4, 5, (2, 4), padding="same")), image, "lopsided"),
    "same, dilated": (layer(nn.Conv2d(4, 5, 3, padding="same", dilation=2)), image, "dilated"),
    "transposed": (layer(nn.ConvTranspose2d(4, 5, 4, stride=2, padding=1)), image, "transposed"),
    "transposed, lopsided": (
        layer(nn.ConvTranspose2d(4, 6, (3, 2), stride=(3, 2), padding=(0, 1), output_padding=1, groups=2)),
        image,
        "transposed",
    ),
    "transposed, dilated": (
        layer(nn.ConvTranspose2d(4, 2, 3, dilation=2, padding=5)), lambda: image(4, 9, 8), "transposed",
    ),
    "transposed, 1d": (layer(nn.ConvTranspose1d(4, 2, 5, stride=2)), lambda: image()[..., 0], "transposed"),
    "grouped, 1d": (layer(nn.Conv1d(4, 2, 3, groups=2)), lambda: image()[..., 0], "groups"),
    "zeros around": (Lambda(lambda p, x: functional.pad(x, (1, 2, 0, 3)) + 1), image, "pad"),
    "mirror": (Lambda(lambda p, x: functional.pad(x, (1, 2, 3, 0), mode="reflect")), image, "reflect pad"),
    "edge": (Lambda(lambda p, x: functional.pad(x, (1, 2, 0, 3), mode="replicate")), image, "replicate pad"),
    "around": (Lambda(lambda p, x: functional.pad(x, (1, 2, 0, 3), mode="circular")), image, ""),
    "pixel shuffle": (Lambda(lambda p, x: functional.pixel_shuffle(x, 2)), image, "pixel shuffle"),
    "pixel unshuffle": (Lambda(lambda p, x: functional.pixel_unshuffle(x, 2)), image, "pixel unshuffle"),
    "repeated entries": (Lambda(lambda p, x: x.repeat_interleave(3, 1)), image, "repeat"),
    "repeated samples": (Lambda(lambda p, x: x.repeat_interleave(2, 0).unflatten(0, (-1, 2))), image, "repeat"),
    "repeated whole": (Lambda(lambda p, x: x.repeat(1, 2, 1, 3)), image, "repeat"),
    "rolled": (Lambda(lambda p, x: x.roll((1, -2), (2, 3))), image, "roll"),
    "concat": (Lambda(lambda p, x: torch.concat([x, x + 1], 1)), image, "concat"),
    "constant places": (Lambda(lambda p, x: x[:, [3, 1, 2, 2]]), image, "index by constants"),
    "largest token": (Lambda(lambda p, x: x[:, :, 0][torch.arange(x.shape[0]), x[:, :, 0, 0].argmax(-1)]), image, ""),
    "first of equals": (
        Lambda(lambda p, x: x[:, 0][torch.arange(x.shape[0]), (x[:, 0, :, 0] > 0).int().argmax(-1)]), image,
        "row of an extreme",
    ),
    "nearest code": (
        Lambda(
            lambda p, x: p["codes"](torch.cdist(x.permute(0, 2, 3, 1).reshape(-1, 4), p["codes"].weight).argmin(1)),
            codes=nn.Embedding.from_pretrained(CODES),
        ),
        image,
        "row of an extreme",
    ),
    "causal": (Lambda(lambda p, x: sdpa(x, x[:, :, :5], x[:, :, 1:], is_causal=True)), heads, "causal mask"),
    "boolean": (Lambda(lambda p, x: sdpa(x, x, x, attn_mask=(x[:, :1, :1] > -2)[..., :6])), heads, "boolean mask"),
    "boolean, whole": (Masked(torch.ones(6, 6) > 0), heads, "empty mask"),
    "boolean, constant": (Masked(torch.ones(6, 6).tril() > 0), heads, "boolean mask"),
    "grouped queries": (Lambda(lambda p, x: sdpa(x, x[:, :2], x[:, 1:3], enable_gqa=True)), heads, "grouped queries"),
    "bilinear": (Lambda(lambda p, x: functional.interpolate(x, size=(9, 5), mode="bilinear")), image, "resampling"),
    "bilinear, corners": (
        Lambda(lambda p, x: functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)), image,
        "resampling",
    ),
    "bicubic": (
        Lambda(lambda p, x: functional.interpolate(x, scale_factor=(1.5, 3), mode="bicubic")), image, "resampling",
    ),
    "antialiased": (
        Lambda(lambda p, x: functional.interpolate(x, size=(3, 4), mode="bilinear", antialias=True)), image,
        "resampling",
    ),
    "nearest, uneven": (Lambda(lambda p, x: functional.interpolate(x, size=(9, 5))), image, "resampling"),
    "nearest, smaller": (Lambda(lambda p, x: functional.interpolate(x, scale_factor=0.5)), image, "resampling"),
    "adaptive pooling": (Lambda(lambda p, x: functional.adaptive_avg_pool2d(x, (4, 3))), image, "resampling"),
    "batch norm": (layer(nn.BatchNorm2d(4)), image, "batch norm"),
    "variance": (Lambda(lambda p, x: x.var((1, 3)) + x.std(2, correction=0)[:, 0, :6]), image, "variance"),
    "softmax of channels": (Lambda(lambda p, x: x.softmax(1)), image, "softmax"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", CASES)
def test_expanded(case: str) -> None:
    module, make, counter = CASES[case]
    captured = capture(module.double(), make())
    program = before(ExpandOperators(), captured)
    result = run_and_check(ExpandOperators(), program, make())
    assert counter in result.counters or not counter, listing(result.module)
    whole, _ = pipeline.run(captured)
    assert largest_difference(whole, module, make()) <= 1e-12
    names = {operator_name(node) for node in whole.graph.nodes if node.op == "call_function"}
    assert names <= RULES.keys() | {operator_name(node) for node in captured.graph.nodes if "tree" in str(node.target)}


def test_a_mask_by_batch_and_key_is_a_view() -> None:
    """transformers writes ``mask[batch, key]`` with counting indices where it means ``mask[:, None, None]``."""

    def function(parts: nn.ModuleDict, x: Tensor, keep: Tensor) -> Tensor:
        sample, key = torch.arange(x.shape[0])[:, None, None, None], torch.arange(6)[None, None, None]
        return sdpa(x, x, x, attn_mask=keep.bool()[sample, key])

    keep = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    module = Lambda2(function)
    captured = capture(module, heads(), keep)
    result = run_and_check(ExpandOperators(), before(ExpandOperators(), captured), heads(), keep)
    assert result.counters == {"index of everything": 1, "boolean mask": 1}
    whole, _ = pipeline.run(captured)
    assert largest_difference(whole, module, heads(), keep) <= 1e-12


REFUSED: dict[str, tuple[nn.Module, Callable[[], Tensor], str]] = {
    "many groups": (layer(nn.Conv2d(130, 130, 1, groups=65)), lambda: image(130, 2, 2), "65 groups"),
    "a large depthwise kernel": (
        layer(nn.Conv2d(4, 4, 9, padding=4, groups=4)), image, "a depthwise kernel of 81 entries",
    ),
    "scattered places": (
        Lambda(lambda p, x: x[:, list(range(0, 80, 2))]), lambda: image(80, 1, 1), "40 separate places",
    ),
    "places that are computed": (
        Lambda(lambda p, x: x.flatten(1)[torch.arange(x.shape[0]), x[:, 0, 0].topk(1, -1)[1][:, 0]]), image,
        "neither constant nor the place of an extreme",
    ),
    "all places": (Lambda(lambda p, x: x[:, :, 0].repeat_interleave(2)), image, "over all dimensions"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    module, make, reason = REFUSED[case]
    result = run_and_check(ExpandOperators(), before(ExpandOperators(), capture(module.double(), make())), make())
    assert result.rewrites == 0
    assert reason in " ".join(map(str, result.misses))
