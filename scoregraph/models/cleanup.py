"""Cleaning an exported graph: nodes without effect go, constants are computed, floats become float32."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate, map_arg

aten = torch.ops.aten

Node = Any
"""An ``fx.Node``. torch types the arguments of a node as a union of everything they could be; operators know better."""

# Checks and hints of the tracer. They return nothing that the program needs.
_CHECKS = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten._assert_async.msg,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
}

# The first operand itself: nothing writes in place after functionalisation, so a copy is the same value.
_COPIES = {
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
    aten.clone.default,
    aten.contiguous.default,
}

_DROPOUTS = {aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default}
"""Of (x, p, train)."""

_CASTS = {aten._to_copy.default, aten.to.device, aten.to.dtype, aten.to.dtype_layout, aten.type_as.default}


def drop_no_ops(graph: fx.GraphModule) -> Counter[str]:
    """Take out what has no effect, and spell the rest one way; returns how many of each operator went.

    ``view``, ``_unsafe_view`` and ``flatten`` become ``reshape`` (a view may have relied on a copy that is gone), a
    one-operand ``einsum`` becomes ``permute``, ``chunk`` becomes ``split``.
    """
    dropped: Counter[str] = Counter()
    for node in list(graph.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _CHECKS or (not node.users and not node.is_impure()):
            dropped[str(node.target)] += 1
            graph.graph.erase_node(node)
        elif _is_identity(node):
            dropped[str(node.target)] += 1
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
        elif node.target is aten.einsum.default and len(node.args[1]) == 1:
            _permute_for_einsum(graph, node)
        elif node.target in (aten.flatten.using_ints, aten.unflatten.int):
            _reshape_for_flatten(node)
        elif node.target is aten.chunk.default:
            _split_for_chunk(node)
        elif node.target is aten.to.device:  # (x, device, dtype, …): there is one device
            node.target, node.args, node.kwargs = aten.to.dtype, (node.args[0], node.args[2]), {}
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return dropped


def _is_identity(node: Node) -> bool:
    """Whether the node returns its first operand for every input."""
    target, args = node.target, node.args
    if target in _COPIES or (target in _DROPOUTS and args[2] is False):
        return True
    before, after = _value(args[0] if args else None), _value(node)
    if before is None or after is None or before.dtype != after.dtype:
        return False
    if target in _CASTS:
        return True
    if target in (aten.mul.Tensor, aten.div.Tensor):
        return _is_ones(args[1]) and _same_shape(before, after)
    if target in (aten.add.Tensor, aten.sub.Tensor):
        return isinstance(args[1], int | float) and args[1] == 0
    if target is aten.slice.Tensor:
        _, dim, start, end, step = (*args, *(None, 0, None, None, 1)[len(args) :])
        size = before.shape[dim or 0]
        return start in (None, 0) and step == 1 and (end in (None, 2**63 - 1) or _at_least(end, size))
    if target in (aten.expand.default, aten.slice_backward.default):
        return _same_shape(before, after)
    return False


def _is_ones(operand: Any) -> bool:
    """The number 1 or a tensor made of ones, which networks multiply by to broadcast a time."""
    if isinstance(operand, fx.Node):
        return operand.target is aten.ones.default
    return isinstance(operand, int | float) and operand == 1


def draws_random(node: Node) -> bool:
    """Whether the node draws random numbers: attention and dropout do not when their dropout is off."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    if node.target in _DROPOUTS:
        return node.args[2] is not False
    for position, argument in enumerate(node.target._schema.arguments):
        if argument.name == "dropout_p":
            given = node.args[position] if position < len(node.args) else node.kwargs.get("dropout_p", 0.0)
            return given != 0.0
    return True


def _permute_for_einsum(graph: fx.GraphModule, node: Node) -> None:
    """``einsum("abc->acb", [x])`` is ``permute(x, [0, 2, 1])``, unless it sums or takes a diagonal."""
    equation, (operand,) = node.args[0], node.args[1]
    source, _, result = equation.replace(" ", "").partition("->")
    if "." in equation or sorted(source) != sorted(result) or len(set(source)) != len(source):
        return
    node.target = aten.permute.default
    node.args = (operand, [source.index(letter) for letter in result])


def _reshape_for_flatten(node: Node) -> None:
    """``flatten`` and ``unflatten`` are ``reshape`` where one size at most is symbolic."""
    sizes = [size if isinstance(size, int) else -1 for size in node.meta["val"].shape]
    if sizes.count(-1) <= 1:
        node.target, node.args, node.kwargs = aten.reshape.default, (node.args[0], sizes), {}


