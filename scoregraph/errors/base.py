"""What every user error is made of: a code, a message, the place, the cure."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

_PACKAGE = __name__.partition(".")[0]
_COMMAND_LINE = f"{_PACKAGE}.cli"


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a user's program: the file and the line (1-based) that made a node."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def here() -> Location | None:
    """The nearest caller outside this package, which is the user's own line; a command line has none."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") != _COMMAND_LINE:
        # By module and not by file: the __init__ that a dataclass generates has no file.
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] != _PACKAGE:
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
        self._stated = where
        self._caller = None if where is not None else here()
        self.values = values
        super().__init__(self._render())

    @property
    def where(self) -> Location | str | None:
        """The place: what was stated, else the user's line that called this package."""
        return self._stated if self._stated is not None else self._caller

    def at(self, where: Location | str | None) -> Self:
        """This error with a place, unless one was stated: rules raise, those who know the place better add it."""
        if self._stated is None and where is not None:
            self._stated = where
            self.args = (self._render(),)
        return self

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
