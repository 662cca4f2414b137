"""The command line: what each command prints and writes, and that a mistake is three lines and exit status 1."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import scoregraph as sg
from scoregraph import cli, errors, gallery

pytest.importorskip("torch")

ON = ("--device", "reference")
GRAPH = """
import scoregraph as sg

net = sg.models.load("toy")
graph = sg.GraphBuilder("mine")
with graph.loop(sg.schedules.linear(steps=3), graph.noise(net)) as step:
    step.advance(sg.samplers.ddim(), graph.score(net, step, graph.condition(net, graph.input("tilt"))))
graph.output(sample=step.result, start=graph.input("start", net.latent))
"""


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """``run("generate", "toy")`` → (exit status, standard output, standard error), in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def command(*args) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["scoregraph", *map(str, args)])
        capsys.readouterr()
        try:
            cli.main()
        except SystemExit as ended:
            out, err = capsys.readouterr()
            code = ended.code if isinstance(ended.code, int) else 0
            return code, out, err
        raise AssertionError("a command ends by exit")

    return command


@pytest.fixture
def ok(run):
    def command(*args) -> str:
        code, out, err = run(*args)
        assert (code, err) == (0, ""), err
        return out

    return command


# --- generate, compile, run ----------------------------------------------------------------------


def test_generate_writes_the_samples(ok):
    out = ok("generate", "toy", *ON, "--steps", 6, "--seed", 7, "--batch", 3)
    assert "wrote out/toy-seed7.npy" in out
    assert "samples 3, steps 6, network calls 6, branch evaluations 6" in out
    made = np.load("out/toy-seed7.npy")
    assert made.shape == (3, 16)
    expected = sg.compile(gallery.toy(6, 1.0), device="reference").run(tilt=0.5, seed=7, batch=3)["sample"]
    np.testing.assert_array_equal(made, expected)


def test_generate_takes_inputs_guidance_and_a_file(ok):
    out = ok(
        *("generate", "toy", *ON, "--steps", 6, "--guidance", 2.5, "--set", "tilt=[[0.1,0.2,0.3,0.4],[0,0,0,0]]"),
        *("--batch", 2, "--out", "deep/made.npz", "--json"),
    )
    report = json.loads(out)
    assert report["files"] == ["deep/made.npz"]
    assert report["samples"] == 2
    assert (report["steps"], report["network_calls"], report["branch_evaluations"]) == (6, 6, 12)
    tilt = np.array([[0.1, 0.2, 0.3, 0.4], [0, 0, 0, 0]])
    expected = sg.compile(gallery.toy(6, 2.5), device="reference").run(tilt=tilt)["sample"]
    np.testing.assert_array_equal(np.load("deep/made.npz")["sample"], expected)


def test_compile_then_run(ok):
    report = json.loads(ok("compile", "toy", "-o", "plan", *ON, "--json"))
    assert report["files"] == ["plan"]
    assert report["plan"].startswith("<plan toy for reference: tilt -> sample")
    np.save("tilt.npy", np.full(4, 0.25))
    out = ok(
        "run", "plan", "--set", "tilt=@tilt.npy", "--seed", 9, "--batch", 2, "--out", "made.npy", "--stats", "--json"
    )
    told, planned = json.loads(out), sg.load("plan").memory(2)
    assert told["load_ms"] > 0
    assert told["arena_mb"] == round(planned.arena / 1e6, 2)
    assert 0 <= told["largest_live_set_mb"] <= told["arena_mb"] < told["peak_of_process_mb"]
    expected = sg.load("plan").run(tilt=0.25, seed=9, batch=2)["sample"]
    np.testing.assert_array_equal(np.load("made.npy"), expected)


def test_a_python_file_with_a_graph(ok, run):
    Path("mine.py").write_text(GRAPH)
    np.save("start.npy", np.ones(16))
    given = ("--set", "tilt=0.5", "--set", "start=@start.npy", "--batch", 2)
    assert "wrote out/mine-seed0.npz" in ok("generate", "mine.py", *ON, *given), "two outputs are one .npz"
    made = np.load("out/mine-seed0.npz")
    assert set(made) == {"sample", "start"}
    np.testing.assert_array_equal(made["start"], np.ones((2, 16)))
    code, _, err = run("generate", "mine.py", *ON, "--steps", 5)
    assert code == 2
    assert "states its own" in err


@pytest.mark.parametrize("form", ["txt", "json"])
def test_the_forms_of_a_graph_compile_as_the_graph(ok, form):
    printed = ok("show", "toy", "--format", {"txt": "text"}.get(form, form))
    Path(f"toy.{form}").write_text(printed)
    ok("compile", f"toy.{form}", "-o", "plan", *ON)
    ok("compile", "toy", "-o", "again", *ON)
    given = {"tilt": 0.5, "seed": 1}
    np.testing.assert_array_equal(sg.load("plan").run(**given)["sample"], sg.load("again").run(**given)["sample"])


# --- show, explain, doctor, cache -----------------------------------------------------------------


def without_places(graph: sg.Graph) -> sg.Graph:
    """A graph without the lines that made it, which differ between this file and the command line."""
    return sg.Graph(graph.name, graph.outputs)


