"""The reference backend: every op against torch's own, a whole plan by hand, noise bits, memory and refusals."""

import math
import threading

import numpy as np
import pytest
import torch
from torch.nn import functional

from scoregraph.backends.protocol import Miss
from scoregraph.backends.reference import noise
from scoregraph.backends.reference.frame import Frame
from scoregraph.backends.reference.ops import OPS
from scoregraph.backends.reference.program import Reference
from scoregraph.errors import BadInput, Cancelled, IndexOutOfRange, MissingInput
from scoregraph.graph import guidance, prediction, samplers, schedules
from scoregraph.graph import noise as definition
from scoregraph.plan.files import read_constant
from scoregraph.plan.layouts import logical
from scoregraph.plan.schema import (
    Buffer,
    Call,
    Constant,
    InputSpec,
    OutputSpec,
    Plan,
    Segment,
    Slot,
    Table,
    View,
)

GENERATOR = torch.Generator().manual_seed(1)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def run(op: str, ins: dict[str, torch.Tensor], attrs: dict, shape: tuple[int, ...], role: str = "y") -> torch.Tensor:
    outs = {role: torch.full(shape, math.nan, dtype=torch.float64)}
    frame = Frame(outs, {}, None, torch.zeros(1, dtype=torch.int64), torch.float64, "site")
    made = OPS[op](ins, attrs, frame)
    return made if isinstance(made, torch.Tensor) else made[role]


def test_torch_noise_has_the_bits_of_the_definition():
    seeds = np.array([0, 7, 2**63 + 5, 2**64 - 1], dtype=np.uint64)
    for site, micro in [(0, 0), (3, 19), (2**32 - 1, 2**32 - 1)]:
        ours = noise.normals(torch.from_numpy(seeds.view(np.int64)), site, micro, 50_001).numpy()
        expected = definition.normals(seeds, site, micro, 50_001)
        assert ours.dtype == np.float32
        assert np.array_equal(ours.view(np.uint32), expected.view(np.uint32))


def test_linear_with_every_operand():
    x, w, bias = randn(6, 5, 8), randn(12, 8), randn(12)
    residual, gate = randn(6, 5, 12), randn(6, 12)
    ins = {"x": x, "w": w, "bias": bias, "residual": residual, "gate": gate}
    ours = run("linear", ins, {"act": "silu"}, (6, 5, 12))
    expected = residual + gate[:, None, :] * functional.silu(functional.linear(x, w, bias))
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_conv_with_every_operand():
    x, w, bias, residual, emb = randn(2, 3, 9, 8), randn(6, 3, 3, 3), randn(6), randn(2, 6, 5, 4), randn(2, 6)
    ins = {"x": x, "w": w, "bias": bias, "residual": residual, "emb": emb}
    ours = run("conv2d", ins, {"stride": [2, 2], "padding": [1, 1], "act": "tanh"}, (2, 6, 5, 4))
    expected = residual + torch.tanh(functional.conv2d(x, w, bias, 2, 1) + emb[:, :, None, None])
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_norms():
    x, weight, bias, scale, shift = randn(3, 8, 5, 4), randn(8), randn(8), randn(3, 8), randn(3, 8)
    ins = {"x": x, "weight": weight, "bias": bias, "scale": scale, "shift": shift}
    ours = run("group_norm", ins, {"groups": 4, "eps": 1e-5, "act": "silu"}, tuple(x.shape))
    norm = functional.group_norm(x, 4, weight, bias, 1e-5)
    expected = functional.silu(norm * (1 + scale[:, :, None, None]) + shift[:, :, None, None])
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)

    x = randn(3, 7, 8)
    ours = run("layer_norm", {**ins, "x": x}, {"eps": 1e-6, "act": "none"}, tuple(x.shape))
    expected = functional.layer_norm(x, (8,), weight, bias, 1e-6) * (1 + scale[:, None]) + shift[:, None]
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)

    ours = run("rms_norm", {"x": x, "weight": weight}, {"eps": 1e-6}, tuple(x.shape))
    torch.testing.assert_close(ours, functional.rms_norm(x, (8,), weight, 1e-6), rtol=1e-11, atol=1e-12)


