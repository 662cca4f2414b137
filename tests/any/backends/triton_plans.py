"""Plans for the Triton tests: a drafter whose buffers get places side by side, and a two-layer score network."""

from __future__ import annotations

import numpy as np
import torch

from scoregraph.backends.triton import TritonBackend, TritonProgram
from scoregraph.graph import noise
from scoregraph.plan.dims import Batch, has_batch, parse_dim, per_unit
from scoregraph.plan.draft import Drafter, Value
from scoregraph.plan.files import lay_out
from scoregraph.plan.schema import InputSpec, OutputSpec, Plan, Slot


class Sketch(Drafter):
    """A plan made call by call."""

    def __init__(self) -> None:
        super().__init__("sketch", "triton")

    def input(self, name: str, value: Value) -> Value:
        self.inputs.append(InputSpec(name=name, buffer=int(value.storage[1:])))
        return value

    def output(self, name: str, value: Value) -> None:
        self.outputs.append(OutputSpec(name=name, buffer=int(self.ref(value)[1:])))

    def data(self) -> tuple[Plan, bytes]:
        """The plan, for any backend, and its constants; buffers lie side by side."""
        draft = self.build()
        ends = {"batch": 0, "fixed": 0}
        placed = []
        for buffer in draft.plan.buffers:
            if buffer.view is None:
                shape = [parse_dim(d) for d in buffer.shape]
                space = "batch" if has_batch(shape) else "fixed"
                placed.append(buffer.model_copy(update={"slot": Slot(space=space, offset=ends[space])}))
                ends[space] += -(-per_unit(shape) * 8 // 64) * 64
            else:
                placed.append(buffer)
        return lay_out(draft.plan.model_copy(update={"buffers": tuple(placed)}), draft.arrays)

    def program(self, *, interpret: bool = True) -> TritonProgram:
        return TritonBackend(interpret=interpret).compile(*self.data())

    def run(self, seeds: list[int] | None = None, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """One interpreted run; the batch is the number of seeds (one if not given)."""
        return self.program().run(inputs, np.array([0] if seeds is None else seeds, np.uint64))


# --- A two-layer network with guidance and a stochastic sampler ---------------------------------

WIDTH, HIDDEN, ROWS, SITE = 6, 40, 8, 2
SEEDS = [11, 12, 2**63 + 5]
LABEL = np.array([0.5, -1.0, 2.0], np.float32)


def weights() -> dict[str, np.ndarray]:
    """Layer 1 reads x, the time and the label side by side; layer 2 gives the prediction."""
    rng = np.random.default_rng(3)
    shapes = {"w1": (HIDDEN, WIDTH + 2), "b1": (HIDDEN,), "w2": (WIDTH, HIDDEN), "b2": (WIDTH,)}
    return {name: rng.standard_normal(s, dtype=np.float32) / np.sqrt(s[-1]) for name, s in shapes.items()}


def table() -> np.ndarray:
    """An ancestral Euler sampler of eight rows: columns t, c_in, A, B for two branches (guidance 3 folded in), C."""
    sigmas = np.geomspace(10.0, 0.05, ROWS + 1)
    rows = []
    for i in range(ROWS):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        up = 0.0 if i == ROWS - 1 else sigma_next * np.sqrt(1 - (sigma_next / sigma) ** 2)
        step = np.sqrt(sigma_next**2 - up**2) - sigma
        c_in = 1 / np.sqrt(sigma**2 + 1)
        rows.append([np.log(sigma) / 4, c_in, 1.0, 3.0 * step, -2.0 * step, up])
    return np.array(rows, np.float32)


def two_layers() -> Sketch:
    """noise → 8 × [time, concatenate x, time and label, two linear layers over 2 branches, sampler step]."""
    s = Sketch()
    loop = s.table("steps", ["t", "c_in", "a0_0", "b0_0", "b0_1", "c0"], table())
    w = {name: s.constant(value, name) for name, value in weights().items()}
    label = s.input("label", s.new((Batch(1),), name="label"))
    x = s.new((Batch(1), WIDTH), name="x")
    x_in = s.new((Batch(2), WIDTH), name="x_in")
    both = s.new((Batch(2), WIDTH + 2), name="x, t, label")
    hidden, prediction = s.new((Batch(2), HIDDEN), name="hidden"), s.new((Batch(2), WIDTH), name="prediction")
    time = s.new((Batch(2),), name="t")
    first = s.new((Batch(1), WIDTH), name="first")

    def part(offset: int, shape: tuple, strides: tuple[int, ...]) -> Value:
        return Value(both.storage, shape, strides, offset)

    s.begin("before")
    s.call("noise", {}, {"x": x}, {"site": SITE, "micro": 0, "scale": 10.0}, site="x0")
    s.call("copy", {"x": x}, {"y": first}, site="x0")
    s.call("step_input", {"x": x}, {"xin": x_in}, {"table": loop, "column": 1, "row": 0}, site="scale")
    # Branch 0 of a sample is conditional, branch 1 has the label 0.
    s.call("fill", {}, {"x": part(WIDTH + 1, (Batch(2),), (WIDTH + 2,))}, {"value": 0.0}, site="label")
    s.call("copy", {"x": label}, {"y": part(WIDTH + 1, (Batch(1),), (2 * (WIDTH + 2),))}, site="label")
    s.begin("steps", loop)
    s.call("step_time", {}, {"t": time}, {"table": loop, "column": 0}, site="time")
    s.call("copy", {"x": x_in}, {"y": part(0, (Batch(2), WIDTH), (WIDTH + 2, 1))}, site="concat")
    s.call(
        "pointwise", {"x0": time}, {"y": part(WIDTH, (Batch(2),), (WIDTH + 2,))}, {"program": [["sin", 0]]}, site="sin"
    )
    s.call("linear", {"x": both, "w": w["w1"], "bias": w["b1"]}, {"y": hidden}, {"act": "silu"}, site="layer1")
    s.call("linear", {"x": hidden, "w": w["w2"], "bias": w["b2"]}, {"y": prediction}, {"act": "none"}, site="layer2")
    attrs = {"table": loop, "a": 2, "b": 3, "c": 5, "cin": 1, "site": SITE + 1}
    s.call("sampler_step", {"r0": x, "p0": prediction}, {"r0": x, "xin0": x_in}, attrs, site="step")
    s.output("x", x)
    s.output("first", first)
    return s


def expected(label: np.ndarray, seeds: list[int]) -> np.ndarray:
    """The same trajectory in torch float64, written without plans, branches or kernels."""
    w = {name: torch.from_numpy(value).double() for name, value in weights().items()}
    keys = np.array(seeds, np.uint64)
    x = 10.0 * torch.from_numpy(noise.normals(keys, site=SITE, micro=0, count=WIDTH)).double()

    def network(x: torch.Tensor, t: float, label: torch.Tensor) -> torch.Tensor:
        time = torch.full((len(x), 1), t, dtype=torch.float64).sin()
        h = torch.cat([x, time, label[:, None]], 1) @ w["w1"].T + w["b1"]
        return torch.nn.functional.silu(h) @ w["w2"].T + w["b2"]

    level = torch.from_numpy(label).double()
    for row, (t, c_in, _, b0, b1, c) in enumerate(table().astype(np.float64)):
        z = torch.from_numpy(noise.normals(keys, site=SITE + 1, micro=row, count=WIDTH)).double()
        guided = b0 * network(c_in * x, t, level) + b1 * network(c_in * x, t, torch.zeros_like(level))
        x = x + guided + c * z
    return x.numpy()
