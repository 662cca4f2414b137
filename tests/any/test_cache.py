"""The plan cache: found again, told apart, told why not, and never in the way."""

from __future__ import annotations

import json

import numpy as np
import pytest
import toys

import scoregraph as sg
from scoregraph import cache, compiler
from scoregraph.graph import samplers


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SCOREGRAPH_CACHE", str(tmp_path / "plans"))
    return tmp_path / "plans"


@pytest.fixture
def captures(monkeypatch):
    """How often anything was compiled in earnest."""
    counted = []
    lower = compiler._Source.lower
    monkeypatch.setattr(
        compiler._Source, "lower", lambda self, *rest, **options: counted.append(1) or lower(self, *rest, **options)
    )
    return counted


def compiled(**options):
    return sg.compile(toys.guided(**options), device="reference")


def test_a_plan_is_compiled_once(root, captures):
    first, again = compiled(), compiled()
    assert len(captures) == 1
    assert again.plan == first.plan
    assert again.stages.keys() >= {"graph", "lower", "plan-memory"}
    np.testing.assert_array_equal(again.run(tilt=0.5)["sample"], first.run(tilt=0.5)["sample"])
    (entry,) = cache.entries()
    assert entry.folder.parent == root
    assert entry.folder.name.startswith("guided-reference-")
    assert entry.parts["device"] == "reference"
    assert entry.nbytes > 1000


def test_lines_of_the_users_file_are_no_part_of_the_key(root, captures):
    compiled()
    builder = toys.guided()
    moved = sg.parse(str(builder.build()).replace("toys.py:", "elsewhere.py:1"))
    assert moved is not builder.build()
    sg.compile(moved, device="reference", networks={toys.network().ref.fingerprint: toys.network()})
    assert len(captures) == 1


def test_a_sampler_of_other_registers_is_another_plan(root, captures):
    compiled()
    compiled(sampler=samplers.ddim())
    assert len(captures) == 2
    assert len(cache.entries()) == 2


def test_samplers_of_as_many_registers_share_a_plan(root, captures):
    """Which formulas fill the rows is no part of a plan: Heun's two calls a step are a longer table."""
    compiled()
    shared = compiled(sampler=samplers.heun()).run(tilt=0.5, seed=3)["sample"]
    assert len(captures) == 1
    own = sg.compile(toys.guided(sampler=samplers.heun()), device="reference", use_cache=False)
    np.testing.assert_array_equal(shared, own.run(tilt=0.5, seed=3)["sample"])


def test_a_miss_says_what_differs(root):
    key = compiler.cache_key(toys.guided(), device="reference")
    assert cache.find(key) is None
    assert cache.why(key) == f"no plan of 'guided' is kept in {root}"
    compiled()
    assert cache.find(key) == root / key.entry
    (root / "broken").mkdir()
    (root / "broken" / "key.json").write_text("[1")
    (root / "odd").mkdir()
    (root / "odd" / "key.json").write_text("[1]")
    other = compiler.cache_key(toys.guided(), device="triton")
    assert cache.why(other) == f"the closest plan, {key.entry}, differs in device reference -> triton"


def test_clear_removes_plans_and_nothing_else(root):
    compiled()
    (root / "mine.txt").write_text("mine")
    assert cache.clear() == 1
    assert cache.entries() == []
    assert [path.name for path in root.iterdir()] == ["mine.txt"]
    assert cache.clear() == 0


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch, captures):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    monkeypatch.setenv("SCOREGRAPH_CACHE", str(in_the_way / "plans"))
    compiled().run(tilt=0.5)
    compiled()
    assert len(captures) == 2
    assert cache.entries() == []
    assert cache.clear() == 0


@pytest.mark.parametrize("file", ["plan.json", "constants.arrow"])
def test_a_damaged_plan_is_compiled_anew(root, captures, file):
    plan = compiled()
    (entry,) = cache.entries()
    (entry.folder / file).write_bytes((entry.folder / file).read_bytes()[:100])
    again = compiled()
    assert len(captures) == 2
    assert again.plan.segments == plan.plan.segments
    compiled()
    assert len(captures) == 2, "the damaged plan was replaced"


def test_fuel_bypasses_the_cache(root, captures, monkeypatch):
    compiled()
    monkeypatch.setenv("SCOREGRAPH_FUEL", "0")
    limited = compiled()
    assert len(captures) == 2
    assert sum(stage.rewrites for stage in limited.plan.stages if "fuse" in stage.name) == 0
    monkeypatch.delenv("SCOREGRAPH_FUEL")
    compiled()
    assert len(captures) == 2


def test_without_the_cache_nothing_is_kept(root):
    sg.compile(toys.guided(), device="reference", use_cache=False)
    assert not root.exists()


def test_names_stay_inside_the_cache(root):
    sg.compile(toys.guided(name="../../up"), device="reference")
    (entry,) = cache.entries()
    assert entry.folder.parent == root
    assert json.loads((entry.folder / "key.json").read_text())["name"] == "../../up"


def test_the_compiler_is_part_of_the_key(root, captures, monkeypatch):
    compiled()
    monkeypatch.setattr(cache, "compiler", lambda: "another")
    compiled()
    assert len(captures) == 2
