"""Write every elementwise ATen operator as one ``pointwise`` call: ``add(x, 2 y)``, ``clamp(x, 0)`` → programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import Graph, Node
from typing_extensions import override

from scoregraph.passes.base import Miss
from scoregraph.passes.tensor import fused
from scoregraph.passes.tensor.calls import Operand, arguments, aten, call, is_call, pointwise, target_of, value_of
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
    aten.true_divide.Tensor: "div",
    aten.divide.Tensor: "div",
    aten.multiply.Tensor: "mul",
    aten.div.Scalar: "div",
    aten.minimum.default: "min",
    aten.maximum.default: "max",
    aten.pow.Tensor_Tensor: "pow",
    aten.pow.Scalar: "pow",
}
# Truth is 1 and 0. A nan is neither less nor greater, so here it also counts as equal, unlike in torch.
_COMPARISONS: dict[Callable[..., Any], tuple[tuple[Any, ...], ...]] = {
    aten.lt: (("less", 0, 1),),
    aten.gt: (("less", 1, 0),),
    aten.ge: (("less", 0, 1), ("const", 1.0), ("sub", 3, 2)),
    aten.le: (("less", 1, 0), ("const", 1.0), ("sub", 3, 2)),
    aten.ne: (("less", 0, 1), ("less", 1, 0), ("add", 2, 3)),
    aten.eq: (("less", 0, 1), ("less", 1, 0), ("add", 2, 3), ("const", 1.0), ("sub", 5, 4)),
}
_LOGIC: dict[Callable[..., Any], tuple[tuple[Any, ...], ...]] = {
    aten.logical_and.default: (("mul", 0, 1),),
    aten.bitwise_and.Tensor: (("mul", 0, 1),),
    aten.__and__.Tensor: (("mul", 0, 1),),
    aten.logical_or.default: (("max", 0, 1),),
    aten.bitwise_or.Tensor: (("max", 0, 1),),
    aten.__or__.Tensor: (("max", 0, 1),),
    aten.logical_not.default: (("const", 1.0), ("sub", 1, 0)),
    aten.bitwise_not.default: (("const", 1.0), ("sub", 1, 0)),
}
_SIGN = (("const", 0.0), ("less", 1, 0), ("less", 0, 1), ("sub", 2, 3))
_COMPOSED: dict[Callable[..., Any], tuple[tuple[Any, ...], ...]] = {
    # sinh x = (e^x - e^-x) / 2: absolute rounding near 0 is that of 1, which is what float32 sums keep anyway.
    aten.sinh.default: (("const", 0.5), ("exp", 0), ("neg", 0), ("exp", 3), ("sub", 2, 4), ("mul", 5, 1)),
    # e^x - 1 = tanh(x/2) (e^x + 1), which keeps its digits near 0.
    aten.expm1.default: (
        ("const", 0.5), ("mul", 0, 1), ("tanh", 2), ("exp", 0), ("const", 1.0), ("add", 4, 5), ("mul", 3, 6),
    ),
    aten.sign.default: _SIGN,
    aten.sgn.default: _SIGN,
    # x log(w) / (w - 1) with w = 1 + x rounded, and x where w is 1 (Higham, Accuracy and Stability, section 1.14.1).
    aten.log1p.default: (
        ("const", 1.0), ("add", 0, 1), ("sub", 2, 1), ("log", 2), ("mul", 0, 4), ("div", 5, 3), ("where", 3, 6, 0),
    ),
}  # fmt: skip
_SUMS: dict[Callable[..., Any], str] = {
    aten.add.Tensor: "add",
    aten.add.Scalar: "add",
    aten.sub.Tensor: "sub",
    aten.sub.Scalar: "sub",
    aten.rsub.Tensor: "rsub",
    aten.rsub.Scalar: "rsub",
}
_CLAMPS = (
    aten.clamp.default,
    aten.clamp.Tensor,
    aten.clamp_min.default,
    aten.clamp_min.Tensor,
    aten.clamp_max.default,
    aten.clamp_max.Tensor,
)
_MOVES = (
    aten.reshape.default, aten.view.default, aten.flatten.using_ints, aten.unsqueeze.default, aten.squeeze.dim,
    aten.squeeze.default, aten.expand.default, aten.slice.Tensor, aten.select.int, aten.permute.default,
    aten.transpose.int, aten.cat.default, aten.stack.default,
)  # fmt: skip
"""What moves values without looking at them."""
_POWERS = {2.0: "square", 0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}


@dataclass(frozen=True)
class NormalizeExpressions(TensorPass):
    """``aten.add.Tensor(x, y, alpha=2)`` → ``pointwise((const 2) (mul y 2) (add x …), x, y)``.

    What is boolean becomes 1 and 0. Integer arithmetic stays as it is: the plan computes in float32.
    """

    name: ClassVar[str] = "normalize-expressions"
    charged: ClassVar[bool] = False

    @override
    def match(self, node: Node) -> Match | Miss | None:
        value = value_of(node)
        if not _is_number(node):
            return Miss("its truth is read by more than expressions")
        if node.op == "get_attr" and _is_opaque_truth(node):
            return Match("boolean constant", lambda graph: _float_constant(graph, node))
        if is_call(node, *_MOVES):
            return _moved(node)
        build = _builder(node)
        if build is None:
            return None
        if value is None or not (value.is_floating_point() or value.dtype == torch.bool):
            return Miss(f"{node.target} on integers")
        if any(isinstance(arg, (torch.SymInt, torch.SymFloat)) or _is_size(arg) for arg in node.args):
            return Miss("an operand is a symbolic size")
        if any(_is_opaque_truth(source) for source in node.all_input_nodes):
            return Miss("an operand is boolean and no expression")
        return Match("expression", build)


def _moved(node: Node) -> Match | None:
    """A move of truths that have become numbers moves numbers."""
    if not _is_opaque_truth(node) or any(_is_opaque_truth(source) for source in node.all_input_nodes):
        return None
    options: dict[str, Any] = dict(node.kwargs)
    return Match("moved truth", lambda graph: call(graph, target_of(node), *node.args, **options))


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
    family: Any = getattr(target, "overloadpacket", None)  # one operation for tensors and for scalars
    program = _COMPOSED.get(target) or _LOGIC.get(target) or _COMPARISONS.get(family)
    if program is not None:
        return lambda graph: _written(graph, program, node)
    if target in (aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar):
        return lambda graph: _written(graph, (("where", 0, 1, 2),), node)
    if target in (aten._to_copy.default, aten.to.dtype) and _from_integer(node):
        # An expression reads integers as float32, so the cast is the expression that does nothing.
        return lambda graph: call(graph, fused.pointwise, (), node.args[0], like=node)
    if target in (aten._to_copy.default, aten.to.dtype) and _is_opaque_truth(node):
        return lambda graph: _as_truth(graph, node)
    return None


def _written(graph: Graph, program: tuple[tuple[Any, ...], ...], node: Node) -> Node:
    """A program over the node's operands in order, numbers among them becoming constants. Its truths are float32."""
    operands = [_operand(arg) for arg in node.args]
    nodes = [operand for operand in operands if isinstance(operand, Node)]
    numbers = [operand for operand in operands if not isinstance(operand, Node)]
    tensors, others = iter(range(len(nodes))), iter(range(len(nodes), len(operands)))
    order = [next(tensors if isinstance(operand, Node) else others) for operand in operands]
    # An instruction's own number stays what it is: there are as many values in front of it as before.
    written: list[tuple[Any, ...]] = [("const", float(number)) for number in numbers]
    for op, *args in program:
        places: list[Any] = list(args)
        if op != "const":
            places = [order[place] if place < len(order) else place for place in places]
        written.append((op, *places))
    made = call(graph, fused.pointwise, tuple(written), *nodes, like=node)
    made.meta["val"] = _truth(made.meta["val"], nodes)
    return made


