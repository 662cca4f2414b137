"""Every engine as a function of a case's tensors, for a number of threads. All get the same inputs.

An engine raises ``AbsentError`` with the reason where it is not installed or cannot run a case; that is a result too.
"""

from __future__ import annotations

import copy
import hashlib
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import networks
import numpy as np
import torch
from torch import Tensor, nn

import scoregraph as sg
from scoregraph.errors import ScoregraphError

Network = Callable[..., np.ndarray]
"""``network(*tensors) -> answer`` in float32."""

WORK = Path(os.environ.get("SCOREGRAPH_BENCH", Path(__file__).parent.parent / "out" / "bench"))
"""Exported and quantized files, kept between runs."""


class AbsentError(Exception):
    """This engine has no number for this case, and why."""


@dataclass(frozen=True)
class Engine:
    """``build(case, threads)`` makes the function; ``format`` is what its products compute in."""

    name: str
    format: str
    build: Callable[[networks.Case, int], Network]


# Ours


def compiled(case: networks.Case, threads: int, quant: str = "none") -> sg.CompiledPlan:
    """The plan of a case, from the cache where it is there. Raises ``AbsentError``."""
    target = networks.graph_of(case) if case.loop else case.target
    try:
        return sg.compile(target, device="cpu", threads=threads, quant=quant, calibrate_on=case.seen or None)
    except ScoregraphError as error:
        raise AbsentError(str(error).splitlines()[0]) from None


def scoregraph(case: networks.Case, threads: int, quant: str = "none") -> Network:
    plan = compiled(case, threads, quant)
    kinds = {"f32": np.float32, "i64": np.int64}
    given = dict(case.given)
    bound = {
        spec.name: np.ascontiguousarray(given[spec.name], kinds[plan.plan.buffers[spec.buffer].dtype])
        for spec in plan.plan.inputs
    }
    seeds = np.zeros(len(next(iter(bound.values()))), np.uint64)
    answer = "x" if case.loop else case.answer
    return lambda *_: plan.program.run(bound, seeds)[answer]


def ours(quant: str) -> Engine:
    """Our engine with one recipe."""
    name = "scoregraph" if quant == "none" else f"scoregraph {quant}"
    form = "float32" if quant == "none" else "bf16" if quant == "bf16" else "integer"
    return Engine(name, form, lambda case, threads: scoregraph(case, threads, quant))


# torch


def torch_eager(case: networks.Case, threads: int) -> Network:
    return _called(case.module)


def torch_compile(case: networks.Case, threads: int, mode: str = "default", half: bool = False) -> Network:
    import torch._inductor.config as inductor

    inductor.freezing = True
    module = copy.deepcopy(case.module).bfloat16() if half else case.module
    compiled_module = torch.compile(module, mode=mode)
    call = _called(compiled_module, half, no_grad=True)
    _tried(call, case)
    return call


def torch_dynamic_int8(case: networks.Case, threads: int) -> Network:
    """Dynamic quantization of the linear layers: the fastest of the engines that torch has here."""
    choices: dict[str, Network] = {}
    for engine in ("x86", "onednn", "fbgemm"):
        if engine not in torch.backends.quantized.supported_engines:
            continue
        torch.backends.quantized.engine = engine
        module = torch.ao.quantization.quantize_dynamic(copy.deepcopy(case.module), {nn.Linear}, dtype=torch.qint8)
        choices[engine] = _with_engine(_called(module), engine)
    return _fastest(choices, case)


def _with_engine(call: Network, engine: str) -> Network:
    def run(*tensors: Tensor) -> np.ndarray:
        torch.backends.quantized.engine = engine
        return call(*tensors)

    return run


def _called(module: Any, half: bool = False, no_grad: bool = False) -> Network:
    guard = torch.no_grad if no_grad else torch.inference_mode  # compiled code guards on inference mode

    def call(*tensors: Tensor) -> np.ndarray:
        given = [t.bfloat16() if half and t.is_floating_point() else t for t in tensors]
        with guard():
            return module(*given).float().numpy()

    return call


