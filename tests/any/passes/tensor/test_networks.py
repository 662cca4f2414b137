"""The whole pipeline on real architectures: what fused, and equal numbers in float64."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from tensor_programs import capture, largest_difference
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from scoregraph.passes.base import Fuel, StageReport
from scoregraph.passes.tensor import fused, pipeline
from scoregraph.passes.tensor.calls import kind

Inputs = Callable[[int], tuple[Tensor, ...]]


class Sample(nn.Module):
    """A diffusers network as a function of tensors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, t).sample


class LabelledSample(Sample):
    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self.network(x, t, label).sample


class ADM(nn.Module):
    """A residual block and an attention block as guided diffusion writes them, float32 casts included."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        self.emb = nn.Sequential(nn.SiLU(), nn.Linear(6, 2 * width))
        self.norm = nn.GroupNorm(4, width)
        self.outer = nn.Sequential(nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        self.attention_norm = nn.GroupNorm(4, width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.emb(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.norm(self.inner(x).to(x.dtype)).to(x.dtype) * (1 + scale) + shift
        x = x + self.outer(h)
        tokens = x.reshape(x.shape[0], x.shape[1], -1)
        n, width, length = tokens.shape
        q, k, v = self.qkv(self.attention_norm(tokens)).reshape(n * 2, 3 * width // 2, length).split(width // 2, dim=1)
        factor = (width // 2) ** -0.25
        weights = torch.softmax(torch.einsum("bct,bcs->bts", q * factor, k * factor).to(q.dtype), dim=-1)
        h = torch.einsum("bts,bcs->bct", weights, v).reshape(n, width, length)
        return (tokens + self.proj(h)).reshape(x.shape)


def dit() -> tuple[nn.Module, Inputs]:
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10, norm_num_groups=32,
    )  # fmt: skip
    return LabelledSample(network), lambda n: (noise(n, 4, 8, 8), torch.arange(n) * 123, torch.arange(n) + 1)


def unet() -> tuple[nn.Module, Inputs]:
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8, attention_head_dim=8,
    )  # fmt: skip
    return Sample(network), lambda n: (noise(n, 3, 16, 16), torch.arange(n) * 123)


def adm() -> tuple[nn.Module, Inputs]:
    return ADM(), lambda n: (noise(n, 8, 4, 4), noise(n, 6))


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


NETWORKS = {"dit": dit, "unet": unet, "adm": adm}


@functools.cache
def compiled(name: str) -> tuple[nn.Module, GraphModule, GraphModule, tuple[StageReport[GraphModule], ...], Inputs]:
    torch.manual_seed(0)
    module, inputs = NETWORKS[name]()
    module = module.double().eval()
    captured = capture(module, *inputs(3))
    program, reports = pipeline.run(captured)
    return module, captured, program, reports, inputs


def counters(reports: tuple[StageReport[GraphModule], ...]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for report in reports:
        if report.name.startswith("fuse"):
            found.update(report.result.counters)
    return dict(found)


def operations(program: GraphModule) -> dict[str, int]:
    """How many calls of each kernel are left, and how many of ATen's that are not views."""
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    return dict(Counter(kind(node) for node in calls if node.target in fused.OPERATIONS))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("n", [1, 3])
def test_numbers(name: str, n: int) -> None:
    module, _, program, _, inputs = compiled(name)
    assert largest_difference(program, module, *inputs(n)) <= 1e-10


def test_dit_counts() -> None:
    _, _, program, reports, _ = compiled("dit")
    assert counters(reports) == {
        "layer_norm+modulate": 5,  # two a block and the last
        "linear+silu": 2,  # of the time embedding of each block; the last norm shares the first block's
        "linear+gelu_tanh": 2,
        "linear+gate": 4,
        "linear+residual": 6,  # the gated ones, and time embedding + class embedding
        "merged": 1,
    }
    # The elementwise calls left: positions, time * frequency, its sin and cos, silu of each block's embedding.
    assert operations(program) == {"linear": 20, "layer_norm": 5, "attention": 2, "conv2d": 1, "pointwise": 6}


def test_unet_counts() -> None:
    _, _, program, reports, _ = compiled("unet")
    assert counters(reports) == {
        "conv2d+upsampling": 1,
        "conv2d+emb": 8,
        "group_norm+silu": 17,
        "linear+silu": 2,
        "conv2d+residual": 8,
        "merged": 1,
    }
    assert operations(program) == {
        "linear": 26, "conv2d": 25, "group_norm": 21, "attention": 4,
        "pointwise": 7,  # time * frequency, sin, cos, and the residuals of attention, which come transposed
    }  # fmt: skip


def test_adm_counts() -> None:
    _, _, program, reports, _ = compiled("adm")
    assert counters(reports) == {
        "group_norm+modulate": 1,
        "group_norm+silu": 2,
        "conv2d+residual": 2,
        "attention": 1,
    }
    assert operations(program) == {"group_norm": 3, "conv2d": 4, "linear": 1, "attention": 1, "pointwise": 1}


def test_casts_that_change_nothing_do_not_hide_attention() -> None:
    program, _ = pipeline.run(capture(Casting(), noise(3, 8, 4, 4).float(), noise(3, 6).float()))
    assert operations(program)["attention"] == 1
    assert not any("_to_copy" in str(node.target) for node in program.graph.nodes)


class Casting(nn.Module):
    """Attention whose softmax is asked for in float32, as ADM does for its half-precision runs."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        tokens = x.flatten(2)
        weights = torch.softmax(torch.einsum("bct,bcs->bts", tokens, tokens).float(), dim=-1).type(x.dtype)
        return functional.silu(torch.einsum("bts,bcs->bct", weights, tokens)) + emb.sum(-1)[:, None, None]


@pytest.mark.parametrize("name", NETWORKS)
def test_second_run_finds_nothing(name: str) -> None:
    _, _, program, _, _ = compiled(name)
    again, reports = pipeline.run(program)
    assert again is program
    assert all(report.result.rewrites == 0 for report in reports)


def test_bisection_by_fuel_is_monotone_and_exact() -> None:
    """Every amount of fuel gives a program that computes the same, with exactly that many rewrites more."""
    module, captured, _, reports, inputs = compiled("adm")
    total = sum(report.result.rewrites for report in reports if report.name.startswith(("fuse-", "merge-")))
    assert total == 6
    for limit in range(total + 1):
        program, partial = pipeline.run(captured, Fuel(limit))
        spent = sum(each.result.rewrites for each in partial if each.name.startswith(("fuse-", "merge-")))
        assert spent == limit
        assert largest_difference(program, module, *inputs(3)) <= 1e-10


def test_weights_are_shared_with_the_captured_program() -> None:
    _, captured, program, _, _ = compiled("adm")
    before, after = captured.state_dict(), program.state_dict()
    same = [name for name in after if name in before]
    assert "emb.1.weight" in same
    assert all(after[name].data_ptr() == before[name].data_ptr() for name in same)


def test_stage_text_is_readable() -> None:
    _, _, _, reports, _ = compiled("adm")
    assert [report.name for report in reports] == [each.name for each in pipeline.PIPELINE]
    last = str(reports[-1])
    assert last.startswith("# after fold-constants (")
    assert "%x = input : f64[B, 8, 4, 4]" in last
    assert max(map(len, last.splitlines())) < 250
    assert "act=silu" in last
