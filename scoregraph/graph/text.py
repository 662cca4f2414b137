"""The text form of a graph: one node a line, and ``parse(str(g)) is g``. docs/graph-ir.md has the grammar.

Whatever is wrong with a text becomes a ``GraphSyntax`` with line and column. A node whose operands do not fit raises
the same error as in the builder, with the line of the text as its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, TypeVar, cast, get_args

from scoregraph.errors import Location, ScoregraphError
from scoregraph.graph.graph import Graph
from scoregraph.graph.node import KINDS, Node, field_kinds, spec_families
from scoregraph.graph.nodes import Loop, While
from scoregraph.graph.printer import BODY_FIELDS, NET_FLAGS, TABLE_SIZES, layout
from scoregraph.graph.printer import print_graph as print_graph
from scoregraph.graph.spec import Spec
from scoregraph.graph.table import StepTable
from scoregraph.graph.tokens import Line, Token
from scoregraph.graph.values import (
    TYPES,
    Array,
    Carry,
    CondInput,
    DType,
    HeadRef,
    Latent,
    NetRef,
    Rate,
    Space,
    TimeConvention,
    Tokens,
    ValueType,
)
from scoregraph.graph.verify import verify

K = TypeVar("K")

_NET_LINES = ("latent", "prediction", "time", "cond", "head", "width", *NET_FLAGS)
"""How the lines below a network's own begin."""


def parse(text: str) -> Graph:
    """The graph that prints as ``text``; checked by the rules of a built graph."""
    graph = _Parser(text).graph()
    verify(graph, "built")
    return graph


