"""Convolutions that no kernel covers, in terms of the plain one: grouped, depthwise, dilated, transposed.

- groups: the channels of each group by themselves, put together again;
- one channel a group (depthwise): a sum of shifted images times one number per channel, which is elementwise;
- dilation: a larger kernel with zeros between its entries;
- an even kernel with "same" padding: one pixel more behind than in front;
- transposed: zeros between the pixels, then a convolution with the flipped kernel (Dumoulin and Visin 2016, section 4).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from scoregraph.passes.base import Miss
from scoregraph.passes.tensor.calls import arguments, aten, call, constant, constant_value, padded, shape_of
from scoregraph.passes.tensor.rewrite import Match, Rule

GROUPS = 64
"""The most convolutions that one with groups may become."""
TAPS = 49
"""The most entries of a depthwise kernel."""


def _convolution(node: Node) -> Match | Miss | None:
    given = arguments(node)
    spatial = len(shape_of(given["input"])) - 2
    stride, dilation = _times(given["stride"], spatial), _times(given["dilation"], spatial)
    groups, transposed = given["groups"], given.get("transposed", node.target in _TRANSPOSED)
    lopsided = given["padding"] == "same" and any(int(size) % 2 == 0 for size in shape_of(given["weight"])[2:])
    if not (transposed or lopsided) and groups == 1 and set(dilation) == {1}:
        return None
    weight = constant_value(given["weight"])
    if weight is None or spatial not in (1, 2):
        return Miss(f"a convolution over {spatial} dimensions, or whose weights are computed")
    kernel = [step * (size - 1) + 1 for step, size in zip(dilation, weight.shape[2:], strict=True)]
    if isinstance(given["padding"], str):
        wanted = [size - 1 if given["padding"] == "same" else 0 for size in kernel]
        padding = [(total // 2, total - total // 2) for total in wanted]
    else:
        padding = [(size, size) for size in _times(given["padding"], spatial)]
    weight = _spaced(weight, dilation)
    extra = _times(given.get("output_padding", 0), spatial)
    if groups > 1 and not transposed and tuple(weight.shape[:2]) == (groups, 1):
        if weight[0].numel() > TAPS:
            return Miss(f"a depthwise kernel of {weight[0].numel()} entries")
        return Match("depthwise", lambda graph: _depthwise(graph, node, given, weight, stride, padding))
    if groups > GROUPS:
        return Miss(f"{groups} groups")

    def build(graph: Graph) -> Node:
        x = given["input"]
        if transposed:
            x = _apart(graph, x, stride)
            edges = [
                (size - 1 - before, size - 1 - after + more)
                for size, (before, after), more in zip(kernel, padding, extra, strict=True)
            ]
            kernels, steps = _flipped(weight, groups), [1] * spatial
        else:
            edges, kernels, steps = padding, weight, stride
        inside = [0] * spatial
        if all(before == after >= 0 for before, after in edges):
            inside = [before for before, _ in edges]
        else:
            pads = [size for edge in reversed(edges) for size in edge]
            x = padded(graph, x, pads)
        return _grouped(graph, x, kernels, given["bias"], steps, inside, groups)

    names = {"transposed": transposed, "groups": groups > 1, "dilated": set(dilation) != {1}, "lopsided": lopsided}
    return Match(next(name for name, applies in names.items() if applies), build)


def _grouped(
    graph: Graph, x: Node, kernels: Tensor, bias: Node | None, stride: list[int], padding: list[int], groups: int
) -> Node:
    """The convolution of every group of channels by itself. ``kernels`` are [O, I / groups, …]."""
    target = aten.conv2d.default if kernels.ndim == 4 else aten.conv1d.default
    if groups == 1:
        return call(graph, target, x, constant(graph, kernels, x), bias, stride, padding)
    inner, outer = kernels.shape[1], len(kernels) // groups
    shifts = None if bias is None else constant_value(bias)
    parts: list[Node] = []
    for group in range(groups):
        own = call(graph, aten.slice.Tensor, x, 1, group * inner, (group + 1) * inner)
        rows = slice(group * outer, (group + 1) * outer)
        shift = None if shifts is None else constant(graph, shifts[rows], x)
        parts.append(call(graph, target, own, constant(graph, kernels[rows], x), shift, stride, padding))
    return call(graph, aten.cat.default, parts, 1)


def _depthwise(
    graph: Graph,
    node: Node,
    given: dict[str, Any],
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> Node:
    """Σ w[:, i, j] x[:, i::stride, j::stride], after the bias, tap by tap."""
    x = given["input"]
    if any(size for edge in padding for size in edge):
        pads = [size for edge in reversed(padding) for size in edge]
        x = padded(graph, x, pads)
    lengths: Any = shape_of(node)[2:]
    shift = None if given["bias"] is None else constant_value(given["bias"])
    total = None if shift is None else constant(graph, _over_space(shift, len(lengths)), x)
    for place in itertools.product(*map(range, weight.shape[2:])):
        factors = weight[(slice(None), 0, *place)]
        if not factors.any():  # between the entries of a dilated kernel
            continue
        moved = x
        for dim, (start, step, length) in enumerate(zip(place, stride, lengths, strict=True), start=2):
            moved = call(graph, aten.slice.Tensor, moved, dim, start, start + step * (length - 1) + 1, step)
        term = call(graph, aten.mul.Tensor, moved, constant(graph, _over_space(factors, len(lengths)), x))
        total = term if total is None else call(graph, aten.add.Tensor, term, total)
    assert total is not None
    return total


def _over_space(values: Tensor, spatial: int) -> Tensor:
    return values.reshape(1, -1, *[1] * spatial)


def _spaced(weight: Tensor, dilation: Sequence[int]) -> Tensor:
    """A kernel with zeros between its entries."""
    for dim, step in enumerate(dilation, start=2):
        if step > 1:
            size = step * (weight.shape[dim] - 1) + 1
            wide = weight.new_zeros([size if each == dim else n for each, n in enumerate(weight.shape)])
            wide[(*[slice(None)] * dim, slice(None, None, step))] = weight
            weight = wide
    return weight


def _apart(graph: Graph, x: Node, stride: Sequence[int]) -> Node:
    """An image with ``stride - 1`` zeros between its pixels."""
    for dim, step in enumerate(stride, start=2):
        sizes: Any = list(shape_of(x))
        if step > 1:
            whole = step * (sizes[dim] - 1) + 1
            x = _scattered(graph, x, dim, whole, step)
    return x


def _scattered(graph: Graph, x: Node, dim: int, size: int, step: int) -> Node:
    """[.., H, ..] to [.., size, ..], entry h at step h: each pixel gets zeros behind it, cut at the end."""
    wide = call(graph, aten.unsqueeze.default, x, dim + 1)
    behind = len(shape_of(wide)) - dim - 2
    wide = padded(graph, wide, [*[0] * (2 * behind), 0, step - 1])
    return call(graph, aten.slice.Tensor, call(graph, aten.flatten.using_ints, wide, dim, dim + 1), dim, 0, size)


def _flipped(weight: Tensor, groups: int) -> Tensor:
    """The kernels [I, O / groups, …] of a transposed convolution as those [O, I / groups, …] of a plain one."""
    parts = weight.flip(list(range(2, weight.ndim))).chunk(groups)
    return torch.cat([part.transpose(0, 1) for part in parts]).contiguous()


def _times(value: int | Sequence[int], count: int) -> list[int]:
    given = [value] if isinstance(value, int) else list(value)
    return given * count if len(given) == 1 else given


_TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input)

RULES: dict[Any, Rule] = dict.fromkeys(
    (
        aten.conv1d.default,
        aten.conv1d.padding,
        aten.conv2d.default,
        aten.conv2d.padding,
        aten.convolution.default,
        *_TRANSPOSED,
    ),
    _convolution,
)