# Engines that read ONNX


def onnx_file(case: networks.Case) -> Path:
    """The case as ONNX, exported once at its batch, with constants folded."""
    path = _kept(case, "model.onnx")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                case.module, _network_inputs(case), str(path), dynamo=True, verbose=False,
                input_names=[f"in{i}" for i in range(len(case.inputs))], external_data=False,
            )  # fmt: skip
    return path


def _network_inputs(case: networks.Case) -> tuple[Tensor, ...]:
    """What the network is called with: in a guided loop, both branches at once."""
    return case.inputs if case.loop is None else tuple(value.repeat_interleave(2, 0) for value in case.inputs)


def _kept(case: networks.Case, name: str) -> Path:
    """A file of a case: the folder's name holds a digest of its weights and inputs."""
    digest = hashlib.sha256(repr(case.module).encode())
    for value in (*case.module.state_dict().values(), *case.inputs):
        digest.update(f"{tuple(value.shape)}{float(value.float().sum())}".encode())
    return WORK / f"{case.name}-{digest.hexdigest()[:12]}-torch{torch.__version__}" / name


def onnxruntime(case: networks.Case, threads: int) -> Network:
    return _session(onnx_file(case), case, threads)


def onnxruntime_int8(case: networks.Case, threads: int) -> Network:
    """Dynamic quantization to signed weights: the fastest of per channel or per tensor, convolutions too or not."""
    source = onnx_file(case)
    kinds = {"products": ["MatMul", "Gemm"]}
    if any(isinstance(module, nn.Conv2d) for module in case.module.modules()):
        kinds["products and convolutions"] = ["MatMul", "Gemm", "Conv"]
    choices: dict[str, Network] = {}
    problem = ""
    for what, operators in kinds.items():
        for per_channel in (False, True):
            path = source.with_name(f"int8-{len(operators)}-{per_channel:d}.onnx")
            try:
                if not path.exists():
                    _quantize_onnx(source, path, operators, per_channel)
                call = _session(path, case, threads)
                call(*_network_inputs(case))
            except Exception as error:  # convolutions in integers are not implemented for every shape
                problem = str(error).splitlines()[0][:120]
                continue
            choices[f"{what}, per {'channel' if per_channel else 'tensor'}"] = call
    if not choices:
        raise AbsentError(problem)
    return _fastest(choices, case)


def _quantize_onnx(source: Path, path: Path, operators: list[str], per_channel: bool) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(str(source))
    del model.graph.value_info[:]  # the exporter's shapes of folded weights are stale, and shape inference refuses them
    quantize_dynamic(
        model, str(path), weight_type=QuantType.QInt8, per_channel=per_channel, op_types_to_quantize=operators
    )


def _session(path: Path, case: networks.Case, threads: int) -> Network:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    known = [(int(each.name[2:]), each.name) for each in session.get_inputs()]  # inputs that nothing reads are dropped
    return lambda *tensors: session.run(None, {name: tensors[i].numpy() for i, name in known})[0]


def openvino(case: networks.Case, threads: int, precision: str = "f32", compressed: bool = False) -> Network:
    """OpenVINO's CPU plugin. ``compressed``: weights in 8 bits per channel, activations in groups as it runs."""
    try:
        import openvino as ov
    except ImportError:
        raise AbsentError("openvino is not installed") from None
    core = ov.Core()
    model = core.read_model(str(onnx_file(case)))
    if compressed and not compress_weights(model):
        raise AbsentError("no product with constant weights to compress")
    base = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    base["INFERENCE_PRECISION_HINT"] = precision
    groups = ("32", "64", "128") if compressed else (None,)
    choices: dict[str, Network] = {}
    for group in groups:
        more = {} if group is None else {"DYNAMIC_QUANTIZATION_GROUP_SIZE": group}
        choices[f"groups of {group}"] = _request(core.compile_model(model, "CPU", {**base, **more}))
    return _fastest(choices, case) if compressed else next(iter(choices.values()))


