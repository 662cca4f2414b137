"""What normalising makes of ATen: one form per operator, the same numbers, and a reason where it cannot."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensor_programs import Forward, Lambda, before, capture, largest_difference, run_and_check
from torch import Tensor, nn
from torch.nn import functional

from scoregraph.passes.base import Fuel
from scoregraph.passes.tensor import fused, pipeline
from scoregraph.passes.tensor.eliminate_dead import EliminateDead
from scoregraph.passes.tensor.fold_constants import FoldConstants
from scoregraph.passes.tensor.listing import listing
from scoregraph.passes.tensor.normalize_expressions import NormalizeExpressions
from scoregraph.passes.tensor.normalize_operators import NormalizeOperators
from scoregraph.passes.tensor.normalize_products import NormalizeProducts
from scoregraph.passes.tensor.simplify_identities import SimplifyIdentities


def tokens() -> Tensor:
    return torch.linspace(0.1, 2, 3 * 5 * 4, dtype=torch.float64).reshape(3, 5, 4)


def image() -> Tensor:
    return torch.linspace(-2, 3, 3 * 4 * 36, dtype=torch.float64).reshape(3, 4, 6, 6).sin()


ELEMENTWISE: dict[str, Forward] = {
    "sums": lambda p, x: torch.add(x, x.exp(), alpha=2) - torch.sub(3, x) + torch.rsub(x, 2.0, alpha=0.5),
    "products": lambda p, x: x * 2 / 3.0 + 1 / x,
    "powers": lambda p, x: x**2 + x**0.5 + x**-0.5 + x**-1 + x**3.5 + 2.0**x + x**x,
    "bounds": lambda p, x: x.clamp(0.5, 1.5) + x.clamp(min=1) + x.clamp(max=1) + torch.minimum(x, x.cos()),
    "functions": lambda p, x: (
        x.exp() + x.log() + x.sin() + x.cos() + x.sqrt() + x.rsqrt() + x.tanh() + x.sigmoid() + x.erf() + x.floor()
        + x.abs() + (-x).relu() + x.square() + x.reciprocal() + torch.sinh(x)
    ),
    "activations": lambda p, x: (
        functional.silu(x) + functional.gelu(x) + functional.gelu(x, approximate="tanh") + functional.relu(x)
    ),
    "scalar constants": lambda p, x: x * torch.tensor(0.25, dtype=torch.float64),
}  # fmt: skip


@pytest.mark.parametrize("case", ELEMENTWISE)
def test_expressions(case: str) -> None:
    program = before(NormalizeExpressions(), capture(Lambda(ELEMENTWISE[case]), tokens()))
    result = run_and_check(NormalizeExpressions(), program, tokens())
    calls = [node.target for node in result.module.graph.nodes if node.op == "call_function"]
    assert set(calls) == {fused.pointwise}, listing(result.module)


def test_integers_enter_as_float32_and_leave_no_cast() -> None:
    module = Lambda(lambda p, t: torch.sin(t[:, None].float() * torch.arange(4)[None]))
    t = torch.tensor([1, 500, 999])
    program, _ = pipeline.run(capture(module, t))
    assert largest_difference(program, module, t) == 0
    assert "pointwise(%unsqueeze, @folded_1, (mul 0 1) (sin 2)) : f32[B, 4]" in listing(program)


def test_integer_arithmetic_is_a_miss() -> None:
    program = before(NormalizeExpressions(), capture(Lambda(lambda p, t: t * 3), torch.tensor([1, 2, 3])))
    result = NormalizeExpressions().run(program)
    assert [miss.reason for miss in result.misses] == ["aten.mul.Tensor on integers"]


OPERATORS: dict[str, tuple[nn.Module, Callable[[], Tensor], dict[str, int]]] = {
    "linear": (Lambda(lambda p, x: p["l"](x), l=nn.Linear(4, 3, bias=False)), tokens, {"linear": 1}),
    "addmm": (
        Lambda(lambda p, x: torch.addmm(p["l"].bias, x[:, 0], p["l"].weight.t()), l=nn.Linear(4, 3)),
        tokens,
        {"linear": 1},
    ),
    "mm": (
        Lambda(lambda p, x: torch.mm(x[:, 0], p["l"].weight.t()) + torch.mm(x[:, 1], (p["l"].weight * 2).t()),
               l=nn.Linear(4, 3)),
        tokens,
        {"linear": 1, "matmul": 1},
    ),
    "conv2d": (Lambda(lambda p, x: p["c"](x), c=nn.Conv2d(4, 2, 3, stride=2, padding=1)), image, {"conv2d": 1}),
    "conv2d, same": (Lambda(lambda p, x: p["c"](x), c=nn.Conv2d(4, 2, 3, padding="same")), image, {"conv2d": 1}),
    "conv1d": (
        Lambda(lambda p, x: p["c"](x), c=nn.Conv1d(5, 2, 3, stride=2, padding=1)),
        tokens,
        {"conv1d": 1},
    ),
    "group norm": (Lambda(lambda p, x: p["n"](x), n=nn.GroupNorm(2, 4)), image, {"group_norm": 1}),
    "layer norm": (Lambda(lambda p, x: p["n"](x), n=nn.LayerNorm(4)), tokens, {"layer_norm": 1}),
    "rms norm": (Lambda(lambda p, x: p["n"](x), n=nn.RMSNorm(4)), tokens, {"rms_norm": 1}),
    "native norms": (
        Lambda(lambda p, x: torch.native_layer_norm(x, [6], None, None, 1e-5)[0]
               + torch.native_group_norm(x, None, None, x.shape[0], 4, 36, 2, 1e-5)[0]),
        image,
        {"layer_norm": 1, "group_norm": 1},
    ),
    "attention without heads": (
        Lambda(lambda p, x: functional.scaled_dot_product_attention(x, x, x, scale=0.3)), tokens, {"attention": 1},
    ),
    "attention with a mask": (
        Lambda(lambda p, x: functional.scaled_dot_product_attention(x, x, x, attn_mask=x.mean((2, 3))[:, :, None, None])
               + functional.scaled_dot_product_attention(x, x, x, attn_mask=x)),
        image,
        {"attention": 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OPERATORS)
def test_operators(case: str) -> None:
    module, make, counters = OPERATORS[case]
    program = before(NormalizeOperators(), capture(module.double(), make()))
    result = run_and_check(NormalizeOperators(), program, make())
    assert dict(result.counters) == counters


REFUSED: dict[str, tuple[nn.Module, Callable[[], Tensor], str]] = {
    "two dims": (Lambda(lambda p, x: functional.layer_norm(x, (5, 4))), tokens, "norm over 2 dimensions"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_operators_refused(case: str) -> None:
    module, make, reason = REFUSED[case]
    program = before(NormalizeOperators(), capture(module.double(), make()))
    result = run_and_check(NormalizeOperators(), program, make())
    assert result.rewrites == 0
    assert reason in " ".join(map(str, result.misses))


PRODUCTS: dict[str, tuple[Forward, str]] = {
    "permutation": (lambda p, x: torch.einsum("bct->tbc", x).permute(1, 0, 2), ""),
    "product": (lambda p, x: torch.einsum("btc,bsc->bts", x, x), ""),
    "product, turned": (lambda p, x: torch.einsum("btc,bsc->bst", x, x.exp()), ""),
    "bmm": (lambda p, x: torch.bmm(x, x.transpose(1, 2)), ""),
    "baddbmm": (lambda p, x: torch.baddbmm(x @ x.mT, x, x.mT, beta=0.5, alpha=2.0), ""),
    "baddbmm, scale alone": (lambda p, x: torch.baddbmm(x @ x.mT, x, x.mT, beta=0, alpha=0.25), ""),
    "sum": (lambda p, x: torch.einsum("btc->bt", x), "of 1 operands"),
    "outer": (lambda p, x: torch.einsum("btc,bsd->btcsd", x, x), "no batched product"),
    "ellipsis": (lambda p, x: torch.einsum("...c,...c->...", x, x), "has an ellipsis"),
}


@pytest.mark.parametrize("case", PRODUCTS)
def test_products(case: str) -> None:
    forward, reason = PRODUCTS[case]
    program = before(NormalizeProducts(), capture(Lambda(forward), tokens()))
    result = run_and_check(NormalizeProducts(), program, tokens())
    assert [reason in str(miss) for miss in result.misses] == ([True] if reason else [])
    left = {str(node.target) for node in result.module.graph.nodes}
    assert reason or not left & {"aten.einsum.default", "aten.bmm.default", "aten.baddbmm.default"}


def test_identities() -> None:
    def forward(p: Any, x: Tensor) -> Tensor:
        y = (x * 1 / 1.0 + 0).double().detach().clone()
        y = functional.dropout(y, 0.5, training=False).transpose(1, 2).transpose(-2, -1)[:, :]
        y = torch.cat([y[..., 1:3], y], dim=-1)[..., 2:] * torch.ones_like(y)
        return y.unsqueeze(2).squeeze(2).reshape(x.shape[0], 20).reshape(x.shape[0], 5, 4).expand(x.shape[0], 5, 4)

    program = before(SimplifyIdentities(), capture(Lambda(forward), tokens()))
    result = run_and_check(SimplifyIdentities(), program, tokens())
    assert listing(result.module) == "%x = input : f64[B, 5, 4]\nreturn [%x]\n"


def test_permutations_are_composed() -> None:
    module = Lambda(lambda p, x: x.permute(0, 3, 1, 2).transpose(1, 3))
    result = run_and_check(SimplifyIdentities(), capture(module, image()), image())
    assert "permute.default(%x, [0, 2, 1, 3])" in listing(result.module)


@pytest.mark.parametrize(
    "forward",
    [lambda p, x: x * 2, lambda p, x: x - 1, lambda p, x: x.to(torch.float32), lambda p, x: x[:, 1:].transpose(1, 2)],
)
def test_what_is_no_identity_stays(forward: Forward) -> None:
    program = capture(Lambda(forward), tokens())
    assert SimplifyIdentities().run(program).rewrites == 0


def test_constants_fold() -> None:
    module = Lambda(lambda p, x: x + torch.arange(4).double().mul(0.5).exp().chunk(2)[1].repeat(2))
    program = before(FoldConstants(), capture(module, tokens()))
    result = run_and_check(FoldConstants(), program, tokens())
    assert "return [%pointwise" in listing(result.module)
    assert "arange" not in listing(result.module)
    assert "split" not in listing(result.module)


def test_constants_that_would_swell_do_not_fold() -> None:
    module = Lambda(lambda p, x: x + p["l"].weight[0, :1].expand(5, 4), l=nn.Linear(4, 4)).double()
    program = before(FoldConstants(), capture(module, tokens()))
    result = FoldConstants(growth=3).run(program)
    assert [miss.reason for miss in result.misses] == ["the result has 20 elements, its operands 1"]


def test_dead_code_goes_with_its_weights() -> None:
    def forward(p: Any, x: Tensor) -> Tensor:
        p["unused"](x)
        return p["l"](x.to(torch.float64))

    module = Lambda(forward, l=nn.Linear(4, 4), unused=nn.Linear(4, 4)).double()
    program = capture(module, tokens())
    result = run_and_check(EliminateDead(), program, tokens())
    assert result.rewrites >= 3  # the layer, its weight and its bias
    assert set(result.module.state_dict()) == {"parts.l.weight", "parts.l.bias"}


def test_without_fuel_only_what_lowering_needs_happens() -> None:
    module = Lambda(lambda p, x: x + p["b"](functional.silu(p["a"](x))), a=nn.Linear(4, 4), b=nn.Linear(4, 4)).double()
    program, reports = pipeline.run(capture(module, tokens()), Fuel(0))
    assert largest_difference(program, module, tokens()) <= 1e-12
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert [target for target in targets if target is not operator.getitem] == [
        fused.linear, fused.pointwise, fused.linear, fused.pointwise,
    ]  # fmt: skip
    charged = {report.name: report.result.rewrites for report in reports if report.name.startswith("fuse")}
    assert set(charged.values()) == {0}


def test_comparisons_and_choices_are_expressions() -> None:
    def function(parts: nn.ModuleDict, x: Tensor) -> Tensor:
        far = torch.cat([x > 1, x < 0.5], 1)[:, 1:7].transpose(1, 2).unsqueeze(1).expand(-1, 2, -1, -1)
        return torch.where(far, x[:, None, :4, :1], 0.25)

    program = before(NormalizeExpressions(), capture(Lambda(function), tokens()))
    result = run_and_check(NormalizeExpressions(), program, tokens())
    assert not [node for node in result.module.graph.nodes if getattr(node.meta.get("val"), "dtype", 0) == torch.bool]


@pytest.mark.parametrize("name", ["log1p", "expm1"])
def test_functions_near_one_keep_their_digits(name: str) -> None:
    program = NormalizeExpressions().run(capture(Lambda(lambda p, x: getattr(x, name)()), torch.rand(3, 2))).module
    for value in (-0.5, 1e-9, 0.0, 1e-20, -3e-5, 0.3, 5.0, 80.0):
        expected = getattr(math, name)(value)
        assert program(torch.full((2, 2), value))[0, 0].item() == pytest.approx(
            expected, rel=5e-6 if value > 9 else 5e-7
        )
