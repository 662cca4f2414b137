"""A small, real plan written by hand: guided noise through a two-layer network, eight steps of a two-register sampler.

It is the subject of the executor's tests; nothing here comes from the compiler.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from scoregraph.graph import noise

ROWS, WIDTH, HIDDEN, BRANCHES = 8, 24, 40, 2
SITE = 5


@dataclass(frozen=True)
class SmallPlan:
    """The plan as JSON data, and its constants as one file of 64-byte aligned blocks."""

    body: dict[str, Any]
    constants: bytes

    def json(self) -> bytes:
        return json.dumps(self.body).encode()

    def mutable(self) -> dict[str, Any]:
        return copy.deepcopy(self.body)


def pack_n16(w: np.ndarray) -> np.ndarray:
    """[N, K] as [ceil(N/16)][K][16], padded with zeros."""
    n, k = w.shape
    padded = np.zeros((-(-n // 16) * 16, k), np.float32)
    padded[:n] = w
    return np.ascontiguousarray(padded.reshape(-1, 16, k).transpose(0, 2, 1))


def weights() -> dict[str, np.ndarray]:
    """The network's weights and the table, by name."""
    rng = np.random.default_rng(3)
    table = np.zeros((ROWS, 2 + 4 + 4 + 2), np.float32)
    steps = np.arange(ROWS)
    table[:, 0] = 1.0 - steps / ROWS  # t
    table[:, 1] = 1.0 / np.sqrt(1.0 + (1.0 - steps / ROWS) ** 2)  # c_in
    # A [2, 2]: x' = 0.9 x + 0.05 old, old' = x
    table[:, 2:6] = (0.9, 0.05, 1.0, 0.0)
    # B [2, 2]: guidance 1.5 folded in; the second register takes no prediction.
    table[:, 6:10] = (-0.15 * 1.5, 0.15 * 0.5, 0.0, 0.0)
    table[:, 10] = np.where(steps < ROWS - 1, 0.1, 0.0)  # C: no noise in the last step
    return {
        "w1": (rng.standard_normal((HIDDEN, WIDTH)) / 5).astype(np.float32),
        "b1": rng.standard_normal(HIDDEN).astype(np.float32),
        "w2": (rng.standard_normal((WIDTH, HIDDEN)) / 6).astype(np.float32),
        "b2": rng.standard_normal(WIDTH).astype(np.float32),
        "table": table,
    }


