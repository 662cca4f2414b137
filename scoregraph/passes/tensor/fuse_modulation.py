"""Fold adaptive scale and shift (AdaLN, scale-shift group norm) into the norm they follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Graph, Node
from typing_extensions import override

from scoregraph.passes.base import Miss
from scoregraph.passes.tensor import fused
from scoregraph.passes.tensor.broadcast import per_channel, per_row
from scoregraph.passes.tensor.calls import is_call, kind, orders, shape_of, shared, shown, updated
from scoregraph.passes.tensor.rewrite import Match, TensorPass


@dataclass(frozen=True)
class FuseModulation(TensorPass):
    """``norm(x) * (1 + scale) + shift`` → ``norm(x, scale, shift)``.

    ``scale`` and ``shift`` are constant over space: [n, C, 1, …] after a group norm, [n, 1, …, D] after a layer or an
    RMS norm.
    """

    name: ClassVar[str] = "fuse-modulation"

    @override
    def match(self, node: Node) -> Match | Miss | None:
        for scaled, shift in orders(node, "add"):
            for norm, factor in orders(scaled, "mul"):
                if is_call(norm, fused.group_norm, fused.layer_norm, fused.rms_norm) and isinstance(factor, Node):
                    assert isinstance(scaled, Node)
                    assert isinstance(norm, Node)
                    return self._modulated(norm, factor, scaled, shift)
        return None

    def _modulated(self, norm: Node, factor: Node, scaled: Node, shift: object) -> Match | Miss:
        if reason := shared(norm) or shared(scaled):
            return Miss(f"{kind(norm)} or its scaled value is {reason}")
        if norm.kwargs["scale"] is not None or norm.kwargs.get("act", "none") != "none":
            return Miss(f"{kind(norm)} has a modulation or an activation already")
        scale = next((s for one, s in orders(factor, "add") if one == 1.0 and isinstance(s, Node)), None)
        if scale is None:
            return Miss("the factor is not 1 + scale")
        if not isinstance(shift, Node):
            return Miss("the shift is a number")
        read = per_channel if is_call(norm, fused.group_norm) else per_row
        scale_of, shift_of = read(scale, norm), read(shift, norm)
        if scale_of is None or shift_of is None:
            return Miss(f"broadcast shape {shown(shape_of(scale if scale_of is None else shift))}")

        def build(graph: Graph) -> Node:
            return updated(graph, norm, scale=scale_of(graph), shift=shift_of(graph))

        return Match(f"{kind(norm)}+modulate", build)
