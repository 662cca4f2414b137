"""``from_onnx`` and ``onnx_module``: a network that comes as an ONNX file."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from scoregraph.errors import BadOnnx, OnnxMismatch
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.values import Space, TimeConvention
from scoregraph.models.adapter import Half, from_module
from scoregraph.models.capture import relative_error
from scoregraph.models.network import Network
from scoregraph.models.onnx.graph import Input, OnnxGraph, evaluate, read
from scoregraph.models.onnx.module import OnnxModule, module
from scoregraph.models.onnx.simplify import Shapes, drop_unread, fold_constants, simplify
from scoregraph.models.onnx.values import shape, tensor

if TYPE_CHECKING:
    from onnx import ModelProto

BATCHES = (2, 3)
"""The batches at which shapes are measured."""

REWRITTEN_TOLERANCE = 1e-6
"""Between the graph and its simplified form in float64: constants of GELU are rounded to float32 in a file."""

RUNTIME_TOLERANCE = 1e-4
"""Between the module and ONNX Runtime, both in float32, relative to the largest magnitude."""


def onnx_module(
    model: ModelProto | bytes | str | Path,
    *,
    sizes: Mapping[str, int] | None = None,
    examples: Mapping[str, Any] | None = None,
    outputs: Iterable[str] | None = None,
    name: str | None = None,
) -> OnnxModule:
    """A torch module of an ONNX graph: ``module(*inputs)`` in the order of the graph, the batch in front of each.

    Args:
        model: a path, the bytes of a file, or an ``onnx.ModelProto``.
        sizes: the sizes that the file leaves open, by name, except the batch: ``{"sequence": 128}``.
        examples: values of inputs that random numbers, or 0 and 1 for integers, will not do for.
        outputs: what the module answers; by default all outputs of the graph.
        name: what to call it in errors; by default the file's name.

    Returns:
        A module in eval mode whose ``code`` shows the graph. Where an exporter took norms, activations and products
        apart, they are whole again. Its answers are those of the file's graph: compared in float64 with the graph as
        it is written, and with ONNX Runtime where that is installed.

    Raises:
        ``MissingPackage``, ``BadOnnx``, ``UnsupportedOnnx``, ``OnnxMismatch``.
    """
    graph = read(model, name)
    graph = _fixed(graph, dict(sizes or {}), outputs)
    given = {batch: _examples(graph, dict(examples or {}), batch) for batch in BATCHES}
    literal = copy.copy(graph)
    graph = fold_constants(graph)
    drop_unread(graph)
    simplify(graph, _shapes(graph, given))
    built = module(graph)
    _compare_rewritten(literal, built, given[BATCHES[0]])
    _compare_runtime(model, literal, built, given[BATCHES[0]])
    return built


def from_onnx(
    model: ModelProto | bytes | str | Path,
    *,
    prediction: Prediction | str,
    sizes: Mapping[str, int] | None = None,
    examples: Mapping[str, Any] | None = None,
    output: str | None = None,
    x: str | None = None,
    time: str | None = None,
    conds: Mapping[str, Mapping[str, float]] | Iterable[str] | None = None,
    name: str | None = None,
    space: Space | None = None,
    convention: TimeConvention | None = None,
    half: Half | None = None,
    variance: bool = False,
) -> Network:
    """A ``Network`` from an ONNX graph: ``onnx_module``, then ``from_module`` with the graph's inputs as arguments.

    ``output`` is the prediction, by default the first output. The other arguments are those of the two functions. The
    graph is the raw network; one that also scales its state (``c_skip x + c_out F``) predicts ``"x0"``.
    """
    graph = read(model, name)
    chosen = output or graph.outputs[0]
    built = onnx_module(model, sizes=sizes, examples=examples, outputs=[chosen], name=graph.name)
    batch = BATCHES[-1]
    fixed = _fixed(graph, dict(sizes or {}), [chosen])
    values = _examples(fixed, dict(examples or {}), batch)
    arguments = [str(each) for each in built.code.partition("(self, ")[2].partition(")")[0].split(", ")]
    return from_module(
        built,
        dict(zip(arguments, values, strict=True)),
        prediction=prediction,
        x=x,
        time=time,
        conds=conds,
        name=graph.name,
        space=space,
        convention=convention,
        half=half,
        variance=variance,
    )


def _fixed(graph: OnnxGraph, sizes: dict[str, int], outputs: Iterable[str] | None) -> OnnxGraph:
    """The graph with its open sizes given and its outputs chosen. Raises ``BadOnnx``."""
    chosen = list(graph.outputs if outputs is None else outputs)
    unknown = [name for name in chosen if name not in graph.outputs]
    if unknown:
        problem = f"it has no output {unknown[0]!r}"
        raise BadOnnx(name=graph.name, problem=problem, help=f"choose of: {', '.join(graph.outputs)}")
    inputs: list[Input] = []
    for given in graph.inputs:
        dims = (*given.dims[:1], *(sizes.get(size, size) if isinstance(size, str) else size for size in given.dims[1:]))
        open_size = next((size for size in dims[1:] if isinstance(size, str)), None)
        if open_size is not None:
            problem = f"the size {open_size!r} of its input {given.name!r} {list(given.dims)} is open"
            cure = f"give it: sizes={{{open_size!r}: 128}}"
            raise BadOnnx(name=graph.name, problem=problem, help=cure)
        inputs.append(Input(given.name, given.dtype, dims))
    if not inputs:
        raise BadOnnx(name=graph.name, problem="it has no inputs", help="give the graph of a network")
    return OnnxGraph(graph.name, inputs, chosen, dict(graph.constants), list(graph.steps))


def _examples(graph: OnnxGraph, given: dict[str, Any], batch: int) -> list[Tensor]:
    """Inputs of ``batch`` samples: those given in turn, unit noise, or 0 and 1 in turn for integers."""
    generator = torch.Generator().manual_seed(0)
    values: list[Tensor] = []
    for each in graph.inputs:
        sizes = (batch, *(int(size) for size in each.dims[1:]))
        if each.name in given:
            example = torch.as_tensor(given[each.name])
            value = example[torch.arange(batch) % example.shape[0]]
        elif each.dtype.is_floating_point:
            value = torch.randn(sizes, generator=generator)
            value = value if len(sizes) > 1 else value.abs() + 0.5  # a vector is a time or a noise level
        else:
            value = (torch.arange(int(np.prod(sizes))) % 2).reshape(sizes).to(each.dtype)
            value = value if len(sizes) == 1 else torch.ones_like(value)  # ids, or a mask that shuts nothing out
        values.append(value)
    return values


def _shapes(graph: OnnxGraph, given: Mapping[int, list[Tensor]]) -> Shapes:
    """The shape of every value at every batch size, without computing the values."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        runs = [evaluate(graph, examples, keep=True) for examples in given.values()]
    return {name: tuple(tuple(int(size) for size in shape(run[name])) for run in runs) for name in runs[0]}


