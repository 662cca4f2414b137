"""Each fusing pass: a hit as golden text, misses with their reasons, equal numbers, idempotence, fuel."""

# ruff: noqa: E501  (golden lines are as long as they are)

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensor_programs import Lambda, Lambda2, before, capture, run_and_check
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from scoregraph.passes.base import Fuel, Pass
from scoregraph.passes.tensor.fuse_activation import FuseActivation
from scoregraph.passes.tensor.fuse_attention import FuseAttention
from scoregraph.passes.tensor.fuse_borders import FuseBorders
from scoregraph.passes.tensor.fuse_emb import FuseEmb
from scoregraph.passes.tensor.fuse_gate import FuseGate
from scoregraph.passes.tensor.fuse_modulation import FuseModulation
from scoregraph.passes.tensor.fuse_pointwise import FusePointwise
from scoregraph.passes.tensor.fuse_residual import FuseResidual
from scoregraph.passes.tensor.fuse_silu import FuseSilu
from scoregraph.passes.tensor.listing import listing
from scoregraph.passes.tensor.merge_duplicates import MergeDuplicates


def image(channels: int = 4) -> Tensor:
    return torch.linspace(-2, 3, 3 * channels * 9, dtype=torch.float64).reshape(3, channels, 3, 3).sin()


def tokens() -> Tensor:
    return torch.linspace(-2, 3, 3 * 5 * 4, dtype=torch.float64).reshape(3, 5, 4).cos()


def row() -> Tensor:
    return torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)


def conv() -> nn.Module:
    return nn.Conv2d(4, 4, 3, padding=1)


def adm_attention(p: Any, x: Tensor) -> Tensor:
    """Guided diffusion's QKVAttention: both operands scaled by D^-1/4, einsums over [n, D, T]."""
    q, k, v = p["qkv"](x.flatten(2)).chunk(3, dim=1)
    weights = torch.einsum("bct,bcs->bts", q * 2**-0.5, k * 2**-0.5)
    return torch.einsum("bts,bcs->bct", torch.softmax(weights, dim=-1), v)