def test_show_prints_every_form(ok):
    assert without_places(sg.parse(ok("show", "toy"))) is without_places(gallery.toy().build())
    assert ok("show", "toy", "--format", "mermaid").startswith("flowchart")
    assert ok("show", "toy", "--format", "dot").startswith("digraph")
    assert json.loads(ok("show", "toy", "--format", "json"))["name"] == "toy"


def test_show_prints_every_stage(ok):
    listing = ok("show", "toy", "--stage", "list", *ON)
    names = [line.removeprefix("after ").split(" (")[0] for line in listing.splitlines() if line.startswith("after ")]
    assert names[:3] == ["graph", "fold-tables", "fold-step"]
    assert names[-1] == "plan-memory"
    assert "fuse(cfg" in ok("show", "toy", "--stage", "fold-tables", *ON)
    assert "fuse(cfg" not in ok("show", "toy", "--stage", "fold-step", *ON)
    assert "sampler_step(" in ok("show", "toy", "--stage", "plan-memory", *ON)


def test_show_reads_a_plan_folder(ok):
    ok("compile", "toy", "-o", "plan", *ON)
    assert without_places(sg.parse(ok("show", "plan"))) is without_places(gallery.toy().build())
    assert ok("show", "plan", "--format", "mermaid") == ok("show", "toy", "--format", "mermaid")
    assert "sampler_step(" in ok("show", "plan", "--stage", "lower")


@pytest.mark.parametrize("code", errors.all_errors())
def test_explain_tells_about_every_error(ok, code):
    error = errors.all_errors()[code]
    page = ok("explain", code.lower())
    assert page.startswith(f"{code} {error.title}\n")
    for part in ("says", "cure"):
        assert f"\n{part}" in page
    doc = " ".join((error.__doc__ or "").split())
    assert len(doc) > 60, "the docstring is the error's page"
    assert doc in " ".join(page.split())


def test_explain_lists_all(ok):
    assert [line.split()[0] for line in ok("explain", "list").splitlines()] == list(errors.all_errors())


def test_doctor_tells_about_the_machine(ok, monkeypatch):
    found = json.loads(ok("doctor", "--json"))
    assert {
        "scoregraph",
        "python",
        "processor",
        "cores",
        "instruction set",
        "torch",
        "gpu",
        "plan cache",
    } <= found.keys()
    assert found["python"].split()[0] in sys.version
    assert found["processor"] in ok("doctor").replace("\n", " ")
    monkeypatch.setitem(sys.modules, "scoregraph._native", None)
    monkeypatch.delattr("scoregraph._native", raising=False)
    assert "extension is missing" in json.loads(ok("doctor", "--json"))["instruction set"]


def test_the_cache_is_listed_explained_and_cleared(ok, monkeypatch, tmp_path):
    monkeypatch.setenv("SCOREGRAPH_CACHE", str(tmp_path / "plans"))
    assert json.loads(ok("cache", "ls", "--json")) == []
    assert "no plan of 'toy' is kept" in ok("cache", "why", "toy", *ON)
    ok("compile", "toy", "-o", "plan", *ON)
    (entry,) = json.loads(ok("cache", "ls", "--json"))
    assert entry["device"] == "reference"
    assert Path(entry["folder"]).name in ok("cache", "ls")
    assert ok("cache", "why", "toy", *ON) == f"kept: {entry['folder']}\n"
    assert "differs in device reference -> triton" in ok("cache", "why", "toy", "--device", "triton")
    assert ok("cache", "clear") == f"removed 1 plans from {tmp_path / 'plans'}\n"
    ok("compile", "toy", "-o", "plan", *ON, "--no-cache")
    assert json.loads(ok("cache", "ls", "--json")) == []


# --- exit status ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ("generat", "toy"),
        ("generate",),
        ("generate", "toy", "--batch", "0"),
        ("generate", "toy", "--steps", "many"),
        ("compile", "toy"),
        ("run", "plan", "--nonsense"),
        ("cache", "shrink"),
    ],
)
def test_a_misspelt_command_is_status_2(run, args):
    code, _, err = run(*args)
    assert code == 2
    assert "Usage" in err
    assert "Traceback" not in err


def test_errors_are_json_where_json_was_asked_for(run):
    code, out, err = run("run", "nowhere", "--json")
    assert (code, err) == (1, "")
    error = json.loads(out)["error"]
    assert error["code"] == "SG501"
    assert "nowhere" in error["text"]


def process(*args, cwd) -> subprocess.CompletedProcess[str]:
    path = str(Path(sg.__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {path!r}); from scoregraph.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], cwd=cwd, capture_output=True, text=True)


def test_a_process_in_a_pipe_is_silent_on_success(saved, tmp_path):
    ended = process("run", saved, "--set", "tilt=0.5", "--out", "made.npy", cwd=tmp_path)
    assert ended.returncode == 0
    assert ended.stderr == "", "no progress bar outside of a terminal"
    assert ended.stdout.startswith("wrote made.npy\n")
    assert "\x1b" not in ended.stdout


def test_a_process_tells_a_mistake_in_three_lines(saved, tmp_path):
    ended = process("run", saved, "--set", "tilt=7", cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.splitlines() == [
        "error SG602 bad input: 'tilt': 7 is outside -1 to 1",
        "  at   --set tilt=…",
        "  help give values from -1 to 1",
    ]
