"""Apply an activation where its operand is made: in the epilogue of a product or of a norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Node
from typing_extensions import override

from scoregraph.passes.base import Miss
from scoregraph.passes.tensor import fused
from scoregraph.passes.tensor.calls import expression, is_call, kind, shared, updated
from scoregraph.passes.tensor.rewrite import Match, TensorPass


@dataclass(frozen=True)
class FuseActivation(TensorPass):
    """``silu(conv2d(x))`` → ``conv2d(x, act="silu")``; so for ``linear``, ``group_norm`` and ``layer_norm``."""

    name: ClassVar[str] = "fuse-activation"

    @override
    def match(self, node: Node) -> Match | Miss | None:
        found = expression(node)
        if found is None or len(found[1]) != 1:
            return None
        act, (source,) = found
        if not isinstance(source, Node):
            return None
        if not is_call(source, fused.linear, fused.conv2d, fused.group_norm, fused.layer_norm):
            return None
        if act not in fused.ACTIVATIONS:
            return Miss(f"activation {act} not supported")
        if reason := shared(source):
            return Miss(f"{kind(source)} is {reason}")
        if source.kwargs["act"] != "none":
            return Miss(f"{kind(source)} has activation {source.kwargs['act']} already")
        if any(source.kwargs.get(role) is not None for role in ("residual", "gate")):
            return Miss(f"{kind(source)} adds its residual or gate after its activation")
        return Match(f"{kind(source)}+{act}", lambda graph: updated(graph, source, act=act))