def _compare_rewritten(literal: OnnxGraph, built: OnnxModule, examples: list[Tensor]) -> None:
    """The simplified module against the graph as it is written, in float64. Raises ``OnnxMismatch``."""
    expected = evaluate(literal, examples, torch.float64)
    twin = copy.deepcopy(built).double()
    with torch.no_grad():
        answer = twin(*(value.double() if value.is_floating_point() else value for value in examples))
    answers = answer if isinstance(answer, tuple) else (answer,)
    for name, got in zip(literal.outputs, answers, strict=True):
        _check(
            literal.name, name, got, tensor(expected[name]), "its own graph before simplification", REWRITTEN_TOLERANCE
        )


def _compare_runtime(model: Any, literal: OnnxGraph, built: OnnxModule, examples: list[Tensor]) -> None:
    """The module against ONNX Runtime in float32, where that is installed. Raises ``OnnxMismatch``."""
    try:
        import onnxruntime
    except ImportError:
        return
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        source = str(model) if isinstance(model, str | Path) else model
        source = source if isinstance(source, str | bytes) else source.SerializeToString()
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        known = {each.name for each in session.get_inputs()}
        feeds = {
            each.name: value.numpy() for each, value in zip(literal.inputs, examples, strict=True) if each.name in known
        }
        expected = session.run(literal.outputs, feeds)
    except Exception:  # it may lack an operator or a type that is covered here, and is only a second opinion
        return
    with torch.no_grad():
        answer = built(*examples)
    answers = answer if isinstance(answer, tuple) else (answer,)
    for name, got, theirs in zip(literal.outputs, answers, expected, strict=True):
        _check(literal.name, name, got, torch.from_numpy(np.array(theirs)), "ONNX Runtime", RUNTIME_TOLERANCE)


def _check(name: str, output: str, got: Tensor, expected: Tensor, whose: str, tolerance: float) -> None:
    undefined = got.isnan() & expected.isnan() if got.shape == expected.shape else torch.tensor(False)
    error = relative_error(*(value.double().masked_fill(undefined, 0.0) for value in (got, expected)))
    if not error <= tolerance:
        raise OnnxMismatch(name=name, output=output, whose=whose, error=f"{error:.1e}", tolerance=f"{tolerance:.0e}")
