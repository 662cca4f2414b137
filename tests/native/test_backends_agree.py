"""A two-layer network on the reference in float64, in Rust and in the interpreter of Triton: one noise, one answer."""

from __future__ import annotations

import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from subjects import distance, error, sampling, toy_network

import scoregraph as sg
from scoregraph import backends
from scoregraph.backends.cpu import Cpu
from scoregraph.backends.reference import Reference
from scoregraph.graph import guidance, noise, prediction, samplers, schedules
from scoregraph.models import toy
from scoregraph.plan import files
from scoregraph.plan.dims import Batch

pytest.importorskip("triton")
from scoregraph.backends.triton import TritonBackend

pytestmark = pytest.mark.native

BATCH = 3
SEEDS = noise.sample_seeds(2**64 - 1, BATCH)
TILT = np.random.default_rng(4).uniform(-1, 1, (BATCH, toy.TILT)).astype(np.float32)
DEVICES = ("reference", "cpu", "triton")


def compiled(sampler: samplers.Sampler, schedule: schedules.Schedule, pred: prediction.Prediction, time: str) -> dict:
    """The answers by device; each gives the final state ``x`` and the noise it ``began`` with."""
    net = toy_network(pred, time, "vp" if time == "timestep" else "kappa")
    g = sampling(net, schedule, sampler, guidance.cfg(3.0))
    g.output(began=g.noise(net))
    made = {}
    for device in DEVICES:
        plan = sg.compile(g, device=device, use_cache=False)
        assert plan.program.__class__.__module__.startswith(f"scoregraph.backends.{device}")
        made[device] = plan.run(seeds=SEEDS, cond0=TILT)
    return made


@pytest.mark.parametrize(
    ("sampler", "schedule", "pred", "time"),
    [
        (samplers.ddim(1.0), schedules.karras(steps=8), prediction.edm(), "c_noise"),
        (samplers.dpmpp_2m(), schedules.linear(steps=8), prediction.v(), "timestep"),
        (samplers.heun(), schedules.karras(steps=5), prediction.x0(), "c_noise"),
    ],
    ids=str,
)
def test_a_graph_gives_the_same_noise_bits_and_one_answer(sampler, schedule, pred, time):
    made = compiled(sampler, schedule, pred, time)
    began = made["reference"]["began"].astype(np.float32)
    assert began.std() > 0.5
    for device in DEVICES:
        assert made[device]["began"].astype(np.float32).tobytes() == began.tobytes(), device
    for a, b in itertools.combinations(DEVICES, 2):
        found = error(made[a]["x"], made[b]["x"].astype(np.float64))
        print(f"{a} and {b}: {found:.1e}")
        assert found <= 1e-5


def _hand_written():
    """The plan that the Triton backend's own tests are written around."""
    path = Path(__file__).parents[1] / "any" / "backends" / "triton_plans.py"
    spec = importlib.util.spec_from_file_location("triton_plans_of_native", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_plan_file_runs_on_every_backend():
    """The very same plan and constants, written call by call without a compiler, against its own loop in torch."""
    plans = _hand_written()
    plan, constants = plans.two_layers().data()
    seeds = np.array(plans.SEEDS, np.uint64)
    expected = plans.expected(plans.LABEL, plans.SEEDS)
    started = np.float32(10.0) * noise.normals(seeds, site=plans.SITE, micro=0, count=plans.WIDTH)
    for backend in (
        Reference("float64"),
        Reference("float32"),
        Cpu(2),
        Cpu(1, "scalar"),
        TritonBackend(interpret=True),
    ):
        got = backend.compile(plan, constants).run({"label": plans.LABEL}, seeds)
        assert got["first"].astype(np.float32).tobytes() == started.tobytes(), backend
        found = distance(got["x"], expected)
        print(f"{backend}: {found:.1e}")
        assert found <= 1e-5


def test_infinite_numbers_of_a_plan_reach_every_backend(tmp_path):
    """A mask fills with -inf, for which JSON has no number; neither a plan file nor the way into Rust may lose it."""
    sketch = _hand_written().Sketch()
    x = sketch.new((Batch(1), 3))
    sketch.begin("all")
    sketch.call("fill", {}, {"x": x}, {"value": -math.inf}, site="mask")
    y = sketch.new((Batch(1), 3))
    sketch.call("pointwise", {"x0": x}, {"y": y}, {"program": [["const", math.inf], ["max", 0, 1]]}, site="top")
    sketch.output("x", x)
    sketch.output("y", y)
    plan, constants = sketch.data()
    files.save(plan, constants, {}, tmp_path / "plan")
    loaded, mapped = files.load(tmp_path / "plan")
    assert loaded == plan
    for backend in (Reference("float32"), Cpu(1), TritonBackend(interpret=True)):
        got = backend.compile(loaded, mapped).run({}, np.zeros(2, np.uint64))
        assert (got["x"] == -np.inf).all(), backend
        assert (got["y"] == np.inf).all(), backend


def test_every_backend_keeps_the_protocol():
    for device in DEVICES:
        backend = backends.load(device)
        assert backend.name == device
        assert {"noise", "fill", "copy", "step_input", "linear", "sampler_step"} <= backend.capabilities
