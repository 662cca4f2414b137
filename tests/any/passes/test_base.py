"""Fuel, reports and explanations, on a pass that needs no torch."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest

from scoregraph.errors import InvalidFuel
from scoregraph.passes.base import Fuel, Miss, PassResult, run_passes


@dataclass(frozen=True)
class Capitalise:
    """A program is a string; a letter of ``letters`` becomes a capital."""

    name: ClassVar[str] = "capitalise"
    letters: str = "abc"

    def run(self, module: str, fuel: Fuel | None = None) -> PassResult[str]:
        fuel = fuel or Fuel()
        made, count, misses = "", 0, []
        for letter in module:
            hit = letter in self.letters and fuel.spend()
            if letter.islower() and letter not in self.letters:
                misses.append(Miss(f"not one of {self.letters}", letter))
            made += letter.upper() if hit else letter
            count += hit
        return PassResult(made, count, {"letter": count}, tuple(misses))


def test_unlimited_by_default() -> None:
    fuel = Fuel()
    assert all(fuel.spend() for _ in range(1000))


def test_fuel_is_shared_by_all_passes() -> None:
    made, reports = run_passes([Capitalise("a"), Capitalise("bc")], "abcabc", show=str, fuel=Fuel(3))
    assert made == "ABcAbc"
    assert [report.result.rewrites for report in reports] == [2, 1]


def test_reports_keep_the_text_of_every_stage() -> None:
    _, (first, second) = run_passes([Capitalise("a"), Capitalise("b")], "abx", show="<{}>".format)
    assert (first.text, second.text) == ("<Abx>", "<ABx>")
    assert str(second).startswith("# after capitalise (1 rewrites, ")
    stage = second.data()
    assert (stage.name, stage.rewrites, stage.counters) == ("capitalise", 1, {"letter": 1})
    assert stage.misses == ("x: not one of b",)


@pytest.mark.parametrize(("text", "left"), [("", None), ("0", 0), (" 12 ", 12)])
def test_fuel_from_the_environment(monkeypatch: pytest.MonkeyPatch, text: str, left: int | None) -> None:
    monkeypatch.setenv("SCOREGRAPH_FUEL", text)
    assert Fuel.from_environment().left == left


@pytest.mark.parametrize("text", ["-1", "ten", "1.5"])
def test_fuel_that_is_no_number(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SCOREGRAPH_FUEL", text)
    with pytest.raises(InvalidFuel, match="SG410") as caught:
        Fuel.from_environment()
    assert text in str(caught.value)


@pytest.mark.parametrize(("setting", "expected"), [("1", ["capitalise: x: not one of abc"]), ("0", []), ("", [])])
def test_misses_are_logged_when_asked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, setting: str, expected: list[str]
) -> None:
    monkeypatch.setenv("SCOREGRAPH_EXPLAIN", setting)
    with caplog.at_level(logging.WARNING, "scoregraph.passes"):
        run_passes([Capitalise()], "ax", show=str)
    assert [record.getMessage() for record in caplog.records] == expected


def test_base_needs_no_torch() -> None:
    code = "import scoregraph.passes.base, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