class _Parser:
    """Reads the lines in order; nothing is referred to before it is defined."""

    def __init__(self, text: str) -> None:
        lines = (Line(number, source) for number, source in enumerate(text.splitlines(), start=1))
        self.lines = [line for line in lines if line.peek.kind != "end"]
        self.last = self.lines[-1] if self.lines else Line(1, "")
        self.nets: dict[str, NetRef] = {}
        self.tables: dict[str, StepTable] = {}
        self.nodes: dict[str, Node] = {}
        self.places: dict[Node, Location] = {}
        self.unfinished: list[str] = []

    def next(self, what: str) -> Line:
        """The next line, which must be there."""
        if not self.lines:
            self.last.fail(f"expected {what}, got the end of the text", self.last.tokens[-1])
        return self.lines.pop(0)

    def starts(self, word: str) -> bool:
        """Whether the next line begins with ``word``."""
        return bool(self.lines) and self.lines[0].peek.text == word

    def graph(self) -> Graph:
        """The whole text."""
        line = self.next("'graph NAME'")
        line.expect("graph")
        name = line.name()
        line.end()
        while self.starts("net"):
            self.net(self.lines.pop(0))
        while self.starts("table"):
            self.table(self.lines.pop(0))
        while self.lines and self.lines[0].peek.kind == "value":
            self.node(self.lines.pop(0))
        outputs: list[tuple[str, Node]] = []
        while self.lines:
            line = self.lines.pop(0)
            line.expect("output")
            output = line.name()
            line.expect("=")
            outputs.append((output, self.operand(line)))
            line.end()
        return Graph(name, tuple(outputs), tuple(self.places.items()))

    # --- what stands before the nodes ---

    def net(self, line: Line) -> None:
        """A network: a line with its name and fingerprint, then one line per property."""
        token = line.tokens[1]
        line.expect("net")
        name, fingerprint = line.name(), line.name()
        line.end()
        if name in self.nets:
            line.fail(f"two networks are named {name!r}", token)
        found: dict[str, Any] = {}
        conds: list[CondInput] = []
        heads: list[HeadRef] = []
        while self.lines and self.lines[0].peek.text in _NET_LINES:
            part = self.lines.pop(0)
            key = part.name()
            if key in found:
                part.fail(f"{key!r} is given twice", part.tokens[0])
            if key == "latent":
                latent = read_type(part)
                if not isinstance(latent, Latent | Tokens):
                    part.fail(f"a network reads Latent or Tokens, not {latent}", part.tokens[1])
                found[key] = latent
            elif key == "prediction":
                found[key] = read_spec(part, ("prediction",))
            elif key == "time":
                found[key] = part.choice(get_args(TimeConvention))
            elif key == "width":
                found[key] = part.integer()
            elif key in NET_FLAGS:
                found[key] = True
            elif key == "cond":
                conds.append(self.cond(part))
            else:
                head = part.name()
                part.expect(":")
                part.expect("[")
                heads.append(HeadRef(head, part.shape()))
                part.expect("]")
            part.end()
        for key in ("latent", "time"):
            if key not in found:
                line.fail(f"the network {name!r} has no line {key!r}", token)
        self.nets[name] = placed(line, NetRef, name, fingerprint, conds=tuple(conds), heads=tuple(heads), **found)

    def cond(self, line: Line) -> CondInput:
        """``cond NAME : TYPE low=… high=… null=…``."""
        name = line.name()
        line.expect(":")
        token = line.peek
        array = read_type(line)
        if not isinstance(array, Array):
            line.fail(f"a condition is an array, not {array}", token)
        bounds: dict[str, float] = {}
        while line.peek.kind == "word":
            key = line.choice(("low", "high", "null"))
            line.expect("=")
            bounds[key] = line.number()
        return CondInput(name, array.shape, array.dtype, **bounds)

    def table(self, line: Line) -> None:
        """A step table: its header, the names of its columns, one line of numbers per row."""
        line.expect("table")
        token = line.take("table", "@ and a number")
        if token.text in self.tables:
            line.fail(f"{token.text} is defined twice", token)
        line.expect("registers")
        line.expect("=")
        line.expect("[")
        registers = line.items("]", line.name)
        line.expect("branches")
        line.expect("=")
        branches = line.integer()
        line.expect("init_scale")
        line.expect("=")
        init_scale = line.number()
        sizes: dict[str, int] = {}
        while line.peek.kind == "word":
            size = line.choice(tuple(name for name in TABLE_SIZES if name not in sizes))
            line.expect("=")
            sizes[size] = line.integer()
        line.end()
        columns = cells(self.next("the columns of the table"), Line.name)
        rows: list[tuple[float, ...]] = []
        while self.starts("|"):
            rows.append(cells(self.lines.pop(0), Line.number))
        self.tables[token.text] = placed(
            line, StepTable, columns, tuple(rows), tuple(registers), branches, init_scale, **sizes
        )

    # --- nodes ---

    def node(self, line: Line) -> None:
        """``%name = op(arguments) : type``; a loop goes on to its ``yield``."""
        token = line.take("value", "% and a name")
        if token.text in self.nodes:
            line.fail(f"{token.text} is defined twice", token)
        line.expect("=")
        op = line.take("word", "a kind of node")
        cls = KINDS.get(op.text)
        if cls is None:
            line.fail(f"there is no kind of node {op.text!r}; the kinds are {', '.join(KINDS)}", op)
        loop = issubclass(cls, Loop | While)
        values = self.arguments(line, cls, BODY_FIELDS if loop else ())
        line.expect(":")
        at = line.peek
        said = read_type(line)
        line.end()
        if "of" in field_kinds(cls):
            values["of"] = said
        if loop:
            self.unfinished.append(token.text)
            while self.lines and not self.starts("yield"):
                self.node(self.lines.pop(0))
            end = self.next("'yield(…)' at the end of the loop")
            end.expect("yield")
            header = tuple(name for name in field_kinds(cls) if name not in BODY_FIELDS)
            values |= self.arguments(end, cls, header)
            end.end()
            self.unfinished.pop()
        node = placed(line, cls, **values)
        if node.type != said:
            line.fail(f"this is a {node.type}, the text says {said}", at)
        self.nodes[token.text] = node
        if line.place is not None:
            self.places[node] = line.place

    def arguments(self, line: Line, cls: type[Node], skip: tuple[str, ...]) -> dict[str, Any]:
        """The fields of a node from the arguments of its call, without the fields in ``skip``."""
        in_order, by_name = layout(cls)
        in_order = [name for name in in_order if name not in skip]
        by_name = {name: default for name, default in by_name.items() if name not in skip}
        kinds = field_kinds(cls)
        found: dict[str, Any] = {}

        def argument() -> None:
            token = line.peek
            if token.text in by_name and line.tokens[line.at + 1].text == "=":
                name = line.name()
                line.expect("=")
            elif len(found) < len(in_order):
                name = in_order[len(found)]
            else:
                line.fail(f"{cls.op} takes no further argument here", token)
            if name in found:
                line.fail(f"{name!r} is given twice", token)
            found[name] = self.value(line, kinds[name])

        line.expect("(")
        line.items(")", argument)
        for name in (*in_order, *(name for name, default in by_name.items() if default is MISSING)):
            if name not in found:
                line.fail(f"{cls.op} lacks its argument {name!r}", line.tokens[line.at - 1])
        return found

    def value(self, line: Line, kind: str) -> Any:
        """One argument, by what its field holds."""
        if kind.endswith("?") and line.peek.kind == "word" and line.accept("none"):
            return None
        if kind.startswith("spec:"):
            return read_spec(line, spec_families(kind))
        match kind.rstrip("?"):
            case "node":
                return self.operand(line)
            case "nodes":
                line.expect("[")
                return tuple(line.items("]", lambda: self.operand(line)))
            case "net":
                token = line.peek
                return known(line, token, self.nets, line.name())
            case "table":
                token = line.take("table", "a table such as @0")
                return known(line, token, self.tables, token.text)
            case "latent":
                return read_latent(line)
            case "int":
                return line.integer()
            case "float":
                return line.number()
            case _:
                return line.name()

    def operand(self, line: Line) -> Node:
        """``%name`` of a node above."""
        token = line.take("value", "a value such as %0")
        if token.text in self.unfinished:
            line.fail(f"the loop {token.text} has not ended: 'yield(…)' is missing above", token)
        return known(line, token, self.nodes, token.text)


