"""Write the composite ATen operators as calls of the fused functions, nothing fused yet, so that passes see one form.

``linear``, ``addmm``, ``mm``; ``conv1d``, ``conv2d``, ``convolution``; group, layer and RMS norm and their native
forms; scaled dot product attention. What no kernel covers (groups, dilation, causal masks …) is a miss and stays.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import Graph, Node
from typing_extensions import override

from scoregraph.passes.base import Miss
from scoregraph.passes.tensor import fused
from scoregraph.passes.tensor.calls import arguments, aten, call, is_call, shape_of, target_of, value_of
from scoregraph.passes.tensor.rewrite import Match, TensorPass
from scoregraph.passes.tensor.simplify_identities import permutation


@dataclass(frozen=True)
class NormalizeOperators(TensorPass):
    """``aten.linear(x, w, b)`` → ``linear(x=x, w=w, bias=b, residual=None, gate=None, act="none")``."""

    name: ClassVar[str] = "normalize-operators"
    charged: ClassVar[bool] = False

    @override
    def match(self, node: Node) -> Match | Miss | None:
        if node.op != "call_function":
            return None
        if node.target is operator.getitem:
            return _first_result(node)
        rule = _RULES.get(target_of(node))
        return None if rule is None else rule(node)


def _linear(node: Node) -> Match:
    given = arguments(node)
    return Match("linear", lambda graph: _unfused_linear(graph, given["input"], given["weight"], given["bias"], node))


def _unfused_linear(graph: Graph, x: Node, w: Node, bias: Node | None, like: Node) -> Node:
    return call(graph, fused.linear, x=x, w=w, bias=bias, residual=None, gate=None, act="none", like=like)


def _mm(node: Node) -> Match:
    """``mm(x, wᵀ)`` of a weight w is ``linear``, any other a ``matmul``."""
    given = arguments(node)
    x, w = given["self"], given["mat2"]
    weight = _untransposed_weight(w)
    if weight is None:
        return Match("matmul", lambda graph: call(graph, aten.matmul.default, x, w, like=node))
    return Match("linear", lambda graph: _unfused_linear(graph, x, weight(graph), None, node))


def _addmm(node: Node) -> Match | Miss:
    """``addmm(b, x, wᵀ)`` of a weight w is ``linear``."""
    given = arguments(node)
    x, bias = given["mat1"], given["self"]
    weight = _untransposed_weight(given["mat2"])
    if weight is None or len(shape_of(bias)) != 1 or given["alpha"] != 1 or given["beta"] != 1:
        return Miss("addmm that is not x times a weight plus a bias")
    return Match("linear", lambda graph: _unfused_linear(graph, x, weight(graph), bias, node))


def _untransposed_weight(node: Node) -> Callable[[Graph], Node] | None:
    """How to get w if ``node`` is the transpose of a constant w, or a constant, whose transpose is folded later."""
    if node.op == "get_attr":
        return lambda graph: call(graph, aten.permute.default, node, [1, 0])
    source = node.args[0] if permutation(node) == [1, 0] else None
    if not isinstance(source, Node) or source.op != "get_attr":
        return None
    return lambda graph: source


def _convolution(node: Node) -> Match | Miss:
    given = arguments(node)
    spatial = len(shape_of(given["input"])) - 2
    if given.get("transposed") or given["groups"] != 1 or any(step != 1 for step in _times(given["dilation"], spatial)):
        return Miss(f"convolution with groups {given['groups']}, dilation {given['dilation']} or transposed")
    if spatial not in (1, 2):
        return Miss(f"convolution over {spatial} spatial dimensions")
    kernel = shape_of(given["weight"])[2:]
    stride = _times(given["stride"], spatial)
    if isinstance(given["padding"], str):
        padding = [int(size) // 2 if given["padding"] == "same" else 0 for size in kernel]
    else:
        padding = _times(given["padding"], spatial)
    x, w, bias = given["input"], given["weight"], given["bias"]
    if spatial == 2:
        return Match("conv2d", lambda graph: _unfused_conv2d(graph, x, w, bias, stride, padding, node))

    def build(graph: Graph) -> Node:
        # One dimension is two, the first of size 1: [n, C, T] is [n, C, 1, T].
        wide, kernel = (call(graph, aten.unsqueeze.default, each, 2) for each in (x, w))
        made = _unfused_conv2d(graph, wide, kernel, bias, [1, *stride], [0, *padding])
        return call(graph, aten.select.int, made, 2, 0, like=node)

    return Match("conv1d", build)


def _unfused_conv2d(
    graph: Graph,
    x: Node,
    w: Node,
    bias: Node | None,
    stride: Sequence[int],
    padding: Sequence[int],
    like: Node | None = None,
) -> Node:
    return call(
        graph, fused.conv2d, x=x, w=w, bias=bias, residual=None, emb=None, stride=tuple(stride),
        padding=(*padding, *padding), up=(1, 1), act="none", like=like,
    )  # fmt: skip


def _times(value: int | Sequence[int], count: int) -> list[int]:
    """One number per spatial dimension; ATen lets a single one stand for all."""
    given = [value] if isinstance(value, int) else list(value)
    return given * count if len(given) == 1 else given


def _group_norm(node: Node, result: Node | None = None) -> Match:
    given = arguments(node)
    return Match(
        "group_norm",
        lambda graph: call(
            graph, fused.group_norm, x=given["input"], weight=given["weight"], bias=given["bias"],
            scale=None, shift=None, groups=given.get("num_groups", given.get("group")), eps=given["eps"], act="none",
            like=result or node,
        ),
    )  # fmt: skip


def _layer_norm(node: Node, result: Node | None = None) -> Match | Miss:
    given = arguments(node)
    if len(given["normalized_shape"]) != 1:
        return Miss(f"norm over {len(given['normalized_shape'])} dimensions")
    return Match(
        "layer_norm",
        lambda graph: call(
            graph, fused.layer_norm, x=given["input"], weight=given["weight"], bias=given["bias"],
            scale=None, shift=None, eps=given["eps"], act="none",
            like=result or node,
        ),
    )  # fmt: skip


def _rms_norm(node: Node) -> Match | Miss:
    given = arguments(node)
    if len(given["normalized_shape"]) != 1:
        return Miss(f"norm over {len(given['normalized_shape'])} dimensions")
    value = value_of(node)
    assert value is not None
    eps = torch.finfo(value.dtype).eps if given["eps"] is None else given["eps"]
    return Match(
        "rms_norm",
        lambda graph: call(
            graph, fused.rms_norm, x=given["input"], weight=given["weight"], scale=None, shift=None, eps=eps, like=node
        ),
    )


def _attention(node: Node) -> Match | Miss:
    given = arguments(node)
    q, k, v = given["query"], given["key"], given["value"]
    mask = given.get("attn_mask")
    if given["is_causal"] or given["dropout_p"] or given.get("enable_gqa"):
        return Miss("dropout, or a causal mask or grouped queries of symbolic size")
    width = shape_of(q)[-1]
    scale = 1 / math.sqrt(int(width)) if given.get("scale") is None else float(given["scale"])
    return Match("attention", lambda graph: attention(graph, q, k, v, mask, scale))


def attention(graph: Graph, q: Node, k: Node, v: Node, mask: Node | None, scale: float) -> Node:
    """Add ``attention`` for q [.., S, D], k and v [.., T, D] of rank 3 (no heads) or 4."""
    if len(shape_of(q)) == 4:
        return call(graph, fused.attention, q=q, k=k, v=v, mask=mask, scale=scale)
    q, k, v = (call(graph, aten.unsqueeze.default, each, 1) for each in (q, k, v))
    if mask is not None and len(shape_of(mask)) == 3:
        mask = call(graph, aten.unsqueeze.default, mask, 1)
    made = call(graph, fused.attention, q=q, k=k, v=v, mask=mask, scale=scale)
    return call(graph, aten.select.int, made, 1, 0)


def _first_result(node: Node) -> Match | Miss | None:
    """The native norms and attentions return statistics beside the result, which inference does not read."""
    source, index = node.args
    if not isinstance(source, Node) or index != 0:
        return None
    if is_call(source, aten.native_group_norm.default):
        return _group_norm(source, node)
    if is_call(source, aten.native_layer_norm.default):
        return _layer_norm(source, node)
    if is_call(source, aten._scaled_dot_product_flash_attention_for_cpu.default):
        return _attention(source)
    return None


_RULES: dict[Callable[..., Any], Callable[[Node], Match | Miss]] = {
    aten.linear.default: _linear,
    aten.addmm.default: _addmm,
    aten.mm.default: _mm,
    aten.conv1d.default: _convolution,
    aten.conv1d.padding: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv2d.padding: _convolution,
    aten.convolution.default: _convolution,
    aten.group_norm.default: _group_norm,
    aten.layer_norm.default: _layer_norm,
    aten.rms_norm.default: _rms_norm,
    aten.scaled_dot_product_attention.default: _attention,
}
