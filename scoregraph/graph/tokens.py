"""The text of a graph, line by line, as tokens; and the small things a line is made of: names, numbers, shapes."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from scoregraph.errors import GraphSyntax, Location

T = TypeVar("T")

TOKEN = re.compile(
    r"""(?P<blank>\s+)
      | (?P<place>\#.*)
      | (?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
      | (?P<value>%\w+)
      | (?P<table>@\w+)
      | (?P<word>[\w.+\-]+)
      | (?P<sign>[=()\[\],:|])""",
    re.VERBOSE,
)
MAX_DEPTH = 32
"""Brackets inside brackets: far more than any graph has."""


@dataclass(frozen=True)
class Token:
    """A piece of a line: its kind (a group of ``TOKEN``, or ``end``), its text, its column (0-based)."""

    kind: str
    text: str
    column: int


class Line:
    """The tokens of one line and how far they have been read."""

    def __init__(self, line: int, source: str) -> None:
        self.line = line
        self.source = source
        self.at = 0
        self.depth = 0
        self.place: Location | None = None
        self.tokens = list(self._tokens())

    def _tokens(self) -> Iterator[Token]:
        column = 0
        while column < len(self.source):
            found = TOKEN.match(self.source, column)
            if found is None:
                self.fail(f"unexpected {self.source[column]!r}", Token("", "", column))
            kind = str(found.lastgroup)
            if kind == "place":
                self.place = self._location(found.group(), column)
            elif kind != "blank":
                yield Token(kind, found.group(), column)
            column = found.end()
        yield Token("end", "", len(self.source.rstrip()))

    def _location(self, comment: str, column: int) -> Location:
        found = re.fullmatch(r"#\s*(.+):(\d{1,9})\s*", comment)
        if found is None:
            self.fail("a comment is the place of a node, as in '# file.py:12'", Token("", "", column))
        file = found.group(1)
        if file[0] in "\"'":
            file = str(self.literal_of(Token("string", file, column)))
        return Location(file, int(found.group(2)))

    def fail(self, problem: str, token: Token | None = None) -> NoReturn:
        """Raise ``GraphSyntax`` at a token, by default the next one."""
        column = (token or self.peek).column
        raise GraphSyntax(
            line=self.line,
            column=column + 1,
            problem=problem,
            source=self.source,
            marker=" " * column + "^" * max(1, len((token or self.peek).text)),
        )

    @property
    def peek(self) -> Token:
        """The next token."""
        return self.tokens[self.at]

    def take(self, kind: str, what: str = "") -> Token:
        """The next token, which must be of a kind."""
        token = self.peek
        if token.kind != kind:
            self.fail(f"expected {what or 'a ' + kind}, got {token.text or 'the end of the line'!r}")
        self.at += 1
        return token

    def accept(self, sign: str) -> bool:
        """Whether the next token is this sign or word; if so, it is read."""
        if self.peek.text != sign or self.peek.kind not in ("sign", "word"):
            return False
        self.at += 1
        return True

    def expect(self, sign: str) -> None:
        """Read one sign or word."""
        if not self.accept(sign):
            self.fail(f"expected {sign!r}, got {self.peek.text or 'the end of the line'!r}")

    def end(self) -> None:
        """Nothing may follow."""
        if self.peek.kind != "end":
            self.fail(f"expected the end of the line, got {self.peek.text!r}")

    def items(self, close: str, item: Callable[[], T]) -> list[T]:
        """Items between commas, up to and with the closing sign."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail("brackets are nested too deeply")
        found: list[T] = []
        while not self.accept(close):
            if found:
                self.expect(",")
                if self.accept(close):
                    break
            found.append(item())
        self.depth -= 1
        return found

    def name(self) -> str:
        """A bare or quoted name."""
        if self.peek.kind == "string":
            return str(self.literal_of(self.take("string")))
        return self.take("word", "a name").text

    def literal_of(self, token: Token) -> Any:
        """What a quoted text or a number stands for."""
        if token.text in ("inf", "-inf", "nan"):
            return float(token.text)
        try:
            return ast.literal_eval(token.text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            self.fail(f"{token.text!r} is not a value", token)

    def integer(self) -> int:
        """A decimal integer."""
        token = self.take("word", "an integer")
        if not re.fullmatch(r"-?\d{1,18}", token.text, re.ASCII):
            self.fail(f"expected an integer, got {token.text!r}", token)
        return int(token.text)

    def number(self) -> float:
        """A float, inf and nan included."""
        token = self.take("word", "a number")
        try:
            return float(token.text)
        except ValueError:
            self.fail(f"expected a number, got {token.text!r}", token)

    def shape(self) -> tuple[int, ...]:
        """``1x128x128``; nothing is the empty shape."""
        if self.peek.kind != "word":
            return ()
        token = self.take("word")
        if not re.fullmatch(r"\d{1,9}(x\d{1,9})*", token.text, re.ASCII):
            self.fail(f"expected a shape such as 1x128x128, got {token.text!r}", token)
        return tuple(int(size) for size in token.text.split("x"))

    def choice(self, options: tuple[Any, ...]) -> Any:
        """One of a few words."""
        token = self.take("word")
        if token.text not in options:
            self.fail(f"expected one of {', '.join(options)}, got {token.text!r}", token)
        return token.text

    def primitive(self) -> Any:
        """A value of an option: a number, a text, True, False, None or a tuple of them."""
        if self.accept("("):
            return tuple(self.items(")", self.primitive))
        token = self.peek
        if token.kind not in ("word", "string"):
            self.fail(f"expected a value, got {token.text or 'the end of the line'!r}")
        self.at += 1
        return self.literal_of(token)
