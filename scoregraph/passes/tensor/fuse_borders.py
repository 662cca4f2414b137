"""Let convolutions read images as they are before they are padded with zeros or upsampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch.fx import Node
from typing_extensions import override

from scoregraph.passes.base import Miss
from scoregraph.passes.tensor import fused
from scoregraph.passes.tensor.calls import arguments, aten, is_call, shape_of, updated
from scoregraph.passes.tensor.rewrite import Match, TensorPass

UPSAMPLINGS = (aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default)


@dataclass(frozen=True)
class FuseBorders(TensorPass):
    """``conv2d(pad(x))`` → ``conv2d(x, padding=…)``; ``conv2d(upsample(x))`` → ``conv2d(x, up=…)``.

    Also where others read the larger image too: the convolution reads less memory. It pads after it has upsampled.
    """

    name: ClassVar[str] = "fuse-borders"

    @override
    def match(self, node: Node) -> Match | Miss | None:
        if not is_call(node, fused.conv2d):
            return None
        kwargs: dict[str, Any] = dict(node.kwargs)
        made = kwargs["x"]
        if is_call(made, aten.constant_pad_nd.default):
            given = arguments(made)
            left, right, top, bottom, *others = (*given["pad"], 0, 0)[: max(4, len(given["pad"]))]
            if given["value"] or any(others) or min(left, right, top, bottom) < 0:
                return Miss("the image is cut, or not padded with zeros only at its borders")
            if tuple(kwargs["up"]) != (1, 1):
                return Miss("the padding is upsampled")
            padding = tuple(a + b for a, b in zip(kwargs["padding"], (top, left, bottom, right), strict=True))
            return Match("conv2d+padding", lambda graph: updated(graph, node, x=given["self"], padding=padding))
        if is_call(made, *UPSAMPLINGS):
            x = arguments(made)["input" if made.target is UPSAMPLINGS[0] else "self"]
            (rows, columns), (high, wide) = shape_of(x)[2:], shape_of(made)[2:]
            if not all(isinstance(size, int) for size in (rows, columns, high, wide)) or high % rows or wide % columns:
                return Miss("the image is not upsampled by whole factors")
            up = tuple(int(a * b) for a, b in zip(kwargs["up"], (high // rows, wide // columns), strict=True))
            return Match("conv2d+upsampling", lambda graph: updated(graph, node, x=x, up=up))
        return None
