"""User mistakes on the command line: each is told with its code, place and cure, ends in status 1, and no traceback."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_cli import GRAPH, ON, ok, run

from scoregraph import gallery

pytest.importorskip("torch")
__all__ = ["ok", "run"]

START = """import scoregraph as sg

net = sg.models.load("toy")
g = graph = sg.GraphBuilder("mine")
level, blank = g.condition(net, g.input("tilt")), g.condition(net, None)
"""
LOOP = "with g.loop(sg.schedules.linear(steps=3), g.noise(net)) as step:\n"
PRED = "    pred = g.score(net, step, level)\n"
ADVANCE = "    step.advance(sg.samplers.ddim(), pred)\n"
END = "g.output(sample=step.result)\n"

# Each script has one wrong line, which ends in "# <-".
SCRIPTS: dict[str, tuple[str, str, str]] = {
    "a misspelt network": ("SG101", "did you mean 'toy'", 'import scoregraph as sg\nsg.models.load("toi")  # <-'),
    "a misspelt condition": ("SG101", "did you mean 'tilt'", START + "g.condition(net, tlit=0.5)  # <-"),
    "a misspelt option value": (
        "SG101",
        "did you mean 'trailing'",
        START + 'sg.schedules.linear(5, spacing="trailin")  # <-',
    ),
    "eps mixed with x0": (
        "SG102",
        "g.convert",
        START
        + LOOP
        + PRED
        + "    other = g.convert(pred, step, sg.predictions.x0())\n"
        + "    g.fuse(sg.guidance.cfg(2.0), pred, other)  # <-",
    ),
    "three branches for cfg": (
        "SG103",
        "one prediction per branch",
        START + LOOP + PRED + "    g.fuse(sg.guidance.cfg(2.0), pred, pred, pred)  # <-",
    ),
    "a bare guidance scale": (
        "SG104",
        "sg.guidance.cfg(7.5)",
        START + LOOP + PRED + "    g.fuse(7.5, pred, pred)  # <-",
    ),
    "a number as an output": ("SG105", "docs/graph-ir.md", START + "g.output(x=3.0)  # <-"),
    "a prediction into a select rule": (
        "SG107",
        "sg.samplers",
        START + LOOP + PRED + "    step.advance(sg.select.everything(mask=0), pred)  # <-",
    ),
    "noise of another shape": (
        "SG109",
        "without the batch",
        START
        + 'latent = type(net.latent)("vp", (3, 16))\n'
        + "with g.loop(sg.schedules.linear(steps=3), g.noise(latent)) as step:\n    g.score(net, step, level)  # <-",
    ),
    "noise of another space": (
        "SG108",
        "one space",
        START
        + 'latent = type(net.latent)("kappa", (16,))\n'
        + "with g.loop(sg.schedules.linear(steps=3), g.noise(latent)) as step:\n    g.score(net, step, level)  # <-",
    ),
    "a score without its condition": ("SG110", "g.condition(toy, tilt=", START + LOOP + "    g.score(net, step)  # <-"),
    "an input without a type": (
        "SG112",
        "g.input('start', type)",
        START + 'g.loop(sg.schedules.linear(steps=3), g.input("start"))  # <-',
    ),
    "an unused branch": (
        "SG113",
        "leave it out",
        START.replace("\nlevel", "\nunused = g.condition(net, 0.5)  # <-\nlevel") + LOOP + PRED + ADVANCE + END,
    ),
    "a loop without a step": ("SG114", "end its body with", START + LOOP.replace("\n", "  # <-\n") + "    pass\n"),
    "a state advanced twice": ("SG115", "two loops", START + LOOP + PRED + ADVANCE + ADVANCE.replace("\n", "  # <-")),
    "a score after its loop": (
        "SG116",
        "step.result",
        START + LOOP + PRED + ADVANCE + "g.score(net, step, blank)  # <-",
    ),
    "a result inside the loop": ("SG117", "dedent", START + LOOP + "    step.result  # <-"),
    "two inputs of one name": ("SG118", "another name", START + 'g.input("tilt")  # <-'),
    "a schedule as a sampler": (
        "SG120",
        "sg.samplers.ddim()",
        START + LOOP + PRED + "    step.advance(sg.schedules.linear(steps=3), pred)  # <-",
    ),
    "a network without a head": (
        "SG122",
        "output the latent",
        START + LOOP + PRED + ADVANCE + "g.decode(net, step.result)  # <-",
    ),
    "a name for a network": ("SG123", "from_module", START + 'g.noise("toy")  # <-'),
    "an option that is an array": (
        "SG201",
        "a finite number",
        "import numpy as np\n" + START + "sg.guidance.cfg(np.ones(2))  # <-",
    ),
    "no steps": ("SG201", "an integer of at least 1", START + "sg.schedules.karras(steps=0)  # <-"),
    "a range upside down": (
        "SG202",
        "swapped",
        START + "sg.schedules.karras(steps=5, sigma_min=80.0, sigma_max=0.1)  # <-",
    ),
    "more steps than were trained": (
        "SG203",
        "fewer steps",
        START + LOOP.replace("steps=3", "steps=2000") + "    g.score(net, step, level)  # <-",
    ),
    "eps at alpha 0": (
        "SG204",
        "alpha > 0",
        START
        + LOOP.replace("steps=3", 'steps=3, spacing="trailing", zero_snr=True')
        + PRED
        + ADVANCE.replace("\n", "  # <-"),
    ),
    "a correction that is a sampler": (
        "SG120",
        "sg.corrections.clamp()",
        START + LOOP + PRED + "    g.correct(sg.samplers.ddim(), pred, step)  # <-",
    ),
    "a learned variance that no network says": (
        "SG131",
        "fixed_small",
        START + LOOP + PRED + '    step.advance(sg.samplers.ddpm(variance="learned_range"), pred)  # <-',
    ),
    "a mask before the step": (
        "SG132",
        "step.advance(sampler, pred)",
        START
        + 'known = g.input("known", net.ref.latent)\n'
        + LOOP
        + "    step.inpaint(known, known, g.noise(net))  # <-",
    ),
    "the probability of a certain step": (
        "SG133",
        "ddim(eta=1.0)",
        START + LOOP + PRED + ADVANCE + '    g.emit("log_prob", step.log_prob)  # <-',
    ),
    "a scale from outside for a rule that projects": (
        "SG105",
        "docs/graph-ir.md",
        START
        + 'from scoregraph.graph.values import Scalar\nscale = g.input("scale", Scalar("per-sample"))\n'
        + LOOP
        + PRED
        + "    g.fuse(sg.guidance.apg(5.0), pred, pred, scale=scale)  # <-",
    ),
    "a threshold below 1": (
        "SG201",
        "a number of at least 1",
        START + "sg.corrections.dynamic_threshold(limit=0.5)  # <-",
    ),
    "an interval that ends before it starts": (
        "SG202",
        "swapped",
        START + "sg.guidance.cfg(3.0, start=0.6, stop=0.4)  # <-",
    ),
    "timesteps of a schedule of sigmas": (
        "SG206",
        "scaled_linear",
        START + LOOP.replace("linear(steps=3)", "karras(steps=3)") + "    g.score(net, step, level)  # <-",
    ),
}


@pytest.mark.parametrize("case", SCRIPTS)
def test_a_mistake_in_a_graph_is_told_with_its_line(run, case):
    code, cure, script = SCRIPTS[case]
    Path("mine.py").write_text(script)
    line = next(i for i, text in enumerate(script.splitlines(), 1) if text.endswith("# <-"))
    status, out, err = run("compile", "mine.py", "-o", "plan", *ON)
    assert_told(status, out, err, code, rf"mine\.py:{line}", cure)
    assert not Path("plan").exists()


def assert_told(status: int, out: str, err: str, code: str, place: str | None, cure: str) -> None:
    """Exit status 1, nothing on standard output, and on standard error the code, the place and the cure."""
    assert status == 1, err
    assert out == ""
    assert "Traceback" not in err
    assert err.startswith(f"error {code} ")
    told, _, helped = err.partition("\n  help ")
    assert cure in helped + told, err
    assert helped.strip()
    assert re.search(rf"\n  at   .*{place or 'scoregraph [a-z]+'}|^error [^\n]*{place or '^'}", err), err
    assert "\n  at   " in err


def plan(change: Callable[[Path], object] | None = None) -> Callable[[], None]:
    """A saved plan in the folder ``plan``, then changed."""

    def prepare() -> None:
        import scoregraph as sg

        sg.compile(gallery.toy(steps=3), device="reference").save("plan")
        if change is not None:
            change(Path("plan"))

    return prepare


def text(name: str, content: str) -> Callable[[], object]:
    return lambda: Path(name).write_text(content)


def replace(name: str, old: str, new: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / name
        content = path.read_text()
        assert old in content
        path.write_text(content.replace(old, new, 1))

    return change


def shown(form: str, **changes: str) -> str:
    """A form of the toy graph, with some of its text replaced."""
    graph = gallery.toy().build()
    whole = str(graph) if form == "text" else graph.to_json()
    for old, new in changes.items():
        assert old in whole
        whole = whole.replace(old, new)
    return whole


FINGERPRINT = gallery.toy().networks[0].ref.fingerprint

# What to prepare, the command, the code, the place, and a part of the cure.
COMMANDS: dict[str, tuple[Callable[[], object] | None, tuple[object, ...], str, str | None, str]] = {
    "an unknown graph": (None, ("generate", "terain", *ON), "SG101", None, "did you mean 'terrain'"),
    "an unknown device": (None, ("generate", "toy", "--device", "refrence"), "SG101", None, "did you mean 'reference'"),
    "an unknown recipe": (None, ("compile", "toy", "-o", "p", "--quant", "w8"), "SG101", None, "did you mean 'w8a8'?"),
    "an unknown stage": (
        None,
        ("show", "toy", "--stage", "batch-branchs", *ON),
        "SG101",
        None,
        "did you mean 'batch-branches'",
    ),
    "an unknown format": (None, ("show", "toy", "--format", "mermade"), "SG101", None, "did you mean 'mermaid'"),
    "an unknown code": (None, ("explain", "SG999"), "SG101", None, "did you mean 'SG"),
    "a misspelt input": (plan(), ("run", "plan", "--set", "tlt=1"), "SG101", "--set tlt=…", "did you mean 'tilt'"),
    "an input named like an option": (
        plan(),
        ("run", "plan", "--set", "seed=1"),
        "SG101",
        "--set seed=…",
        "known: tilt",
    ),
    "no input": (plan(), ("run", "plan"), "SG601", None, "tilt"),
    "NaN": (plan(), ("run", "plan", "--set", "tilt=NaN"), "SG602", "--set tilt=…", "give finite numbers"),
    "infinity": (plan(), ("run", "plan", "--set", "tilt=-Infinity"), "SG602", "--set tilt=…", "give finite numbers"),
    "out of range": (plan(), ("run", "plan", "--set", "tilt=60"), "SG602", "--set tilt=…", "from -1 to 1"),
    "a bad shape": (plan(), ("run", "plan", "--set", "tilt=[0,1,0]"), "SG602", "--set tilt=…", "give [1, 4] or [4]"),
    "an array of texts": (
        lambda: (plan()(), np.save("t.npy", np.array(["a"]))),
        ("run", "plan", "--set", "tilt=@t.npy"),
        "SG602",
        "--set tilt=…",
        "pass numbers",
    ),
    "two batches": (
        plan(),
        ("run", "plan", "--set", "tilt=[[0,0,0,0],[0,0,0,0]]", "--batch", 3),
        "SG603",
        None,
        "one value per sample",
    ),
    "a missing plan": (None, ("run", "nowhere", "--set", "tilt=1"), "SG501", "nowhere", "scoregraph compile"),
    "an empty folder": (lambda: Path("empty").mkdir(), ("run", "empty"), "SG501", "empty", "scoregraph compile"),
    "a truncated plan": (
        plan(lambda p: (p / "plan.json").write_bytes((p / "plan.json").read_bytes()[:900])),
        ("run", "plan", "--set", "tilt=1"),
        "SG502",
        r"plan/plan\.json:\d+",
        "compile the graph again",
    ),
    "an edited plan": (
        plan(replace("plan.json", '"op": "sampler_step"', '"op": "sampler_stop"')),
        ("run", "plan", "--set", "tilt=1"),
        "SG502",
        r"plan/plan\.json",
        "compile the graph again",
    ),
    "truncated constants": (
        plan(lambda p: (p / "constants.arrow").write_bytes(b"ARROW1")),
        ("run", "plan", "--set", "tilt=1"),
        "SG502",
        r"plan/constants\.arrow",
        "compile the graph again",
    ),
    "constants that are gone": (
        plan(lambda p: (p / "constants.arrow").unlink()),
        ("show", "plan"),
        "SG502",
        "plan",
        "compile the graph again",
    ),
    "a plan of another version": (
        plan(replace("plan.json", '"version": 3', '"version": 99')),
        ("run", "plan", "--set", "tilt=1"),
        "SG503",
        r"plan/plan\.json",
        "with this version",
    ),
    "a file where the plan shall go": (
        text("here", "mine"),
        ("compile", "toy", "-o", "here", *ON),
        "SG502",
        "here",
        "compile",
    ),
    "a folder below a file": (
        text("here", "mine"),
        ("compile", "toy", "-o", "here/plan", *ON),
        "SG504",
        "here/plan",
        "another place",
    ),
    "samples below a file": (
        lambda: (plan()(), text("here", "mine")()),
        ("run", "plan", "--set", "tilt=1", "--out", "here/x.npy"),
        "SG504",
        r"here/x\.npy",
        "another place",
    ),
    "a setting without a value": (
        plan(),
        ("run", "plan", "--set", "tilt"),
        "SG702",
        "--set 'tilt'",
        "--set difficulty=60",
    ),
    "a setting that is no number": (
        plan(),
        ("run", "plan", "--set", "tilt=steep"),
        "SG702",
        "--set 'tilt=steep'",
        "for example",
    ),
    "a setting that is an object": (plan(), ("run", "plan", "--set", 'tilt={"a":1}'), "SG702", "--set", "for example"),
    "a file that is not there": (
        plan(),
        ("run", "plan", "--set", "tilt=@t.npy"),
        "SG702",
        r"tilt=@t\.npy",
        "for example",
    ),
    "a file that is empty": (
        lambda: (plan()(), Path("t.npy").touch()),
        ("run", "plan", "--set", "tilt=@t.npy"),
        "SG702",
        r"tilt=@t\.npy",
        "for example",
    ),
    "a picture of vectors": (plan(), ("run", "plan", "--set", "tilt=1", "--out", "x.png"), "SG703", "--out", ".npy"),
    "an unknown ending": (None, ("generate", "toy", *ON, "--out", "x.jpg"), "SG703", "--out", ".png, .npy, .npz"),
    "a graph file that is not there": (
        None,
        ("compile", "mine.py", "-o", "plan", *ON),
        "SG701",
        r"mine\.py",
        "give a name",
    ),
    "a graph in another form": (
        text("mine.yaml", "x"),
        ("generate", "mine.yaml", *ON),
        "SG701",
        r"mine\.yaml",
        "give a name",
    ),
    "a file without a graph": (
        text("mine.py", "g = 1"),
        ("compile", "mine.py", "-o", "p", *ON),
        "SG701",
        r"mine\.py",
        "'graph'",
    ),
    "a graph that is a number": (
        text("mine.py", "graph = 1"),
        ("show", "mine.py"),
        "SG701",
        r"mine\.py: its 'graph' is a int",
        "GraphBuilder",
    ),
    "Python that does not parse": (text("mine.py", "x = 1\nx ="), ("show", "mine.py"), "SG701", r"mine\.py:2", "give"),
    "Python that fails": (text("mine.py", "x = 1\ny = x / 0"), ("show", "mine.py"), "SG701", r"mine\.py:2", "give"),
    "a graph that is not text": (
        lambda: Path("mine.txt").write_bytes(b"\xff\xfe"),
        ("show", "mine.txt"),
        "SG701",
        r"mine\.txt",
        "give",
    ),
    "a graph without an output": (
        text("mine.py", GRAPH.rsplit("graph.output", 1)[0]),
        ("show", "mine.py"),
        "SG119",
        None,
        "g.output",
    ),
    "a graph text with a typo": (
        lambda: Path("mine.txt").write_text(shown("text", **{"= noise(": "= noise(("})),
        ("show", "mine.txt"),
        "SG125",
        "line 9",
        "grammar",
    ),
    "a graph JSON with a field too many": (
        lambda: Path("mine.json").write_text(json.dumps({**json.loads(shown("json")), "extra": 1})),
        ("show", "mine.json"),
        "SG126",
        "extra",
        "graph.to_json()",
    ),
    "a graph JSON cut short": (
        lambda: Path("mine.json").write_text(shown("json")[:300]),
        ("show", "mine.json"),
        "SG126",
        None,
        "graph.to_json()",
    ),
    "a network of other weights": (
        lambda: Path("mine.txt").write_text(shown("text", **{FINGERPRINT: "0123456789abcdef"})),
        ("compile", "mine.txt", "-o", "plan", *ON),
        "SG320",
        "0123456789abcdef",
        "sg.compile(graph, networks=",
    ),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_mistake_on_the_command_line_is_told(run, case):
    prepare, command, code, place, cure = COMMANDS[case]
    if prepare is not None:
        prepare()
    status, out, err = run(*command)
    assert_told(status, out, err, code, place, cure)
    shutil.rmtree("plan", ignore_errors=True)


def test_fuel_that_is_no_number(run, monkeypatch):
    monkeypatch.setenv("SCOREGRAPH_FUEL", "a lot")
    status, out, err = run("compile", "toy", "-o", "plan", *ON)
    assert_told(status, out, err, "SG410", "SCOREGRAPH_FUEL is 'a lot'", "or unset it")


def test_there_are_more_than_twenty_five():
    codes = {code for code, _, _ in SCRIPTS.values()} | {code for _, _, code, _, _ in COMMANDS.values()}
    assert len(SCRIPTS) + len(COMMANDS) >= 60
    assert len(codes) >= 30
