"""Every op of docs/plan-format.md as a plan of one call, against the reference backend in float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from small_plan import pack_n16

from scoregraph import _native
from scoregraph.backends.cpu import Cpu
from scoregraph.errors import IndexOutOfRange, PlanCorrupt
from scoregraph.plan.schema import Plan

pytestmark = pytest.mark.native

torch = pytest.importorskip("torch")

BATCH = 3
SEEDS = np.arange(BATCH, dtype=np.uint64)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def pack_oc8(w: np.ndarray) -> np.ndarray:
    """[O, I, kh, kw] as [ceil(O/8)][I][kh][kw][8], padded with zeros."""
    padded = np.zeros((-(-w.shape[0] // 8) * 8, *w.shape[1:]), np.float32)
    padded[: w.shape[0]] = w
    return np.ascontiguousarray(padded.reshape(-1, 8, *w.shape[1:]).transpose(0, 2, 3, 4, 1))


@dataclass
class Given:
    """An operand: a batched or shared input, or a constant in a layout; seen through a view where strides are given."""

    array: np.ndarray
    batched: bool = True
    layout: str = ""
    shape: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None
    offset: int = 0


@dataclass
class Case:
    op: str
    ins: dict[str, Given]
    out: tuple[int, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    out_role: str = "y"
    in_place: str = ""
    fixed_out: bool = False
    name: str = ""


def dims(shape: tuple[int, ...], batched: bool) -> list[int | str]:
    if not batched:
        return list(shape)
    assert shape[0] % BATCH == 0
    k = shape[0] // BATCH
    return ["B" if k == 1 else f"{k}B", *shape[1:]]


def one_call(case: Case) -> tuple[Plan, bytes, dict[str, np.ndarray]]:
    """The plan, its constants and its inputs."""
    buffers: list[dict[str, Any]] = []
    constants: list[dict[str, Any]] = []
    inputs: list[dict[str, Any]] = []
    values: dict[str, np.ndarray] = {}
    blob = b""
    at = {"batch": 0, "fixed": 0}
    kinds = {"f": "f32", "i": "i64", "u": "u8"}

    def buffer(name: str, shape: tuple[int, ...], batched: bool, dtype: str) -> int:
        space = "batch" if batched else "fixed"
        size = int(np.prod(shape)) * {"f32": 4, "i64": 8, "u8": 1}[dtype] // (BATCH if batched else 1)
        slot = {"space": space, "offset": at[space]}
        at[space] += -(-size // 64) * 64
        buffers.append({"id": len(buffers), "name": name, "dtype": dtype, "shape": dims(shape, batched), "slot": slot})
        return len(buffers) - 1

    ins: dict[str, str] = {}
    for role, given in case.ins.items():
        dtype = kinds[given.array.dtype.kind]
        if given.layout:
            packed = {"plain": lambda w: w, "n16": pack_n16, "oc8": pack_oc8}[given.layout](given.array)
            raw = packed.tobytes()
            constants.append(
                {
                    "id": len(constants),
                    "name": role,
                    "dtype": dtype,
                    "shape": list(given.array.shape),
                    "layout": given.layout,
                    "offset": len(blob),
                    "nbytes": len(raw),
                }
            )
            blob += raw + bytes(-len(raw) % 64)
            ins[role] = f"c{len(constants) - 1}"
            continue
        number = buffer(role, given.array.shape, given.batched, dtype)
        inputs.append({"name": role, "buffer": number})
        values[role] = given.array
        if given.strides is not None:
            assert given.shape is not None
            window = {"base": number, "offset": given.offset, "strides": list(given.strides)}
            batched_view = given.batched and given.shape[0] % BATCH == 0
            shape = dims(given.shape, batched_view)
            buffers.append({"id": len(buffers), "name": role, "dtype": dtype, "shape": shape, "view": window})
            number = len(buffers) - 1
        ins[role] = f"b{number}"
    out = ins[case.in_place] if case.in_place else f"b{buffer('out', case.out, not case.fixed_out, 'f32')}"
    call = {"op": case.op, "ins": ins, "outs": {case.out_role: out}, "attrs": case.attrs, "site": "here"}
    plan = Plan.model_validate(
        {
            "name": case.op,
            "device": "cpu",
            "inputs": inputs,
            "outputs": [{"name": "out", "buffer": int(out[1:])}],
            "buffers": buffers,
            "constants": constants,
            "segments": [{"name": "only", "calls": [call]}],
        }
    )
    return plan, blob or bytes(64), values


X = normal(3, 5, 24)
IMAGE = normal(3, 16, 9, 7)
PROGRAM = [["const", 0.5], ["mul", 1, 2], ["silu", 0], ["add", 3, 4], ["max", 5, 1]]


def w(*shape: int, layout: str = "plain", seed: int = 1) -> Given:
    return Given(normal(*shape, seed=seed), layout=layout)


CASES = [
    Case("fill", {}, (3, 4), {"value": 1.5}, out_role="x"),
    Case("linear", {"x": Given(X), "w": w(40, 24, layout="n16")}, (3, 5, 40)),
    Case("linear", {"x": Given(X), "w": w(17, 24)}, (3, 5, 17), name="plain"),
    Case(
        "linear",
        {
            "x": Given(X),
            "w": w(20, 24, layout="n16"),
            "bias": w(20),
            "residual": Given(normal(3, 5, 20, seed=5)),
            "gate": Given(normal(3, 60), shape=(3, 20), strides=(60, 1), offset=20),
        },
        (3, 5, 20),
        {"act": "gelu_tanh"},
        name="all",
    ),
    Case(
        "linear",
        {"x": Given(X), "w": w(24, 24, layout="n16"), "residual": Given(normal(3, 5, 24, seed=7))},
        (3, 5, 24),
        {"act": "relu"},
        in_place="residual",
        name="in place",
    ),
    Case(
        "linear",
        {"x": Given(X, shape=(3, 24), strides=(120, 1), offset=24), "w": w(8, 24, layout="n16")},
        (3, 8),
        name="rows of a view",
    ),
    Case("matmul", {"x": Given(normal(3, 2, 6, 5)), "y": Given(normal(3, 2, 5, 7))}, (3, 2, 6, 7), {"scale": 0.3}, "z"),
    Case(
        "matmul",
        {
            "x": Given(normal(3, 6, 2, 5), shape=(3, 2, 6, 5), strides=(60, 5, 10, 1)),
            "y": Given(normal(3, 2, 7, 5), shape=(3, 2, 5, 7), strides=(70, 35, 1, 5)),
        },
        (3, 2, 6, 7),
        {"scale": 1.0},
        "z",
        name="permuted",
    ),
    *(
        Case(
            "conv2d",
            {"x": Given(IMAGE), "w": w(11, 16, 3, 3, layout=layout), "bias": w(11)},
            (3, 11, rows, columns),
            {"stride": [stride] * 2, "padding": [padding] * 4, "up": [1, 1], "act": "silu"},
            name=f"{layout} stride {stride} padding {padding}",
        )
        for layout, stride, padding, rows, columns in [("oc8", 1, 1, 9, 7), ("oc8", 2, 1, 5, 4), ("plain", 1, 0, 7, 5)]
    ),
    Case(
        "conv2d",
        {
            "x": Given(IMAGE),
            "w": w(8, 16, 1, 1, layout="oc8"),
            "emb": Given(normal(3, 20), shape=(3, 8), strides=(20, 2), offset=3),
            "residual": Given(normal(3, 8, 9, 7)),
        },
        (3, 8, 9, 7),
        {"stride": [1, 1], "padding": [0] * 4, "up": [1, 1], "act": "none"},
        name="emb and residual",
    ),
    Case(
        "conv2d",
        {
            "x": Given(normal(3, 20, 9, 7), shape=(3, 16, 9, 7), strides=(1260, 63, 7, 1), offset=126),
            "w": w(8, 16, 3, 3),
        },
        (3, 8, 17, 13),
        {"stride": [1, 1], "padding": [0, 0, 1, 1], "up": [2, 2], "act": "none"},
        name="upsampled channels of a larger image, padded behind",
    ),
    Case(
        "conv2d",
        {
            "x": Given(normal(3, 20, 9, 7), shape=(3, 16, 9, 7), strides=(1260, 63, 7, 1), offset=126),
            "w": w(4, 4, 11, 16),
            "bias": w(11),
            "residual": Given(normal(3, 11, 9, 8)),
        },
        (3, 11, 9, 8),
        {"stride": [1, 1], "padding": [2, 1, 0, 2], "up": [1, 1], "act": "silu", "winograd": 2},
        name="minimal filtering",
    ),
    Case(
        "conv2d",
        {"x": Given(IMAGE), "w": w(3, 3, 11, 16), "emb": Given(normal(3, 11))},
        (3, 11, 18, 14),
        {"stride": [1, 1], "padding": [1] * 4, "up": [2, 2], "act": "none", "winograd": 2},
        name="minimal filtering behind an upsampling",
    ),
    Case("group_norm", {"x": Given(IMAGE), "weight": w(16), "bias": w(16)}, (3, 16, 9, 7), {"groups": 4, "eps": 1e-5}),
    Case(
        "group_norm",
        {
            "x": Given(IMAGE),
            "scale": Given(normal(3, 32), shape=(3, 16), strides=(32, 1)),
            "shift": Given(normal(3, 32, seed=2), shape=(3, 16), strides=(32, 1), offset=16),
        },
        (3, 16, 9, 7),
        {"groups": 8, "eps": 1e-6, "act": "silu"},
        name="modulated",
    ),
    Case("layer_norm", {"x": Given(X), "weight": w(24), "bias": w(24)}, (3, 5, 24), {"eps": 1e-5}),
    Case(
        "layer_norm",
        {
            "x": Given(X),
            "scale": Given(normal(3, 48), shape=(3, 24), strides=(48, 1)),
            "shift": Given(normal(3, 48, seed=2), shape=(3, 24), strides=(48, 1), offset=24),
        },
        (3, 5, 24),
        {"eps": 1e-6},
        name="modulated",
    ),
    Case("rms_norm", {"x": Given(X), "weight": w(24)}, (3, 5, 24), {"eps": 1e-6}),
    Case("softmax", {"x": Given(X)}, (3, 5, 24)),
    Case(
        "attention",
        {
            # One [n, S, 3, H, D] projection, seen as q, k and v.
            "q": Given(normal(3, 10, 3, 2, 8), shape=(3, 2, 10, 8), strides=(480, 8, 48, 1)),
            "k": Given(normal(3, 10, 3, 2, 8), shape=(3, 2, 10, 8), strides=(480, 8, 48, 1), offset=16),
            "v": Given(normal(3, 10, 3, 2, 8), shape=(3, 2, 10, 8), strides=(480, 8, 48, 1), offset=32),
        },
        (3, 2, 10, 8),
        {"scale": 0.35},
    ),
    Case(
        "attention",
        {
            "q": Given(normal(3, 2, 5, 8)),
            "k": Given(normal(3, 2, 300, 8)),
            "v": Given(normal(3, 2, 300, 8, seed=4)),
            "mask": Given(normal(3, 300), shape=(3, 2, 5, 300), strides=(300, 0, 0, 1)),
        },
        (3, 2, 5, 8),
        {"scale": 0.35},
        name="masked",
    ),
    Case("avg_pool2d", {"x": Given(IMAGE)}, (3, 16, 4, 3), {"kernel": [2, 2], "stride": [2, 2]}),
    Case("max_pool2d", {"x": Given(IMAGE)}, (3, 16, 7, 3), {"kernel": [3, 3], "stride": [1, 2]}),
    Case("upsample_nearest", {"x": Given(IMAGE)}, (3, 16, 18, 21), {"factor": [2, 3]}),
    Case("reduce", {"x": Given(X)}, (3, 5), {"kind": "mean", "axes": [2]}),
    Case("reduce", {"x": Given(X)}, (3,), {"kind": "max", "axes": [1, 2]}, name="two axes"),
    Case("embedding", {"index": Given(np.array([[4, 0], [2, 2], [5, 1]])), "w": w(6, 7)}, (3, 2, 7)),
    Case("copy", {"x": Given(X, shape=(3, 24, 5), strides=(120, 1, 24))}, (3, 24, 5), name="transposed"),
    Case("copy", {"x": w(4, 6)}, (4, 6), fixed_out=True, name="a constant"),
    Case("pointwise", {"x0": Given(X), "x1": Given(normal(3, 5, 24, seed=9))}, (3, 5, 24), {"program": PROGRAM}),
    Case(
        "pointwise",
        {"x0": Given(X), "x1": Given(normal(3, 5, 24, seed=9))},
        (3, 5, 24),
        {"program": [["less", 0, 1], ["const", 2.0], ["mul", 0, 3], ["where", 2, 4, 1]]},
        name="where and less",
    ),
    Case(
        "pointwise",
        {
            "x0": Given(X),
            "x1": Given(np.arange(3).reshape(3, 1), shape=(3, 5, 24), strides=(1, 0, 0)),
        },
        (3, 5, 24),
        {"program": [["sin", 1], ["mul", 0, 2]]},
        in_place="x0",
        name="integers, in place",
    ),
]


@pytest.mark.parametrize("isa", ["scalar", None])
@pytest.mark.parametrize("case", CASES, ids=[f"{c.op} {c.name}".strip() for c in CASES])
def test_an_op_is_that_of_the_reference(case, isa):
    from scoregraph.backends.reference import Reference

    plan, constants, values = one_call(case)
    made = Cpu(1, isa).compile(plan, constants).run(values, SEEDS)["out"]
    exact = Reference("float64").compile(plan, constants).run(values, SEEDS)["out"]
    assert made.shape == exact.shape
    assert np.abs(made - exact).max() <= 2e-6 * max(1.0, np.abs(exact).max())
    assert np.array_equal(made, Cpu(2, isa).compile(plan, constants).run(values, SEEDS)["out"])


def test_every_op_has_a_case():
    # test_executor, test_native_noise, test_sampling_ops
    elsewhere = {"noise", "step_time", "step_input", "sampler_step"}
    elsewhere |= {"gram", "quantile", "scalars", "record", "interpolate"}
    elsewhere |= {"quantize", "select_row"}  # test_quantize
    assert {case.op for case in CASES} | elsewhere == set(_native.ops())


@pytest.mark.parametrize(
    ("shape", "attrs", "says"),
    [
        ((4, 4, 8, 16), {"winograd": 4}, "must be 2"),
        ((8, 16, 3, 3), {}, "not \\[4, 4, 3, 16\\]"),
        ((3, 3, 8, 16), {}, "not \\[4, 4, 8, 16\\]"),
        ((4, 4, 8, 15), {}, "not \\[4, 4, 8, 16\\]"),
        ((4, 4, 8, 16), {"up": [2, 2]}, "not \\[3, 3, 8, 16\\]"),
        ((4, 4, 8, 16), {"stride": [2, 2]}, "does not apply"),
        ((4, 4, 8, 16), {"padding": [1, 1, 1, 3]}, "does not apply"),
        ((3, 3, 8, 16), {"up": [2, 2], "padding": [1, 1, 1, 0]}, "does not apply"),
        ((4, 4, 8, 16), {"chain": 1}, "chain"),
    ],
)
def test_transformed_weights_that_do_not_fit_are_refused(shape, attrs, says):
    attrs = {"stride": [1, 1], "padding": [1] * 4, "up": [1, 1], "winograd": 2, **attrs}
    plan, constants, _ = one_call(Case("conv2d", {"x": Given(IMAGE), "w": w(*shape)}, (3, 8, 9, 7), attrs))
    with pytest.raises(PlanCorrupt, match=says):
        Cpu(1).compile(plan, constants)


def test_an_index_out_of_range_names_the_layer():
    case = Case("embedding", {"index": Given(np.array([[4], [6], [0]])), "w": w(6, 7)}, (3, 1, 7))
    plan, constants, values = one_call(case)
    with pytest.raises(IndexOutOfRange, match="here looks up row 6 of a table with 6 rows"):
        Cpu(1).compile(plan, constants).run(values, SEEDS)
