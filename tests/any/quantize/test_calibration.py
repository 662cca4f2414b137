"""Calibration: the ranges are those of the values themselves, grids follow groups of steps, and plans keep both."""

from __future__ import annotations

import numpy as np
import pytest
import quantized_networks as q

import scoregraph as sg
from scoregraph import cache
from scoregraph.backends.reference.ops import OPS
from scoregraph.calibration import FIRST_SEED
from scoregraph.errors import CannotCalibrate
from scoregraph.graph import samplers
from scoregraph.graph.builder import GraphBuilder
from scoregraph.graph.graph import Graph
from scoregraph.passes.base import run_passes
from scoregraph.passes.plan.replace_tables import replace_tables
from scoregraph.passes.quantize.calibrate import GROUP_COLUMN, Calibration
from scoregraph.passes.quantize.observe import groups_of_rows
from scoregraph.passes.quantize.smoothing import Smoothing
from scoregraph.passes.sampling.pipeline import SAMPLING_PASSES
from scoregraph.plan import files
from scoregraph.plan.layouts import logical
from scoregraph.plan.schema import Plan

LABEL = np.linspace(-1.0, 1.0, 12).reshape(4, 3)


@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (1, 8), (20, 4), (7, 3), (5, 8), (50, 8)])
def test_groups_are_equal_and_none_is_empty(rows, groups):
    found = groups_of_rows(rows, groups)
    sizes = np.bincount(found)
    assert len(found) == rows
    assert (np.diff(found) >= 0).all()
    assert len(sizes) == min(rows, groups)
    assert sizes.max() - sizes.min() <= 1


