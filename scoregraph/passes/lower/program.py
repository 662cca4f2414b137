"""A tensor program becomes calls: one walk over its nodes, each handed to its rule."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from scoregraph.errors import UncoveredOperator
from scoregraph.passes.lower import operators, windows
from scoregraph.passes.lower.rules import RULES
from scoregraph.plan.draft import Drafter, Value

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


REGISTERED = (operators, windows)
"""Importing these modules fills the registry."""


def lower_program(drafter: Drafter, module: GraphModule, inputs: Sequence[Value], name: str) -> list[Value]:
    """Append the calls of ``module`` to the current segment.

    Args:
        drafter: collects the calls.
        module: ATen and fused operators; see ``scoregraph.passes.tensor``.
        inputs: one value per placeholder, in order.
        name: leads every call's site, as in ``terrain.score/conv2d_3``.

    Returns:
        The program's outputs.

    Raises:
        UncoveredOperator: an operator (or this use of it) has no kernel.
    """
    values: dict[Node, Any] = {}
    given = iter(inputs)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(given)
        elif node.op == "get_attr":
            values[node] = drafter.constant(_attribute(module, str(node.target)), f"{name}.{node.target}")
        elif node.op == "output":
            found = _resolve(node.args[0], values)
            return cast(list[Value], found) if isinstance(found, list) else [found]
        else:
            values[node] = _call(drafter, node, values, name)
    raise AssertionError("a graph ends in an output node")


def operator_name(node: Node) -> str:
    """The key of a node's rule: ``aten.view.default``, or a fused function's own name."""
    target = node.target
    if getattr(target, "__module__", "").startswith("scoregraph."):
        return str(getattr(target, "__name__", target))
    return str(target)


def _call(drafter: Drafter, node: Node, values: dict[Node, Any], name: str) -> Any:
    key = operator_name(node)
    rule = RULES.get(key)
    if rule is None:
        raise UncoveredOperator(
            operator=key, reason="it has no kernel", shape=_shape_of(node), where=source_of(node) or name
        )
    args = _resolve(node.args, values)
    kwargs = {**_resolve(node.kwargs, values), **operators.KEYWORDS.get(key, {})}
    try:
        inspect.signature(rule).bind(drafter, name, *args, **kwargs)
    except TypeError as error:
        raise UncoveredOperator(
            operator=key, reason=f"its kernel: {error}", shape=_shape_of(node), where=source_of(node) or name
        ) from None
    try:
        return rule(drafter, f"{name}/{node.name}", *args, **kwargs)
    except ValueError as error:
        raise UncoveredOperator(
            operator=key, reason=str(error), shape=_shape_of(node), where=source_of(node) or name
        ) from None


def _resolve(arg: Any, values: dict[Node, Any]) -> Any:
    if isinstance(arg, list | tuple):
        return [_resolve(a, values) for a in cast(Sequence[Any], arg)]
    if isinstance(arg, dict):
        return {k: _resolve(v, values) for k, v in cast(dict[str, Any], arg).items()}
    return values.get(arg, arg) if hasattr(arg, "op") else arg


def _attribute(module: GraphModule, path: str) -> np.ndarray:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    array = found.detach().cpu().numpy()
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _shape_of(node: Node) -> str:
    shape = getattr(node.meta.get("val"), "shape", None)
    return "?" if shape is None else str(tuple(shape))


def source_of(node: Node) -> str | None:
    """The line of the network's own source that made ``node``: the innermost one outside torch."""
    trace = [line.strip() for line in (node.stack_trace or "").splitlines() if line.strip().startswith("File ")]
    for line in reversed(trace):
        if "/torch/" not in line:
            file, _, rest = line.removeprefix('File "').partition('", line ')
            return f"{'/'.join(file.split('/')[-2:])}:{rest.partition(',')[0]}"
    return None
