"""What all nodes of a sampling graph have in common: they are frozen, interned, and made of typed fields.

Two nodes with the same fields are one object, so nodes are compared with ``is``. Fields that hold nodes are operands,
the others are attributes; the annotation of a field says which.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

from scoregraph.graph import rules
from scoregraph.graph.spec import Spec
from scoregraph.graph.values import NetRef, ValueType

Schedule: TypeAlias = Spec
Step: TypeAlias = Spec
Guidance: TypeAlias = Spec
Prediction: TypeAlias = Spec
Select: TypeAlias = Spec
Policy: TypeAlias = Spec
EnergyTerm: TypeAlias = Spec
Correction: TypeAlias = Spec
Formula: TypeAlias = Spec

FIELD_KINDS = {
    "Node": "node",
    "Node | None": "node?",
    "tuple[Node, ...]": "nodes",
    "NetRef": "net",
    "NetRef | None": "net?",
    "StepTable | None": "table?",
    "ValueType": "type",
    "Latent": "latent",
    "str": "str",
    "int": "int",
    "float": "float",
    "Schedule": "spec:schedule",
    "Step": "spec:sampler|select",
    "Guidance": "spec:guidance",
    "Prediction": "spec:prediction",
    "Select": "spec:select",
    "Policy": "spec:cache",
    "EnergyTerm": "spec:energy",
    "Correction": "spec:correction",
    "Formula | None": "spec:formula?",
    "Schedule | None": "spec:schedule?",
}
"""What a field holds, by its annotation. ``?`` may be None; ``spec:`` names the families that fit."""

KINDS: dict[str, type[Node]] = {}
"""Every kind of node by the name the text form gives it."""

T = TypeVar("T")
_interned: weakref.WeakValueDictionary[tuple[object, ...], Any] = weakref.WeakValueDictionary()
_lock = threading.Lock()


class Interned(type):
    """Calling a class of this metaclass returns the one live node with those fields."""

    # pyright cannot be told that the metaclass of T is this class; with this signature it checks constructors.
    def __call__(cls: type[T], *args: Any, **kwargs: Any) -> T:  # pyright: ignore[reportGeneralTypeIssues]
        """Make the node, which checks it, then take the one that is already there, if any."""
        made: Any = type.__call__(cls, *args, **kwargs)
        with _lock:
            return _interned.setdefault(made.key(), made)


@cache
def field_kinds(cls: type[Node]) -> dict[str, str]:
    """What each field of a kind of node holds, in order."""
    return {f.name: FIELD_KINDS[str(f.type)] for f in fields(cls) if f.init}


def spec_families(kind: str) -> tuple[str, ...]:
    """The families of specs that fit into a field of a kind ``spec:…``."""
    return tuple(kind.removeprefix("spec:").rstrip("?").split("|"))


@dataclass(frozen=True, eq=False, repr=False)
class Node(metaclass=Interned):
    """Base of all nodes. ``type`` is the type of the value; ``free`` names the loops whose variables it depends on."""

    op: ClassVar[str]
    type: ValueType = field(init=False)
    free: frozenset[str] = field(init=False)

    def __init_subclass__(cls, op: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.op = op
        KINDS[op] = cls

    def __post_init__(self) -> None:
        for name, kind in field_kinds(self.__class__).items():
            value = getattr(self, name)
            if kind.startswith("spec:"):
                if value is not None or not kind.endswith("?"):
                    rules.family(value, spec_families(kind))
            elif kind == "nodes":
                object.__setattr__(self, name, tuple(value))
            elif isinstance(value, NetRef) and value.prediction is not None:
                rules.family(value.prediction, ["prediction"])
        object.__setattr__(self, "free", self._free_loops())
        object.__setattr__(self, "type", self._result())

    def _result(self) -> ValueType:
        """The result rule: the type of the value, or an error about the operands."""
        raise TypeError(f"{self.__class__.__name__} has no result rule")

    def _free_loops(self) -> frozenset[str]:
        """The loops that must be open around this node."""
        return frozenset[str]().union(*(operand.free for operand in self.operands))

    @property
    def operands(self) -> tuple[Node, ...]:
        """The nodes this one reads, in the order of its fields."""
        return tuple(self._operands())

    def _operands(self) -> Iterator[Node]:
        for name, kind in field_kinds(self.__class__).items():
            value = getattr(self, name)
            if kind == "nodes":
                yield from value
            elif kind in ("node", "node?") and value is not None:
                yield value

    def map_operands(self, new: Callable[[Node], Node]) -> Self:
        """The same node over other operands; itself when they are the same."""
        values: dict[str, Any] = {}
        for name, kind in field_kinds(self.__class__).items():
            value = getattr(self, name)
            if kind == "nodes":
                value = tuple(new(operand) for operand in value)
            elif kind in ("node", "node?") and value is not None:
                value = new(value)
            values[name] = value
        return self.__class__(**values)

    def key(self) -> tuple[object, ...]:
        """What makes two nodes one. Attributes are compared as they print, so that 1, 1.0 and True differ."""
        parts: list[object] = [self.__class__]
        for name, kind in field_kinds(self.__class__).items():
            value = getattr(self, name)
            parts.append(value if kind in ("node", "node?", "nodes", "table?") else repr(value))
        return tuple(parts)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.__class__, tuple(getattr(self, name) for name in field_kinds(self.__class__))

    def __repr__(self) -> str:
        return f"<{self.op} : {self.type}>"


def types(nodes: tuple[Node, ...]) -> list[ValueType]:
    """The types of some nodes, in order."""
    return [node.type for node in nodes]
