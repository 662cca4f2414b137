"""The plan executor: right numbers, the same bits however it is run, one call, and errors that name what is wrong."""

from __future__ import annotations

import os
import signal
import sys
import threading

import numpy as np
import pytest
from small_plan import ROWS, WIDTH, expected, small_plan

from scoregraph import _native
from scoregraph.backends.cpu import Cpu
from scoregraph.errors import (
    BadInput,
    BadMachineSetting,
    BatchMismatch,
    Cancelled,
    InternalFault,
    MissingInput,
    NativeMissing,
    NotEnoughMemory,
    PlanCorrupt,
    PlanVersion,
)
from scoregraph.plan.schema import Plan

pytestmark = pytest.mark.native

SMALL = small_plan()
SEEDS = np.array([11, 2**63 + 5, 7, 2**64 - 1], np.uint64)
LEVEL = np.array([[0.5], [-2.0], [9.0], [0.0]], np.float32)


def program(threads: int | None = 1, isa: str | None = None):
    return Cpu(threads, isa).compile(Plan.model_validate(SMALL.body), SMALL.constants)


@pytest.mark.parametrize("isa", ["scalar", None])
def test_a_trajectory_is_that_of_float64(isa):
    made = program(isa=isa).run({"level": LEVEL}, SEEDS)
    exact = expected(LEVEL, SEEDS)
    assert np.abs(made["x"] - exact).max() <= 1e-5 * np.abs(exact).max()
    assert np.array_equal(made["half"], made["x"][:, ::2])


def test_the_reference_backend_agrees():
    torch = pytest.importorskip("torch")
    from scoregraph.backends import reference

    assert torch
    made = program().run({"level": LEVEL}, SEEDS)
    plan = Plan.model_validate(SMALL.body)
    exact = reference.Reference("float64").compile(plan, SMALL.constants).run({"level": LEVEL}, SEEDS)
    for name in made:
        assert np.abs(made[name] - exact[name]).max() <= 1e-5 * np.abs(exact["x"]).max()


def test_threads_batch_and_repetition_change_no_bit():
    one, two = program(1), program(2)
    whole = one.run({"level": LEVEL}, SEEDS)["x"]
    assert np.array_equal(whole, two.run({"level": LEVEL}, SEEDS)["x"])
    for i in range(len(SEEDS)):
        alone = two.run({"level": LEVEL[i : i + 1]}, SEEDS[i : i + 1])["x"]
        assert np.array_equal(alone[0], whole[i])
    assert np.array_equal(whole, one.run({"level": LEVEL}, SEEDS)["x"])


def test_a_trajectory_is_one_call():
    made = program()
    seen: list[tuple[int, int]] = []
    made.run({"level": LEVEL}, SEEDS, lambda done, total: seen.append((done, total)))
    made.run({"level": LEVEL}, SEEDS)
    stats = made.native.stats()
    calls = sum(len(s.calls) * (ROWS if s.table is not None else 1) for s in made.plan.segments)
    done = {"runs": 2, "steps": 2 * ROWS, "calls": 2 * calls, "binds": 1}
    assert stats == done | {"network_calls": 0, "branch_evaluations": 0, "rounds": 0}
    assert made.counters() == stats
    assert seen == [(i + 1, ROWS) for i in range(ROWS)]


def test_every_call_can_be_timed():
    made = program()
    made.run({"level": LEVEL}, SEEDS)
    assert made.native.timings() == []
    made.native.set_timing(True)
    made.run({"level": LEVEL}, SEEDS)
    timings = made.native.timings()
    assert len(timings) == made.native.stats()["calls"] // 2
    loop = [t for t in timings if t[0] == 1]
    assert {row for _, _, row, _ in loop} == set(range(ROWS))
    assert all(0 < ns < 10**10 for *_, ns in timings)


def test_memory_grows_with_the_batch_as_planned():
    made = program()
    one, four = made.memory(1), made.memory(4)
    assert four["batch"] == 4 * one["batch"] > 0
    assert (four["fixed"], four["constants"]) == (64, len(SMALL.constants))


@pytest.mark.parametrize("flag", [threading.Event, _native.CancelFlag])
def test_a_flag_ends_a_run_and_the_program_lives_on(flag):
    made, cancel = program(), flag()

    def stop(done: int, _: int) -> None:
        if done == 3:
            cancel.set()

    with pytest.raises(Cancelled, match="3 of 8"):
        made.run({"level": LEVEL}, SEEDS, stop, cancel)
    whole = program().run({"level": LEVEL}, SEEDS)["x"]
    assert np.array_equal(made.run({"level": LEVEL}, SEEDS)["x"], whole)