def _as_truth(graph: Graph, node: Node) -> Node:
    """Whether a number is not 0, as 1 and 0."""
    program = (("const", 0.0), ("less", 0, 1), ("less", 1, 0), ("add", 2, 3))
    source: Any = node.args[0]
    made = call(graph, fused.pointwise, program, source, like=node)
    made.meta["val"] = _truth(made.meta["val"], [source])
    return made


def _truth(value: torch.Tensor, operands: Sequence[Node]) -> torch.Tensor:
    """What stands for a value: where it is boolean, a float like those it was computed from."""
    if value.dtype != torch.bool:
        return value
    dtypes = [given.dtype for node in operands if (given := value_of(node)) is not None]
    return value.to(next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32))


def _float_constant(graph: Graph, node: Node) -> Node:
    """A boolean constant as 1 and 0."""
    module: Any = node.graph.owning_module
    name = f"{str(node.target).replace('.', '_')}_as_float"
    module.register_buffer(name, attribute(module, str(node.target)).float())
    made = graph.get_attr(name)
    made.meta["val"] = node.meta["val"].float()
    return made


def _is_number(node: Node) -> bool:
    """Whether 1 and 0 may stand for a value: all but truths that something else than an expression reads in the end.

    Attention, for one, adds a mask of numbers, but hides what a boolean one says.
    """
    if not _is_opaque_truth(node):
        return True
    return all((_builder(user) is not None or is_call(user, *_MOVES)) and _is_number(user) for user in node.users)


def _is_opaque_truth(node: Node) -> bool:
    """Whether a value is boolean and stays so: what expressions compare is float32 by the time it is read."""
    given = value_of(node)
    return given is not None and given.dtype == torch.bool


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
