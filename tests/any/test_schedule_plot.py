"""``scoregraph plot``: a figure of schedules from their texts."""

import sys
from pathlib import Path

import pytest

from scoregraph import cli, schedule_plot
from scoregraph.errors import UnknownName
from scoregraph.graph import schedules

figures = pytest.importorskip("matplotlib.figure")
TEXTS = [
    "karras(steps=12)",
    "flow(steps=28, shift=3.0)",
    "scaled_linear(steps=12, sigmas='karras')",
    "trigflow(steps=2)",
]


def plot(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    """The exit status of the command."""
    monkeypatch.setattr(sys, "argv", ["scoregraph", "plot", *args])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code if isinstance(ended.value.code, int) else 0


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_a_figure_is_written(ending: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys):
    path = tmp_path / "figures" / f"schedules{ending}"
    assert plot(monkeypatch, *TEXTS, "--out", str(path)) == 0
    assert path.name in capsys.readouterr().out.replace("\n", "")
    written = path.read_bytes()
    assert written.startswith(b"\x89PNG" if ending == ".png" else b"<?xml")
    if ending == ".svg":
        assert all(text.partition("(")[0] in written.decode() for text in TEXTS)


def test_the_figure_shows_the_points(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """What is drawn are the grids' own numbers, and infinite ones lie on the edge."""
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    karras, flow = schedules.karras(steps=4, sigma_min=0.1, sigma_max=10.0), schedules.flow(steps=4)
    schedule_plot.draw([karras, flow], tmp_path / "f.png")
    level, parts, ratio, time = drawn[0].axes
    lines = {line.get_label(): list(line.get_ydata()) for line in level.lines}
    assert lines[str(karras)] == pytest.approx([*karras.grid().sigma[:-1], 0.05])  # 0 on a logarithmic axis
    assert lines[str(flow)] == pytest.approx([20.0, *flow.grid().kappa[1:-1], 0.05])
    arrows = [line.get_marker() for line in level.lines if line.get_marker() in "^v"]
    assert sorted(arrows) == ["^", "v", "v"]
    assert parts.lines[0].get_ydata()[-1] == 1.0
    assert ratio.lines[0].get_ydata()[0] == pytest.approx(-2.302585)
    assert list(time.lines[1].get_ydata()) == [1000.0, 750.0, 500.0, 250.0]
    assert level.get_xlabel() == "step"


@pytest.mark.parametrize("text", ["karas(steps=3)", "karras(", "karras(12)", "3", "karras(steps=f())"])
def test_what_is_not_a_schedule(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys):
    with pytest.raises(UnknownName, match="SG101"):
        schedule_plot.read(text)
    assert plot(monkeypatch, text, "--out", str(tmp_path / "f.png")) == 1
    assert "there is no schedule named" in capsys.readouterr().err


def test_formats_and_places_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys):
    assert plot(monkeypatch, TEXTS[0], "--out", str(tmp_path / "f.npy")) == 1
    (tmp_path / "taken").write_text("a file")
    assert plot(monkeypatch, TEXTS[0], "--out", str(tmp_path / "taken" / "f.png")) == 1
    assert "SG" in capsys.readouterr().err