def test_a_grid_covers_its_group():
    low, high = ((-1.0, -3.0, 0.0, 0.0), (0.0,)), ((2.0, 1.0, 0.0, 0.0), (5.0,))
    seen = Calibration((0,), {}, ("a", "b"), low, high, (Smoothing(0.5, "rms", (1.0, 2.0)), None))
    grids = seen.grids(0, 2, 255)
    np.testing.assert_allclose(grids, [[5 / 255, 153], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(seen.grids(1, 2, 127), [[5 / 127, 0]], rtol=1e-6)
    assert Calibration.from_json(seen.to_json()) == seen


def compiled(kind: str, recipe: str, steps: int = 6, **options) -> sg.CompiledPlan:
    return sg.compile(q.guided(kind, steps), device="reference", quant=recipe, **{"use_cache": False, **options})


def observed_by_hand(kind: str, monkeypatch, layers: int, seeds: list[int], **inputs) -> list[list[np.ndarray]]:
    """Per layer of the float plan's loop, its operand at every step, [steps][B, …]: looked at as the oracle runs."""
    plan = sg.compile(q.guided(kind), device="reference", use_cache=False)
    seen: dict[str, list[np.ndarray]] = {}

    def spied(op):
        plain = OPS[op]

        def spy(ins, attrs, frame):
            if frame.row is not None:
                seen.setdefault(frame.site, []).append(ins["x"].numpy().copy())
            return plain(ins, attrs, frame)

        monkeypatch.setitem(OPS, op, spy)

    spied("linear")
    spied("conv2d")
    plan.run(seeds=seeds, **inputs)
    monkeypatch.undo()
    return list(seen.values())


@pytest.mark.parametrize("kind", ["tokens", "image"])
def test_the_ranges_are_those_of_the_operands(kind, monkeypatch):
    """Both guided branches, all samples, at every step."""
    plan = compiled(kind, "w8a8:groups=3,smooth=no", calibrate_on={"label": LABEL})
    found = Calibration.from_json(plan.stages["quantization"])
    assert found.seeds == tuple(range(FIRST_SEED, FIRST_SEED + 4))
    assert found.inputs == {"label": "given"}
    operands = observed_by_hand(kind, monkeypatch, 0, list(found.seeds), label=LABEL.astype(np.float32))
    ranges = {
        (tuple(np.float32([min(x.min(), 0) for x in steps])), tuple(np.float32([max(x.max(), 0) for x in steps])))
        for steps in operands
    }
    for low, high in zip(found.low, found.high, strict=True):
        assert len(low) == 6
        gaps = [max(np.abs(np.subtract(low, a)).max(), np.abs(np.subtract(high, b)).max()) for a, b in ranges]
        assert min(gaps) < 1e-6


def test_static_grids_are_near_dynamic_ones():
    exact = compiled("tokens", "none").run(label=LABEL)["sample"]
    found = {
        recipe: q.sqnr(compiled("tokens", recipe, calibrate_on={"label": LABEL}).run(label=LABEL)["sample"], exact)
        for recipe in ("w8a8", "w8a8:groups=1", "w8a8:groups=4")
    }
    print(found)
    assert found["w8a8"] > 40
    assert min(found.values()) > 30


def test_ranges_may_be_taken_from_another_plan():
    first = compiled("image", "w8a8:groups=2", calibrate_on={"label": LABEL})
    ranges = Calibration.from_json(first.stages["quantization"])
    again = compiled("image", "w8a8:groups=2", calibrate_on=ranges)
    np.testing.assert_array_equal(again.run(label=LABEL)["sample"], first.run(label=LABEL)["sample"])
    assert Calibration.from_json(again.stages["quantization"]) == ranges
    for other in ({"kind": "tokens"}, {"steps": 5}):
        with pytest.raises(CannotCalibrate, match="other layers, steps or smoothing"):
            compiled(**{"kind": "image", "recipe": "w8a8:groups=2", "calibrate_on": ranges, **other})


def test_a_network_by_itself_is_calibrated_on_what_is_given():
    given = q.example("tokens")
    plan = sg.compile(
        q.network("tokens"), device="reference", quant="w8a8:groups=1", calibrate_on=given, use_cache=False
    )
    exact = sg.compile(q.network("tokens"), device="reference", use_cache=False).run(**given)["m"]
    assert q.sqnr(plan.run(**given)["m"], exact) > 35
    assert all(call.op != "select_row" for segment in plan.plan.segments for call in segment.calls)


MISTAKES = {
    "nothing bounds its input 'x'": {},
    "it has no input named 'lable'": {"lable": 1.0},
    "the inputs given have": {**q.example("tokens"), "t": np.zeros(5)},
    "'x' is of shape [3, 9]": {**q.example("tokens"), "x": np.zeros((3, 9))},
}


@pytest.mark.parametrize("problem", MISTAKES)
def test_what_cannot_be_calibrated_says_why(problem):
    with pytest.raises(CannotCalibrate) as caught:
        sg.compile(q.network("tokens"), device="reference", quant="w8a8:groups=1", calibrate_on=MISTAKES[problem])
    assert problem in str(caught.value)


def test_a_sampler_that_chooses_its_own_steps_has_one_group():
    net = q.network("tokens")
    g = GraphBuilder("adaptive")
    level = g.condition(net, g.input("label"))
    with g.loop(sg.schedules.flow(steps=4), g.noise(net)) as step:
        step.advance(samplers.rk45(rtol=0.05, atol=0.05), g.score(net, step, level))
    g.output(sample=step.result)
    exact = sg.compile(g, device="reference", use_cache=False).run(label=LABEL)["sample"]
    plan = sg.compile(g, device="reference", quant="w8a8:groups=4", use_cache=False)
    found = Calibration.from_json(plan.stages["quantization"])
    assert all(len(low) == 1 for low in found.low)
    assert max(high[0] for high in found.high) > 0.5
    assert q.sqnr(plan.run(label=LABEL)["sample"], exact) > 25


# --- other steps ------------------------------------------------------------------------------------


@pytest.fixture
def plans(tmp_path, monkeypatch):
    monkeypatch.setenv("SCOREGRAPH_CACHE", str(tmp_path))
    return tmp_path


def folded(kind: str, steps: int) -> Graph:
    graph, _ = run_passes(SAMPLING_PASSES, q.guided(kind, steps).build(), show=str)
    return graph


@pytest.mark.parametrize("steps", [3, 4, 9])
def test_other_steps_take_the_group_nearest_in_time(steps):
    made = compiled("image", "w8a8:groups=2")
    arrays = {c.id: logical(c, files.read_constant(c, made._constants)) for c in made.plan.constants}
    plan, replaced = replace_tables(made.plan, arrays, folded("image", steps))

    def columns(plan: Plan, arrays: dict) -> dict[str, np.ndarray]:
        return dict(zip(plan.tables[0].columns, arrays[plan.tables[0].constant].T, strict=True))

    old, new = columns(made.plan, arrays), columns(plan, replaced)
    assert list(old[GROUP_COLUMN]) == [0, 0, 0, 1, 1, 1]
    assert plan.tables[0].rows == len(new["t"]) == steps
    assert (np.diff(new["t"]) < 0).all()
    for t, group in zip(new["t"], new[GROUP_COLUMN], strict=True):
        assert group == old[GROUP_COLUMN][np.abs(old["t"] - t).argmin()]
    assert set(new[GROUP_COLUMN]) == {0, 1}


def test_the_cache_tells_recipes_and_calibrations_apart(plans):
    given = {"label": LABEL}
    plain = "w8a8:smooth=no"
    for recipe, on in [("none", None), (plain, None), ("w8a8:groups=2", None), ("w8a8:groups=2", given)]:
        compiled("image", recipe, calibrate_on=on, use_cache=True)
    kept = len(cache.entries())
    assert kept == 5, "and the draft of them all"
    compiled("image", "w8a8:groups=2", calibrate_on=given, use_cache=True)
    compiled("image", plain, calibrate_on=given, use_cache=True)
    assert len(cache.entries()) == kept
    quants = [entry.parts["quant"] for entry in cache.entries()]
    assert sum(quant.startswith("w8a8:groups=2 calibrated on ") for quant in quants) == 1


def test_the_calibration_is_saved_with_the_plan(tmp_path):
    plan = compiled("image", "w8a8:groups=2")
    kept = sg.load(plan.save(tmp_path / "plan"))
    assert (
        Calibration.from_json(kept.stages["quantization"]).sites
        == Calibration.from_json(plan.stages["quantization"]).sites
    )
    np.testing.assert_array_equal(kept.run(label=LABEL)["sample"], plan.run(label=LABEL)["sample"])