def known(line: Line, token: Token, table: dict[str, K], name: str) -> K:
    """What was defined above under a name."""
    if name not in table:
        line.fail(f"{name} is not defined above this line", token)
    return table[name]


def placed(line: Line, make: Callable[..., K], *args: Any, **kwargs: Any) -> K:
    """Make something; what is wrong with it gets the line of the text as its place."""
    try:
        return make(*args, **kwargs)
    except ScoregraphError as error:
        raise error.at(f"line {line.line} of the graph text: {line.source.strip()}") from None
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        line.fail(str(error), line.tokens[0])


def cells(line: Line, read: Callable[[Line], K]) -> tuple[K, ...]:
    """``| a | b | c``."""
    found: list[K] = []
    while line.peek.kind != "end":
        line.expect("|")
        found.append(read(line))
    return tuple(found)


def read_spec(line: Line, families: tuple[str, ...]) -> Spec:
    """``name(option=value, …)`` of one of the families."""
    token = line.take("word", "the name of a " + " or ".join(families))
    options: dict[str, Any] = {}

    def option() -> None:
        key = line.take("word", "the name of an option")
        line.expect("=")
        if key.text in options:
            line.fail(f"{key.text!r} is given twice", key)
        options[key.text] = line.primitive()

    if line.accept("("):
        line.items(")", option)
    family = next((f for f in families if token.text in Spec.registry.get(f, {})), families[0])
    return placed(line, Spec.make, family, token.text, options)


def read_latent(line: Line) -> Latent:
    """A type that must be ``Latent``."""
    token = line.peek
    found = read_type(line)
    if not isinstance(found, Latent):
        line.fail(f"expected a Latent, got {found}", token)
    return found


def read_type(line: Line) -> ValueType:
    """A value type, as it prints."""
    if line.accept("("):
        return Carry(tuple(line.items(")", lambda: read_type(line))))
    token = line.take("word", "a type")
    if token.text in get_args(DType):
        line.expect("[")
        shape = line.shape()
        line.expect("]")
        return Array(cast("DType", token.text), shape)
    cls = TYPES.get(token.text)
    if cls is None:
        line.fail(f"there is no type {token.text!r}; the types are {', '.join(TYPES)}", token)
    readers: dict[str, Callable[[], Any]] = {
        "Space": lambda: line.choice(get_args(Space)),
        "Rate": lambda: line.choice(get_args(Rate)),
        "Shape": line.shape,
        "int": line.integer,
        "str": line.name,
        "Spec": lambda: read_spec(line, ("prediction",)),
        "Latent": lambda: read_latent(line),
    }
    values: list[Any] = []
    for position, f in enumerate(fields(cls)):
        if f.default is not MISSING and line.peek.text == "]":
            break
        line.expect("," if position else "[")
        values.append(readers[str(f.type)]())
    if values:
        line.expect("]")
    return cls(*values)
