"""An ONNX graph read into plain data: steps between named values, constants as arrays; and its literal evaluation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scoregraph.errors import BadOnnx, MissingPackage, UnsupportedOnnx
from scoregraph.models import trace_errors
from scoregraph.models.onnx import elementwise, layers, layout
from scoregraph.models.onnx.values import Value, from_array, shape

if TYPE_CHECKING:
    from onnx import ModelProto

OPSETS = (13, 25)
"""The versions of ONNX's operators whose meaning the operators here have, first and last."""

OPERATORS: dict[str, Callable[..., Any]] = {
    name: function
    for module in (elementwise, layers, layout)
    for name, function in vars(module).items()
    if name[0].isupper() and name not in ("LONGEST", "Any", "Callable", "Number", "Plain", "Tensor", "Value")
}
"""By ONNX's name. Inputs are positional in ONNX's order, attributes by name; several outputs are a tuple."""

_WITH_UNIT = {name for name, f in OPERATORS.items() if "unit" in inspect.signature(f).parameters}
_WITH_COUNT = {name for name, f in OPERATORS.items() if "outputs" in inspect.signature(f).parameters}

_PLAIN_FLOATS = {"Resize": (1, 2)}
"""Inputs that are vectors of floats and must be known while tracing."""


@dataclass
class Step:
    """One node: ``outputs = operator(inputs, attributes)``. An input that is not given is None."""

    operator: str
    inputs: list[str | None]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    def keywords(self) -> dict[str, Any]:
        """The attributes as the operator takes them."""
        counted = {"outputs": len(self.outputs)} if self.operator in _WITH_COUNT else {}
        return self.attributes | counted

    @property
    def takes_unit(self) -> bool:
        """Whether the operator makes floats, and so must be told of which type."""
        return self.operator in _WITH_UNIT


@dataclass(frozen=True)
class Input:
    """One input: ``dims`` are sizes, or names of sizes that are open; the first is the batch."""

    name: str
    dtype: torch.dtype
    dims: tuple[int | str, ...]


@dataclass
class OnnxGraph:
    """A graph in the order of evaluation."""

    name: str
    inputs: list[Input]
    outputs: list[str]
    constants: dict[str, np.ndarray]
    steps: list[Step]

    def constant(self, step: Step, position: int) -> Value:
        """A constant operand of a step as a value."""
        name = step.inputs[position]
        assert name is not None, "an operand that is not given is no constant"
        array = self.constants[name]
        return tuple(array.tolist()) if position in _PLAIN_FLOATS.get(step.operator, ()) else from_array(array)


def read(model: ModelProto | bytes | str | Path, name: str | None = None) -> OnnxGraph:
    """Read a file, its bytes or a loaded model. Raises ``MissingPackage``, ``BadOnnx`` and ``UnsupportedOnnx``."""
    try:
        import onnx
        from onnx import inliner
    except ImportError:
        raise MissingPackage(what="an ONNX model", package="onnx", command="pip install onnx") from None
    if isinstance(model, str | Path):
        name = name or Path(model).stem
        try:
            model = onnx.load(str(model))
        except Exception as error:  # protobuf, the file system, external data: each has errors of its own
            problem = trace_errors.summary(error)
            raise BadOnnx(name=name, problem=problem, help="give the path of an .onnx file") from None
    elif isinstance(model, bytes):
        model = onnx.load_from_string(model)
    name = name or model.graph.name or "onnx"
    opset = {each.domain: each.version for each in model.opset_import}.get("", 0)
    if not OPSETS[0] <= opset <= OPSETS[1]:
        problem = f"it uses operators of opset {opset}; those of {OPSETS[0]} to {OPSETS[1]} are known"
        cure = "convert it: onnx.version_converter.convert_version(model, 21)"
        raise BadOnnx(name=name, problem=problem, help=cure)
    if model.functions:
        model = inliner.inline_local_functions(model)
    return _graph(model.graph, name)