def _request(compiled_model: Any) -> Network:
    request = compiled_model.create_infer_request()
    places = [int(each.any_name[2:]) for each in compiled_model.inputs]

    def call(*tensors: Tensor) -> np.ndarray:
        given = {position: tensors[i].numpy() for position, i in enumerate(places)}
        return np.array(request.infer(given, share_inputs=True)[0], np.float32)

    return call


def compress_weights(model: Any) -> int:
    """Write the weights of products as signed bytes with a scale per channel; the number of products rewritten.

    What NNCF's ``compress_weights`` does in its INT8_SYM mode, which is not needed for one rule. The plugin then
    quantizes activations dynamically, in groups of DYNAMIC_QUANTIZATION_GROUP_SIZE inputs.
    """
    from openvino import opset13 as ops

    count = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        source = node.input(1).get_source_output()
        constant = source.get_node()
        if constant.get_type_name() != "Constant" or len(constant.get_output_shape(0)) != 2:
            continue
        weights = np.array(constant.data, np.float32)
        axis = 1 if node.get_attributes()["transpose_b"] else 0  # the axis that is summed over
        scale = np.maximum(np.abs(weights).max(axis=axis, keepdims=True) / 127.0, 1e-12)
        packed = ops.constant(np.rint(weights / scale).astype(np.int8))
        node.input(1).replace_source_output(
            ops.multiply(ops.convert(packed, "f32"), ops.constant(scale.astype(np.float32))).output(0)
        )
        count += 1
    return count


# Choosing among the variants of an engine


def _tried(call: Network, case: networks.Case) -> float:
    """Milliseconds of a call, the best of three after one."""
    inputs = _network_inputs(case)
    call(*inputs)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        call(*inputs)
        times.append(time.perf_counter() - started)
    return median(times) * 1e3


@dataclass(frozen=True)
class Variant:
    """The network of one of an engine's variants, and which."""

    chosen: str
    network: Network

    def __call__(self, *tensors: Tensor) -> np.ndarray:
        return self.network(*tensors)


def _fastest(choices: dict[str, Network], case: networks.Case) -> Variant:
    """The variant that is quickest here."""
    times = {name: _tried(call, case) for name, call in choices.items()}
    name = min(times, key=lambda each: times[each])
    return Variant(name, choices[name])


PEERS: tuple[Engine, ...] = (
    Engine("torch eager", "float32", torch_eager),
    Engine("torch.compile", "float32", torch_compile),
    Engine("torch.compile max-autotune", "float32", lambda case, n: torch_compile(case, n, "max-autotune")),
    Engine("ONNX Runtime", "float32", onnxruntime),
    Engine("OpenVINO", "float32", openvino),
    Engine(
        "torch.compile bf16", "bf16", lambda case, n: torch_compile(case, n, half=True)
    ),
    Engine("OpenVINO bf16", "bf16", lambda case, n: openvino(case, n, "bf16")),
    Engine("torch dynamic int8", "integer", torch_dynamic_int8),
    Engine("ONNX Runtime dynamic int8", "integer", onnxruntime_int8),
    Engine("OpenVINO int8", "integer", lambda case, n: openvino(case, n, compressed=True)),
)  # fmt: skip

RARE = ("torch.compile max-autotune",)
"""Peers that only run when they are named: they take minutes to build."""


def engines_of(case: networks.Case, named: Sequence[str] | None) -> list[Engine]:
    """The engines of a case: ours in every format, then the peers; those named, or all but the rare ones."""
    every = [ours("none"), *(ours(quant) for quant in case.quant), *PEERS]
    if named:
        return [engine for engine in every if engine.name in named]
    return [engine for engine in every if engine.name not in RARE]
