"""The command line runs a saved CPU plan, and tells a mistake in it, without torch in the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from subjects import sampling, toy_network

import scoregraph as sg
from scoregraph.graph import guidance, prediction, samplers, schedules

pytestmark = pytest.mark.native

SCRIPT = """
import sys
sys.path.insert(0, {path!r})
sys.modules["torch"] = sys.modules["triton"] = None  # an import would fail
sys.argv = ["scoregraph", *{args!r}]
from scoregraph.cli import main
main()
"""


def command(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = str(Path(sg.__file__).parents[1])
    script = SCRIPT.format(path=path, args=[str(arg) for arg in args])
    return subprocess.run([sys.executable, "-c", script], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def plan():
    net = toy_network(prediction.eps(), "timestep", "vp")
    graph = sampling(net, schedules.linear(steps=5), samplers.dpmpp_2m(), guidance.cfg(2.0))
    return sg.compile(graph, device="cpu", use_cache=False)


@pytest.fixture(scope="module")
def folder(plan, tmp_path_factory):
    return plan.save(tmp_path_factory.mktemp("plans") / "plan")


def test_run_gives_the_same_bits(plan, folder, tmp_path):
    ended = command("run", folder, "--set", "cond0=0.5", "--seed", 3, "--batch", 2, "--out", "made.npz", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    expected = plan.run(cond0=0.5, seed=3, batch=2)
    with np.load(tmp_path / "made.npz") as made:
        assert set(made) == set(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(made[name], value)


def test_a_mistake_is_told(folder, tmp_path):
    ended = command("run", folder, "--set", "cond0=NaN", cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error SG602 bad input: 'cond0': it holds nan")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("args", [("explain", "SG602"), ("cache", "ls"), ("--help",)])
def test_other_commands_need_no_torch(args, tmp_path):
    assert command(*args, cwd=tmp_path).returncode == 0


def test_show_reads_a_plan(folder, tmp_path):
    for options in ((), ("--stage", "list"), ("--stage", "plan-memory"), ("--format", "json")):
        ended = command("show", folder, *options, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout
