"""The JSON form of a graph: versioned, validated by pydantic, and exact: ``from_json(to_json(g)) is g``.

The models of nodes and types are made from the fields of the classes they stand for, so the JSON form, its schema and
the text form cannot drift apart. Nodes are listed after their operands and refer to them by their index. Numbers that
JSON does not have are written as Python's json module writes them: ``Infinity``, ``NaN``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, create_model

from scoregraph.errors import GraphFile, Location, ScoregraphError
from scoregraph.graph.graph import Graph
from scoregraph.graph.node import KINDS, Node, field_kinds, spec_families
from scoregraph.graph.spec import Spec
from scoregraph.graph.table import StepTable
from scoregraph.graph.values import (
    TYPES,
    Array,
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

VERSION = 1
T = TypeVar("T")


class Json(BaseModel):
    """Base of every part: an unknown field or a value of another type is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, ser_json_inf_nan="constants")


class SpecJson(Json):
    """A schedule, a sampler, a rule …: its name and its options."""

    name: str
    options: dict[str, JsonValue] = {}


class PlaceJson(Json):
    """The user's line that made a node."""

    file: str
    line: int


class CondJson(Json):
    """A condition of a network."""

    name: str
    shape: tuple[int, ...] = ()
    dtype: DType = "f32"
    low: float | None = None
    high: float | None = None
    null: float | None = None


class HeadJson(Json):
    """A head of a network."""

    name: str
    shape: tuple[int, ...]


class TableJson(Json):
    """A step table."""

    columns: tuple[str, ...]
    rows: tuple[tuple[float, ...], ...]
    registers: tuple[str, ...]
    branches: int
    init_scale: float
    estimates: int = 0
    outputs: int = 0
    forms: int = 0


class OutputJson(Json):
    """An output of the graph: the index of its node."""

    name: str
    node: int


def _one_of(models: list[Any], tag: str) -> Any:
    """The union of some models, told apart by the field ``tag``."""
    union = models[0]
    for model in models[1:]:
        union |= model
    return Annotated[union, Field(discriminator=tag)]


def _type_models() -> dict[str, Any]:
    """One model per type of value, told apart by ``type``."""
    models: dict[str, Any] = {}
    python: dict[str, Any] = {
        "Space": Space,
        "Rate": Rate,
        "DType": DType,
        "Shape": tuple[int, ...],
        "int": int,
        "str": str,
        "Spec": SpecJson,
    }
    for cls in (Latent, Array, *(c for c in TYPES.values() if c is not Latent)):
        shown: dict[str, Any] = {"type": (Literal[cls.__name__], ...)}
        for f in fields(cls):
            shown[f.name] = (python[str(f.type)], ... if f.default is MISSING else f.default)
        models[cls.__name__] = create_model(f"{cls.__name__}Type", __base__=Json, **shown)
        python.setdefault(cls.__name__, models[cls.__name__])  # Pred and Grad hold a Latent
    return models


TYPE_MODELS = _type_models()
TypeJson = _one_of(list(TYPE_MODELS.values()), "type")


class NetJson(Json):
    """A network: what it takes and answers."""

    name: str
    fingerprint: str
    latent: TypeJson  # pyright: ignore[reportInvalidTypeForm]  # a union that is made at run time
    prediction: SpecJson | None = None
    time: TimeConvention
    conds: tuple[CondJson, ...] = ()
    heads: tuple[HeadJson, ...] = ()
    width: int | None = None
    energy: bool = False
    variance: bool = False


def _node_models() -> list[Any]:
    """One model per kind of node, told apart by ``op``. Operands are indices, networks names, tables indices."""
    python: dict[str, Any] = {
        "node": int,
        "node?": int | None,
        "nodes": tuple[int, ...],
        "net": str,
        "net?": str | None,
        "table?": int | None,
        "spec": SpecJson,
        "spec?": SpecJson | None,
        "type": TypeJson,
        "latent": TYPE_MODELS["Latent"],
        "str": str,
        "int": int,
        "float": float,
    }
    models: list[Any] = []
    for op, cls in KINDS.items():
        defaults = {f.name: f.default for f in fields(cls) if f.init}
        shown: dict[str, Any] = {"op": (Literal[op], ...)}
        for name, kind in field_kinds(cls).items():
            python_type = python[kind.partition(":")[0].rstrip("?") + "?" * kind.endswith("?")]
            shown[name] = (python_type, ... if defaults[name] is MISSING else defaults[name])
        shown["at"] = (PlaceJson | None, None)
        models.append(create_model(f"{cls.__name__}Node", __base__=Json, **shown))
    return models


NodeJson = _one_of(_node_models(), "op")


class GraphJson(Json):
    """A whole graph."""

    format: Literal["scoregraph-graph"]
    version: Literal[1]
    name: str
    nets: tuple[NetJson, ...]
    tables: tuple[TableJson, ...]
    nodes: tuple[NodeJson, ...]  # pyright: ignore[reportInvalidTypeForm]  # a union that is made at run time
    outputs: tuple[OutputJson, ...]


def json_schema() -> dict[str, Any]:
    """The JSON schema of the form, for editors and other languages."""
    return GraphJson.model_json_schema()


# --- writing -----------------------------------------------------------------------------------


def to_json(graph: Graph) -> str:
    """The graph as JSON."""
    number = {node: i for i, node in enumerate(graph.nodes)}
    tables = list(dict.fromkeys(t for node in graph.nodes if (t := getattr(node, "table", None)) is not None))

    def field(kind: str, value: Any) -> Any:
        if value is None:
            return None
        match kind.split(":")[0].rstrip("?"):
            case "node":
                return number[value]
            case "nodes":
                return tuple(number[node] for node in value)
            case "net":
                return value.name
            case "table":
                return tables.index(value)
            case "type" | "latent":
                return _type_dict(value)
            case "spec":
                return _spec_dict(value)
            case _:
                return value

    nodes: list[dict[str, Any]] = []
    for node in graph.nodes:
        shown = {name: field(kind, getattr(node, name)) for name, kind in field_kinds(type(node)).items()}
        place = graph.place(node)
        at = None if place is None else {"file": place.file, "line": place.line}
        nodes.append({"op": node.op, **shown, "at": at})
    whole = {
        "format": "scoregraph-graph",
        "version": VERSION,
        "name": graph.name,
        "nets": tuple(_net_dict(net) for net in graph.nets),
        "tables": tuple({f.name: getattr(table, f.name) for f in fields(table)} for table in tables),
        "nodes": tuple(nodes),
        "outputs": tuple({"name": name, "node": number[node]} for name, node in graph.outputs),
    }
    return GraphJson.model_validate(whole).model_dump_json(indent=1, exclude_defaults=True)


def _spec_dict(spec: Spec) -> dict[str, Any]:
    return {"name": spec.name, "options": {key: _listed(value) for key, value in spec.options().items()}}


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value  # pyright: ignore[reportUnknownVariableType]


def _type_dict(kind: ValueType) -> dict[str, Any]:
    shown: dict[str, Any] = {"type": type(kind).__name__}
    for f in fields(kind):
        value = getattr(kind, f.name)
        if isinstance(value, Spec):
            value = _spec_dict(value)
        shown[f.name] = _type_dict(value) if isinstance(value, ValueType) else value
    return shown


def _net_dict(net: NetRef) -> dict[str, Any]:
    return {
        "name": net.name,
        "fingerprint": net.fingerprint,
        "latent": _type_dict(net.latent),
        "prediction": None if net.prediction is None else _spec_dict(net.prediction),
        "time": net.time,
        "conds": tuple({f.name: getattr(cond, f.name) for f in fields(cond)} for cond in net.conds),
        "heads": tuple({f.name: getattr(head, f.name) for f in fields(head)} for head in net.heads),
        "width": net.width,
        "energy": net.energy,
        "variance": net.variance,
    }


# --- reading -----------------------------------------------------------------------------------


def from_json(text: str | bytes) -> Graph:
    """The graph behind a JSON form; checked by the rules of a built graph."""
    try:
        whole = GraphJson.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise GraphFile(problem=f"{place}: {first['msg']}") from None
    graph = _Reader(whole).graph()
    verify(graph, "built")
    return graph


