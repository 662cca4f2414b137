"""Recognise an RMS norm where a network spells it out, as T5, SD3 and every RMSNorm module before torch's own does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch.fx import Node
from typing_extensions import override

from scoregraph.passes.base import Miss
from scoregraph.passes.tensor import fused
from scoregraph.passes.tensor.calls import (
    arguments,
    aten,
    call,
    is_call,
    operands_of,
    orders,
    same_sizes,
    same_value_type,
    shape_of,
    shared,
    updated,
)
from scoregraph.passes.tensor.rewrite import Match, TensorPass


@dataclass(frozen=True)
class FuseRms(TensorPass):
    """``x * rsqrt(mean(x², -1) + eps) * weight`` → ``rms_norm(x, weight)``."""

    name: ClassVar[str] = "fuse-rms"

    @override
    def match(self, node: Node) -> Match | Miss | None:
        for x, other in orders(node, "mul"):
            if not isinstance(x, Node) or not isinstance(other, Node):
                continue
            if operands_of(other, "rsqrt") is not None:
                return self._normed(node, x, other)
            if is_call(x, fused.rms_norm) and x.kwargs["weight"] is None and other.op == "get_attr":
                return self._weighted(node, x, other)
        return None

    def _normed(self, node: Node, x: Node, root: Node) -> Match | Miss | None:
        (radicand,) = operands_of(root, "rsqrt") or (None,)
        for mean, eps in orders(radicand, "add"):
            if not is_call(mean, aten.mean.dim) or isinstance(eps, Node):
                continue
            assert isinstance(mean, Node)
            given = arguments(mean)
            if operands_of(given["self"], "square") != (x,) and operands_of(given["self"], "mul") != (x, x):
                continue
            if [axis % len(shape_of(x)) for axis in given["dim"]] != [len(shape_of(x)) - 1] or not given["keepdim"]:
                return Miss(f"the mean is over {given['dim']}, not over the last dimension")
            options: dict[str, Any] = {"weight": None, "scale": None, "shift": None, "eps": eps}
            return Match("rms_norm", lambda graph, o=options: call(graph, fused.rms_norm, x=x, like=node, **o))
        return None

    def _weighted(self, node: Node, norm: Node, weight: Node) -> Match | Miss:
        if not same_sizes(shape_of(weight), shape_of(norm)[-1:]) or not same_value_type(node, norm):
            return Miss("the weight is not one number per channel")
        if reason := shared(norm):
            return Miss(f"rms_norm is {reason}")
        return Match("rms_norm+weight", lambda graph: updated(graph, norm, weight=weight))
