"""Write operators that have no kernel in terms of those that do, before anything is fused."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import Graph, Node
from typing_extensions import override

from scoregraph.passes.base import Miss
from scoregraph.passes.tensor import (
    expand_convolutions,
    expand_layouts,
    expand_lookups,
    expand_masks,
    expand_resampling,
)
from scoregraph.passes.tensor.calls import (
    arguments,
    aten,
    call,
    constant,
    constant_value,
    is_call,
    shape_of,
    target_of,
)
from scoregraph.passes.tensor.rewrite import Match, Rule, TensorPass


def _softmax(node: Node) -> Match | None:
    """The kernel works on the last dimension."""
    x: Any = arguments(node)["self"]
    rank = len(shape_of(x))
    dim: int = arguments(node)["dim"] % rank
    if dim == rank - 1:
        return None

    def build(graph: Graph) -> Node:
        turned = call(graph, aten.transpose.int, x, dim, rank - 1)
        return call(graph, aten.transpose.int, call(graph, target_of(node), turned, rank - 1), dim, rank - 1)

    return Match("softmax", build)


def _batch_norm(node: Node) -> Match | Miss:
    """Statistics of training are constants, and the norm one product and one sum per channel."""
    given = arguments(node)
    mean, variance = (constant_value(given[role]) for role in ("running_mean", "running_var"))
    if mean is None or variance is None or given.get("training"):
        return Miss("a batch norm without statistics of its training")
    weight, bias = (constant_value(given[role]) for role in ("weight", "bias"))
    factor = torch.rsqrt(variance.double() + given["eps"]) * (1 if weight is None else weight.double())
    shift = (0 if bias is None else bias.double()) - mean.double() * factor
    x: Node = given["input"]
    shape = (1, -1, *[1] * (len(shape_of(x)) - 2))

    def build(graph: Graph) -> Node:
        scale, offset = (constant(graph, each.to(mean.dtype).reshape(shape), x) for each in (factor, shift))
        return call(graph, aten.add.Tensor, call(graph, aten.mul.Tensor, x, scale), offset)

    return Match("batch norm", build)


def _spread(node: Node) -> Match | Miss:
    """Variance and standard deviation: the mean square around the mean, times n / (n - correction)."""
    given = arguments(node)
    x: Node = given["self"]
    dims: list[int] = given["dim"] or []
    sizes = [shape_of(x)[dim] for dim in dims]
    if not dims or not all(isinstance(size, int) for size in sizes):
        return Miss("a variance over the batch")
    count = math.prod(int(size) for size in sizes)
    stated = given.get("correction", int(given.get("unbiased", True)))
    correction = 1 if stated is None else stated

    def build(graph: Graph) -> Node:
        centred = call(graph, aten.sub.Tensor, x, call(graph, aten.mean.dim, x, dims, True))
        mean = call(graph, aten.mean.dim, call(graph, aten.square.default, centred), dims, given["keepdim"])
        made = call(graph, aten.mul.Scalar, mean, count / max(count - correction, 0))
        return call(graph, aten.sqrt.default, made) if is_call(node, aten.std.correction, aten.std.dim) else made

    return Match("variance", build)


def _result(node: Node) -> Match | Miss | None:
    """The norm in its native form, which answers statistics too."""
    source, index = node.args
    native = is_call(source, aten._native_batch_norm_legit_no_training.default)
    return _batch_norm(node.all_input_nodes[0]) if native and index == 0 else None


RULES: dict[Any, Rule] = {
    **expand_convolutions.RULES,
    **expand_layouts.RULES,
    **expand_lookups.RULES,
    **expand_masks.RULES,
    **expand_resampling.RULES,
    aten.batch_norm.default: _batch_norm,
    aten.softmax.int: _softmax,
    aten.std.correction: _spread,
    aten.std.dim: _spread,
    aten.var.correction: _spread,
    aten.var.dim: _spread,
    operator.getitem: _result,
}


@dataclass(frozen=True)
class ExpandOperators(TensorPass):
    """``pixel_shuffle(x, 2)`` → ``reshape(permute(reshape(x)))``; ``conv2d(x, w, groups=2)`` → two and ``cat``."""

    name: ClassVar[str] = "expand-operators"
    charged: ClassVar[bool] = False

    @override
    def match(self, node: Node) -> Match | Miss | None:
        if node.op != "call_function":
            return None
        rule = RULES.get(node.target)
        return None if rule is None else rule(node)
