"""A two-layer score network with guidance and a stochastic sampler, end to end on the Triton backend."""

import re
import threading

import numpy as np
import pytest
from loop_plans import guided_then_single_then_noise, halving
from triton_plans import LABEL, SEEDS, SITE, WIDTH, Sketch, expected, two_layers

from scoregraph.backends.reference.program import Precision, Reference
from scoregraph.backends.triton import TritonBackend
from scoregraph.backends.triton.expression import BINARY, POWERS, TERNARY, UNARY
from scoregraph.errors import Cancelled, LoopUnfinished
from scoregraph.graph import noise
from scoregraph.plan.dims import Batch

pytest.importorskip("triton")


def test_two_layer_network_end_to_end() -> None:
    """The noise bit for bit; eight guided stochastic steps to 1e-5 of float64."""
    got = two_layers().run(SEEDS, label=LABEL)
    start = noise.normals(np.array(SEEDS, np.uint64), site=SITE, micro=0, count=WIDTH)
    np.testing.assert_array_equal(got["first"], np.float32(10.0) * start)
    want = expected(LABEL, SEEDS)
    error = np.linalg.norm(got["x"] - want) / np.linalg.norm(want)
    assert error < 1e-5, error


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_reference_backend_agrees_on_the_same_plan(precision: Precision) -> None:
    plan, constants = two_layers().data()
    inputs, seeds = {"label": LABEL}, np.array(SEEDS, np.uint64)
    want = Reference(precision).compile(plan, constants).run(inputs, seeds)
    got = TritonBackend(interpret=True).compile(plan, constants).run(inputs, seeds)
    np.testing.assert_array_equal(got["first"], want["first"].astype(np.float32))
    error = np.linalg.norm(got["x"] - want["x"]) / np.linalg.norm(want["x"])
    assert error < 1e-5, error


def test_a_sample_does_not_depend_on_its_batch_nor_on_the_run_before() -> None:
    program = two_layers().program()
    whole = program.run({"label": LABEL}, np.array(SEEDS, np.uint64))["x"]
    for i in (2, 0):
        alone = program.run({"label": LABEL[i : i + 1]}, np.array(SEEDS[i : i + 1], np.uint64))["x"]
        np.testing.assert_array_equal(alone[0], whole[i])
    again = program.run({"label": LABEL}, np.array(SEEDS, np.uint64))["x"]
    np.testing.assert_array_equal(again, whole)