def test_an_error_of_the_callers_own_callback_comes_back_as_it_is():
    class MineError(Exception):
        pass

    def fail(_done: int, _total: int) -> None:
        raise MineError

    with pytest.raises(MineError):
        program().run({"level": LEVEL}, SEEDS, fail)


def test_control_c_ends_a_run_between_two_calls():
    """The signal is seen although the run holds no interpreter lock; the scalar kernels make it last some seconds."""

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    made, batch = program(isa="scalar"), 20_000
    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.15)
    try:
        with pytest.raises(KeyboardInterrupt):
            made.run({"level": np.zeros((batch, 1), np.float32)}, np.arange(batch, dtype=np.uint64))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert made.native.stats()["runs"] == 0


def test_runs_from_several_threads_take_turns():
    made = program(2)
    whole = made.run({"level": LEVEL}, SEEDS)["x"]
    results: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: results.append(made.run({"level": LEVEL}, SEEDS)["x"])) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    assert all(np.array_equal(result, whole) for result in results)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own():
    made = program(2)
    whole = made.run({"level": LEVEL}, SEEDS)["x"]
    child = os.fork()
    if child == 0:
        same = np.array_equal(made.run({"level": LEVEL}, SEEDS)["x"], whole)
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.array([[0.5], [np.nan], [0.0], [0.0]], np.float32), "element 1 is NaN"),
        (np.array([[0.5], [0.0], [0.0], [np.inf]], np.float32), "element 3 is inf"),
        (np.array([[0.5], [11.0], [0.0], [0.0]], np.float32), "11 is not in -10"),
        (np.zeros((3, 1), np.float32), r"shape is \[3, 1\], expected \[4, 1\]"),
    ],
)
def test_a_bad_input_is_named(value, says):
    with pytest.raises(BadInput, match=says) as caught:
        program().run({"level": value}, SEEDS)
    assert "'level'" in str(caught.value)


def test_a_missing_input_is_named():
    with pytest.raises(MissingInput, match="level"):
        program().run({}, SEEDS)


def test_too_large_a_batch_is_refused_before_it_allocates():
    with pytest.raises(NotEnoughMemory, match="this machine has"):
        program().memory(2**33)
    with pytest.raises(NotEnoughMemory, match="too large"):
        program().memory(2**63)


@pytest.mark.parametrize(("threads", "isa"), [(0, None), (10**6, None), (1, "avx9")])
def test_a_setting_that_the_machine_lacks_is_refused(threads, isa):
    with pytest.raises(BadMachineSetting):
        program(threads, isa)


def test_an_empty_batch_is_refused():
    with pytest.raises(BatchMismatch, match="at least one sample"):
        program().run({"level": LEVEL[:0]}, SEEDS[:0])


def test_a_plan_of_another_version_or_with_other_constants_is_refused():
    plan = Plan.model_validate(SMALL.body)
    with pytest.raises(PlanVersion, match="version 4"):
        Cpu(1).compile(plan.model_copy(update={"version": 4}), SMALL.constants)
    with pytest.raises(PlanCorrupt, match="not those of the plan"):
        Cpu(1).compile(plan, SMALL.constants[:-64])


def test_without_the_extension_the_cure_is_to_build_it(monkeypatch):
    import scoregraph
    from scoregraph.backends import cpu

    monkeypatch.setitem(sys.modules, "scoregraph._native", None)
    monkeypatch.delattr(scoregraph, "_native")
    with pytest.raises(NativeMissing, match="maturin develop"):
        cpu.backend()


def test_a_fault_of_our_own_says_so():
    from scoregraph.backends.cpu.backend import _translate

    fault = _native.NativeError("internal", "segment loop", "a kernel panicked", "", [])
    with pytest.raises(InternalFault, match="a kernel panicked"):
        raise _translate(fault, Plan.model_validate(SMALL.body))


def test_the_environment_sets_the_threads(monkeypatch):
    monkeypatch.setenv("SCOREGRAPH_THREADS", "1")
    assert program(None).native.target()[1] == 1
    monkeypatch.setenv("SCOREGRAPH_THREADS", "many")
    with pytest.raises(BadMachineSetting, match="many"):
        program(None)


def test_the_listing_shows_every_call():
    text = program().source()
    for segment in SMALL.body["segments"]:
        for call in segment["calls"]:
            assert f"{call['op']}(" in text
    assert f"b1[B, {WIDTH}]@batch+64" in text