def test_attention_and_products():
    q, k, v, mask = randn(2, 3, 5, 4), randn(2, 3, 7, 4), randn(2, 3, 7, 4), randn(2, 1, 5, 7)
    ours = run("attention", {"q": q, "k": k, "v": v, "mask": mask}, {"scale": 0.3}, (2, 3, 5, 4))
    expected = functional.scaled_dot_product_attention(q, k, v, mask, scale=0.3)
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)
    ours = run("matmul", {"x": q, "y": k.transpose(-1, -2)}, {"scale": 2.0}, (2, 3, 5, 7))
    torch.testing.assert_close(ours, 2 * torch.einsum("bhsd,bhtd->bhst", q, k), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(run("softmax", {"x": q}, {}, (2, 3, 5, 4)), q.exp() / q.exp().sum(-1, keepdim=True))


def test_shapes_change():
    x = randn(2, 3, 4, 6)
    window = {"kernel": [2, 2], "stride": [2, 2]}
    blocks = x.reshape(2, 3, 2, 2, 3, 2)
    torch.testing.assert_close(run("avg_pool2d", {"x": x}, window, (2, 3, 2, 3)), blocks.mean(dim=(3, 5)))
    torch.testing.assert_close(run("max_pool2d", {"x": x}, window, (2, 3, 2, 3)), blocks.amax(dim=(3, 5)))
    up = run("upsample_nearest", {"x": x}, {"factor": [2, 3]}, (2, 3, 8, 18))
    assert torch.equal(up, functional.interpolate(x, scale_factor=(2, 3), mode="nearest"))
    for kind, expected in [("sum", x.sum((2, 3))), ("min", x.amin((2, 3))), ("max", x.amax((2, 3)))]:
        torch.testing.assert_close(run("reduce", {"x": x}, {"kind": kind, "axes": [2, 3]}, (2, 3)), expected)
    assert torch.equal(run("copy", {"x": x.permute(0, 2, 1, 3)}, {}, (2, 4, 3, 6)), x.transpose(1, 2))
    assert torch.equal(run("fill", {}, {"value": 2.5}, (3, 2), role="x"), torch.full((3, 2), 2.5, dtype=torch.float64))


POINTWISE = {
    "neg": lambda x: -x,
    "abs": torch.abs,
    "exp": torch.exp,
    "log": torch.log,
    "sin": torch.sin,
    "cos": torch.cos,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": lambda x: 1 / x,
    "square": torch.square,
    "tanh": torch.tanh,
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "silu": functional.silu,
    "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_erf": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "relu": lambda x: x.clamp(min=0),
    "erf": torch.special.erf,
    "floor": torch.floor,
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "pow": lambda x, y: x**y,
    "min": lambda x, y: torch.where(x < y, x, y),
    "max": lambda x, y: torch.where(x > y, x, y),
    "less": lambda x, y: torch.where(x < y, 1.0, 0.0).double(),
}
BINARY = ("add", "sub", "mul", "div", "pow", "min", "max", "less")


@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise_instruction(name: str):
    x, y = randn(4, 5).abs() + 0.1, randn(4, 5)
    binary = name in BINARY
    expected = POINTWISE[name](x, y) if binary else POINTWISE[name](x)
    program = [[name, 0, 1] if binary else [name, 0]]
    ours = run("pointwise", {"x0": x, "x1": y}, {"program": program}, (4, 5))
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_pointwise_program_with_constants_integers_and_broadcast():
    x, n = randn(4, 5), torch.arange(5).expand(4, 5)
    program = [["const", 3.0], ["mul", 0, 2], ["add", 3, 1], ["tanh", 4]]
    ours = run("pointwise", {"x0": x, "x1": n}, {"program": program}, (4, 5))
    torch.testing.assert_close(ours, torch.tanh(3 * x + n), rtol=1e-12, atol=1e-12)


def test_where_chooses_element_by_element():
    x, y = randn(4, 5), randn(4, 5)
    ours = run("pointwise", {"x0": x, "x1": y}, {"program": [["less", 0, 1], ["where", 2, 0, 1]]}, (4, 5))
    assert torch.equal(ours, torch.minimum(x, y))


def test_an_index_out_of_range_names_the_layer():
    w = randn(10, 3)
    assert torch.equal(run("embedding", {"index": torch.tensor([9, 0]), "w": w}, {}, (2, 3)), w[[9, 0]])
    for bad in (10, -1):
        with pytest.raises(IndexOutOfRange, match=rf"SG605.*site looks up row {bad} of a table with 10 rows"):
            run("embedding", {"index": torch.tensor([1, bad]), "w": w}, {}, (2, 3))


@pytest.mark.parametrize(("layout", "shape"), [("n16", (35, 7)), ("n16", (16, 3)), ("oc8", (13, 3, 2, 5))])
def test_packed_constants_are_unpacked(layout: str, shape: tuple[int, ...]):
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(shape).astype(np.float32)
    width = {"n16": 16, "oc8": 8}[layout]
    panels = math.ceil(shape[0] / width)
    # The page's definition, index by index: panel n // width, then the other axes, then n % width.
    packed = np.zeros((panels, *shape[1:], width), dtype=np.float32)
    for index in np.ndindex(*shape):
        packed[(index[0] // width, *index[1:], index[0] % width)] = weights[index]
    data = bytes(64) + packed.tobytes()
    constant = Constant(id=0, name="w", shape=shape, layout=layout, offset=64, nbytes=packed.nbytes)
    assert np.array_equal(logical(constant, read_constant(constant, data)), weights)


# --- A whole plan: a guided two-layer network under DDIM with noise, by hand ---------------------

STEPS, WIDTH, HIDDEN, SITE, SCALE = 6, 5, 16, 2, 3.0


def network_weights() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    shapes = [(HIDDEN, WIDTH), (HIDDEN,), (WIDTH, HIDDEN), (HIDDEN,)]
    return [(0.2 * rng.standard_normal(shape)).astype(np.float32) for shape in shapes]


def hand_plan() -> tuple[Plan, bytes]:
    """noise -> 6 rows of [time, h = silu(x w1^T + b1 + t u + y), m = h w2^T, DDIM(1) with CFG 3] -> x. y: the label."""
    table = samplers.ddim(eta=1.0).table(
        schedules.scaled_linear(steps=STEPS, offset=1), prediction.eps(), "c_noise", "vp"
    )
    table = table.fold_guidance(guidance.cfg(SCALE).table_weights(table))
    w1, b1, w2, u = network_weights()
    data, constants = b"", []
    arrays = [w1, b1, w2, u, table.float32()]
    for i, array in enumerate(arrays):
        constants.append(Constant(id=i, name=f"k{i}", shape=array.shape, offset=len(data), nbytes=array.nbytes))
        data += array.tobytes() + bytes(-array.nbytes % 64)
    shapes = [
        ("B", WIDTH),  # 0: x
        ("2B", WIDTH),  # 1: x_in
        ("2B",),  # 2: t
        ("2B", HIDDEN),  # 3: h
        ("2B", WIDTH),  # 4: m
        ("B",),  # 5: input: label
        ("2B",),  # 6: label of both branches; the second is 0
    ]
    buffers = [Buffer(id=i, name=f"v{i}", shape=shape, slot=None) for i, shape in enumerate(shapes)]
    placed, offset = [], 0
    for buffer in buffers:
        size = 4 * math.prod(int(d[:-1] or 1) if isinstance(d, str) else d for d in buffer.shape)
        placed.append(buffer.model_copy(update={"slot": Slot(space="batch", offset=offset)}))
        offset += -(-size // 64) * 64
    views = [
        Buffer(id=7, name="label.cond", shape=("B",), view=View(base=6, strides=(2,))),
        Buffer(id=8, name="label.uncond", shape=("B",), view=View(base=6, offset=1, strides=(2,))),
        Buffer(id=9, name="t.h", shape=("2B", HIDDEN), view=View(base=2, strides=(1, 0))),
        Buffer(id=10, name="label.h", shape=("2B", HIDDEN), view=View(base=6, strides=(1, 0))),
    ]
    fixed = [Buffer(id=11, name="u", shape=(HIDDEN,), slot=Slot(space="fixed", offset=0))]
    views.append(Buffer(id=12, name="u.h", shape=("2B", HIDDEN), view=View(base=11, strides=(0, 1))))
    column = {name: i for i, name in enumerate(table.columns)}
    step = {
        "table": 0,
        "a": column["a0_0"],
        "b": column["b0_0"],
        "c": column["c0"],
        "cin": column["c_in"],
        "site": SITE,
    }
    program = [["mul", 1, 2], ["add", 0, 4], ["add", 5, 3], ["silu", 6]]
    prologue = [
        Call(op="noise", outs={"x": "b0"}, attrs={"site": 1, "micro": 0, "scale": table.init_scale}),
        Call(op="copy", ins={"x": "b5"}, outs={"y": "b7"}),
        Call(op="fill", outs={"x": "b8"}, attrs={"value": 0.0}),
        Call(op="copy", ins={"x": "c3"}, outs={"y": "b11"}),
        Call(op="step_input", ins={"x": "b0"}, outs={"xin": "b1"}, attrs={"table": 0, "column": 1, "row": 0}),
    ]
    body = [
        Call(op="step_time", outs={"t": "b2"}, attrs={"table": 0, "column": 0}),
        Call(op="linear", ins={"x": "b1", "w": "c0", "bias": "c1"}, outs={"y": "b3"}, attrs={"act": "none"}),
        Call(
            op="pointwise",
            ins={"x0": "b3", "x1": "b9", "x2": "b12", "x3": "b10"},
            outs={"y": "b3"},
            attrs={"program": program},
        ),
        Call(op="linear", ins={"x": "b3", "w": "c2"}, outs={"y": "b4"}, attrs={"act": "none"}),
        Call(op="sampler_step", ins={"r0": "b0", "p0": "b4"}, outs={"r0": "b0", "xin0": "b1"}, attrs=step),
    ]
    plan = Plan(
        name="hand",
        device="reference",
        inputs=(InputSpec(name="label", buffer=5),),
        outputs=(OutputSpec(name="x", buffer=0),),
        buffers=tuple(placed + views[:4] + fixed + views[4:]),
        constants=tuple(constants),
        tables=(Table(id=0, name="loop", rows=STEPS, columns=table.columns, constant=4),),
        segments=(Segment(name="prologue", calls=tuple(prologue)), Segment(name="loop", table=0, calls=tuple(body))),
    )
    return plan, data


def by_the_paper(label: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The same program written as a loop in numpy float64, with DDPM's posterior (Ho et al. 2020) as the step."""
    w1, b1, w2, u = (array.astype(np.float64) for array in network_weights())
    grid = schedules.scaled_linear(steps=STEPS, offset=1).grid()
    abar = np.square(grid.alpha)

    def net(x: np.ndarray, t: float, y: np.ndarray) -> np.ndarray:
        h = x @ w1.T + b1 + t * u + y[:, None]
        return (h / (1 + np.exp(-h))) @ w2.T

    x = definition.normals(seeds, 1, 0, WIDTH).astype(np.float64)
    for i in range(STEPS):
        t = 0.25 * np.log(grid.kappa[i])
        conditional, unconditional = net(x, t, label), net(x, t, 0 * label)
        eps = unconditional + SCALE * (conditional - unconditional)
        a, a_next = abar[i], abar[i + 1]
        ratio = a / a_next
        mean = (x - (1 - ratio) / np.sqrt(1 - a) * eps) / np.sqrt(ratio)
        std = np.sqrt((1 - a_next) / (1 - a) * (1 - ratio))
        x = mean + std * definition.normals(seeds, SITE, i, WIDTH)
    return x


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-6), ("float32", 1e-5)])
def test_a_whole_plan_is_the_loop_of_the_paper(planned: bool, precision: str, tolerance: float):
    plan, data = hand_plan()
    program = Reference(precision=precision, planned=planned).compile(plan, data)
    label, seeds = np.array([0.5, -1.0, 2.0]), definition.sample_seeds(11, 3)
    ours = program.run({"label": label.astype(np.float32)}, seeds)["x"]
    expected = by_the_paper(label, seeds)
    assert ours.dtype == np.dtype(precision)
    # The plan's table is float32, so float64 arithmetic also ends 1e-7 or so away.
    assert np.abs(ours - expected).max() / np.abs(expected).max() < tolerance


def test_planned_memory_and_batch_change_no_bit():
    plan, data = hand_plan()
    label, seeds = np.array([0.5, -1.0, 2.0], dtype=np.float32), definition.sample_seeds(11, 3)
    separate = Reference().compile(plan, data).run({"label": label}, seeds)["x"]
    planned = Reference(planned=True).compile(plan, data).run({"label": label}, seeds)["x"]
    assert np.array_equal(separate, planned)
    alone = Reference(precision="float64").compile(plan, data).run({"label": label[1:2]}, seeds[1:2])["x"]
    together = Reference(precision="float64").compile(plan, data).run({"label": label}, seeds)["x"]
    assert np.abs(alone[0] - together[1]).max() < 1e-13


def test_progress_cancel_and_source():
    plan, data = hand_plan()
    program = Reference().compile(plan, data)
    told: list[tuple[int, int]] = []
    label, seeds = np.zeros(1, dtype=np.float32), definition.sample_seeds(0, 1)
    program.run({"label": label}, seeds, progress=lambda done, total: told.append((done, total)))
    assert told == [(i + 1, STEPS) for i in range(STEPS)]
    stop = threading.Event()
    with pytest.raises(Cancelled, match=r"SG604.*cancelled after 2 of 6 steps"):
        program.run({"label": label}, seeds, lambda done, total: stop.set() if done == 2 else None, stop)
    assert "r0=b0[Bx5], xin0=b1[2Bx5] = sampler_step(r0=b0[Bx5], p0=b4[2Bx5])" in program.source()


def test_refusals():
    plan, data = hand_plan()
    backend = Reference()
    program = backend.compile(plan, data)
    seeds = definition.sample_seeds(0, 2)
    with pytest.raises(MissingInput, match="SG601"):
        program.run({}, seeds)
    with pytest.raises(BadInput, match=r"SG602.*shape is \[3\], expected \[2\]"):
        program.run({"label": np.zeros(3, dtype=np.float32)}, seeds)
    with pytest.raises(BadInput, match=r"SG602.*NaN"):
        program.run({"label": np.array([0, np.nan], dtype=np.float32)}, seeds)
    assert backend.supports(Call(op="linear")) is None
    assert backend.supports(Call(op="fft")) == Miss("there is no op named 'fft'")
    assert backend.capabilities == frozenset(OPS)
