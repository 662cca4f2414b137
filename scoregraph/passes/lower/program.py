"""A tensor program becomes calls: one walk over its nodes, each handed to its rule."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from scoregraph.errors import UncoveredOperator
from scoregraph.passes.lower import operators, windows
from scoregraph.passes.lower import shape as shapes
from scoregraph.passes.lower.rules import RULES
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Drafter, Value

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


REGISTERED = (operators, windows)
"""Importing these modules fills the registry."""


def lower_program(
    drafter: Drafter, module: GraphModule, inputs: Sequence[Value], name: str, *, branches: int = 1
) -> list[Value]:
    """Append the calls of ``module`` to the current segment.

    Args:
        drafter: collects the calls.
        module: ATen and fused operators; see ``scoregraph.passes.tensor``.
        inputs: one value per placeholder, in order.
        name: leads every call's site, as in ``terrain.score/conv2d_3``.
        branches: K where inputs have K rows per sample, branch by branch. Inputs with one row per sample are the same
            in all branches: what depends on them alone is computed once, and repeated where branches part.

    Returns:
        The program's outputs, with K rows per sample.

    Raises:
        UncoveredOperator: an operator (or this use of it) has no kernel.
    """
    values: dict[Node, Any] = {}
    shared: set[Node] = set()
    repeated = _Repeated(drafter, branches)
    given = iter(inputs)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(given)
            if branches > 1 and values[node].shape[0] == Batch():
                shared.add(node)
        elif node.op == "get_attr":
            values[node] = drafter.constant(_attribute(module, str(node.target)), f"{name}.{node.target}")
        elif node.op == "output":
            found = _resolve(node.args[0], repeated.operands(node, values, shared))
            return cast(list[Value], found) if isinstance(found, list) else [found]
        elif not shared.intersection(node.all_input_nodes):
            values[node] = _call(drafter, node, values, name)
        elif operator_name(node) == SIZE:
            values[node] = _times(_call(drafter, node, values, name), branches)
        elif all(n in shared or not _grows(values[n]) for n in node.all_input_nodes):
            # Sizes are those of all branches; one of them is 1/K of that.
            own = {n: _over(v, branches) if isinstance(v := values[n], Batch) else v for n in node.all_input_nodes}
            before = len(drafter.segments[-1].calls)
            values[node] = _call(drafter, node, own, name)
            shared.add(node)
            drafter.counters["calls_shared"] = (
                drafter.counters.get("calls_shared", 0) + len(drafter.segments[-1].calls) - before
            )
        else:
            values[node] = _call(drafter, node, repeated.operands(node, values, shared), name)
    raise AssertionError("a graph ends in an output node")


SIZE = "aten.sym_size.int"
HEAVY = ("linear", "conv2d", "attention", "matmul", "convolution", "mm", "addmm", "bmm")
"""Operators that are worth computing once: any of these in a prefix pays for repeating its result."""


def shares_prefix(module: GraphModule, varying: Sequence[bool]) -> bool:
    """Whether something heavy depends on inputs only that are the same in all branches (not ``varying``)."""
    differs: set[Node] = set()
    flags = iter(varying)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            if next(flags):
                differs.add(node)
        elif differs.intersection(node.all_input_nodes):
            differs.add(node)
        elif node.op == "call_function" and any(before.op != "get_attr" for before in node.all_input_nodes):
            words = operator_name(node).replace(".", "_").split("_")
            if any(word in HEAVY for word in words):
                return True
    return False


@dataclass
class _Repeated:
    """Values of one row per sample with K equal rows per sample, each made once."""

    drafter: Drafter
    branches: int
    known: dict[tuple[Any, ...], Value] = field(default_factory=dict[tuple[Any, ...], Value])

    def operands(self, node: Node, values: Mapping[Node, Any], shared: Collection[Node]) -> dict[Node, Any]:
        """What ``node`` reads, in all branches."""
        return {n: self(values[n]) if n in shared else values[n] for n in node.all_input_nodes}

    def __call__(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [self(each) for each in cast(Sequence[Any], value)]
        if not isinstance(value, Value) or not _grows(value):
            return value
        key = (value.storage, value.shape, value.strides, value.offset, self.drafter.variants)
        if key not in self.known:
            at = next(i for i, size in enumerate(value.shape) if isinstance(size, Batch))
            size, others = value.shape[at], [d for i, d in enumerate(value.shape) if i != at]
            assert isinstance(size, Batch)
            # Row (b, h) of a sample's k rows becomes the rows (b, j, h): the branches lie side by side in a sample.
            rows, strides = (Batch(), self.branches, size.k), [s for i, s in enumerate(value.strides) if i != at]
            step = value.strides[at]
            source = Value(
                value.storage, (*rows, *others), (size.k * step, 0, step, *strides), value.offset, value.dtype
            )
            whole = self.drafter.new((Batch(size.k * self.branches), *others), value.dtype, "branches")
            target = shapes.view(self.drafter, whole, source.shape, "branches")
            self.drafter.call("copy", {"x": source}, {"y": target}, site="branches")
            order = list(range(1, len(value.shape)))
            self.known[key] = shapes.permute(whole, [*order[:at], 0, *order[at:]])
        return self.known[key]


def _times(size: Any, factor: int) -> Any:
    return Batch(size.k * factor) if isinstance(size, Batch) else size


def _over(size: Batch, factor: int) -> Batch:
    return Batch(size.k // factor)


def _grows(value: Any) -> bool:
    """Whether a value has rows for every sample; a size has none."""
    if isinstance(value, list | tuple):
        return any(_grows(each) for each in cast(Sequence[Any], value))
    return isinstance(value, Value) and any(isinstance(d, Batch) for d in value.shape)


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
    # A trace has a symbol s77 for the batch of each input; to the reader all of them are B.
    return "?" if shape is None else re.sub(r"\bs\d+\b", "B", str(list(shape)))


def source_of(node: Node) -> str | None:
    """The line of the network's own source that made ``node``: the innermost one outside torch."""
    trace = [line.strip() for line in (node.stack_trace or "").splitlines() if line.strip().startswith("File ")]
    for line in reversed(trace):
        if "/torch/" not in line:
            file, _, rest = line.removeprefix('File "').partition('", line ')
            return f"{'/'.join(file.split('/')[-2:])}:{rest.partition(',')[0]}"
    return None
