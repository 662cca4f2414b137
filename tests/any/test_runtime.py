"""Running a plan: what a user may pass, what is refused before the first step, and that seeds decide everything."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import toys

import scoregraph as sg
from scoregraph.backends.protocol import COUNTERS
from scoregraph.errors import (
    BadInput,
    BatchMismatch,
    Cancelled,
    MissingInput,
    UnknownName,
    WrongOperand,
)
from scoregraph.plan import files
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Drafter
from scoregraph.plan.schema import InputSpec, OutputSpec, Repeat
from scoregraph.runtime import CompiledPlan

TILT = np.array([0.5, -0.5, 0.25, 1.0], np.float32)


def sample(plan, **given):
    return plan.run(seed=3, **given)["sample"]


def assert_same_sample(a: np.ndarray, b: np.ndarray) -> None:
    """To float64's rounding: torch's products sum in another order for another batch. Our own kernels do not."""
    np.testing.assert_allclose(a, b, rtol=1e-10)


@pytest.mark.parametrize(
    "value",
    [
        0.5,
        1,
        np.float64(0.5),
        [0.5, -0.5, 0.25, 1.0],
        TILT,
        TILT.astype(np.float64),
        TILT[None],
        TILT[::-1][::-1],
        [[0.5] * 4],
    ],
    ids=str,
)
def test_a_number_or_one_sample_serves_every_sample(toy_plan, value):
    whole = np.ascontiguousarray(np.broadcast_to(np.asarray(value, np.float32), (2, 4)))
    np.testing.assert_array_equal(sample(toy_plan, tilt=value, batch=2), sample(toy_plan, tilt=whole))


def test_torch_tensors_are_arrays(toy_plan):
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(sample(toy_plan, tilt=torch.from_numpy(TILT.copy())), sample(toy_plan, tilt=TILT))


def test_one_value_per_sample_states_the_batch(toy_plan):
    rows = np.stack([TILT, -TILT, 0 * TILT])
    made = sample(toy_plan, tilt=rows)
    assert made.shape == (3, 16)
    for i, row in enumerate(rows):
        alone = toy_plan.run(seed=3 + i, tilt=row)["sample"]
        assert_same_sample(alone[0], made[i])


def test_a_sample_is_the_same_in_every_batch(toy_plan):
    seeds = [3, 2**64 - 1, 0, 2**63]
    whole = toy_plan.run(seeds=seeds, tilt=0.3)["sample"]
    for i, seed in enumerate(seeds):
        assert_same_sample(toy_plan.run(seed=seed, tilt=0.3)["sample"][0], whole[i])
    assert len({row.tobytes() for row in whole}) == 4


def test_seeds_count_up_and_wrap_around(toy_plan):
    wrapped = toy_plan.run(seed=2**64 - 1, batch=2, tilt=0.3)["sample"]
    np.testing.assert_array_equal(wrapped, toy_plan.run(seeds=[2**64 - 1, 0], tilt=0.3)["sample"])
    assert_same_sample(wrapped[0], toy_plan.run(seed=-1, tilt=0.3)["sample"][0])
    middle = [2**63 - 2, 2**63 - 1, 2**63, 2**63 + 1]
    counted = toy_plan.run(seed=middle[0], batch=4, tilt=0.3)["sample"]
    np.testing.assert_array_equal(counted, toy_plan.run(seeds=middle, tilt=0.3)["sample"])
    array = np.array([2**64 - 1, 0], np.uint64)
    np.testing.assert_array_equal(wrapped, toy_plan.run(seeds=array, tilt=0.3)["sample"])


def test_a_run_leaves_its_inputs_alone(toy_plan):
    given = np.stack([TILT, -TILT])
    given.flags.writeable = False
    kept = given.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(toy_plan, tilt=given)
    np.testing.assert_array_equal(given, kept)


REFUSED = {
    "no value": ({}, MissingInput, "needs a value for 'tilt'"),
    "None": ({"tilt": None}, MissingInput, "needs a value for 'tilt'"),
    "a misspelt name": ({"tlt": 0.5}, UnknownName, "did you mean 'tilt'"),
    "a text": ({"tilt": "steep"}, BadInput, "'steep' is not a number"),
    "a number as a text": ({"tilt": "0.5"}, BadInput, "is not a number"),
    "a complex number": ({"tilt": 0.5j}, BadInput, "is not a number"),
    "an object": ({"tilt": object()}, BadInput, "is not a number"),
    "rows of two lengths": ({"tilt": [[0.1], [0.1, 0.2]]}, BadInput, "is not a number or an array"),
    "NaN": ({"tilt": [0, 0, np.nan, 0]}, BadInput, r"holds nan at index \[2\]"),
    "infinity": ({"tilt": -np.inf}, BadInput, "holds -inf"),
    "too large for float32": ({"tilt": 1e300}, BadInput, "holds inf"),
    "too high": ({"tilt": [0, 0, 1.5, 0]}, BadInput, "1.5 is outside -1 to 1"),
    "too low": ({"tilt": -2}, BadInput, "-2 is outside -1 to 1"),
    "three of four": ({"tilt": [0.1, 0.2, 0.3]}, BadInput, r"its shape is \[3\]"),
    "a matrix too many": ({"tilt": np.zeros((2, 2, 4))}, BadInput, r"its shape is \[2, 2, 4\]"),
    "two batches": ({"tilt": np.zeros((2, 4)), "batch": 3}, BatchMismatch, "batch says 3, tilt says 2"),
    "seeds against the batch": ({"tilt": 0, "seeds": [1, 2], "batch": 3}, BatchMismatch, "batch says 3, seeds says 2"),
    "no samples": ({"tilt": 0, "batch": 0}, BatchMismatch, "batch says 0"),
    "fewer than none": ({"tilt": 0, "batch": -1}, BatchMismatch, "batch says -1"),
    "an empty array": ({"tilt": np.zeros((0, 4))}, BatchMismatch, "tilt says 0"),
    "no seeds": ({"tilt": 0, "seeds": []}, BatchMismatch, "seeds says 0"),
    "half a sample": ({"tilt": 0, "batch": 1.5}, BadInput, "1.5 is not a whole number"),
    "a fractional seed": ({"tilt": 0, "seed": 0.5}, BadInput, "0.5 is not a whole number"),
    "a seed as a text": ({"tilt": 0, "seed": "7"}, BadInput, "'7' is not a whole number"),
    "fractional seeds": ({"tilt": 0, "seeds": np.array([0.5])}, BadInput, "0.5 is not a whole number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_at_the_users_line(toy_plan, case):
    given, error, message = REFUSED[case]
    with pytest.raises(error, match=message) as caught:
        toy_plan.run(**given)
    assert str(caught.value.where).startswith(f"{Path(__file__).name}:")


def whole_numbers(dtype: str) -> CompiledPlan:
    """A plan that gives a label [B] and a shared weight [2] back, as numbers."""
    d = Drafter("labels", "reference")
    d.begin("once")
    label, weight = d.new((Batch(),), dtype, "label"), d.new((2,), "f32", "weight")
    made = d.new((Batch(),))
    d.call("pointwise", {"x0": label}, {"y": made}, {"program": [["square", 0]]}, "square")
    twice = d.new((2,))
    d.call("pointwise", {"x0": weight}, {"y": twice}, {"program": [["add", 0, 0]]}, "twice")
    for name, value in (("label", label), ("weight", weight)):
        d.inputs.append(InputSpec(name=name, buffer=int(value.storage[1:]), default=1.0 if name == "weight" else None))
    for name, value in (("squares", made), ("twice", twice)):
        d.outputs.append(OutputSpec(name=name, buffer=int(value.storage[1:])))
    draft = d.build()
    plan, constants = files.lay_out(draft.plan, draft.arrays)
    return CompiledPlan(plan, constants, {})


def test_whole_numbers_defaults_and_shared_inputs():
    plan = whole_numbers("i64")
    assert plan.run(label=[1, 2, 3])["squares"].tolist() == [1, 4, 9]
    assert plan.run(label=[2.0, 3.0])["squares"].tolist() == [4, 9]
    assert plan.run(label=1)["twice"].tolist() == [2, 2], "a default is taken"
    assert plan.run(label=[1, 1, 1], weight=[1, 4])["twice"].tolist() == [2, 8], "a shared input states no batch"
    for bad in (0.5, [1, 2.5], float("nan"), 1e30):
        with pytest.raises(BadInput, match="whole numbers"):
            plan.run(label=bad)


def test_one_byte_does_not_wrap():
    for bad in (-1, 256, 0.5):
        with pytest.raises(BadInput, match="whole numbers"):
            whole_numbers("u8").run(label=bad)


def banked() -> CompiledPlan:
    """A plan that takes two draws of four numbers each and gives twice the second."""
    d = Drafter("banked", "reference")
    d.begin("once")
    bank, x = d.new((Batch(), 2, 4), name="noise"), d.new((Batch(), 4))
    d.bank = int(bank.storage[1:])
    d.inputs.append(InputSpec(name="noise", buffer=d.bank))
    d.call("noise", {"bank": bank}, {"x": x}, {"site": 0, "micro": 0, "scale": 2.0, "draw": 1}, "start")
    d.outputs.append(OutputSpec(name="x", buffer=int(x.storage[1:])))
    draft = d.build()
    return CompiledPlan(*files.lay_out(draft.plan, draft.arrays), {})


def test_a_noise_bank_replaces_the_noise():
    plan, bank = banked(), np.random.default_rng(2).standard_normal((3, 2, 4)).astype(np.float32)
    assert plan.draws == (2, 4)
    made = plan.run(noise=bank)["x"]
    np.testing.assert_array_equal(made, 2 * bank[:, 1])
    np.testing.assert_array_equal(plan.run(noise=bank, seed=8)["x"], made, "nothing is drawn from the seed")
    np.testing.assert_array_equal(plan.run(noise=bank[0], batch=2)["x"], made[[0, 0]])
    np.testing.assert_array_equal(plan.run(noise=bank[0].tolist())["x"], made[:1])


BAD_BANKS = {
    "none": ({}, MissingInput, "needs a value for 'noise'"),
    "one draw of two": ({"noise": np.zeros((1, 1, 4))}, BadInput, r"each sample takes 2 draws of \[4\]"),
    "one draw": ({"noise": np.zeros(4)}, BadInput, r"its shape is \[4\]"),
    "a number": ({"noise": 0.5}, BadInput, r"give \[batch, 2, 4\] or \[2, 4\]"),
    "too deep": ({"noise": np.zeros((1, 1, 2, 4))}, BadInput, r"its shape is \[1, 1, 2, 4\]"),
    "another batch": ({"noise": np.zeros((3, 2, 4)), "batch": 2}, BatchMismatch, "batch says 2, noise says 3"),
    "NaN": ({"noise": np.full((2, 4), np.nan)}, BadInput, "holds nan"),
}


@pytest.mark.parametrize("case", BAD_BANKS)
def test_a_bank_that_does_not_fit_is_refused(case):
    given, error, message = BAD_BANKS[case]
    with pytest.raises(error, match=message) as caught:
        banked().run(**given)
    assert str(caught.value.where).startswith(f"{Path(__file__).name}:")


def test_a_plan_that_draws_its_noise_takes_none(toy_plan):
    assert toy_plan.draws is None
    with pytest.raises(BadInput, match="compile with noise='bank'"):
        toy_plan.run(tilt=0, noise=np.zeros((1, 4)))


def test_counters_count_what_ran():
    d = Drafter("counted", "reference")
    d.begin("once")
    left, x = d.new((Batch(), 1)), d.new((Batch(), 1))
    d.call("fill", {}, {"x": left}, {"value": 2.0})
    d.call("fill", {}, {"x": x}, {"value": 0.0})
    table = d.table("steps", ("kind",), np.array([[0], [1], [1]], np.float32))
    d.begin("guided", table, variant=0)
    with d.only_in(0):
        d.evaluates("net", branches=1)
    with d.only_in(1):
        d.evaluates("net", branches=2)
        d.call("fill", {}, {"x": x}, {"value": 1.0})
    d.begin("adaptive", repeat=Repeat(active=int(left.storage[1:]), limit=9))
    d.evaluates("expert")
    fewer = d.new((Batch(), 1))
    d.call("pointwise", {"x0": left}, {"y": fewer}, {"program": [["const", 1.0], ["sub", 0, 1]]})
    d.call("copy", {"x": fewer}, {"y": left})
    d.outputs.append(OutputSpec(name="x", buffer=int(x.storage[1:])))
    draft = d.build()
    plan = CompiledPlan(*files.lay_out(draft.plan, draft.arrays), {})
    seen = []
    plan.run(progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5), "three rows and two rounds"
    plan.run(batch=4)
    counters = plan.counters()
    assert tuple(counters) == COUNTERS
    expected = {"runs": 2, "steps": 10, "calls": 2 * (2 + 2 + 4), "network_calls": 10, "branch_evaluations": 14}
    assert counters == expected | {"rounds": 4, "binds": counters["binds"]}


def test_progress_counts_steps_and_cancel_ends_them(toy_plan):
    seen = []
    toy_plan.run(tilt=0, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, 6) for i in range(6)]
    flag = threading.Event()
    with pytest.raises(Cancelled, match="after 2 of 6 steps"):
        toy_plan.run(tilt=0, progress=lambda done, _: flag.set() if done == 2 else None, cancel=flag)


def test_a_plan_tells_what_it_is(toy_plan):
    assert repr(toy_plan).startswith("<plan guided for reference: tilt -> sample, ")
    lines = str(toy_plan.stages).splitlines()
    assert lines[0].startswith("after graph (0 rewrites, ")
    assert any(line.startswith("after fold-step (1 rewrites, ") for line in lines)
    assert "    missed: " in str(toy_plan.stages)
    assert len(toy_plan.stages) == len(toy_plan.plan.stages), "every stage has its text, also of a pass that ran twice"
    assert sg.parse(toy_plan.stages["graph"]) is sg.parse(toy_plan.plan.graph)


@pytest.mark.parametrize("target", ["terrain", 3, None, {}])
def test_only_graphs_and_networks_are_compiled(target):
    with pytest.raises(WrongOperand, match="a Graph, a GraphBuilder or a network"):
        sg.compile(target, device="reference")


def test_a_network_by_itself_is_a_plan():
    torch = pytest.importorskip("torch")
    net = toys.network()
    plan = sg.compile(net, device="reference", use_cache=False)
    x, t, tilt = (value.double() for value in net.score_example(3))
    made = plan.run(x=x.numpy(), t=t.numpy(), tilt=tilt.numpy())["m"]
    with torch.no_grad():
        expected = net.score(x.float(), t.float(), tilt.float()).numpy()
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("option", "value"), [("device", "gpu"), ("quant", "int3")])
def test_unknown_devices_and_recipes_are_named(option, value):
    with pytest.raises(UnknownName, match=f"named '{value}'"):
        sg.compile(toys.guided(), **{option: value})