class _Reader:
    """Makes nodes in their order, so that operands are there before they are referred to."""

    def __init__(self, whole: GraphJson) -> None:
        self.whole = whole
        self.nodes: list[Node] = []
        self.nets: dict[str, NetRef] = {
            net.name: _made(f"net {net.name}", lambda net=net: _net(net)) for net in whole.nets
        }
        self.tables: list[StepTable] = [
            _made(f"table {i}", lambda table=table: StepTable(**table.model_dump()))
            for i, table in enumerate(whole.tables)
        ]

    def graph(self) -> Graph:
        """The whole graph."""
        places: dict[Node, Location] = {}
        parts: tuple[Any, ...] = self.whole.nodes  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        for i, part in enumerate(parts):
            node = _made(f"node {i}", lambda part=part: self._node(part))
            self.nodes.append(node)
            if part.at is not None:
                places[node] = Location(part.at.file, part.at.line)
        outputs = tuple(
            (out.name, _made(f"output {out.name}", lambda out=out: self._at(out.node))) for out in self.whole.outputs
        )
        return Graph(self.whole.name, outputs, tuple(places.items()))

    def _node(self, part: Any) -> Node:
        cls = KINDS[part.op]
        return cls(**{name: self._field(kind, getattr(part, name)) for name, kind in field_kinds(cls).items()})

    def _field(self, kind: str, value: Any) -> Any:
        if value is None:
            return None
        if kind.startswith("spec:"):
            return _spec(spec_families(kind), value)
        return self._plain_field(kind.rstrip("?"), value)

    def _plain_field(self, kind: str, value: Any) -> Any:
        match kind:
            case "node":
                return self._at(value)
            case "nodes":
                return tuple(self._at(index) for index in value)
            case "net":
                if value not in self.nets:
                    raise GraphFile(problem=f"there is no network {value!r} in this file")
                return self.nets[value]
            case "table":
                index: int = value
                if not 0 <= index < len(self.tables):
                    raise GraphFile(problem=f"there is no table {index} in this file")
                return self.tables[index]
            case "type" | "latent":
                return _type(value)
            case _:
                return value

    def _at(self, index: int) -> Node:
        if not 0 <= index < len(self.nodes):
            raise GraphFile(problem=f"it refers to node {index}, which does not come before it")
        return self.nodes[index]


def _made(what: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except ScoregraphError as error:
        raise error.at(f"{what} of the graph file") from None
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise GraphFile(problem=f"{what}: {error}") from None


def _spec(families: tuple[str, ...], spec: SpecJson) -> Spec:
    family = next((f for f in families if spec.name in Spec.registry.get(f, {})), families[0])
    return Spec.make(family, spec.name, {key: _tupled(value) for key, value in spec.options.items()})


def _tupled(value: Any) -> Any:
    return tuple(_tupled(item) for item in value) if isinstance(value, list) else value  # pyright: ignore[reportUnknownVariableType]


def _type(shown: Any) -> Any:
    cls: type[ValueType] = Array if shown.type == "Array" else TYPES[shown.type]
    values: dict[str, Any] = {}
    for f in fields(cls):
        value = getattr(shown, f.name)
        if isinstance(value, SpecJson):
            value = _spec(("prediction",), value)
        values[f.name] = _type(value) if hasattr(value, "type") else value
    return cls(**values)


def _net(net: NetJson) -> NetRef:
    latent = _type(net.latent)  # pyright: ignore[reportUnknownMemberType]  # the union is made at run time
    if not isinstance(latent, Latent | Tokens):
        raise GraphFile(problem=f"a network reads Latent or Tokens, not {latent}")
    return NetRef(
        name=net.name,
        fingerprint=net.fingerprint,
        latent=latent,
        prediction=None if net.prediction is None else _spec(("prediction",), net.prediction),
        time=net.time,
        conds=tuple(CondInput(**cond.model_dump()) for cond in net.conds),
        heads=tuple(HeadRef(**head.model_dump()) for head in net.heads),
        width=net.width,
        energy=net.energy,
        variance=net.variance,
    )