def two(step: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """A function applied twice, so that fuel for one rewrite leaves another undone."""
    return lambda p, x: step(p, step(p, x))


HITS: dict[str, tuple[Pass[Any], nn.Module, tuple[Tensor, ...], dict[str, int], str]] = {
    "silu": (
        FuseSilu(),
        Lambda(two(lambda p, x: x * torch.sigmoid(x))),
        (image(),),
        {"silu": 2},
        """
        %x = input : f64[B, 4, 3, 3]
        %pointwise_4 = pointwise(%x, (silu 0)) : f64[B, 4, 3, 3]
        %pointwise_5 = pointwise(%pointwise_4, (silu 0)) : f64[B, 4, 3, 3]
        return [%pointwise_5]
        """,
    ),
    "attention": (
        FuseAttention(),
        Lambda(adm_attention, qkv=nn.Conv1d(4, 12, 1)),
        (image(),),
        {"attention": 1},
        """
        %attention = attention(q=%unsqueeze_default_1, k=%unsqueeze_default_2, v=%unsqueeze_default_3, scale=0.5)
        """,
    ),
    "attention with mask and scaled scores": (
        FuseAttention(),
        Lambda2(
            lambda p, x, y: torch.softmax(x @ x.transpose(1, 2) / 4.0 + y[:, None, :1], dim=-1) @ x,
        ),
        (tokens(), row()),
        {"attention": 1},
        """
        %slice_1 = slice.Tensor(%unsqueeze, 2, 0, 1) : f64[B, 1, 1]
        %unsqueeze_default = unsqueeze.default(%x, 1) : f64[B, 1, 5, 4]
        %unsqueeze_default_3 = unsqueeze.default(%slice_1, 1) : f64[B, 1, 1, 1]
        %attention = attention(q=%unsqueeze_default, k=%unsqueeze_default_1, v=%unsqueeze_default_2, mask=%unsqueeze_default_3, scale=0.25)
        return [%select_int]
        """,
    ),
    "group norm modulation": (
        FuseModulation(),
        Lambda2(
            lambda p, x, y: p["norm"](p["norm"](x) * (1 + y[:, :, None, None]) + y[:, :, None, None])
            * (y[:, :, None, None] + 1)
            + y[:, :, None, None],
            norm=nn.GroupNorm(2, 4),
        ),
        (image(), row()),
        {"group_norm+modulate": 2},
        """
        group_norm(x=%x, weight=@parts.norm.weight, bias=@parts.norm.bias, scale=%y, shift=%y, groups=2, eps=1e-05)
        """,
    ),
    "layer norm modulation": (
        FuseModulation(),
        Lambda2(
            lambda p, x, y: y[:, None] + (1 + y.unsqueeze(1)) * functional.layer_norm(x, (4,)),
        ),
        (tokens(), row()),
        {"layer_norm+modulate": 1},
        """
        %x = input : f64[B, 5, 4]
        %y = input : f64[B, 4]
        %layer_norm = layer_norm(x=%x, scale=%y, shift=%y, eps=1e-05) : f64[B, 5, 4]
        return [%layer_norm]
        """,
    ),
    "emb": (
        FuseEmb(),
        Lambda2(lambda p, x, y: p["b"](p["a"](x) + y[:, :, None, None]) + y[:, :, None, None], a=conv(), b=conv()),
        (image(), row()),
        {"conv2d+emb": 2},
        """
        conv2d(x=%x, w=@parts.a.weight, bias=@parts.a.bias, emb=%y, stride=[1, 1], padding=[1, 1, 1, 1], up=[1, 1])
        """,
    ),
    "borders": (
        FuseBorders(),
        Lambda(
            lambda p, x: p["b"](functional.pad(functional.interpolate(p["a"](x), scale_factor=2.0), (0, 1, 2, 0))),
            a=conv(),
            b=nn.Conv2d(4, 2, 3, stride=2, padding=1),
        ),
        (image(),),
        {"conv2d+padding": 1, "conv2d+upsampling": 1},
        """
        conv2d(x=%conv2d_2, w=@parts.b.weight, bias=@parts.b.bias, stride=[2, 2], padding=[3, 1, 1, 2], up=[2, 2]) : f64[B, 2, 4, 4]
        """,
    ),
    "activations": (
        FuseActivation(),
        Lambda(
            lambda p, x: functional.gelu(
                p["l"](functional.relu(p["n"](functional.silu(p["c"](x)))).flatten(2).transpose(1, 2)),
                approximate="tanh",
            ),
            c=conv(),
            n=nn.GroupNorm(2, 4),
            l=nn.Linear(4, 6),
        ),
        (image(),),
        {"conv2d+silu": 1, "group_norm+relu": 1, "linear+gelu_tanh": 1},
        """
        %conv2d = conv2d(x=%x, w=@parts.c.weight, bias=@parts.c.bias, stride=[1, 1], padding=[1, 1, 1, 1], up=[1, 1], act=silu) : f64[B, 4, 3, 3]
        %group_norm = group_norm(x=%conv2d, weight=@parts.n.weight, bias=@parts.n.bias, groups=2, eps=1e-05, act=relu) : f64[B, 4, 3, 3]
        %linear = linear(x=%transpose, w=@parts.l.weight, bias=@parts.l.bias, act=gelu_tanh) : f64[B, 9, 6]
        """,
    ),
    "gate": (
        FuseGate(),
        Lambda2(lambda p, x, y: y[:, None] * p["b"](p["a"](x) * y[:, None]), a=nn.Linear(4, 4), b=nn.Linear(4, 4)),
        (tokens(), row()),
        {"linear+gate": 2},
        """
        linear(x=%x, w=@parts.a.weight, bias=@parts.a.bias, gate=%y)
        """,
    ),
    "residual": (
        FuseResidual(),
        Lambda(
            lambda p, x: x + p["b"](functional.silu(p["skip"](x) + p["a"](x))),
            a=conv(),
            b=nn.Conv2d(4, 4, 1),
            skip=nn.Conv2d(4, 4, 1),
        ),
        (image(),),
        {"conv2d+residual": 2},
        """
        conv2d(x=%x, w=@parts.a.weight, bias=@parts.a.bias, residual=%conv2d_3, stride=[1, 1], padding=[1, 1, 1, 1], up=[1, 1])
        conv2d(x=%pointwise_1, w=@parts.b.weight, bias=@parts.b.bias, residual=%x, stride=[1, 1], padding=[0, 0, 0, 0], up=[1, 1])
        """,
    ),
    "residual of a gated linear and of a convolution over one dimension": (
        FuseResidual(),
        Lambda2(
            lambda p, x, y: p["c"]((x + y[:, None] * p["a"](x)).transpose(1, 2)) + x.transpose(1, 2),
            a=nn.Linear(4, 4),
            c=nn.Conv1d(4, 4, 3, padding=1),
        ),
        (tokens(), row()),
        {"linear+residual": 1, "conv2d+residual": 1},
        """
        linear(x=%x, w=@parts.a.weight, bias=@parts.a.bias, residual=%x, gate=%y)
        """,
    ),
    "pointwise": (
        FusePointwise(),
        Lambda2(lambda p, x, y: torch.sin(torch.exp(x) * y[:, None]) ** 2),
        (tokens(), row()),
        {"merged": 3},
        """
        %pointwise_6 = pointwise(%x, %unsqueeze, (exp 0) (mul 2 1) (sin 3) (square 4)) : f64[B, 5, 4]
        """,
    ),
    "duplicates": (
        MergeDuplicates(),
        Lambda(lambda p, x: p["a"](functional.silu(x)) + p["b"](functional.silu(x)) + functional.silu(x), a=conv(), b=conv()),
        (image(),),
        {"call": 2},
        """
        %conv2d_3 = conv2d(x=%pointwise, w=@parts.b.weight, bias=@parts.b.bias, stride=[1, 1], padding=[1, 1, 1, 1], up=[1, 1]) : f64[B, 4, 3, 3]
        """,
    ),
}  # fmt: skip


@functools.cache
def program_of(case: str) -> GraphModule:
    """What the case's pass sees. Passes do not change it, so tests share it."""
    wanted, module, inputs, *_ = HITS[case] if case in HITS else MISSES[case]
    return before(wanted, capture(module.double(), *inputs))


@pytest.mark.parametrize("case", HITS)
def test_hit(case: str) -> None:
    wanted, _, inputs, counters, golden = HITS[case]
    program = program_of(case)
    result = run_and_check(wanted, program, *inputs)
    assert dict(result.counters) == counters
    text = listing(result.module)
    for line in filter(None, map(str.strip, golden.splitlines())):
        assert line in text, text


@pytest.mark.parametrize("case", HITS)
def test_fuel(case: str) -> None:
    wanted, _, _, counters, _ = HITS[case]
    program = program_of(case)
    total = sum(counters.values())
    for limit in (0, 1):
        fuel = Fuel(limit)
        assert wanted.run(program, fuel).rewrites == min(limit, total)
        assert fuel.left == 0


def attend(softmax_axis: int = -1, share: bool = False) -> Callable[..., Tensor]:
    def forward(p: Any, x: Tensor) -> Tensor:
        scores = x @ x.transpose(1, 2)
        weights = torch.softmax(scores, dim=softmax_axis)
        return weights @ (x + scores.mean()) if share else weights @ x

    return forward


MISSES: dict[str, tuple[Pass[Any], nn.Module, tuple[Tensor, ...], str]] = {
    "silu of a shared sigmoid": (
        FuseSilu(),
        Lambda(lambda p, x: x * torch.sigmoid(x) + torch.sigmoid(x)),
        (image(),),
        "the sigmoid is used by 2 nodes",
    ),
    "padding with ones": (
        FuseBorders(),
        Lambda(lambda p, x: p["a"](functional.pad(x, (0, 1), value=1.0)), a=conv()),
        (image(),),
        "the image is cut, or not padded with zeros only at its borders",
    ),
    "padding that is upsampled": (
        FuseBorders(),
        Lambda(lambda p, x: p["a"](functional.interpolate(functional.pad(x, (0, 1)), scale_factor=2.0)), a=conv()),
        (image(),),
        "the padding is upsampled",
    ),
    "attention with shared scores": (
        FuseAttention(),
        Lambda(attend(share=True)),
        (tokens(),),
        "matmul is used by 2 nodes",
    ),
    "modulation without the one": (
        FuseModulation(),
        Lambda2(lambda p, x, y: functional.layer_norm(x, (4,)) * y[:, None] + y[:, None]),
        (tokens(), row()),
        "the factor is not 1 + scale",
    ),
    "modulation per token": (
        FuseModulation(),
        Lambda2(lambda p, x, y: functional.layer_norm(x, (4,)) * (1 + y) + y),
        (tokens(), tokens()),
        "broadcast shape [B, 5, 4]",
    ),
    "modulation of a shared norm": (
        FuseModulation(),
        Lambda2(lambda p, x, y: (h := functional.layer_norm(x, (4,))) * (1 + y[:, None]) + y[:, None] + h),
        (tokens(), row()),
        "layer_norm or its scaled value is used by 2 nodes",
    ),
    "emb per pixel": (
        FuseEmb(),
        Lambda2(lambda p, x, y: p["a"](x) + y[:, :1], a=conv()),
        (image(), image()),
        "broadcast shape [B, 1, 3, 3]",
    ),
    "activation unknown to kernels": (
        FuseActivation(),
        Lambda(lambda p, x: torch.exp(p["a"](x)), a=conv()),
        (image(),),
        "activation exp not supported",
    ),
    "activation of a shared convolution": (
        FuseActivation(),
        Lambda(lambda p, x: functional.silu(h := p["a"](x)) + h, a=conv()),
        (image(),),
        "conv2d is used by 2 nodes",
    ),
    "second activation": (
        FuseActivation(),
        Lambda(lambda p, x: torch.tanh(functional.silu(p["a"](x))), a=conv()),
        (image(),),
        "conv2d has activation silu already",
    ),
    "gate per token": (
        FuseGate(),
        Lambda2(lambda p, x, y: p["a"](x) * y[..., :1], a=nn.Linear(4, 4)),
        (tokens(), tokens()),
        "broadcast shape [B, 5, 1]",
    ),
    "residual that is broadcast": (
        FuseResidual(),
        Lambda2(lambda p, x, y: p["a"](x) + y[:, None], a=nn.Linear(4, 4)),
        (tokens(), row()),
        "broadcast shape [B, 1, 4]",
    ),
    "second residual": (
        FuseResidual(),
        Lambda(lambda p, x: p["a"](x) + x + x.flip(0), a=nn.Linear(4, 4)),
        (tokens(),),
        "linear has a residual already",
    ),
    "pointwise of nine operands": (
        FusePointwise(),
        Lambda2(lambda p, x, y: sum((x[:, i] * y[:, i] for i in range(5)), torch.zeros((), dtype=torch.float64))),
        (tokens(), tokens()),
        "needs 9 operands",
    ),
    "pointwise that is broadcast": (
        FusePointwise(),
        Lambda2(lambda p, x, y: x * torch.exp(y)[:, None]),
        (tokens(), row()),
        "",
    ),
}


@pytest.mark.parametrize("case", MISSES)
def test_miss(case: str) -> None:
    wanted, _, inputs, reason = MISSES[case]
    result = run_and_check(wanted, program_of(case), *inputs)
    reasons = [miss.reason for miss in result.misses]
    assert any(each.endswith(reason) for each in reasons) if reason else not result.rewrites, reasons
    assert all(miss.node in {node.name for node in result.module.graph.nodes} for miss in result.misses)
