"""Reading and making nodes of a tensor program: calls by argument name, shapes, single-instruction expressions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from scoregraph.passes.tensor import fused

aten = torch.ops.aten

Operand = Node | float
Size = int | torch.SymInt


def is_call(node: object, *targets: Callable[..., Any]) -> bool:
    """Whether ``node`` calls one of ``targets``."""
    return isinstance(node, Node) and node.op == "call_function" and node.target in targets


def target_of(node: Node) -> Callable[..., Any]:
    """The function that a call node calls."""
    assert callable(node.target)
    return node.target


def kind(node: Node) -> str:
    """The name of a fused call's operation."""
    return target_of(node).__name__


def arguments(node: Node) -> dict[str, Any]:
    """The arguments of an ATen call by the names of its schema, defaults included."""
    target: Any = node.target  # an OpOverload, which torch does not export
    named: dict[str, Any] = {argument.name: argument.default_value for argument in target._schema.arguments}
    named.update(zip(named, node.args, strict=False))
    named.update(node.kwargs)
    return named


def call(graph: Graph, target: Callable[..., Any], *args: Any, like: Node | None = None, **kwargs: Any) -> Node:
    """Add a call of ``target``. Shape and dtype of its value are those of ``like``, or follow from the operands."""
    node = graph.call_function(target, args, kwargs)
    if like is not None:
        node.meta["val"] = like.meta["val"]
        return node
    fake_args, fake_kwargs = map_arg((args, kwargs), lambda operand: operand.meta["val"])
    node.meta["val"] = target(*fake_args, **fake_kwargs)
    return node


def padded(graph: Graph, x: Node, pad: Sequence[int], value: float = 0.0) -> Node:
    """Add ``constant_pad_nd``: ``pad`` counts from the last dimension, (before, behind), …, negative numbers cut.

    The shape is worked out here: torch's own way to find it fixes the batch.
    """
    sizes: list[Any] = list(shape_of(x))
    for dim, (before, behind) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        sizes[-1 - dim] += before + behind
    made = graph.call_function(aten.constant_pad_nd.default, (x, list(pad), value))
    made.meta["val"] = x.meta["val"].new_empty(sizes)
    return made


def updated(graph: Graph, node: Node, **changes: Any) -> Node:
    """Add a call like the fused call ``node`` with other keyword arguments. The value keeps its shape and dtype."""
    made = graph.call_function(target_of(node), node.args, {**node.kwargs, **changes})
    made.meta.update(node.meta)
    return made


def value_of(node: Node) -> Tensor | None:
    """The fake tensor that stands for the value of ``node``, None if the value is not one tensor."""
    value = node.meta.get("val")
    return value if isinstance(value, Tensor) else None


def shape_of(node: Node) -> tuple[Size, ...]:
    """The shape of a tensor-valued node, with symbolic sizes where the batch enters."""
    value = value_of(node)
    assert value is not None, f"{node.name} is not a tensor"
    return tuple(value.shape)


def same_sizes(a: Sequence[Size], b: Sequence[Size]) -> bool:
    """Whether two shapes are equal for every batch. A trace has one symbol per input, and all of them are the batch."""
    return len(a) == len(b) and all(_same_size(x, y) for x, y in zip(a, b, strict=True))


def _same_size(x: Size, y: Size) -> bool:
    if isinstance(x, int) or isinstance(y, int):
        return isinstance(x, int) and isinstance(y, int) and x == y
    p: Any = x.node.expr
    q: Any = y.node.expr
    if p == q:
        return True
    batch: Any = next(iter(p.free_symbols), None)
    return bool(batch is not None and p == q.subs(dict.fromkeys(q.free_symbols, batch)))


def same_value_type(a: Node, b: Node) -> bool:
    """Whether two nodes have one shape and one dtype."""
    x, y = value_of(a), value_of(b)
    return x is not None and y is not None and x.dtype == y.dtype and same_sizes(x.shape, y.shape)


def shown(shape: Sequence[Size]) -> str:
    """A shape for a person: ``[B, 16, 64]``, the batch symbol being called B."""
    return "[" + ", ".join(_size(size) for size in shape) + "]"


def _size(size: Size) -> str:
    if isinstance(size, int):
        return str(size)
    text = str(size.node.expr)
    for symbol in size.node.expr.free_symbols:
        text = text.replace(str(symbol), "B")
    return text.replace("*", "")


def constant_value(node: object) -> Tensor | None:
    """The tensor behind a constant of the program; None for any other node."""
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    found: Any = node.graph.owning_module
    for part in str(node.target).split("."):
        found = getattr(found, part)
    return found


def constant(graph: Graph, value: Tensor, beside: Node) -> Node:
    """Add a constant of the program. ``beside`` is any tensor-valued node of the same trace."""
    module: Any = graph.owning_module
    name = next(name for i in itertools.count() if not hasattr(module, name := f"constant_{i}"))
    module.register_buffer(name, value.detach().contiguous())
    made = graph.get_attr(name)
    traced: Any = beside.meta["val"]
    made.meta["val"] = traced.fake_mode.from_tensor(getattr(module, name), static_shapes=True)
    return made


def shared(node: Node) -> str | None:
    """Why the value of ``node`` cannot be fused away, if other nodes need it."""
    return None if len(node.users) == 1 else f"used by {len(node.users)} nodes"


def expression(node: object) -> tuple[str, tuple[Operand, ...]] | None:
    """A ``pointwise`` call of one instruction as (operator, operands), constants as numbers; otherwise None."""
    if not isinstance(node, Node) or not is_call(node, fused.pointwise):
        return None
    program: Any = node.args[0]
    values: list[Any] = list(node.args[1:])
    for op, *places in program[:-1]:
        if op != "const":
            return None
        values.append(places[0])
    if not program or program[-1][0] == "const":
        return None
    op, *places = program[-1]
    return op, tuple(values[place] for place in places)


def operands_of(node: object, op: str) -> tuple[Operand, ...] | None:
    """The operands if ``node`` is the one-instruction expression ``op``."""
    found = expression(node)
    return found[1] if found is not None and found[0] == op else None


def orders(node: object, op: str) -> tuple[tuple[Operand, Operand], ...]:
    """Both orders of the operands if ``node`` is the commutative two-operand expression ``op``; otherwise nothing."""
    a, b = operands_of(node, op) or (None, None)
    return () if a is None or b is None else ((a, b), (b, a))


def pointwise(graph: Graph, op: str, *operands: Operand, like: Node | None = None) -> Node:
    """Add the one-instruction expression ``op``; numbers become constants of its program. ``like`` as for ``call``."""
    nodes = [operand for operand in operands if isinstance(operand, Node)]
    program: list[tuple[str | int | float, ...]] = []
    places: list[int] = []
    taken = 0
    for operand in operands:
        if isinstance(operand, Node):
            places.append(taken)
            taken += 1
        else:
            places.append(len(nodes) + len(program))
            program.append(("const", float(operand)))
    return call(graph, fused.pointwise, (*program, (op, *places)), *nodes, like=like)
