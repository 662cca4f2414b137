"""A tensor program as text: one node a line, absent operands left out, shapes with the batch written B."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch.fx import GraphModule, Node

from scoregraph.passes.tensor import fused
from scoregraph.passes.tensor.calls import is_call, shown

_DTYPES = {torch.float32: "f32", torch.float64: "f64", torch.int64: "i64", torch.int32: "i32", torch.bool: "bool"}
_UNFUSED = (None, "none")


def listing(module: GraphModule) -> str:
    """``%linear = linear(x=%cat, w=@fc1.weight, bias=@fc1.bias, act=silu) : f32[B, 512]`` and so on."""
    return "\n".join(_line(node) for node in module.graph.nodes if node.op != "get_attr") + "\n"


def _line(node: Node) -> str:
    if node.op == "output":
        return f"return {_shown(node.args[0])}"
    made = f"%{node.name} = "
    made += "input" if node.op == "placeholder" else f"{_operator(node)}({_arguments(node)})"
    return f"{made} : {_type(node)}"


def _operator(node: Node) -> str:
    target: Any = node.target
    return target.__name__ if is_call(node, *fused.OPERATIONS) else str(getattr(target, "__name__", target))


def _arguments(node: Node) -> str:
    if is_call(node, fused.pointwise):
        program: Any = node.args[0]
        steps = " ".join("(" + " ".join(_shown(part) for part in step) + ")" for step in program)
        return ", ".join([*map(_shown, node.args[1:]), steps or "()"])
    named = [f"{key}={_shown(value)}" for key, value in node.kwargs.items() if value not in _UNFUSED]
    return ", ".join([*map(_shown, node.args), *named])


def _shown(value: Any) -> str:
    if isinstance(value, Node):
        return f"@{value.target}" if value.op == "get_attr" else f"%{value.name}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_shown(each) for each in cast(Sequence[Any], value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _type(node: Node) -> str:
    value: Any = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return f"{_DTYPES.get(value.dtype, str(value.dtype))}{shown(value.shape)}"
    if isinstance(value, Sequence):
        return f"{len(cast(Sequence[Any], value))} tensors"
    return shown([value])[1:-1] if value is not None else "?"
