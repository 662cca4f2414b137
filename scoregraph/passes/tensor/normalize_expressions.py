"""Write every elementwise ATen operator as one ``pointwise`` call: ``add(x, 2 y)``, ``clamp(x, 0)`` → programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import Graph, Node
from typing_extensions import override

from scoregraph.passes.base import Miss
from scoregraph.passes.tensor import fused
from scoregraph.passes.tensor.calls import Operand, arguments, aten, call, pointwise, target_of, value_of
from scoregraph.passes.tensor.rewrite import Match, TensorPass

_UNARY: dict[Callable[..., Any], str] = {
    getattr(aten, name).default: name
    for name in (
        "neg", "abs", "exp", "log", "sin", "cos", "sqrt", "rsqrt", "reciprocal", "square", "tanh", "sigmoid",
        "silu", "relu", "erf", "floor",
    )
}  # fmt: skip
_BINARY: dict[Callable[..., Any], str] = {
    aten.mul.Tensor: "mul",
    aten.mul.Scalar: "mul",
    aten.div.Tensor: "div",
    aten.div.Scalar: "div",
    aten.minimum.default: "min",
    aten.maximum.default: "max",
    aten.pow.Tensor_Tensor: "pow",
    aten.pow.Scalar: "pow",
}
_SUMS: dict[Callable[..., Any], str] = {
    aten.add.Tensor: "add",
    aten.add.Scalar: "add",
    aten.sub.Tensor: "sub",
    aten.sub.Scalar: "sub",
    aten.rsub.Tensor: "rsub",
    aten.rsub.Scalar: "rsub",
}
_CLAMPS = (aten.clamp.default, aten.clamp.Tensor, aten.clamp_min.default, aten.clamp_max.default)
_POWERS = {2.0: "square", 0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}


@dataclass(frozen=True)
class NormalizeExpressions(TensorPass):
    """``aten.add.Tensor(x, y, alpha=2)`` → ``pointwise((const 2) (mul y 2) (add x …), x, y)``.

    Integer arithmetic stays as it is: the plan computes in float32.
    """

    name: ClassVar[str] = "normalize-expressions"
    charged: ClassVar[bool] = False

    @override
    def match(self, node: Node) -> Match | Miss | None:
        build = _builder(node)
        if build is None:
            return None
        value = value_of(node)
        if value is None or not value.is_floating_point():
            return Miss(f"{node.target} on integers")
        if any(isinstance(arg, (torch.SymInt, torch.SymFloat)) or _is_size(arg) for arg in node.args):
            return Miss("an operand is a symbolic size")
        if any(
            (given := value_of(source)) is not None and given.dtype == torch.bool for source in node.all_input_nodes
        ):
            return Miss("an operand is boolean")
        return Match("expression", build)


def _builder(node: Node) -> Callable[[Graph], Node] | None:
    """How to make the expression of an elementwise operator; None if ``node`` is not one that can be written."""
    target: Any = node.target
    if node.op != "call_function":
        return None
    if target in _UNARY:
        return lambda graph: pointwise(graph, _UNARY[target], _operand(node.args[0]), like=node)
    if target in _BINARY:
        return lambda graph: pointwise(
            graph, _BINARY[target], _operand(node.args[0]), _operand(node.args[1]), like=node
        )
    if target in _SUMS:
        return lambda graph: _sum(graph, node)
    if target in _CLAMPS:
        return lambda graph: _clamp(graph, node)
    if target == aten.gelu.default:
        form = "gelu_tanh" if arguments(node)["approximate"] == "tanh" else "gelu_erf"
        return lambda graph: pointwise(graph, form, _operand(node.args[0]), like=node)
    if target == aten.pow.Tensor_Scalar:
        return lambda graph: _power(graph, node)
    if target == aten.sinh.default:
        # sinh x = (e^x - e^-x) / 2: absolute rounding near 0 is that of 1, which is what float32 sums keep anyway.
        halves = (("const", 0.5), ("exp", 0), ("neg", 0), ("exp", 3), ("sub", 2, 4), ("mul", 5, 1))
        return lambda graph: call(graph, fused.pointwise, halves, node.args[0], like=node)
    if target in (aten._to_copy.default, aten.to.dtype) and _from_integer(node):
        # An expression reads integers as float32, so the cast is the expression that does nothing.
        return lambda graph: call(graph, fused.pointwise, (), node.args[0], like=node)
    return None


def _operand(arg: Any) -> Operand:
    """A node as it is; a number, or a scalar constant of the module, as a number."""
    if isinstance(arg, Node) and arg.op == "get_attr":
        module: Any = arg.graph.owning_module
        constant = attribute(module, str(arg.target))
        if constant.ndim == 0:
            return float(constant)
    return arg if isinstance(arg, Node) else float(arg)


def attribute(module: torch.nn.Module, path: str) -> torch.Tensor:
    """The tensor at a dotted path of ``module``."""
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _sum(graph: Graph, node: Node) -> Node:
    """``self ± alpha * other``, or for ``rsub`` ``other - alpha * self``."""
    named = arguments(node)
    op = _SUMS[target_of(node)]
    first, second = ("other", "self") if op == "rsub" else ("self", "other")
    a, b = _operand(named[first]), _operand(named[second])
    alpha = float(named["alpha"])
    if alpha != 1:
        b = pointwise(graph, "mul", b, alpha) if isinstance(b, Node) else b * alpha
    return pointwise(graph, "add" if op == "add" else "sub", a, b, like=node)


def _clamp(graph: Graph, node: Node) -> Node:
    named = arguments(node)
    low, high = named.get("min"), named.get("max")
    made = _operand(named["self"])
    if low is not None:
        made = pointwise(graph, "max", made, _operand(low))
    if high is not None:
        made = pointwise(graph, "min", made, _operand(high))
    assert isinstance(made, Node)
    return made


def _power(graph: Graph, node: Node) -> Node:
    named = arguments(node)
    base, exponent = _operand(named["self"]), float(named["exponent"])
    if exponent in _POWERS:
        return pointwise(graph, _POWERS[exponent], base, like=node)
    return pointwise(graph, "pow", base, exponent, like=node)


def _from_integer(node: Node) -> bool:
    source, value = node.args[0], value_of(node)
    given = value_of(source) if isinstance(source, Node) else None
    return given is not None and value is not None and not given.is_floating_point() and value.dtype == torch.float32


def _is_size(arg: object) -> bool:
    return isinstance(arg, Node) and not isinstance(arg.meta.get("val"), torch.Tensor)