def _split_for_chunk(node: Node) -> None:
    """``chunk(x, k, dim)`` is ``split`` into parts of ceil(size / k)."""
    given: tuple[Any, ...] = (*node.args, 0)
    operand, chunks, dim = given[:3]
    size = operand.meta["val"].shape[dim]
    if isinstance(size, int):
        node.target, node.args, node.kwargs = aten.split.Tensor, (operand, -(-size // chunks), dim), {}


def fold_constants(graph: fx.GraphModule) -> int:
    """Compute what depends on no input (position indices, frequencies) and keep it as a buffer; returns how many.

    Parameters by themselves are not inputs: ``weight * scale`` folds too.
    """
    constant: dict[Node, Tensor | None] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr" or (
            node.op == "call_function"
            and all(operand in constant for operand in node.all_input_nodes)
            and isinstance(_value(node), Tensor)
        ):
            constant[node] = None

    # A constant node is computed where somebody who is not constant reads it.
    frontier = [n for n in constant if n.op == "call_function" and any(user not in constant for user in n.users)]
    cache: dict[Node, Any] = {}
    for node in frontier:
        name = f"folded_{node.name}"
        graph.register_buffer(name, _evaluate(graph, node, cache).clone())
        with graph.graph.inserting_before(node):
            replacement = graph.graph.get_attr(name)
        replacement.meta = dict(node.meta)
        node.replace_all_uses_with(replacement)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return len(frontier)


def _evaluate(graph: fx.GraphModule, node: Node, cache: dict[Node, Any]) -> Any:
    if node not in cache:
        if node.op == "get_attr":
            cache[node] = attribute(graph, str(node.target))
        else:
            args, kwargs = map_arg((node.args, node.kwargs), lambda operand: _evaluate(graph, operand, cache))
            with torch.no_grad():
                cache[node] = node.target(*args, **kwargs)
    return cache[node]


def attribute(graph: fx.GraphModule, path: str) -> Tensor:
    """The tensor behind a ``get_attr`` node's target."""
    owner: Any = graph
    for part in path.split("."):
        owner = getattr(owner, part)
    return owner


def to_single_precision(graph: fx.GraphModule, originals: Mapping[int, Tensor] | None = None) -> None:
    """All floats float32, in place: parameters, buffers, dtype arguments and ``meta["val"]``.

    A cast between float types is then no operation and goes; a cast from integers stays. ``originals`` are tensors by
    the address of their float64 copies in the graph: those of float32 are used again, so that weights are not doubled.
    """
    for parameter in graph.parameters():
        original = (originals or {}).get(parameter.data_ptr())
        if original is not None and original.dtype == torch.float32 and original.shape == parameter.shape:
            parameter.data = original.data
    graph.float()
    for node in list(graph.graph.nodes):
        if "val" in node.meta:
            node.meta["val"] = _map_tensors(node.meta["val"], _single)
        if node.op != "call_function":
            continue
        node.args, node.kwargs = map_aggregate((node.args, node.kwargs), _single_dtype)
        if node.target in _CASTS and _is_identity(node):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()


def _single(value: Tensor) -> Tensor:
    return value.to(torch.float32) if value.is_floating_point() else value


def _single_dtype(argument: Any) -> Any:
    """A float type as float32; a number beyond float32, such as the least float64 of masks, as its limit."""
    if isinstance(argument, torch.dtype):
        return torch.float32 if argument.is_floating_point else argument
    if isinstance(argument, float) and math.isfinite(argument):
        largest = torch.finfo(torch.float32).max
        return min(max(argument, -largest), largest)
    return argument


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)(_map_tensors(item, function) for item in value)
    return value


def signature(graph: fx.GraphModule) -> list[tuple[Any, ...]]:
    """The graph as plain data in which two traces of one program agree: operators and arguments, no symbol names."""
    index = {node: position for position, node in enumerate(graph.graph.nodes)}
    lines: list[tuple[Any, ...]] = []
    for node in graph.graph.nodes:
        args = map_arg((node.args, node.kwargs), lambda operand: f"%{index[operand]}")
        target = index[node] if node.op == "placeholder" else str(node.target)
        lines.append((node.op, target, repr(args)))
    return lines


def _value(node: Any) -> Tensor | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value if isinstance(value, Tensor) else None


def _same_shape(a: Tensor, b: Tensor) -> bool:
    """Equal for every batch, decided by spelling so that no condition is added to the trace."""
    return list(map(str, a.shape)) == list(map(str, b.shape))


def _at_least(end: Any, size: Any) -> bool:
    return isinstance(end, int) and isinstance(size, int) and (end >= size or end == math.inf)
