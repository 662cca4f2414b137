"""Fold the time embedding of a residual block into the convolution it is added to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Node
from typing_extensions import override

from scoregraph.passes.base import Miss
from scoregraph.passes.tensor import fused
from scoregraph.passes.tensor.broadcast import per_channel
from scoregraph.passes.tensor.calls import is_call, orders, same_value_type, shape_of, shared, shown, updated
from scoregraph.passes.tensor.rewrite import Match, TensorPass


@dataclass(frozen=True)
class FuseEmb(TensorPass):
    """``conv2d(x) + e`` with e [n, O, 1, 1] → ``conv2d(x, emb=e)``."""

    name: ClassVar[str] = "fuse-emb"

    @override
    def match(self, node: Node) -> Match | Miss | None:
        for conv, emb in orders(node, "add"):
            if not isinstance(conv, Node) or not isinstance(emb, Node) or not is_call(conv, fused.conv2d):
                continue
            if same_value_type(conv, emb):
                return None  # a residual, which is another pass's business
            read = per_channel(emb, conv)
            if read is None:
                return Miss(f"broadcast shape {shown(shape_of(emb))}")
            if reason := shared(conv):
                return Miss(f"conv2d is {reason}")
            if any(conv.kwargs[role] is not None for role in ("emb", "residual")) or conv.kwargs["act"] != "none":
                return Miss("conv2d has an embedding, a residual or an activation already")
            return Match("conv2d+emb", lambda graph, conv=conv, read=read: updated(graph, conv, emb=read(graph)))
        return None
