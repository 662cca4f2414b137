"""A plan in the making: the schema's data with the constants still as arrays, and no memory planned yet."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scoregraph.plan.dims import Batch, dense_strides, dump_dim, parse_dim
from scoregraph.plan.layouts import STORED
from scoregraph.plan.schema import (
    Buffer,
    Call,
    Constant,
    InputSpec,
    NetworkUse,
    OutputSpec,
    Plan,
    Repeat,
    Segment,
    Table,
    View,
)


@dataclass(frozen=True)
class Draft:
    """What plan passes rewrite: the plan, and each constant's values by id, in the constant's layout.

    bf16 values are held as their bits, i4 and i2 as int8 until they are packed, then as the bytes they share.
    ``counters`` say what lowering did.
    """

    plan: Plan
    arrays: Mapping[int, np.ndarray]
    counters: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor while lowering: a window onto a buffer (or a whole constant). Views are free until a call uses them."""

    storage: str
    shape: tuple[int | Batch, ...]
    strides: tuple[int, ...]
    offset: int = 0
    dtype: str = "f32"

    @property
    def is_constant(self) -> bool:
        """Whether the storage is a constant of the plan."""
        return self.storage.startswith("c")

    def dense(self) -> bool:
        """Row-major without gaps (dimensions of size 1 may have any stride)."""
        wanted = dense_strides(self.shape)
        return wanted is not None and all(
            n == 1 or a == b for n, a, b in zip(self.shape, self.strides, wanted, strict=True)
        )


@dataclass
class OpenSegment:
    """A segment that still takes calls; the fields are those of ``Segment``."""

    name: str
    table: int | None = None
    variant: int | None = None
    repeat: Repeat | None = None
    networks: list[NetworkUse] = field(default_factory=list[NetworkUse])
    calls: list[Call] = field(default_factory=list[Call])

    def close(self) -> Segment:
        """The finished segment."""
        return Segment(
            name=self.name,
            table=self.table,
            variant=self.variant,
            repeat=self.repeat,
            networks=tuple(self.networks),
            calls=tuple(self.calls),
        )


