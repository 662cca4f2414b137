"""Loops whose rows differ, rounds that samples end for themselves, a noise bank: right numbers, counted, and the same
bits however they are run."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from looping_plan import KINDS, LIMIT, expected, plan, some_inputs

from scoregraph.backends.cpu import Cpu
from scoregraph.backends.protocol import COUNTERS
from scoregraph.errors import Cancelled, LoopUnfinished
from scoregraph.plan import files

pytest.importorskip("torch")

from scoregraph.backends.reference import Reference

sys.path.append(str(Path(__file__).parents[1] / "any" / "passes" / "plan"))
import drafts

from scoregraph.passes.plan.hoist_invariants import HoistInvariants
from scoregraph.passes.plan.plan_memory import PlanMemory

pytestmark = pytest.mark.native

PLAN, CONSTANTS = plan()
SEEDS = np.array([3, 2**64 - 1, 12, 9], np.uint64)
INPUTS = some_inputs(4)


def program(threads: int = 1, isa: str | None = None):
    return Cpu(threads, isa).compile(PLAN, CONSTANTS)


@pytest.mark.parametrize("isa", ["scalar", None])
def test_every_kind_of_row_and_round_is_that_of_float64(isa):
    made, exact = program(isa=isa).run(INPUTS, SEEDS), expected(INPUTS, SEEDS)
    for name, value in exact.items():
        assert np.abs(made[name] - value).max() <= 2e-6 * np.abs(value).max(), name


def test_the_reference_backend_agrees():
    exact = expected(INPUTS, SEEDS)
    made = Reference("float64").compile(PLAN, CONSTANTS).run(INPUTS, SEEDS)
    for name, value in exact.items():
        assert np.abs(made[name] - value).max() <= 1e-6 * np.abs(value).max(), name


def test_a_sample_does_not_see_its_batch_nor_the_threads():
    whole = program(2).run(INPUTS, SEEDS)
    for name, value in program(1).run(INPUTS, SEEDS).items():
        np.testing.assert_array_equal(value, whole[name])
    for i in range(len(SEEDS)):
        alone = program(2).run({k: v[i : i + 1] for k, v in INPUTS.items()}, SEEDS[i : i + 1])
        for name, value in alone.items():
            np.testing.assert_array_equal(value[0], whole[name][i])


def test_counters_say_what_ran():
    made, seen = program(), list[tuple[int, int]]()
    made.run(INPUTS, SEEDS, lambda done, total: seen.append((done, total)))
    counters, rounds = made.counters(), int(INPUTS["rounds"].max())
    assert tuple(counters) == COUNTERS
    guided, single = KINDS.count(1), KINDS.count(0)
    assert counters["network_calls"] == guided + single + rounds
    assert counters["branch_evaluations"] == 2 * guided + single + rounds
    assert (counters["steps"], counters["rounds"]) == (len(KINDS) + rounds, rounds)
    assert (counters["runs"], counters["binds"]) == (1, 1)
    assert seen[-1] == (len(KINDS) + rounds,) * 2
    assert seen[0] == (1, len(KINDS) + LIMIT)
    on_reference = Reference("float64").compile(PLAN, CONSTANTS)
    on_reference.run(INPUTS, SEEDS)
    assert on_reference.counters() == counters


def test_too_many_rounds_are_an_error_that_counts_the_samples():
    made = program()
    endless = {**INPUTS, "rounds": np.array([[2], [LIMIT + 1], [99], [LIMIT]], np.float32)}
    with pytest.raises(LoopUnfinished, match="loop rounds was not done after 8 rounds: 2 of 4 samples"):
        made.run(endless, SEEDS)
    lenient = Cpu(1).compile(*plan(strict=False))
    exact = expected(endless, SEEDS)["x"]
    assert np.abs(lenient.run(endless, SEEDS)["x"] - exact).max() <= 1e-5
    np.testing.assert_array_equal(made.run(INPUTS, SEEDS)["x"], program().run(INPUTS, SEEDS)["x"])


def test_a_run_ends_between_two_rounds():
    flag = threading.Event()

    def stop(done: int, _: int) -> None:
        if done == len(KINDS) + 2:
            flag.set()

    with pytest.raises(Cancelled, match=f"{len(KINDS) + 2} of {len(KINDS) + LIMIT}"):
        program().run(INPUTS, SEEDS, stop, flag)


def test_the_listing_shows_rows_and_rounds():
    text = program().source()
    assert "loop steps over 6 rows of steps, variants by column 6:" in text
    assert f"loop rounds over 1 rows of round, up to {LIMIT} rounds while b" in text
    assert "evaluates net for 2 branch(es), in variants [1]" in text
    assert "# step2, in variants [2]" in text


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(drafts.drafts())
def test_random_plans_are_proved_and_give_the_numbers_of_the_reference(draft):
    """Whatever the memory planner places, the native proof accepts: both reason about the same loops."""
    for module in (draft, HoistInvariants().run(draft).module):
        laid_out = files.lay_out(*_parts(PlanMemory().run(module).module))
        rng = np.random.default_rng(1)
        shapes = {spec.name: (3, *laid_out[0].buffers[spec.buffer].shape[1:]) for spec in laid_out[0].inputs}
        inputs = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        made = Cpu(1).compile(*laid_out).run(inputs, drafts.SEEDS)
        exact = Reference("float64").compile(*laid_out).run(inputs, drafts.SEEDS)
        for name, value in exact.items():
            np.testing.assert_allclose(made[name], value, rtol=1e-4, atol=1e-5)


def _parts(draft):
    return draft.plan, draft.arrays
