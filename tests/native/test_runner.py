"""The runner, a binary without Python, runs a saved plan to the same bits, and tells a mistake as the package does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from subjects import sampling, toy_network

import scoregraph as sg
from scoregraph.graph import guidance, prediction, samplers, schedules

ROOT = Path(__file__).parents[2]
BINARY = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "scoregraph-run"

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(
        not BINARY.is_file(), reason=f"{BINARY.name} is not built: cargo build --release -p scoregraph-runner"
    ),
]


def command(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BINARY, *map(str, args)], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def plan():
    net = toy_network(prediction.eps(), "timestep", "vp")
    graph = sampling(net, schedules.linear(steps=5), samplers.dpmpp_2m(), guidance.cfg(2.0))
    return sg.compile(graph, device="cpu", use_cache=False)


@pytest.fixture(scope="module")
def folder(plan, tmp_path_factory):
    return plan.save(tmp_path_factory.mktemp("plans") / "plan")


@pytest.mark.parametrize("threads", [1, 2])
def test_the_bits_are_those_of_the_package(plan, folder, tmp_path, threads):
    given = ["--set", "cond0=0.5", "--seed", -3, "--batch", 2, "--threads", threads]
    ended = command(folder, *given, "--out", "made", "--json", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    expected = plan.run(cond0=0.5, seed=-3, batch=2)
    assert {Path(file).stem for file in told["files"]} == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(np.load(tmp_path / "made" / f"{name}.npy"), value)
    assert told["steps"] == 5
    assert told["samples"] == 2
    # A plan is there to be run at once: reading, proving and the first step of a small one.
    assert told["load_ms"] <= told["first_step_ms"] < 2000
    assert told["peak_bytes"] > told["memory"]["constants"]


def test_values_come_from_files_and_lists(plan, folder, tmp_path):
    values = np.array([[0.25], [-0.5]], np.float32)
    for dtype in ("<f4", "<f8"):
        np.save(tmp_path / "cond.npy", values.astype(dtype))
        texts = ["cond0=@cond.npy", "cond0=[[0.25], [-0.5]]"]
        for text in texts:
            ended = command(folder, "--set", text, "--out", "made", cwd=tmp_path)
            assert ended.returncode == 0, ended.stderr
            for name, value in plan.run(cond0=values).items():
                np.testing.assert_array_equal(np.load(tmp_path / "made" / f"{name}.npy"), value)


def test_time_is_told(folder, tmp_path):
    ended = command(folder, "--set", "cond0=0.5", "--time", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    for said in ("first step done", "peak memory", "instruction set", "wrote"):
        assert said in ended.stdout


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ([], "SG601"),
        (["--set", "cond0=true"], "SG702"),
        (["--set", "cond0"], "SG702"),
        (["--set", "cond0=@nothing.npy"], "SG702"),
        (["--set", "other=1"], "SG602"),
        (["--set", "cond0=1e60"], "SG602"),
        (["--set", "cond0=[[1], [0]]", "--batch", "3"], "SG603"),
        (["--set", "cond0=1", "--batch", "0"], "SG603"),
        (["--set", "cond0=1", "--threads", "0"], "SG607"),
        (["--set", "cond0=1", "--out", "made.jpg"], "SG703"),
    ],
)
def test_mistakes_have_the_codes_of_the_package(folder, tmp_path, args, code):
    ended = command(folder, *args, cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith(code)
    assert "\n  help " in ended.stderr


def test_a_plan_that_was_touched_does_not_run(folder, tmp_path):
    def touched(name: str, edit) -> str:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(edit(content))
        ended = command(copy, "--set", "cond0=1", cwd=tmp_path)
        assert ended.returncode == 1
        return ended.stderr

    assert touched("plan.json", lambda raw: raw.replace(b'"sha256"', b'"sha257"')).startswith("SG502")
    assert touched("plan.json", lambda raw: raw.replace(b"cond0", b"cond1")).startswith("SG502")
    assert touched("plan.json", lambda raw: raw[: len(raw) // 2]).startswith("SG502")
    assert touched("plan.json", lambda raw: raw.replace(b'"version": ', b'"version": 9')).startswith("SG503")
    assert touched("constants.arrow", lambda raw: raw[:-1] + b"!").startswith("SG502")
    assert command(tmp_path / "nowhere", cwd=tmp_path).stderr.startswith("SG501")