LOOPS = {
    "variants": (guided_then_single_then_noise(), {"x": np.array([[1.0, -2.0, 0.5]] * 3, np.float32)}),
    "rounds": (halving(limit=9), {"x": np.array([9.0, 0.1, 40.0], np.float32), "active": np.ones(3, np.float32)}),
    "limit": (halving(limit=2, table=False), {"x": np.full(3, 90.0, np.float32), "active": np.ones(3, np.float32)}),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_variants_and_rounds_are_those_of_the_reference(loop: str) -> None:
    sketch, inputs = LOOPS[loop]
    seeds, told = np.array(SEEDS, np.uint64), ([], [])
    programs = [TritonBackend(interpret=True).compile(*sketch.data()), Reference("float32").compile(*sketch.data())]
    got, want = (
        program.run(inputs, seeds, lambda *step, list_=list_: list_.append(step))
        for program, list_ in zip(programs, told, strict=True)
    )
    np.testing.assert_array_equal(got["x"], want["x"])
    assert told[0] == told[1]
    assert programs[0].counters() == programs[1].counters()


def test_a_loop_that_must_end_and_does_not_is_an_error() -> None:
    inputs = {"x": np.array([0.5, 900.0, 900.0], np.float32), "active": np.ones(3, np.float32)}
    with pytest.raises(LoopUnfinished, match="after 2 rounds: 2 of 3 samples"):
        halving(limit=2, strict=True).program().run(inputs, np.array(SEEDS, np.uint64))


def test_progress_counts_steps_and_cancel_ends_them() -> None:
    told: list[tuple[int, int]] = []
    stop = threading.Event()

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        if done == 3:
            stop.set()

    with pytest.raises(Cancelled, match="after 3 of 8 steps"):
        two_layers().program().run({"label": LABEL[:1]}, np.array([1], np.uint64), progress, stop)
    assert told == [(1, 8), (2, 8), (3, 8)]


def test_source_shows_every_launch_and_the_text_of_every_kernel() -> None:
    text = two_layers().program().source()
    assert text.startswith("# sketch: 11 launches")
    assert "steps: for row in range(8)" in text
    assert "linear[1×1](x=float32[2, 8], w=float32[40, 8]" in text
    assert "v1 = tl.sin(v0)" in text  # generated
    assert "def sampler_step(" in text  # written


@pytest.mark.parametrize("capability", [80, 90])
def test_every_launch_compiles_ahead_of_time_to_a_cubin(capability: int) -> None:
    """What the program would launch on a card, specialised as it would be, becomes machine code here."""
    built = {}
    for part in two_layers().program().launches(batch=1).parts:
        for launch in part.rows[0]:
            if launch.kernel.name not in built:
                built[launch.kernel.name] = launch.compile(capability)
    assert set(built) == {"noise", "copy", "fill", "step_input", "step_time", "pointwise", "linear", "sampler_step"}
    for stages in built.values():
        assert stages["cubin"][:4] == b"\x7fELF"
        assert f".target sm_{capability}" in stages["ptx"]
    assert not re.search(r"\bfma\b|approx|ftz", built["sampler_step"]["ptx"])
    assert "fma.rn.f32" in built["linear"]["ptx"] or "mma" in built["linear"]["ptx"]


def compiled(sketch: Sketch) -> list[str]:
    """The PTX for Hopper of each launch of a sketch of one segment."""
    (part,) = sketch.program().launches(batch=1).parts
    return [launch.compile(90)["ptx"] for launch in part.rows[0]]


def test_every_pointwise_instruction_compiles() -> None:
    """One program of all of them: what the interpreter accepts, the compiler does too."""
    sketch = Sketch()
    x, y = sketch.new((Batch(1), 8)), sketch.new((Batch(1), 8))
    sketch.begin("once")
    program = [[name, i] for i, name in enumerate(UNARY, start=1)]
    program += [[name, i, i - 1] for i, name in enumerate(BINARY, start=1 + len(program))]
    program += [[name, i, i - 1, i - 2] for i, name in enumerate(TERNARY, start=1 + len(program))]
    for power in POWERS:
        last = 1 + len(program)
        program += [["const", power], ["pow", last, last + 1]]
    sketch.call("pointwise", {"x0": x, "x1": x}, {"y": y}, {"program": program})
    (ptx,) = compiled(sketch)
    assert "st.global" in ptx


@pytest.mark.parametrize("act", ["none", "silu", "gelu_tanh", "gelu_erf", "relu", "tanh", "sigmoid"])
def test_linear_compiles_with_every_operand(act: str) -> None:
    sketch = Sketch()
    x, y, residual = (sketch.new((Batch(1), 4, n)) for n in (48, 64, 64))
    w, bias = sketch.constant(np.ones((64, 48), np.float32), "w"), sketch.constant(np.ones(64, np.float32), "b")
    gate = sketch.new((Batch(1), 64))
    sketch.begin("once")
    ins = {"x": x, "w": w, "bias": bias, "residual": residual, "gate": gate}
    sketch.call("linear", ins, {"y": y}, {"act": act})
    (ptx,) = compiled(sketch)
    assert "tf32" not in ptx  # float32 products, not the tensor cores' ten-bit ones


@pytest.mark.parametrize("dtype", ["f32", "i64", "u8"])
def test_copy_compiles_for_every_dtype(dtype: str) -> None:
    sketch = Sketch()
    x, y = sketch.new((Batch(1), 8), dtype), sketch.new((Batch(1), 8), dtype)
    sketch.begin("once")
    sketch.call("copy", {"x": x}, {"y": y})
    (ptx,) = compiled(sketch)
    assert {"f32": "b32", "i64": "b64", "u8": "b8"}[dtype] in ptx