def _graph(proto: Any, name: str) -> OnnxGraph:
    from onnx import numpy_helper

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.initializer}
    inputs = [_input(value) for value in proto.input if value.name not in constants]
    steps: list[Step] = []
    for node in proto.node:
        attributes = {each.name: _attribute(each) for each in node.attribute}
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            constants[node.output[0]] = _constant(attributes)
            continue
        operator = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        outputs = list(node.output)
        while outputs and not outputs[-1]:
            outputs.pop()
        steps.append(Step(operator, [each or None for each in node.input], outputs, attributes, node.name))
    return OnnxGraph(name, inputs, [value.name for value in proto.output], constants, steps)


def _input(value: Any) -> Input:
    import onnx

    kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    dtype = torch.float32 if kind.kind not in "iub" else torch.from_numpy(np.zeros(0, kind)).dtype
    dims = (each.dim_param or each.dim_value or "?" for each in value.type.tensor_type.shape.dim)
    return Input(value.name, dtype, tuple(dims))


def _attribute(proto: Any) -> Any:
    """The value: texts as ``str``, tensors as arrays; a graph inside a node stays what it is and is refused later."""
    from onnx import TensorProto, helper, numpy_helper

    value = helper.get_attribute_value(proto)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return list(value) if proto.type in (6, 7) else value  # FLOATS and INTS


def _constant(attributes: Mapping[str, Any]) -> np.ndarray:
    """The array of a ``Constant`` node, in whichever of its forms."""
    (form, value), *_ = attributes.items()
    if form == "value":
        return value
    return np.asarray(value, np.float32 if "float" in form else np.int64)


def evaluate(
    graph: OnnxGraph, examples: Sequence[Tensor], dtype: torch.dtype = torch.float32, keep: bool = False
) -> dict[str, Value]:
    """All values of a graph for some inputs, step by step as ONNX means them, floats in ``dtype``.

    Only the outputs, unless ``keep``. Raises ``UnsupportedOnnx`` and ``BadOnnx``, which name the node and its shapes.
    """
    unit = torch.ones((), dtype=dtype)
    values: dict[str, Value] = {}
    for given, example in zip(graph.inputs, examples, strict=True):
        values[given.name] = example.to(dtype) if example.is_floating_point() else example
    last = {name: step for step in graph.steps for name in step.inputs if name}
    for step in graph.steps:
        operands = [_operand(graph, step, position, values, dtype) for position in range(len(step.inputs))]
        answer = apply(step, operands, unit, graph.name)
        values |= zip(step.outputs, answer, strict=False)
        if not keep:
            for name in {each for each in step.inputs if each in values and last[each] is step}:
                if name not in graph.outputs:
                    del values[name]
    return values


def _operand(
    graph: OnnxGraph, step: Step, position: int, values: Mapping[str, Value], dtype: torch.dtype
) -> Value | None:
    name = step.inputs[position]
    if name is None or name in values:
        return None if name is None else values[name]
    value = graph.constant(step, position)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def apply(step: Step, operands: Sequence[Value | None], unit: Tensor, name: str) -> tuple[Value, ...]:
    """The results of one step. Raises ``UnsupportedOnnx`` and ``BadOnnx``."""
    shown = ", ".join("none" if each is None else _shown(each) for each in operands)
    function = OPERATORS.get(step.operator)
    if function is None:
        raise UnsupportedOnnx(name=name, operator=step.operator, node=step.name, shapes=shown, reason="")
    keywords = step.keywords() | ({"unit": unit} if step.takes_unit else {})
    try:
        with torch.no_grad():
            answer = function(*operands, **keywords)
    except TypeError as error:  # what an operator here says it does not do, and attributes it does not know
        reason = f" ({trace_errors.summary(error)})"
        raise UnsupportedOnnx(name=name, operator=step.operator, node=step.name, shapes=shown, reason=reason) from None
    except Exception as error:
        problem = f"{step.operator} {step.name!r} fails on {shown}: {trace_errors.summary(error)}"
        cure = "export it with a symbolic batch, the first size of every input"
        raise BadOnnx(name=name, problem=problem, help=cure) from None
    return answer if step.operator in _WITH_COUNT else (answer,)


def _shown(value: Value) -> str:
    return str(list(shape(value))) if isinstance(value, Tensor) else str(value)
