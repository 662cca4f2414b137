"""Products of the same rows become one: queries, keys and values; the modulations, or the keys, of all blocks.

    q = x Wq^T,  k = x Wk^T,  v = x Wv^T      ──▶      qkv = x [Wq; Wk; Wv]^T;  q, k, v are columns of it

The rows are read once, and products of few rows become wide enough to be worth a thread. The old results become views
of the new one, so whoever reads them must be able to read through strides (docs/plan-format.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from scoregraph.passes.base import Fuel, Miss, PassResult
from scoregraph.passes.plan.dependence import Dependence, Depends, dependence
from scoregraph.passes.plan.liveness import owner, owner_of, writes
from scoregraph.passes.plan.strides import onto_columns, readable
from scoregraph.plan.dims import dump_dim
from scoregraph.plan.draft import Draft, Drafter, Value
from scoregraph.plan.schema import Call, Plan, View

Reader = tuple[Call, str, str]
"""A call, the role in which it reads something, and what it calls it."""


@dataclass
class _Group:
    """Products that may become one: where they stand in one segment, in order."""

    turn: int
    at: list[int] = field(default_factory=list[int])
    calls: list[Call] = field(default_factory=list[Call])

    @property
    def weights(self) -> tuple[str, ...]:
        return tuple(call.ins["w"] for call in self.calls)


@dataclass(frozen=True)
class MergeProducts:
    """``linear`` calls of the same x, activation and rows of the loop → one call, their weights below each other."""

    name: ClassVar[str] = "merge-products"

    def run(self, module: Draft, fuel: Fuel | None = None) -> PassResult[Draft]:
        """Counters: ``calls_saved``. Misses: a reader that needs dense rows; weights that others read, too."""
        fuel = fuel or Fuel()
        plan, misses = module.plan, list[Miss]()
        groups = [group for turn in range(len(plan.segments)) for group in _groups(plan, turn)]
        if not groups:
            return PassResult(module)
        drafter, users = Drafter.reopen(module), _Users.of(plan, groups)
        calls: list[list[Call | None]] = [list(segment.calls) for segment in plan.segments]
        merged = saved = 0
        for group in groups:
            if reason := users.obstacle(drafter, group):
                misses.append(Miss(reason, group.calls[0].site))
                continue
            if not fuel.spend():
                break
            for at in group.at:
                calls[group.turn][at] = None
            calls[group.turn][group.at[0]] = _merge(drafter, users, group)
            merged, saved = merged + 1, saved + len(group.calls) - 1
        segments = [
            segment.model_copy(update={"calls": tuple(call for call in kept if call is not None)})
            for segment, kept in zip(plan.segments, calls, strict=True)
        ]
        draft = drafter.closed(plan, segments) if merged else module
        return PassResult(draft, rewrites=merged, counters={"calls_saved": saved}, misses=tuple(misses))


def _groups(plan: Plan, turn: int) -> list[_Group]:
    """The groups of two and more calls of a segment, each as large as it can be."""
    segment = plan.segments[turn]
    depends = dependence(plan, turn) if segment.table is not None and segment.repeat is None else None
    written: dict[int, int] = {}  # how often each buffer has been written so far
    latest: dict[tuple[Any, ...], _Group] = {}
    found: list[_Group] = []
    for at, call in enumerate(segment.calls):
        if _joins(plan, call):
            w = plan.constants[int(call.ins["w"][1:])]
            source = owner(plan, call.ins["x"])
            assert source is not None, "x is a buffer"
            key = (call.ins["x"], written.get(source, 0), call.attrs.get("act"), call.variants, w.shape[1])
            group = latest.get(key)
            if group is None or not (_free(depends, call) or _unread(plan, segment.calls, group, at)):
                group = latest[key] = _Group(turn)
                found.append(group)
            group.at.append(at)
            group.calls.append(call)
        for number in writes(plan, call):
            written[number] = written.get(number, 0) + 1
    return [group for group in found if len(group.calls) > 1]


def _joins(plan: Plan, call: Call) -> bool:
    """Whether a call is a product as this pass knows them: float weights, nothing added or multiplied to it."""
    if call.op != "linear" or not call.ins.keys() <= {"x", "w", "bias"} or call.ins["x"][0] == "c":
        return False
    constants = [plan.constants[int(ref[1:])] for role, ref in call.ins.items() if role != "x" and ref[0] == "c"]
    y = plan.buffers[int(call.outs["y"][1:])]
    plain = all(constant.dtype == "f32" and constant.layout == "plain" for constant in constants)
    return plain and len(constants) == len(call.ins) - 1 and y.view is None and y.dtype == "f32"


def _free(depends: Dependence | None, call: Call) -> bool:
    """Whether the call leaves the loop, or concerns few rows: it does not matter that its result lives longer."""
    return depends is not None and Depends.STATE not in depends.of([call.ins["x"]])


def _unread(plan: Plan, calls: Sequence[Call], group: _Group, at: int) -> bool:
    """Whether nothing reads a result of the group before position ``at``: then none lives longer for being in it."""
    results = {int(call.outs["y"][1:]) for call in group.calls}
    between = calls[group.at[0] : at]
    return not any(owner(plan, ref) in results for call in between for ref in call.ins.values())


@dataclass(frozen=True)
class _Users:
    """Who reads what.

    Attributes:
        readers: of buffers by the number of their memory, and of constants by ref.
        writers: how many calls write each buffer.
        outside: buffers that others than calls read or write.
        members: the refs of weights that groups read, by how often, with the weights they come with.
    """

    plan: Plan
    readers: Mapping[int | str, list[Reader]]
    writers: Mapping[int, int]
    outside: frozenset[int]
    members: Mapping[str, list[tuple[str, ...]]]

    @classmethod
    def of(cls, plan: Plan, groups: Sequence[_Group]) -> _Users:
        readers: dict[int | str, list[Reader]] = {}
        writers: dict[int, int] = {}
        members: dict[str, list[tuple[str, ...]]] = {}
        for call in (call for segment in plan.segments for call in segment.calls):
            for role, ref in call.ins.items():
                number = owner(plan, ref)
                readers.setdefault(ref if number is None else number, []).append((call, role, ref))
            for number in writes(plan, call):
                writers[number] = writers.get(number, 0) + 1
        for group in groups:
            for ref in group.weights:
                members.setdefault(ref, []).append(group.weights)
        conditions = [segment.repeat.active for segment in plan.segments if segment.repeat is not None]
        given = [spec.buffer for spec in (*plan.inputs, *plan.outputs)]
        outside = frozenset(owner_of(plan, number) for number in (*given, *conditions))
        return cls(plan, readers, writers, outside, members)

    def obstacle(self, drafter: Drafter, group: _Group) -> str:
        """Why a group cannot become one call, or nothing."""
        for ref in group.weights:
            if len(self.readers[ref]) != len(self.members[ref]) or set(self.members[ref]) != {group.weights}:
                return "its weights are read elsewhere, too"
        total = sum(_width(drafter, call) for call in group.calls)
        for call in group.calls:
            number = int(call.outs["y"][1:])
            if number in self.outside or self.writers[number] != 1:
                return "a result is seen outside of the calls, or written twice"
            for reader, role, ref in self.readers.get(number, ()):
                window = onto_columns(drafter.value(ref), _width(drafter, call), "", total, 0)
                if window is None or not readable(reader.op, role, window):
                    return f"{reader.op} reads a result as {role}, which cannot be columns of a wider one"
        return ""

    def views(self, number: int) -> Iterator[int]:
        """A buffer and the views of it."""
        for buffer in self.plan.buffers:
            if buffer.id == number or (buffer.view is not None and buffer.view.base == number):
                yield buffer.id


def _width(drafter: Drafter, call: Call) -> int:
    return drafter.constants[int(call.ins["w"][1:])].shape[0]


def _merge(drafter: Drafter, users: _Users, group: _Group) -> Call:
    """The one call; the old results become views of its result."""
    first, widths = group.calls[0], [_width(drafter, call) for call in group.calls]
    total = sum(widths)
    lead = drafter.value(first.outs["y"]).shape[:-1]
    whole = drafter.new((*lead, total), name=first.site)
    w = np.concatenate([drafter.arrays[int(ref[1:])] for ref in group.weights])
    ins = {"x": first.ins["x"], "w": drafter.constant(w, f"{first.site} and {len(widths) - 1} more").storage}
    if any("bias" in call.ins for call in group.calls):
        parts = [
            drafter.arrays[int(call.ins["bias"][1:])] if "bias" in call.ins else np.zeros(width, np.float32)
            for call, width in zip(group.calls, widths, strict=True)
        ]
        ins["bias"] = drafter.constant(np.concatenate(parts), f"{first.site}.bias").storage
    for i, call in enumerate(group.calls):
        for number in users.views(int(call.outs["y"][1:])):
            _onto(drafter, number, widths[i], whole, total, sum(widths[:i]))
    return first.model_copy(update={"ins": ins, "outs": {"y": whole.storage}})


def _onto(drafter: Drafter, number: int, width: int, whole: Value, total: int, start: int) -> None:
    """Buffer ``number``, a result or a view of one, becomes a view of the whole; a view nobody reads may not fit it."""
    window = onto_columns(drafter.value(f"b{number}"), width, whole.storage, total, start)
    if window is not None:
        view = View(base=int(whole.storage[1:]), offset=window.offset, strides=window.strides)
        update = {"view": view, "shape": tuple(map(dump_dim, window.shape))}
        drafter.buffers[number] = drafter.buffers[number].model_copy(update=update)
