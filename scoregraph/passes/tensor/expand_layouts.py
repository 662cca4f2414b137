"""Moves of memory that have no kernel of their own, as reshapes, permutations, expansions and concatenations."""

from __future__ import annotations

from typing import Any

from torch.fx import Graph, Node

from scoregraph.passes.base import Miss
from scoregraph.passes.tensor.calls import arguments, aten, call, shape_of
from scoregraph.passes.tensor.rewrite import Match, Rule


def _concat(node: Node) -> Match:
    given = arguments(node)
    return Match("concat", lambda graph: call(graph, aten.cat.default, given["tensors"], given["dim"], like=node))


def _pad(node: Node) -> Match | Miss:
    """Zeros in front and behind, or what the edge, the mirror or the other end of each dimension holds."""
    given = arguments(node)
    x, pad, mode = given["self"], given["pad"], given["mode"]
    if not all(isinstance(count, int) for count in pad):
        return Miss("padding by a symbolic size")
    if mode == "constant":
        value = float(given["value"] or 0.0)
        return Match("pad", lambda graph: call(graph, aten.constant_pad_nd.default, x, pad, value, like=node))
    if mode not in ("reflect", "replicate", "circular") or any(count < 0 for count in pad):
        return Miss(f"padding of mode {mode!r} by {pad}")

    def build(graph: Graph) -> Node:
        made = x
        for position in range(len(pad) // 2):
            before, behind = pad[2 * position : 2 * position + 2]
            dim = len(shape_of(x)) - 1 - position
            size: Any = shape_of(made)[dim]
            # The places that the padded dimension reads, in order.
            places = {
                "replicate": [*[0] * before, *[size - 1] * behind],
                "circular": [*range(size - before, size), *range(behind)],
                "reflect": [*range(before, 0, -1), *range(size - 2, size - 2 - behind, -1)],
            }[mode]
            rows = [call(graph, aten.slice.Tensor, made, dim, at, at + 1) for at in places]
            if rows:
                made = call(graph, aten.cat.default, [*rows[:before], made, *rows[before:]], dim)
        return made

    return Match(f"{mode} pad", build)


def _pixel_shuffle(node: Node) -> Match:
    """[n, C r², H, W] to [n, C, H r, W r]: channel (c, i, j) becomes the pixel (i, j) of each r × r square."""
    given = arguments(node)
    x, r = given["self"], given["upscale_factor"]
    _, channels, height, width = shape_of(x)

    def build(graph: Graph) -> Node:
        split = call(graph, aten.reshape.default, x, [-1, channels // r**2, r, r, height, width])
        turned = call(graph, aten.permute.default, split, [0, 1, 4, 2, 5, 3])
        return call(graph, aten.reshape.default, turned, [-1, channels // r**2, height * r, width * r], like=node)

    return Match("pixel shuffle", build)


def _pixel_unshuffle(node: Node) -> Match:
    """[n, C, H r, W r] to [n, C r², H, W]."""
    given = arguments(node)
    x, r = given["self"], given["downscale_factor"]
    _, channels, height, width = shape_of(x)

    def build(graph: Graph) -> Node:
        split = call(graph, aten.reshape.default, x, [-1, channels, height // r, r, width // r, r])
        turned = call(graph, aten.permute.default, split, [0, 1, 3, 5, 2, 4])
        return call(graph, aten.reshape.default, turned, [-1, channels * r**2, height // r, width // r], like=node)

    return Match("pixel unshuffle", build)


def _repeat_interleave(node: Node) -> Match | Miss:
    """Each entry of a dimension ``repeats`` times in a row."""
    given = arguments(node)
    if not isinstance(given["repeats"], int) or given["dim"] is None:
        return Miss("repeats that are no number, or over all dimensions")
    x, dim = given["self"], given["dim"] % len(shape_of(node))
    return Match("repeat", lambda graph: repeated(graph, x, dim, dim + 1, given["repeats"]))


def _repeat(node: Node) -> Match | Miss:
    """The whole of a dimension again and again."""
    given = arguments(node)
    x, repeats = given["self"], given["repeats"]
    if not all(isinstance(count, int) for count in repeats):
        return Miss("repeats by a symbolic size")

    def build(graph: Graph) -> Node:
        made = x
        for _ in range(len(repeats) - len(shape_of(x))):
            made = call(graph, aten.unsqueeze.default, made, 0)
        for dim, count in enumerate(repeats):
            made = made if count == 1 else repeated(graph, made, dim, dim, count)
        return made

    return Match("repeat", build)


def repeated(graph: Graph, x: Node, dim: int, at: int, count: int) -> Node:
    """``x`` with ``dim`` ``count`` times as long: a dimension of copies in front of ``at``, merged with ``dim``."""
    wide = call(graph, aten.unsqueeze.default, x, at)
    sizes = [count if each == at else -1 for each in range(len(shape_of(wide)))]
    return call(graph, aten.flatten.using_ints, call(graph, aten.expand.default, wide, sizes), dim, dim + 1)


def _roll(node: Node) -> Match | Miss:
    given = arguments(node)
    x: Node = given["self"]
    shifts: list[int] = given["shifts"]
    dims: list[int] = given["dims"]
    if len(shifts) != len(dims) or not all(isinstance(shape_of(x)[dim], int) for dim in dims):
        return Miss("a roll over all dimensions, or over the batch")

    def build(graph: Graph) -> Node:
        made = x
        for shift, dim in zip(shifts, dims, strict=True):
            size: Any = shape_of(x)[dim]
            cut: int = -shift % size
            if cut:
                parts = [(cut, size), (0, cut)]
                rows = [call(graph, aten.slice.Tensor, made, dim, start, end) for start, end in parts]
                made = call(graph, aten.cat.default, rows, dim)
        return made

    return Match("roll", build)


RULES: dict[Any, Rule] = {
    aten.concat.default: _concat,
    aten.concatenate.default: _concat,
    aten.pad.default: _pad,
    aten.pixel_shuffle.default: _pixel_shuffle,
    aten.pixel_unshuffle.default: _pixel_unshuffle,
    aten.repeat_interleave.self_int: _repeat_interleave,
    aten.repeat.default: _repeat,
    aten.roll.default: _roll,
}