def small_plan() -> SmallPlan:
    """The plan. Input ``level`` [B, 1] shifts the conditional branch; output ``x`` [B, WIDTH] has the view ``half``."""
    w = weights()
    blocks: list[bytes] = []
    constants: list[dict[str, Any]] = []
    at = 0
    for number, (name, layout) in enumerate(
        [("w1", "n16"), ("b1", "plain"), ("w2", "n16"), ("b2", "plain"), ("table", "plain")]
    ):
        raw = (pack_n16(w[name]) if layout == "n16" else w[name]).tobytes()
        constants.append(
            {
                "id": number,
                "name": name,
                "shape": list(w[name].shape),
                "layout": layout,
                "offset": at,
                "nbytes": len(raw),
            }
        )
        blocks.append(raw + bytes(-len(raw) % 64))
        at += len(blocks[-1])

    buffers: list[dict[str, Any]] = []
    offsets = {"batch": 0, "fixed": 0}

    def buffer(name: str, shape: list[int | str]) -> str:
        space = "batch" if any(isinstance(d, str) for d in shape) else "fixed"
        count = int(np.prod([int(d[:-1] or 1) if isinstance(d, str) else d for d in shape]))
        slot = {"space": space, "offset": offsets[space]}
        offsets[space] += -(-4 * count // 64) * 64
        buffers.append({"id": len(buffers), "name": name, "shape": shape, "slot": slot})
        return f"b{len(buffers) - 1}"

    def view(name: str, base: str, shape: list[int | str], offset: int, strides: list[int]) -> str:
        window = {"base": int(base[1:]), "offset": offset, "strides": strides}
        buffers.append({"id": len(buffers), "name": name, "shape": shape, "view": window})
        return f"b{len(buffers) - 1}"

    level = buffer("level", ["B", 1])
    x, old = buffer("x", ["B", WIDTH]), buffer("old", ["B", WIDTH])
    xin = buffer("xin", ["2B", WIDTH])
    time = buffer("time", [1])
    shifted = buffer("shifted", ["2B", WIDTH])
    hidden, answer = buffer("hidden", ["2B", HIDDEN]), buffer("answer", ["2B", WIDTH])
    out = buffer("out", ["B", WIDTH])
    # Only dense operands may be written in place, so the shifted branch takes a buffer of its own on the way.
    summed = buffer("summed", ["B", WIDTH])
    time_everywhere = view("time", time, ["2B", WIDTH], 0, [0, 0])
    # Branch 0 of each sample is the conditional one.
    conditional = view("conditional", shifted, ["B", WIDTH], 0, [2 * WIDTH, 1])
    level_wide = view("level", level, ["B", WIDTH], 0, [1, 0])
    half = view("half", out, ["B", WIDTH // 2], 0, [WIDTH, 2])

    def call(op: str, ins: dict[str, str], outs: dict[str, str], where: str, /, **attrs: Any) -> dict[str, Any]:
        return {"op": op, "ins": ins, "outs": outs, "attrs": attrs, "site": where}

    loop = [
        call("step_time", {}, {"t": time}, "clock", table=0, column=0),
        call("pointwise", {"x0": xin, "x1": time_everywhere}, {"y": shifted}, "embed", program=[["add", 0, 1]]),
        call(
            "pointwise",
            {"x0": conditional, "x1": level_wide},
            {"y": summed},
            "condition",
            program=[["tanh", 1], ["add", 0, 2]],
        ),
        call("copy", {"x": summed}, {"y": conditional}, "condition"),
        call("linear", {"x": shifted, "w": "c0", "bias": "c1"}, {"y": hidden}, "net.0", act="silu"),
        call("linear", {"x": hidden, "w": "c2", "bias": "c3"}, {"y": answer}, "net.1"),
        call(
            "sampler_step",
            {"r0": x, "r1": old, "p0": answer},
            {"r0": x, "r1": old, "xin0": xin},
            "step",
            table=0,
            a=2,
            b=6,
            c=10,
            cin=1,
            site=SITE,
        ),
    ]
    body = {
        "format": "scoregraph-plan",
        "version": 3,
        "name": "small",
        "device": "cpu",
        "inputs": [{"name": "level", "buffer": int(level[1:]), "low": -10.0, "high": 10.0}],
        "outputs": [{"name": "x", "buffer": int(out[1:])}, {"name": "half", "buffer": int(half[1:])}],
        "buffers": buffers,
        "constants": constants,
        "tables": [
            {
                "id": 0,
                "name": "steps",
                "rows": ROWS,
                "columns": ["t", "c_in", "a0_0", "a0_1", "a1_0", "a1_1", "b0_0", "b0_1", "b1_0", "b1_1", "c0", "c1"],
                "constant": 4,
            }
        ],
        "segments": [
            {
                "name": "start",
                "calls": [
                    call("noise", {}, {"x": x}, "start", site=SITE - 1, micro=0, scale=2.0),
                    call("fill", {}, {"x": old}, "start", value=0.0),
                    call("step_input", {"x": x}, {"xin": xin}, "start", table=0, column=1, row=0),
                ],
            },
            {"name": "loop", "table": 0, "calls": loop},
            {"name": "end", "calls": [call("copy", {"x": x}, {"y": out}, "end")]},
        ],
    }
    return SmallPlan(body, b"".join(blocks))


def expected(level: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The same trajectory in float64 numpy (the noise is exact): [B, WIDTH]."""
    w = {name: value.astype(np.float64) for name, value in weights().items()}
    x = 2.0 * noise.normals(seeds, SITE - 1, 0, WIDTH).astype(np.float64)
    old = np.zeros_like(x)
    for row in range(ROWS):
        t, c_in, a00, a01, a10, a11, b00, b01, _, _, c0, _ = w["table"][row]
        net_in = np.stack([c_in * x + t + np.tanh(level), c_in * x + t], axis=1)
        hidden = net_in @ w["w1"].T + w["b1"]
        hidden = hidden / (1.0 + np.exp(-hidden))
        m = hidden @ w["w2"].T + w["b2"]
        z = noise.normals(seeds, SITE, row, WIDTH).astype(np.float64)
        x, old = a00 * x + a01 * old + b00 * m[:, 0] + b01 * m[:, 1] + c0 * z, a10 * x + a11 * old
    return x
