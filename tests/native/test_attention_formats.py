"""`attention` in float32, bf16 and 8 bits inside Rust: q, k and v as slices of one buffer, y into a slice, masks.

float64 says what they should be; the reference backend, which rounds as docs/plan-format.md does, what a format loses.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scoregraph.backends.cpu import Cpu
from scoregraph.backends.reference import Reference
from scoregraph.errors import BadMachineSetting, PlanCorrupt
from scoregraph.passes.base import run_passes
from scoregraph.passes.lower.shape import narrow, permute
from scoregraph.passes.plan.pipeline import memory_passes
from scoregraph.plan import files
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Drafter, Value
from scoregraph.plan.schema import InputSpec, OutputSpec, Plan

pytestmark = pytest.mark.native

ISAS = ("scalar", "avx2", "avxvnni", "avx512", "avx512vnni")
BATCH = 2
LEAST = {"f32": 110.0, "bf16": 42.0, "i8": 33.0}
"""Decibels of each format on normal numbers."""
CASES = {
    "a transformer": (5, 40, 40, 32, False),
    "padded context": (2, 24, 77, 40, True),
    "one query, several blocks": (3, 1, 300, 64, False),
    "narrow head": (2, 9, 33, 8, True),
    "wide head": (1, 17, 20, 160, False),
}


def mask(keys: int) -> np.ndarray:
    """The second half of the keys is padding."""
    return np.where(np.arange(keys) < keys // 2, 0.0, -math.inf).astype(np.float32)


def made(
    heads: int, queries: int, keys: int, dim: int, masked: bool, form: str
) -> tuple[Plan, bytes, dict[str, np.ndarray]]:
    """A plan of one attention that reads q, k and v out of one buffer, as a merged projection leaves them."""
    d = Drafter("attention", "cpu")
    d.begin("once")
    tokens = max(queries, keys)
    inputs: dict[str, np.ndarray] = {}

    def given(name: str, value: np.ndarray) -> Value:
        inputs[name] = value.astype(np.float32)
        x = d.new((Batch(), *value.shape[1:]), name=name)
        d.inputs.append(InputSpec(name=name, buffer=int(x.storage[1:])))
        return x

    rng = np.random.default_rng((heads, queries, keys, dim))
    merged = given("merged", rng.standard_normal((BATCH, tokens, 3, heads, dim)))

    def part(which: int, count: int) -> Value:
        of = narrow(narrow(merged, 2, which, 1), 1, 0, count)
        row = Value(of.storage, (Batch(), count, heads, dim), (*of.strides[:2], *of.strides[3:]), of.offset)
        return permute(row, (0, 2, 1, 3))

    ins = {"q": part(0, queries), "k": part(1, keys), "v": part(2, keys)}
    if masked:
        # A constant: what users give must be finite.
        padding = d.new((keys,))
        d.call("copy", {"x": d.constant(mask(keys), "mask")}, {"y": padding})
        ins["mask"] = Value(padding.storage, (Batch(), heads, queries, keys), (0, 0, 0, 1))
    y = d.new((Batch(), queries, heads, dim))
    d.call("attention", ins, {"y": permute(y, (0, 2, 1, 3))}, {"scale": dim**-0.5, "format": form})
    d.outputs.append(OutputSpec(name="y", buffer=int(y.storage[1:])))
    draft, _ = run_passes(memory_passes("cpu"), d.build(), show=lambda _: "")
    plan, constants = files.lay_out(draft.plan, draft.arrays)
    return plan, constants, inputs


def exact(inputs: dict[str, np.ndarray], queries: int, keys: int, masked: bool) -> np.ndarray:
    """The answer in float64."""
    q, k, v = torch.from_numpy(inputs["merged"]).double().permute(2, 0, 3, 1, 4)
    q, k, v = q[..., :queries, :], k[..., :keys, :], v[..., :keys, :]
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if masked:
        scores = scores + torch.from_numpy(mask(keys)).double()
    return (scores.softmax(-1) @ v).transpose(1, 2).numpy()


def decibels(got: np.ndarray, want: np.ndarray) -> float:
    return 10 * math.log10(np.square(want).sum() / np.square(got - want).sum())


def answers(plan: Plan, constants: bytes, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of every instruction set of this machine, the same for one thread and two."""
    found: dict[str, np.ndarray] = {}
    seeds = np.zeros(BATCH, np.uint64)
    for isa in ISAS:
        try:
            one, two = (Cpu(threads, isa).compile(plan, constants) for threads in (1, 2))
        except BadMachineSetting:
            continue  # not an instruction set of this machine
        found[isa] = one.run(inputs, seeds)["y"]
        np.testing.assert_array_equal(two.run(inputs, seeds)["y"], found[isa], err_msg=isa)
    assert len(found) >= 2
    return found


@pytest.mark.parametrize("form", LEAST)
@pytest.mark.parametrize("case", CASES)
def test_formats_lose_what_they_may(case: str, form: str):
    shape = CASES[case]
    plan, constants, inputs = made(*shape, form)
    want = exact(inputs, shape[1], shape[2], shape[4])
    oracle = Reference().compile(plan, constants).run(inputs, np.zeros(BATCH, np.uint64))["y"]
    for isa, got in answers(plan, constants, inputs).items():
        lost = decibels(got.astype(np.float64), want)
        assert lost >= LEAST[form], f"{isa}: {lost:.1f} dB"
        # XX to one another than to the truth.
        apart = decibels(got.astype(np.float64), oracle.astype(np.float64))
        assert apart >= min(lost - 1.0, 120.0), f"{isa}: {apart:.1f} dB from the reference, {lost:.1f} dB lost"


def test_integers_are_the_same_on_all_vectors():
    plan, constants, inputs = made(*CASES["a transformer"], "i8")
    found = answers(plan, constants, inputs)
    found.pop("scalar")  # does not fuse multiply-adds
    first = next(iter(found.values()))
    for isa, got in found.items():
        np.testing.assert_array_equal(got, first, err_msg=isa)


def test_an_unknown_format_is_refused():
    plan, constants, _ = made(*CASES["narrow head"], "i4")
    with pytest.raises(PlanCorrupt, match="format"):
        Cpu(1).compile(plan, constants)
