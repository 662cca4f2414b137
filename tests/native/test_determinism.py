"""The same bits whatever must not matter: threads, batch, a detour over a disk, the process; and in one call."""

from __future__ import annotations

import _thread
import json
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass

import numpy as np
import pytest
from subjects import program, sampling, small_dit, toy_network

import scoregraph as sg
from scoregraph.errors import Cancelled
from scoregraph.graph import guidance, noise, prediction, samplers, schedules

pytestmark = pytest.mark.native

BATCH = 4
SEEDS = noise.sample_seeds(7, BATCH)


@dataclass(frozen=True)
class Subject:
    """A compiled trajectory with inputs for a batch of 4."""

    plan: sg.CompiledPlan
    inputs: dict[str, np.ndarray]
    steps: int

    def run(self, at: slice = slice(None), **options) -> dict[str, np.ndarray]:
        """The samples ``at``, on a program of its own."""
        made = program(self.plan, **options)
        return made.run({name: value[at] for name, value in self.inputs.items()}, SEEDS[at])

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.plan.plan.tables)


def _toy() -> Subject:
    """Two registers, noise in every step, two branches."""
    net = toy_network(prediction.edm(), "c_noise", "kappa")
    graph = sampling(net, schedules.karras(steps=9), samplers.ddim(1.0), guidance.cfg(3.0))
    plan = sg.compile(graph, device="cpu", use_cache=False)
    return Subject(plan, {"cond0": np.random.default_rng(0).uniform(-1, 1, (BATCH, 4)).astype(np.float32)}, 9)


def _dit() -> Subject:
    """A transformer, its labels looked up, the absent label beside them; Heun needs two calls a step."""
    graph = sampling(small_dit(), schedules.scaled_linear(steps=4), samplers.heun(), guidance.cfg(3.0))
    plan = sg.compile(graph, device="cpu", use_cache=False)
    return Subject(plan, {"cond0": np.array([3, 999, 0, 17])}, 4)


def _terrain(plan: sg.CompiledPlan) -> Subject:
    """The pretrained U-Net, with guidance, noise and its head."""
    return Subject(plan, {"cond0": np.array([1, 40, 75, 100], np.float32)}, 2)


@pytest.fixture(scope="module", params=["toy", "dit", pytest.param("terrain", marks=pytest.mark.slow)])
def subject(request) -> Subject:
    if request.param == "terrain":
        return _terrain(request.getfixturevalue("terrain_sampling")[1])
    return {"toy": _toy, "dit": _dit}[request.param]()


@pytest.fixture(scope="module")
def alone(subject) -> dict[str, np.ndarray]:
    """Every sample by itself, on one thread."""
    parts = [subject.run(slice(i, i + 1), threads=1) for i in range(BATCH)]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for value in whole.values():
        assert np.isfinite(value).all()
        assert all(not np.array_equal(value[0], other) for other in value[1:])
    return whole


def same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


def test_threads_and_batch_change_no_bit(subject, alone):
    """A batch of 4 on 1, 2, 3 and 5 threads is its four samples by themselves on one."""
    for threads in (1, 2, 3, 5):
        assert same_bits(subject.run(threads=threads), alone), f"{threads} threads"


def test_the_place_in_a_batch_changes_no_bit(subject, alone):
    order = np.array([2, 0, 3])
    made = program(subject.plan, threads=2)
    got = made.run({name: value[order] for name, value in subject.inputs.items()}, SEEDS[order])
    assert same_bits(got, {name: value[order] for name, value in alone.items()})


OTHER_PROCESS = """
import json, sys
import numpy as np
import scoregraph as sg

folder, given, seeds, out = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
plan = sg.load(folder, threads=2)
for name, value in plan.run(seeds=seeds, **given).items():
    np.save(f"{out}/{name}.npy", value)
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"torch", "triton", "diffusers", "onnx"}, loaded
"""


def test_a_saved_plan_in_a_process_without_torch_gives_the_same_bits(subject, alone, tmp_path):
    folder = subject.plan.save(tmp_path / "plan")
    loaded = sg.load(folder)
    assert loaded.plan == subject.plan.plan
    assert same_bits(loaded.run(seeds=SEEDS, **subject.inputs), alone)

    given = {name: value.tolist() for name, value in subject.inputs.items()}
    arguments = [str(folder), json.dumps(given), json.dumps(SEEDS.tolist()), str(tmp_path)]
    subprocess.run([sys.executable, "-W", "error", "-c", OTHER_PROCESS, *arguments], check=True, timeout=250)
    assert same_bits({name: np.load(tmp_path / f"{name}.npy") for name in alone}, alone)


def test_a_trajectory_is_one_call_and_tells_every_step_once(subject):
    made = program(subject.plan)
    before = made.native.stats()
    assert (before["runs"], before["steps"], before["calls"]) == (0, 0, 0)
    told: list[tuple[int, int]] = []
    first = {name: value[:1] for name, value in subject.inputs.items()}
    made.run(first, SEEDS[:1], lambda done, total: told.append((done, total)))
    after = made.native.stats()
    tables = {table.id: table.rows for table in subject.plan.plan.tables}
    calls = sum(len(s.calls) * (1 if s.table is None else tables[s.table]) for s in subject.plan.plan.segments)
    assert (after["runs"], after["steps"], after["calls"]) == (1, subject.rows, calls)
    assert subject.rows >= subject.steps
    assert told == [(i + 1, subject.rows) for i in range(subject.rows)]


def test_a_cancelled_program_runs_again(subject, alone):
    made, flag, told = program(subject.plan, threads=2), threading.Event(), []

    def stop(done: int, total: int) -> None:
        told.append(done)
        flag.set()

    with pytest.raises(Cancelled, match=f"1 of {subject.rows}"):
        made.run(subject.inputs, SEEDS, stop, flag)
    assert told == [1]
    flag.clear()
    assert same_bits(made.run(subject.inputs, SEEDS, None, flag), alone)


def test_control_c_stops_a_trajectory_and_the_program_runs_again(alone, subject):
    """As from a terminal: the signal comes while Rust computes, and Python hears of it before the run is over."""
    made, told = program(subject.plan, threads=1), []

    def interrupt(done: int, total: int) -> None:
        told.append(done)
        if done == 1:
            _thread.interrupt_main()

    # A parallel test runner's workers ignore the signal; a user's program does not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            made.run(subject.inputs, SEEDS, interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(told) < subject.rows
    assert same_bits(made.run(subject.inputs, SEEDS), alone)


def test_runs_do_not_see_what_ran_before(subject, alone):
    """Neither memory of an earlier run, nor of another batch, enters a later one."""
    made = program(subject.plan, threads=2)
    for at in (slice(0, 4), slice(1, 2), slice(0, 4)):
        given = {name: value[at] for name, value in subject.inputs.items()}
        assert same_bits(made.run(given, SEEDS[at]), {name: value[at] for name, value in alone.items()})
