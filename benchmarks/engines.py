"""Every engine as a function that evaluates a case once. All get the same inputs and the same number of threads."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import networks
import numpy as np
import torch

import scoregraph as sg

Step = Callable[[], np.ndarray]


def scoregraph(case: networks.Case, threads: int) -> Step:
    plan = sg.compile(case.network, device="cpu", threads=threads, use_cache=False)
    ref = case.network.ref
    names = ["x", "t", *(cond.name for cond in ref.conds)]
    values = (*case.inputs[:2], *case.raw)
    inputs = {name: value.numpy() for name, value in zip(names, values, strict=True)}
    seeds = np.zeros(len(case.inputs[0]), np.uint64)
    bound = {spec.name: np.ascontiguousarray(inputs[spec.name], _dtype(plan, spec)) for spec in plan.plan.inputs}
    return lambda: plan.program.run(bound, seeds)["m"]


def _dtype(plan: sg.CompiledPlan, spec: object) -> type:
    return {"f32": np.float32, "i64": np.int64}[plan.plan.buffers[spec.buffer].dtype]


def torch_eager(case: networks.Case, threads: int) -> Step:
    torch.set_num_threads(threads)

    def step() -> np.ndarray:
        with torch.inference_mode():
            return case.module(*case.inputs).numpy()

    return step


def torch_compile(case: networks.Case, threads: int) -> Step:
    torch.set_num_threads(threads)
    import torch._inductor.config as inductor

    inductor.freezing = True
    compiled = torch.compile(case.module)

    def step() -> np.ndarray:
        with torch.no_grad():
            return compiled(*case.inputs).numpy()

    step()
    return step


def onnxruntime(case: networks.Case, threads: int) -> Step:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.onnx"
        names = [f"in{i}" for i in range(len(case.inputs))]
        with torch.no_grad():
            torch.onnx.export(case.module, case.inputs, str(path), input_names=names, dynamo=True, verbose=False)
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    known = [given.name for given in session.get_inputs()]
    feeds = {name: value.numpy() for name, value in zip(names, case.inputs, strict=True) if name in known}
    return lambda: session.run(None, feeds)[0]


ENGINES: dict[str, Callable[[networks.Case, int], Step]] = {
    "scoregraph": scoregraph,
    "torch eager": torch_eager,
    "torch.compile": torch_compile,
    "onnxruntime": onnxruntime,
}
