"""The register machine with everything that may belong to it, statistics and records: Triton against the reference."""

import re

import numpy as np
import pytest
from loop_plans import everything, inputs
from triton_plans import SEEDS, Sketch

from scoregraph.backends.reference.program import Reference
from scoregraph.backends.triton import TritonBackend
from scoregraph.plan.dims import Batch
from scoregraph.plan.schema import Call

pytest.importorskip("triton")

B = Batch(1)
FORMS = [{}, {"per_sample": True}, {"bank": True}, {"some": True}, {"per_sample": True, "bank": True, "some": True}]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("n", [1, 300])
def test_a_step_with_everything(form: dict[str, bool], n: int) -> None:
    sketch = everything(n, **form)
    ins, seeds = inputs(sketch, 3), np.array(SEEDS, np.uint64)
    want = Reference("float32").compile(*sketch.data()).run(ins, seeds)
    got = TritonBackend(interpret=True).compile(*sketch.data()).run(ins, seeds)
    for name, value in want.items():
        # Without coefficients made of sums the step has no freedom in its roundings.
        if form.get("per_sample") or name in ("sums", "made"):
            np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=2e-5)
        else:
            np.testing.assert_array_equal(got[name], value)


def test_sums_are_in_double_precision() -> None:
    """3e4 elements of 1e4 + small: float32 would lose what is small."""
    s = Sketch()
    number = s.table("loop", ["f0", "f1"], np.array([[1.0, 0.0]]))
    x, g = s.input("x", s.new((B, 30_000))), s.new((B, 2))
    s.begin("loop", number)
    s.call("gram", {"r0": x, "p0": x}, {"g": g}, {"table": number, "f": 0, "forms": 1, "stats": [[0, 0], [0]]})
    s.output("g", g)
    given = 1e4 + np.random.default_rng(0).standard_normal((2, 30_000)).astype(np.float32)
    got = s.run([0, 1], x=given)["g"]
    exact = given.astype(np.float64)
    np.testing.assert_array_equal(got, np.stack([(exact**2).sum(axis=1), exact.sum(axis=1)], axis=1).astype(np.float32))


def test_times_and_inputs_of_each_sample() -> None:
    s = Sketch()
    time, x, coef = s.input("time", s.new((B,))), s.input("x", s.new((B, 5))), s.input("coef", s.new((B, 2)))
    t, x_in = s.new((Batch(2),)), s.new((Batch(2), 5))
    s.begin("once")
    s.call("step_time", {"time": time}, {"t": t}, {"table": 0, "column": 0})
    s.call("step_input", {"x": x, "coef": coef}, {"xin": x_in}, {"table": 0, "column": 1})
    s.output("t", t)
    s.output("x_in", x_in)
    rng = np.random.default_rng(0)
    values = {"time": [0.5, 0.25], "x": rng.standard_normal((2, 5)), "coef": rng.standard_normal((2, 2))}
    ins = {name: np.asarray(value, np.float32) for name, value in values.items()}
    got = s.run([0, 1], **ins)
    assert got["t"].tolist() == [0.5, 0.5, 0.25, 0.25]
    np.testing.assert_array_equal(got["x_in"], np.repeat(ins["coef"][:, 1:] * ins["x"], 2, axis=0))


@pytest.mark.parametrize("form", [FORMS[0], FORMS[-1]], ids=str)
def test_everything_compiles_to_a_cubin_that_never_fuses(form: dict[str, bool]) -> None:
    (_, part) = everything(300, **form).program().launches(batch=1).parts
    built = {launch.kernel.name: launch.compile(90) for launch in part.rows[0]}
    assert set(built) == {"record", "gram", "scalars", "sampler_step"}
    for stages in built.values():
        assert stages["cubin"][:4] == b"\x7fELF"
    assert not re.search(r"\bfma\b|approx|ftz", built["sampler_step"]["ptx"])
    assert "fma.rn.f32" not in built["gram"]["ptx"]
    assert "mul.rn.f64" in built["gram"]["ptx"]


def test_what_is_missing_is_named() -> None:
    quantile = TritonBackend().supports(Call(op="quantile"))
    assert quantile is not None
    assert "no kernel for quantile" in quantile.reason
    power = {"estimates": 1, "program": [["row", 0], ["pow", 0, 2]], "results": [3]}
    step = TritonBackend().supports(Call(op="sampler_step", attrs=power))
    assert step is not None
    assert "constant exponent" in step.reason
