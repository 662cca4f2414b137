"""The fused functions against the formulas of docs/plan-format.md, written out element by element."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scoregraph.passes.tensor import fused


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= 1e-12


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_linear_uses_gate_row_by_group(groups: int) -> None:
    x, w, bias = numbers(2, 3, 4), numbers(5, 4, seed=1), numbers(5, seed=2)
    residual, gate = numbers(2, 3, 5, seed=3), numbers(groups, 5, seed=4)
    expected = torch.empty(2, 3, 5, dtype=torch.float64)
    for i, j, o in itertools.product(range(2), range(3), range(5)):
        product = float(sum(x[i, j, k] * w[o, k] for k in range(4)) + bias[o])
        row = (3 * i + j) // (6 // groups)
        expected[i, j, o] = residual[i, j, o] + gate[row, o] * silu(product)
    assert close(fused.linear(x, w, bias, residual, gate, "silu"), expected)


def test_conv2d_adds_the_residual_after_the_activation() -> None:
    x, w, emb, residual = numbers(2, 3, 4, 4), numbers(2, 3, 1, 1, seed=1), numbers(2, 2, seed=2), numbers(2, 2, 2, 2)
    expected = torch.empty(2, 2, 2, 2, dtype=torch.float64)
    for n, o, i, j in itertools.product(range(2), repeat=4):
        product = float(sum(w[o, c, 0, 0] * x[n, c, 2 * i, 2 * j] for c in range(3)) + emb[n, o])
        expected[n, o, i, j] = residual[n, o, i, j] + max(product, 0)
    assert close(fused.conv2d(x, w, None, residual, emb, (2, 2), act="relu"), expected)


def test_group_norm_modulates_before_the_activation() -> None:
    x, weight, bias = numbers(2, 4, 3, 1), numbers(4, seed=1), numbers(4, seed=2)
    scale, shift = numbers(2, 4, seed=3), numbers(2, 4, seed=4)
    expected = torch.empty_like(x)
    for n, c in itertools.product(range(2), range(4)):
        group = x[n, c // 2 * 2 : c // 2 * 2 + 2]
        variance = ((group - group.mean()) ** 2).mean()
        norm = (x[n, c] - group.mean()) / torch.sqrt(variance + 1e-3) * weight[c] + bias[c]
        expected[n, c] = torch.tanh(norm * (1 + scale[n, c]) + shift[n, c])
    assert close(fused.group_norm(x, weight, bias, scale, shift, 2, 1e-3, "tanh"), expected)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_layer_norm_uses_modulation_row_by_group(groups: int) -> None:
    x, scale, shift = numbers(2, 3, 4), numbers(groups, 4, seed=3), numbers(groups, 4, seed=4)
    expected = torch.empty_like(x)
    for i, j in itertools.product(range(2), range(3)):
        row = (3 * i + j) // (6 // groups)
        norm = (x[i, j] - x[i, j].mean()) / torch.sqrt(x[i, j].var(correction=0) + 1e-5)
        expected[i, j] = norm * (1 + scale[row]) + shift[row]
    assert close(fused.layer_norm(x, None, None, scale, shift), expected)


def test_rms_norm() -> None:
    x, weight = numbers(2, 4), numbers(4, seed=1)
    assert close(fused.rms_norm(x, weight, eps=0.5), x / torch.sqrt((x**2).mean(-1, keepdim=True) + 0.5) * weight)


def test_attention_adds_the_mask_to_the_scaled_scores() -> None:
    q, k, v, mask = numbers(1, 2, 3, 4), numbers(1, 2, 5, 4, seed=1), numbers(1, 2, 5, 4, seed=2), numbers(1, 1, 1, 5)
    expected = torch.empty_like(q)
    for h, s in itertools.product(range(2), range(3)):
        weights = torch.exp(torch.stack([0.3 * (q[0, h, s] * k[0, h, t]).sum() + mask[0, 0, 0, t] for t in range(5)]))
        expected[0, h, s] = (weights[:, None] * v[0, h]).sum(0) / weights.sum()
    assert close(fused.attention(q, k, v, mask, 0.3), expected)


def test_pointwise_numbers_values_and_broadcasts() -> None:
    x, y = numbers(2, 1), numbers(1, 3, seed=1)
    program = (("const", 2.0), ("mul", 0, 2), ("exp", 3), ("sub", 4, 1), ("max", 5, 0))
    assert close(fused.pointwise(program, x, y), torch.maximum(torch.exp(2 * x) - y, x))


def test_pointwise_without_instructions_turns_integers_to_float32() -> None:
    result = fused.pointwise((), torch.tensor([3, 999]))
    assert result.dtype == torch.float32
    assert result.tolist() == [3.0, 999.0]


def test_every_instruction_of_the_plan_is_interpreted() -> None:
    page = (Path(__file__).parents[4] / "docs" / "plan-format.md").read_text(encoding="utf-8")
    unary, binary, activations = (
        found.group(1).split()
        for pattern in (r"unary `([^`]+)`", r"binary `([^`]+)`", r"`(none silu[^`]+)`")
        if (found := re.search(pattern, page))
    )
    assert (set(fused.UNARY), set(fused.BINARY)) == (set(unary), {*binary, "less"})
    assert set(fused.ACTIVATIONS) == set(activations) <= {"none", "quick_gelu", *unary}
