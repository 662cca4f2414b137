"""What depends on the row and on what the run was given, but on no state, is computed before the loop for all rows.

    loop: m = linear(silu(time + label))    ──▶    M = linear(silu(times + label))      as a batch of B x rows samples
                                                   loop: m = select_row(M)

Weights are read once a run in place of once a step, and a product of few rows becomes one of many. In memory the rows
of a sample stand side by side: a buffer [KB, …] becomes one of [rows*K*B, …], and every view of it keeps its strides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from scoregraph.passes.base import Fuel, Miss, PassResult
from scoregraph.passes.plan.dependence import PRODUCTS, Dependence, Depends, dependence, makers, needed_for
from scoregraph.passes.plan.liveness import owner, owner_of, reads, writes
from scoregraph.plan.dims import Batch, dense_strides, per_unit
from scoregraph.plan.draft import Draft, Drafter, Value
from scoregraph.plan.schema import Call, Plan, Segment, Table

MEGABYTES = 64
"""What is computed for all rows takes at most this much memory per sample, over all loops of a plan."""

ITEM = {"f32": 4, "i64": 8, "u8": 1, "u7": 1, "bf16": 2}
"""Bytes of an element of a buffer."""


@dataclass(frozen=True)
class BatchRows:
    """Calls of a loop that read no state → the segment before it, for all of its rows in one call."""

    limit: int = MEGABYTES << 20
    name: ClassVar[str] = "batch-rows"

    def run(self, module: Draft, fuel: Fuel | None = None) -> PassResult[Draft]:
        """Rewrites: calls moved. Counters: ``bytes`` per sample of the values of all rows.

        Misses: values of all rows that would take more than the limit. A loop costs one unit of fuel; loops that go
        round after round have other numbers in each round and are left alone.
        """
        fuel = fuel or Fuel()
        drafter, misses = Drafter.reopen(module), list[Miss]()
        segments: list[Segment] = []
        moved, left = 0, self.limit
        for turn, segment in enumerate(module.plan.segments):
            if segment.table is None or segment.repeat is not None:
                segments.append(segment)
                continue
            chosen, nbytes, refused = _Choice(module.plan, turn).fitting(left)
            misses += refused
            if not chosen.calls or not fuel.spend():
                segments.append(segment)
                continue
            before, inside = _Rows(drafter, module.plan, segment).move(chosen)
            moved, left = moved + len(chosen.calls), left - nbytes
            if segments and not segments[-1].is_loop:
                last = segments.pop()
                segments.append(last.model_copy(update={"calls": last.calls + before}))
            else:
                segments.append(Segment(name=f"before-{segment.name}", calls=before))
            segments.append(segment.model_copy(update={"calls": inside}))
        draft = drafter.closed(module.plan, segments) if moved else module
        counters = {"bytes": self.limit - left} if moved else {}
        return PassResult(draft, rewrites=moved, counters=counters, misses=tuple(misses))


@dataclass(frozen=True)
class _Chosen:
    """Calls to move, by position, and the buffers that the rest of the loop reads a row of."""

    calls: frozenset[int] = frozenset()
    results: tuple[int, ...] = ()


@dataclass
class _Choice:
    """Which calls of a loop may move, and are worth it."""

    plan: Plan
    turn: int
    segment: Segment = field(init=False)
    drafter: Drafter = field(init=False)
    depends: Dependence = field(init=False)
    makers: dict[int, list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.segment = self.plan.segments[self.turn]
        self.drafter = Drafter.reopen(Draft(self.plan, {}))
        self.depends = dependence(self.plan, self.turn)
        self.makers = makers(self.plan, self.segment)

    def fitting(self, left: int) -> tuple[_Chosen, int, list[Miss]]:
        """As much as the memory left allows, first things first; what it takes; what it did not allow."""
        chosen, taken, misses = _Chosen(), 0, list[Miss]()
        for number in self._read_by_others():
            calls = self._needed(number)
            if calls is None or not any(self.segment.calls[at].op in PRODUCTS for at in calls):
                continue
            more = _Chosen(chosen.calls | calls, (*chosen.results, number))
            nbytes = self._bytes(more)
            if nbytes > left:
                site = self.segment.calls[self.makers[number][-1]].site
                misses.append(Miss(f"its values for all rows would take {(nbytes - taken) >> 10} kB more", site))
                continue
            chosen, taken = more, nbytes
        return chosen, taken, misses

    def _read_by_others(self) -> list[int]:
        """The buffers that know the row and what was given but no state, and that a call with state reads."""
        mixed = Depends.ROW | Depends.GIVEN
        outside = {owner_of(self.plan, spec.buffer) for spec in self.plan.outputs}
        for turn, segment in enumerate(self.plan.segments):
            for call in segment.calls:
                if turn != self.turn or Depends.STATE in self.depends.made(call):
                    outside |= reads(self.plan, call)
        return [number for number in self.makers if self.depends.buffers[number] == mixed and number in outside]

    def _needed(self, number: int) -> frozenset[int] | None:
        """The calls of the loop that make a buffer; None where one of them cannot be made for all rows."""
        found = needed_for(self.plan, self.segment, self.makers, number)
        return found if all(_movable(self.drafter, self.segment, self.segment.calls[at]) for at in found) else None

    def _bytes(self, chosen: _Chosen) -> int:
        """Bytes per sample of all that the moved calls write."""
        assert self.segment.table is not None
        rows = self.plan.tables[self.segment.table].rows
        numbers = {n for at in chosen.calls for n in writes(self.plan, self.segment.calls[at])}
        values = [self.drafter.value(f"b{number}") for number in numbers]
        return sum(rows * per_unit(value.shape) * ITEM[value.dtype] for value in values)


def _movable(drafter: Drafter, segment: Segment, call: Call) -> bool:
    """Whether a call over all samples is the same call over all samples of all rows."""
    if call.op == "select_row":
        return call.attrs["axis"] == 0 and "column" not in call.attrs and call.ins["x"][0] == "c"
    if call.op == "step_time":
        return call.attrs["table"] == segment.table and not call.ins and "row" not in call.attrs
    values = [drafter.value(ref) for ref in (*call.ins.values(), *call.outs.values()) if ref[0] == "b"]
    return all(_regular(drafter, value) for value in values) and all(
        _leads(drafter.value(drafter.value(ref).storage)) for ref in call.outs.values()
    )


def _leads(value: Value) -> bool:
    """Whether the batch is the first dimension."""
    return bool(value.shape) and isinstance(value.shape[0], Batch)


def _regular(drafter: Drafter, value: Value) -> bool:
    """Whether the samples of a window lie as far apart as those of its buffer, so that it goes on over more of them."""
    whole = drafter.value(value.storage)
    batches = [(n.k, s) for n, s in zip(value.shape, value.strides, strict=True) if isinstance(n, Batch)]
    if not _leads(whole):  # the same for all samples
        return all(k == 1 and s == 0 for k, s in batches)
    return len(batches) == 1 and all(k * s == per_unit(whole.shape) for k, s in batches)


@dataclass
class _Rows:
    """Moves calls in front of one loop, where they run over rows x B samples.

    Attributes:
        before: the calls so far.
        wide: each buffer that these calls read or write, for all rows: [rows*K*B, …].
    """

    drafter: Drafter
    plan: Plan
    segment: Segment
    before: list[Call] = field(default_factory=list[Call])
    wide: dict[str, Value] = field(default_factory=dict[str, Value])

    @property
    def rows(self) -> int:
        """Rows of the loop's table."""
        assert self.segment.table is not None
        return self.plan.tables[self.segment.table].rows

    def move(self, chosen: _Chosen) -> tuple[tuple[Call, ...], tuple[Call, ...]]:
        """The calls to put before the loop, and those that stay in it: also moved ones, if others read them there."""
        inside, selected = list[Call](), set[int]()
        written = {n for at in chosen.calls for n in writes(self.plan, self.segment.calls[at])}
        fixed = {n for n in written if not _leads(self.drafter.value(f"b{n}"))}
        for at, call in enumerate(self.segment.calls):
            if at in chosen.calls:
                self._widen(call, written, fixed)
            results = writes(self.plan, call) & set(chosen.results)
            if not results:
                inside.append(call)
            inside += [self._select(number, call) for number in sorted(results - selected)]
            selected |= results
        return tuple(self.before), tuple(inside)

    def _widen(self, call: Call, written: set[int], fixed: set[int]) -> None:
        """Append a call for all rows."""
        match call.op:
            case "select_row":
                self._table(call.outs["y"], call.ins["x"], None, call)
            case "step_time":
                table: Table = self.plan.tables[int(call.attrs["table"])]
                self._table(call.outs["t"], f"c{table.constant}", call.attrs["column"], call)
            case _:
                ins = {role: self._operand(ref, written, fixed, call) for role, ref in call.ins.items()}
                outs = {role: self._operand(ref, written, fixed, call) for role, ref in call.outs.items()}
                self.before.append(call.model_copy(update={"ins": ins, "outs": outs, "variants": ()}))

    def _table(self, made: str, constant: str, column: int | None, call: Call) -> None:
        """A row of a constant, or one number of it, for each row: the same in all samples."""
        source = self._copied(constant, call)
        old = self.drafter.value(made)
        per_row = source.strides[0]
        if column is None:
            inner, strides = old.shape, old.strides
            wide = self.drafter.new((Batch(self.rows), *inner), old.dtype, call.site)
            at = 0
        else:
            size = old.shape[0]
            assert isinstance(size, Batch)
            inner, strides = (size.k,), (0,)
            wide = self.drafter.new((Batch(self.rows * size.k),), old.dtype, call.site)
            at = column
        window = Value(source.storage, (Batch(), self.rows, *inner), (0, per_row, *strides), at, source.dtype)
        self._copy(window, self._split(wide, inner), call)
        self.wide[made] = wide

    def _copied(self, constant: str, call: Call) -> Value:
        """A constant as a buffer, which can be viewed."""
        if constant not in self.wide:
            value = self.drafter.value(constant)
            self.wide[constant] = self.drafter.new(value.shape, value.dtype, call.site)
            self._copy(value, self.wide[constant], call)
        return self.wide[constant]

    def _operand(self, ref: str, written: set[int], fixed: set[int], call: Call) -> str:
        """What a call over all rows calls an operand of it."""
        number = owner(self.plan, ref)
        if number is None:
            return ref
        window = self.drafter.value(ref)
        whole = self.drafter.value(window.storage)
        if not _leads(whole) and number not in fixed:
            shape = tuple(n * self.rows if isinstance(n, Batch) else n for n in window.shape)
            return self.drafter.ref(Value(window.storage, shape, window.strides, window.offset, window.dtype))
        if window.storage not in self.wide:
            self.wide[window.storage] = self._made(whole) if number in written else self._repeated(whole, call)
        wide = self.wide[window.storage]
        apart = per_unit(whole.shape) if number in fixed else 0  # of a row that all samples share, each row has its own
        shape, strides = list[int | Batch](), list[int]()
        for n, s in zip(window.shape, window.strides, strict=True):
            shape.append(n * self.rows if isinstance(n, Batch) else n)
            strides.append(apart if isinstance(n, Batch) and number in fixed else s)
        return self.drafter.ref(Value(wide.storage, tuple(shape), tuple(strides), window.offset, window.dtype))

    def _made(self, whole: Value) -> Value:
        size = whole.shape[0]
        assert isinstance(size, Batch)
        return self.drafter.new((size * self.rows, *whole.shape[1:]), whole.dtype, self.segment.name)

    def _repeated(self, whole: Value, call: Call) -> Value:
        """What was known before the loop, the same in all rows."""
        size, inner = whole.shape[0], whole.shape[1:]
        assert isinstance(size, Batch)
        wide = self._made(whole)
        shape = (Batch(), self.rows, size.k, *inner)
        window = Value(whole.storage, shape, (per_unit(whole.shape), 0, *whole.strides), 0, whole.dtype)
        self._copy(window, self._split(wide, (size.k, *inner)), call)
        return wide

    def _split(self, wide: Value, inner: tuple[int | Batch, ...]) -> Value:
        """A buffer of all rows as [B, rows, *inner]."""
        strides = dense_strides((Batch(), self.rows, *inner))
        assert strides is not None
        return Value(wide.storage, (Batch(), self.rows, *inner), strides, 0, wide.dtype)

    def _copy(self, source: Value, target: Value, call: Call) -> None:
        roles = {"ins": {"x": self.drafter.ref(source)}, "outs": {"y": self.drafter.ref(target)}}
        self.before.append(call.model_copy(update={"op": "copy", **roles, "attrs": {}, "variants": ()}))

    def _select(self, number: int, maker: Call) -> Call:
        """The row of a buffer of all rows, where the loop's calls read it."""
        old = self.drafter.value(f"b{number}")
        size, inner = old.shape[0], old.shape[1:]
        assert isinstance(size, Batch)
        source = self._split(self.wide[f"b{number}"], (size.k, *inner))
        target = Value(old.storage, (Batch(), size.k, *inner), (per_unit(old.shape), *old.strides), 0, old.dtype)
        return maker.model_copy(
            update={
                "op": "select_row",
                "ins": {"x": self.drafter.ref(source)},
                "outs": {"y": self.drafter.ref(target)},
                "attrs": {"table": self.segment.table, "axis": 1},
            }
        )