@dataclass
class Drafter:
    """Collects buffers, constants, tables and calls; ``build`` freezes them into a ``Draft``.

    Attributes:
        segments: the segments so far; calls go into the last one.
        bank: the buffer of the input that replaces generated noise.
        counters: what lowering did, for its stage.
    """

    name: str
    device: str
    buffers: list[Buffer] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)
    arrays: dict[int, np.ndarray] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    segments: list[OpenSegment] = field(default_factory=list)
    inputs: list[InputSpec] = field(default_factory=list)
    outputs: list[OutputSpec] = field(default_factory=list)
    bank: int | None = None
    counters: dict[str, int] = field(default_factory=dict[str, int])
    _variants: tuple[int, ...] = ()
    _views: dict[tuple[Any, ...], str] = field(default_factory=dict)
    _known_constants: dict[tuple[str, tuple[int, ...], bytes], int] = field(default_factory=dict)
    _prologue_copies: dict[str, Value] = field(default_factory=dict)

    @classmethod
    def reopen(cls, draft: Draft) -> Drafter:
        """A drafter with everything a draft has but its segments, to which a pass adds buffers and constants."""
        plan = draft.plan
        return cls(
            name=plan.name,
            device=plan.device,
            buffers=list(plan.buffers),
            constants=list(plan.constants),
            arrays=dict(draft.arrays),
            tables=list(plan.tables),
            inputs=list(plan.inputs),
            outputs=list(plan.outputs),
            bank=plan.bank,
        )

    def begin(
        self, name: str, table: int | None = None, variant: int | None = None, repeat: Repeat | None = None
    ) -> None:
        """Start a segment; the calls that follow belong to it.

        Args:
            name: what listings call it.
            table: the table with a row for each of its turns.
            variant: the table's column that says which kind a row is.
            repeat: until when all of it runs round after round.
        """
        self.segments.append(OpenSegment(name, table, variant, repeat))

    @contextmanager
    def only_in(self, *variants: int) -> Iterator[None]:
        """The calls and networks added meanwhile belong to rows of these variants (none given: to all rows)."""
        before, self._variants = self._variants, variants
        try:
            yield
        finally:
            self._variants = before

    @property
    def variants(self) -> tuple[int, ...]:
        """The variants that calls belong to just now."""
        return self._variants

    def evaluates(self, network: str, branches: int = 1) -> None:
        """Note for the counters that a turn of the current segment calls ``network`` for so many branches."""
        use = NetworkUse(name=network, branches=branches, variants=self._variants)
        self.segments[-1].networks.append(use)

    def new(self, shape: Sequence[int | Batch], dtype: str = "f32", name: str = "") -> Value:
        """A fresh dense buffer."""
        shape = tuple(shape)
        strides = dense_strides(shape)
        if strides is None:
            raise ValueError(f"buffer {name!r} of shape {shape} would not have the batch outermost")
        number = len(self.buffers)
        self.buffers.append(
            Buffer.model_construct(
                id=number, name=name, dtype=dtype, shape=tuple(dump_dim(d) for d in shape), slot=None, view=None
            )
        )
        return Value(f"b{number}", shape, strides, 0, dtype)

    def constant(self, array: np.ndarray, name: str, dtype: str | None = None) -> Value:
        """A constant; equal ones are stored once.

        Args:
            array: floats, integers or booleans; weights of i8 … i2 as int8 values, bf16 as uint16 bits.
            name: what listings call it.
            dtype: the plan's type; without it f32, i64 or u8, as the array's own kind says.
        """
        dtype = dtype or {"f": "f32", "i": "i64", "u": "u8", "b": "u8"}[array.dtype.kind]
        array = np.ascontiguousarray(array, np.int8 if dtype in ("i4", "i2") else STORED[dtype])
        key = (dtype, array.shape, hashlib.sha256(array.tobytes()).digest())
        number = self._known_constants.setdefault(key, len(self.constants))
        if number == len(self.constants):
            self.constants.append(
                Constant.model_construct(
                    id=number, name=name, dtype=dtype, shape=array.shape, layout="plain", offset=0, nbytes=0
                )
            )
            self.arrays[number] = array
        strides = dense_strides(array.shape)
        assert strides is not None
        return Value(f"c{number}", tuple(array.shape), strides, 0, dtype)

    def table(self, name: str, columns: Sequence[str], rows: np.ndarray) -> int:
        """A loop's table; its rows are kept as a constant."""
        values = self.constant(np.asarray(rows, np.float32), f"table.{name}")
        number = len(self.tables)
        self.tables.append(
            Table(id=number, name=name, rows=len(rows), columns=tuple(columns), constant=int(values.storage[1:]))
        )
        return number

    def value(self, ref: str) -> Value:
        """What a call names: the window that a buffer, a view or a constant is."""
        owner = (self.constants if ref[0] == "c" else self.buffers)[int(ref[1:])]
        shape = tuple(parse_dim(d) for d in owner.shape)
        if isinstance(owner, Buffer) and owner.view is not None:
            return Value(f"b{owner.view.base}", shape, owner.view.strides, owner.view.offset, owner.dtype)
        strides = dense_strides(shape)
        assert strides is not None, "what has memory of its own is dense"
        return Value(ref, shape, strides, 0, owner.dtype)

    def ref(self, value: Value) -> str:
        """How a call names ``value``: its buffer or constant, or a view made on first use."""
        if value.is_constant:
            if not value.dense() or value.offset:
                raise ValueError("a constant is used whole; copy it into a buffer to view it")
            return value.storage
        owner = self.buffers[int(value.storage[1:])]
        if value.offset == 0 and value.dense() and value.shape == tuple(parse_dim(d) for d in owner.shape):
            return value.storage
        key = (value.storage, value.shape, value.strides, value.offset)
        if key not in self._views:
            number = len(self.buffers)
            self.buffers.append(
                Buffer.model_construct(
                    id=number,
                    name=owner.name,
                    dtype=owner.dtype,
                    shape=tuple(dump_dim(d) for d in value.shape),
                    slot=None,
                    view=View(base=owner.id, offset=value.offset, strides=value.strides),
                )
            )
            self._views[key] = f"b{number}"
        return self._views[key]

    def call(
        self,
        op: str,
        ins: Mapping[str, Value | None],
        outs: Mapping[str, Value],
        attrs: Mapping[str, Any] | None = None,
        site: str = "",
    ) -> None:
        """Append one kernel call to the current segment; a role given None is left out."""
        self.segments[-1].calls.append(
            Call(
                op=op,
                ins={role: self.ref(v) for role, v in ins.items() if v is not None},
                outs={role: self.ref(v) for role, v in outs.items()},
                attrs=dict(attrs or {}),
                site=site,
                variants=self._variants,
            )
        )

    def as_buffer(self, value: Value) -> Value:
        """A constant as a buffer, so that it can be viewed and broadcast; filled once, before everything else."""
        if not value.is_constant:
            return value
        if value.storage not in self._prologue_copies:
            number = int(value.storage[1:])
            whole = Value(value.storage, tuple(self.constants[number].shape), _strides_of(self.constants[number]))
            made = self.new(whole.shape, value.dtype, self.constants[number].name)
            self.segments[0].calls.insert(
                0, Call(op="copy", ins={"x": value.storage}, outs={"y": made.storage}, site=self.constants[number].name)
            )
            self._prologue_copies[value.storage] = made
        made = self._prologue_copies[value.storage]
        return Value(made.storage, value.shape, value.strides, value.offset, value.dtype)

    def dense(self, value: Value, site: str = "") -> Value:
        """``value`` itself if it is row-major, else a copy that is."""
        if value.dense():
            return value
        value = self.as_buffer(value)
        made = self.new(value.shape, value.dtype, site)
        self.call("copy", {"x": value}, {"y": made}, site=site)
        return made

    def closed(self, plan: Plan, segments: Sequence[Segment]) -> Draft:
        """A draft of ``segments`` that names what this drafter holds; the rest is that of ``plan``."""
        update = {
            "buffers": tuple(self.buffers),
            "constants": tuple(self.constants),
            "segments": tuple(segments),
        }
        return Draft(plan.model_copy(update=update), dict(self.arrays), self.counters)

    def build(self) -> Draft:
        """The frozen draft."""
        plan = Plan(
            name=self.name,
            device=self.device,
            inputs=tuple(self.inputs),
            outputs=tuple(self.outputs),
            buffers=tuple(self.buffers),
            constants=tuple(self.constants),
            tables=tuple(self.tables),
            segments=tuple(segment.close() for segment in self.segments),
            bank=self.bank,
        )
        return Draft(plan, dict(self.arrays), self.counters)


def _strides_of(constant: Constant) -> tuple[int, ...]:
    strides = dense_strides(tuple(constant.shape))
    assert strides is not None
    return strides
