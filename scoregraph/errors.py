"""Every mistake a user can make, one class each: a code, the place, and the cure.

Codes are grouped by the stage that finds the mistake:

    SG1xx  building and verifying a graph        SG4xx  compiling: passes, lowering, backends
    SG2xx  samplers, schedules, guidance         SG5xx  plan files and the cache
    SG3xx  models: capture, weights              SG6xx  running a plan
                                                 SG7xx  the command line

A class states its ``title`` and two templates; raising it names the values the templates use::

    raise UnknownName(kind="sampler", name="dpmp_2m", known=["ddim", "dpmpp_2m"], where=here())

``scoregraph explain SG101`` prints the class docstring, which is the error's page.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

_PACKAGE = str(Path(__file__).parent)


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a user's program: the file and the line (1-based) that made a node."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def here() -> Location | None:
    """The nearest caller outside this package, which is the user's own line."""
    frame = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_PACKAGE):
            return Location(Path(frame.f_code.co_filename).name, frame.f_lineno)
        frame = frame.f_back
    return None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A clause that names the closest known spelling, or lists what is known when nothing is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + (", ".join(known) if known else "nothing")


class ScoregraphError(Exception):
    """Base of all user errors. Never raised itself: each mistake has its own class."""

    code: ClassVar[str]
    title: ClassVar[str]
    message: ClassVar[str]
    cure: ClassVar[str]

    def __init__(self, *, where: Location | str | None = None, **values: object) -> None:
        self.where = where
        self.values = values
        super().__init__(self._render())

    def _render(self) -> str:
        lines = [f"{self.code} {self.title}: {self.message.format(**self.values)}"]
        if self.where is not None:
            lines.append(f"  at   {self.where}")
        lines.append(f"  help {self.cure.format(**self.values)}")
        return "\n".join(lines)


def all_errors() -> dict[str, type[ScoregraphError]]:
    """Every error class by its code; the census test and ``scoregraph explain`` read this."""
    found: dict[str, type[ScoregraphError]] = {}
    pending = list(ScoregraphError.__subclasses__())
    while pending:
        cls = pending.pop()
        pending.extend(cls.__subclasses__())
        found[cls.code] = cls
    return dict(sorted(found.items()))


# --- SG1xx: building and verifying a graph -----------------------------------------------------


class UnknownName(ScoregraphError):
    """A name (of a model, sampler, schedule, input, option …) is not known; the nearest known one is suggested."""

    code = "SG101"
    title = "unknown name"
    message = "there is no {kind} named {name!r}"
    cure = "{suggestion}"

    def __init__(self, *, kind: str, name: str, known: Iterable[str], where: Location | str | None = None) -> None:
        super().__init__(kind=kind, name=name, suggestion=did_you_mean(name, known), where=where)


# --- SG2xx: samplers, schedules, guidance ------------------------------------------------------


# --- SG3xx: models: capture, weights -----------------------------------------------------------


# --- SG4xx: compiling: passes, lowering, backends ----------------------------------------------


# --- SG5xx: plan files and the cache -----------------------------------------------------------


# --- SG6xx: running a plan ---------------------------------------------------------------------


# --- SG7xx: the command line -------------------------------------------------------------------
