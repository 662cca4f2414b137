"""The Triton programs compiled and run on a card, against the interpreter and float64."""

import numpy as np
import pytest
from loop_plans import everything, guided_then_single_then_noise, halving, inputs
from triton_plans import LABEL, SEEDS, Sketch, expected, two_layers

from scoregraph.graph import noise
from scoregraph.plan.dims import Batch

pytest.importorskip("triton")
pytestmark = pytest.mark.gpu


def test_noise_bits() -> None:
    sketch = Sketch()
    sketch.begin("once")
    x = sketch.new((Batch(1), 1 << 20))
    sketch.call("noise", {}, {"x": x}, {"site": 3, "micro": 5, "scale": 1.0})
    sketch.output("x", x)
    seeds = np.array(SEEDS, np.uint64)
    got = sketch.program(interpret=False).run({}, seeds)["x"]
    want = noise.normals(seeds, site=3, micro=5, count=1 << 20)
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


def test_sampler_step_bits() -> None:
    """The register machine has no freedom in its roundings: a card and the interpreter agree in every bit."""
    rng = np.random.default_rng(0)
    sketch = Sketch()
    number = sketch.table("loop", [f"c{i}" for i in range(11)], rng.standard_normal((5, 11)))
    registers = [sketch.input(f"r{j}", sketch.new((Batch(1), 5000))) for j in range(2)]
    prediction = sketch.input("p", sketch.new((Batch(2), 5000)))
    sketch.begin("loop", number)
    named = dict(zip(("r0", "r1"), registers, strict=True))
    attrs = {"table": number, "a": 1, "b": 5, "c": 9, "cin": -1, "site": 6}
    sketch.call("sampler_step", {**named, "p0": prediction}, named, attrs)
    for name, register in named.items():
        sketch.output(name, register)
    inputs = {name: rng.standard_normal((3, 5000), dtype=np.float32) for name in named}
    inputs["p"] = rng.standard_normal((6, 5000), dtype=np.float32)
    seeds = np.array(SEEDS, np.uint64)
    got = sketch.program(interpret=False).run(inputs, seeds)
    want = sketch.program(interpret=True).run(inputs, seeds)
    for name in named:
        np.testing.assert_array_equal(got[name], want[name])


@pytest.mark.parametrize("form", [{}, {"bank": True}, {"some": True}, {"per_sample": True}], ids=str)
def test_a_step_with_everything(form: dict[str, bool]) -> None:
    """Estimates, a program, statistics, records: in the interpreter's bits; sums of products to rounding."""
    sketch = everything(5000, **form)
    ins, seeds = inputs(sketch, 3), np.array(SEEDS, np.uint64)
    want = sketch.program(interpret=True).run(ins, seeds)
    got = sketch.program(interpret=False).run(ins, seeds)
    for name, value in want.items():
        if form.get("per_sample") or name in ("sums", "made"):
            np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=2e-5)
        else:
            np.testing.assert_array_equal(got[name], value)


@pytest.mark.parametrize("sketch", [guided_then_single_then_noise(), halving(limit=9)], ids=["variants", "rounds"])
def test_variants_and_rounds(sketch: Sketch) -> None:
    seeds = np.array(SEEDS, np.uint64)
    given = {"x": np.linspace(1, 40, 9, dtype=np.float32).reshape(3, 3)}
    if len(sketch.inputs) == 2:
        given = {"x": given["x"][:, 0].copy(), "active": np.ones(3, np.float32)}
    programs = [sketch.program(interpret=interpret) for interpret in (False, True)]
    got, want = (program.run(given, seeds)["x"] for program in programs)
    np.testing.assert_array_equal(got, want)
    assert programs[0].counters() == programs[1].counters()


def test_two_layer_network_end_to_end() -> None:
    got = two_layers().program(interpret=False).run({"label": LABEL}, np.array(SEEDS, np.uint64))["x"]
    want = expected(LABEL, SEEDS)
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert error < 1e-5, error


def test_nothing_in_the_loop_waits_for_the_card() -> None:
    """From the first step's end to the last one's, torch raises on every synchronising call."""
    import torch

    def progress(done: int, total: int) -> None:
        torch.cuda.set_sync_debug_mode("default" if done == total else "error")

    program = two_layers().program(interpret=False)
    inputs, seeds = {"label": LABEL}, np.array(SEEDS, np.uint64)
    first = program.run(inputs, seeds)["x"]  # compiles the kernels, which may wait
    try:
        again = program.run(inputs, seeds, progress)["x"]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    np.testing.assert_array_equal(again, first)
