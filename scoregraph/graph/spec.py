"""Specs: schedules, samplers, guidance rules and select rules as plain, named, frozen values.

A spec is what a graph node holds instead of code: a name and options of primitive type. It prints as
``karras(steps=12, rho=7.0)``, parses back from that text, and is found by name in its family's registry, so the
text and JSON forms of a graph need no case per sampler.
"""

from __future__ import annotations

import ast
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Self, cast

from scoregraph.errors import Location, UnknownName

Primitive = bool | int | float | str | None | tuple["Primitive", ...]


@dataclass(frozen=True)
class Spec:
    """Base of every spec. A family (``Schedule``, ``Sampler``, ``Guidance``, ``SelectRule``) subclasses it with
    ``family`` set; a member subclasses the family with ``name`` set and its options as dataclass fields."""

    family: ClassVar[str] = ""
    name: ClassVar[str] = ""
    registry: ClassVar[dict[str, dict[str, type[Spec]]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.name:
            members = Spec.registry.setdefault(cls.family, {})
            taken = members.setdefault(cls.name, cls)
            # A dataclass decorator with slots makes the class twice; only a second *definition* is a clash.
            if taken.__qualname__ != cls.__qualname__ or taken.__module__ != cls.__module__:
                raise TypeError(f"two {cls.family}s are named {cls.name!r}: {taken!r} and {cls!r}")
            members[cls.name] = cls

    def options(self) -> dict[str, Primitive]:
        """The options by name, in declaration order; keyword-only ones last, and only where they say something.

        An option that is rarely wanted is keyword-only, and so does not lengthen every text.
        """
        common = {f.name: getattr(self, f.name) for f in fields(self) if not f.kw_only}
        rare = [f.name for f in fields(self) if f.kw_only and getattr(self, f.name) != f.default]
        return common | {name: getattr(self, name) for name in rare}

    def __str__(self) -> str:
        shown = ", ".join(f"{key}={value!r}" for key, value in self.options().items())
        return f"{self.name}({shown})"

    @classmethod
    def make(cls, family: str, name: str, options: dict[str, Any], where: Location | str | None = None) -> Self:
        """The spec ``name`` of ``family`` with ``options``; raises ``UnknownName`` for either."""
        members = Spec.registry.get(family, {})
        if name not in members:
            raise UnknownName(kind=family, name=name, known=members, where=where)
        found = members[name]
        known = [f.name for f in fields(found)]
        for key in options:
            if key not in known:
                raise UnknownName(kind=f"option of {name}", name=key, known=known, where=where)
        missing = [
            f.name
            for f in fields(found)
            if f.name not in options and f.default is MISSING and f.default_factory is MISSING
        ]
        if missing:
            raise UnknownName(kind=f"value for the required option of {name}", name=missing[0], known=[], where=where)
        return cast(Self, found(**options))

    @classmethod
    def parse(cls, family: str, text: str, where: Location | str | None = None) -> Self:
        """Read ``name(key=value, …)`` back; values are Python literals, nothing is evaluated."""
        call = ast.parse(text, mode="eval").body
        if isinstance(call, ast.Name):
            return cls.make(family, call.id, {}, where)
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise UnknownName(kind=family, name=text, known=Spec.registry.get(family, {}), where=where)
        options = {str(kw.arg): _literal(kw.value) for kw in call.keywords}
        return cls.make(family, call.func.id, options, where)


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in ("inf", "nan"):
        return float(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_literal(node.operand)
    return ast.literal_eval(node)
