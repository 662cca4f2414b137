"""`quantize`, `select_row` and norms that quantize: bytes and grids against numpy, on every instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from scoregraph import _native
from scoregraph.backends.cpu import Cpu
from scoregraph.plan.schema import Plan

pytestmark = pytest.mark.native

BATCH = 3
SEEDS = np.arange(BATCH, dtype=np.uint64)
FEATURES = _native.cpu_features()
ISAS = [
    "scalar",
    *(["avx2"] if FEATURES["avx2"] and FEATURES["fma"] else []),
    *(["avx512"] if FEATURES["avx512vl"] else []),
]
SIZES = {"f32": 4, "u8": 1}

Shape = tuple[int | str, ...]


class OneCall:
    """A plan of one call over inputs and outputs named by their roles."""

    def __init__(self) -> None:
        self.buffers: list[dict[str, Any]] = []
        self.constants: list[dict[str, Any]] = []
        self.blob = b""
        self.ends = {"batch": 0, "fixed": 0}

    def buffer(self, shape: Shape, dtype: str = "f32") -> int:
        """A buffer of any shape; "B" is the batch."""
        batched = [int(d[:-1] or 1) if isinstance(d, str) else d for d in shape]
        space = "batch" if any(isinstance(d, str) for d in shape) else "fixed"
        slot = {"space": space, "offset": self.ends[space]}
        self.ends[space] += -(-int(np.prod(batched)) * SIZES[dtype] // 64) * 64
        number = len(self.buffers)
        self.buffers.append({"id": number, "name": f"v{number}", "dtype": dtype, "shape": list(shape), "slot": slot})
        return number

    def view(self, base: int, shape: Shape, strides: tuple[int, ...], offset: int = 0) -> int:
        number = len(self.buffers)
        view = {"base": base, "offset": offset, "strides": list(strides)}
        dtype = self.buffers[base]["dtype"]
        self.buffers.append({"id": number, "name": f"v{number}", "dtype": dtype, "shape": list(shape), "view": view})
        return number

    def constant(self, array: np.ndarray) -> str:
        raw = array.astype(np.float32).tobytes()
        number = len(self.constants)
        place = {"offset": len(self.blob), "nbytes": len(raw), "shape": list(array.shape)}
        self.constants.append({"id": number, "name": f"c{number}", **place})
        self.blob += raw + bytes(-len(raw) % 64)
        return f"c{number}"

    def run(
        self,
        call: dict[str, Any],
        inputs: dict[str, tuple[int, np.ndarray]],
        outputs: dict[str, int],
        batch: int = BATCH,
    ) -> dict[str, np.ndarray]:
        """The outputs: the same bits on every instruction set and number of threads, which is asserted."""
        plan = Plan.model_validate(
            {
                "name": "one call",
                "device": "cpu",
                "inputs": [{"name": name, "buffer": number} for name, (number, _) in inputs.items()],
                "outputs": [{"name": name, "buffer": number} for name, number in outputs.items()],
                "buffers": self.buffers,
                "constants": self.constants,
                "segments": [{"name": "only", "calls": [{**call, "site": "here"}]}],
            }
        )
        given = {name: value for name, (_, value) in inputs.items()}
        seeds = np.arange(batch, dtype=np.uint64)
        made = [Cpu(threads, isa).compile(plan, self.blob).run(given, seeds) for isa in ISAS for threads in (1, 3)]
        if call["op"] == "quantize":
            for other in made[1:]:
                for name, value in made[0].items():
                    np.testing.assert_array_equal(other[name], value)
        return made[-1]


def spanned(groups: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """The grid of docs/plan-format.md for each row of ``groups``, and inv."""
    lo = np.minimum(groups.min(axis=1), np.float32(0))
    hi = np.maximum(groups.max(axis=1), np.float32(0))
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inv = np.float32(top) / (hi - lo)
        empty, broken = np.isinf(inv), ~np.isfinite(hi - lo)
        inv = np.where(empty | broken, np.float32(0), inv)
        zero = np.where(empty | broken, np.float32(0), np.rint(-lo * inv))
        scale = np.where(empty, np.float32(0), np.where(broken, np.float32(np.nan), (hi - lo) / np.float32(top)))
    return np.stack([scale, zero + np.float32(0)], axis=1), inv


def quantized(x: np.ndarray, grids: int, top: int = 255) -> tuple[np.ndarray, np.ndarray]:
    """Bytes in the shape of x, and the grid that was measured."""
    groups = x.reshape(grids, -1)
    grid, inv = spanned(groups, top)
    with np.errstate(invalid="ignore"):
        moved = np.rint(groups * inv[:, None]) + grid[:, 1:]
    return np.clip(np.nan_to_num(moved), 0, top).astype(np.uint8).reshape(x.shape), grid


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("grid_rows", "grids"), [("5B", 15), ("B", 3), (1, 1)])
def test_rows_measure_their_grids(grid_rows: int | str, grids: int) -> None:
    x = normal(BATCH, 5, 70)
    x[1, 2] = 0
    x[2, 4, 69] = 1e4
    plan = OneCall()
    source, y, grid = plan.buffer(("B", 5, 70)), plan.buffer(("B", 5, 70), "u8"), plan.buffer((grid_rows, 2))
    call = {"op": "quantize", "ins": {"x": f"b{source}"}, "outs": {"y": f"b{y}", "ygrid": f"b{grid}"}}
    made = plan.run(call, {"x": (source, x)}, {"y": y, "grid": grid})
    bytes_, wanted = quantized(x, grids)
    np.testing.assert_array_equal(made["y"], bytes_)
    np.testing.assert_array_equal(made["grid"], wanted)


def test_rows_of_a_window_keep_a_given_grid() -> None:
    x = 3 * normal(BATCH, 5, 24)
    plan = OneCall()
    source, y = plan.buffer(("B", 5, 24)), plan.buffer(("B", 4, 7), "u8")
    window = plan.view(source, ("B", 4, 7), (120, 24, 1), 26)
    grid = plan.constant(np.array([[0.02, 100.0]]))
    call = {"op": "quantize", "ins": {"x": f"b{window}", "ygrid": grid}, "outs": {"y": f"b{y}"}}
    made = plan.run(call, {"x": (source, x)}, {"y": y})
    inv = np.float32(1) / np.float32(0.02)
    np.testing.assert_array_equal(made["y"], np.clip(np.rint(x[:, 1:5, 2:9] * inv) + 100, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("channels", [3, 8])
def test_images_become_quads(channels: int) -> None:
    x = normal(BATCH, channels, 6, 5)
    quads = -(-channels // 4)
    plan = OneCall()
    source, grid = plan.buffer(("B", channels, 6, 5)), plan.buffer(("B", 2))
    y = plan.buffer(("B", quads, 6, 5, 4), "u8")
    call = {"op": "quantize", "ins": {"x": f"b{source}"}, "outs": {"y": f"b{y}", "ygrid": f"b{grid}"}}
    made = plan.run(call, {"x": (source, x)}, {"y": y, "grid": grid})
    bytes_, wanted = quantized(x, BATCH)
    stored = np.zeros((BATCH, 4 * quads, 6, 5), np.uint8)
    stored[:, :channels] = bytes_
    np.testing.assert_array_equal(made["y"], stored.reshape(BATCH, quads, 4, 6, 5).transpose(0, 1, 3, 4, 2))
    np.testing.assert_array_equal(made["grid"], wanted)


def test_what_is_not_finite_is_not_lost() -> None:
    x = normal(BATCH, 4, 20)
    x[0, 0, 3], x[1, 1, 19], x[2, 2, 0], x[0, 3, 5:7] = np.nan, np.inf, -np.inf, (3e38, -3e38)
    plan = OneCall()
    source, y, grid = plan.buffer(("B", 4, 20)), plan.buffer(("B", 4, 20), "u8"), plan.buffer(("4B", 2))
    call = {"op": "quantize", "ins": {"x": f"b{source}"}, "outs": {"y": f"b{y}", "ygrid": f"b{grid}"}}
    # Inputs of a plan must be finite, so the numbers come as a constant.
    call["ins"]["x"] = plan.constant(x.reshape(1, 12, 20))
    plan.buffers[y]["shape"], plan.buffers[y]["slot"] = [1, 12, 20], {"space": "fixed", "offset": 0}
    plan.buffers[grid]["shape"], plan.buffers[grid]["slot"] = [12, 2], {"space": "fixed", "offset": 256}
    made = plan.run(call, {"unused": (source, normal(BATCH, 4, 20))}, {"y": y, "grid": grid})
    bytes_, wanted = quantized(x.reshape(12, 20), 12)
    np.testing.assert_array_equal(made["grid"], wanted)
    assert np.isnan(made["grid"][:, 0]).sum() == 4
    lost = np.isnan(wanted[:, 0])
    np.testing.assert_array_equal(made["y"][0][~lost], bytes_[~lost])
    assert not made["y"][0][lost].any()


@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("measured", [True, False])
def test_norms_write_bytes(op: str, measured: bool) -> None:
    x, scale, shift = 2 + normal(BATCH, 6, 48), normal(BATCH, 48), normal(BATCH, 1, 48)[:, 0]
    plan = OneCall()
    source, y, grid = plan.buffer(("B", 6, 48)), plan.buffer(("B", 6, 48), "u8"), plan.buffer(("6B", 2))
    scales, shifts = plan.buffer(("B", 48)), plan.buffer(("B", 48))
    ins = {"x": f"b{source}", "scale": f"b{scales}", "shift": f"b{shifts}"}
    outs = {"y": f"b{y}"}
    (outs if measured else ins)["ygrid"] = f"b{grid}" if measured else plan.constant(np.array([[0.05, 128.0]]))
    inputs = {"x": (source, x), "scale": (scales, scale), "shift": (shifts, shift)}
    call = {"op": op, "ins": ins, "outs": outs, "attrs": {"eps": 1e-6}}
    made = plan.run(call, inputs, {"y": y, **({"grid": grid} if measured else {})})
    wide = x.astype(np.float64)
    if op == "layer_norm":
        wide = wide - wide.mean(-1, keepdims=True)
    normed = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6)
    want = normed * (1 + scale[:, None]) + shift[:, None]
    rows = made["grid"].reshape(BATCH, 6, 2).astype(np.float64) if measured else np.array([0.05, 128.0])
    if measured:
        exact, _ = spanned(want.astype(np.float32).reshape(18, 48), 255)
        np.testing.assert_allclose(made["grid"], exact, rtol=1e-5, atol=1)
    # Half a step of the grid, and the rounding of the norm itself; a static grid clamps.
    value = rows[..., :1] * (made["y"] - rows[..., 1:])
    low, high = -rows[..., 1:] * rows[..., :1], (255 - rows[..., 1:]) * rows[..., :1]
    assert (np.abs(value - np.clip(want, low, high)) <= 0.501 * rows[..., :1] + 1e-5).all()
