"""The plan as data: buffers, constants, tables and a flat list of kernel calls. docs/plan-format.md is its reference.

A plan holds nothing executable and no device objects. Sizes that grow with the batch are written ``"B"``, ``"2B"`` …;
everything else is a number, so one plan serves every batch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

VERSION = 3

MAX_VARIANTS = 64
"""Rows of one table are of at most this many kinds, numbered from 0."""

Dim = Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=r"^[1-9]?[0-9]*B$")]
Ref = Annotated[str, Field(pattern=r"^[bc][0-9]+$")]
DType = Literal["f32", "i64", "u8", "u7", "bf16"]
WeightDType = Literal["f32", "i64", "u8", "bf16", "i8", "i7", "i6", "i4", "i2"]


class Data(BaseModel):
    """Base of every part of a plan: immutable, and an unknown field is an error."""

    # JSON has no infinite numbers; as strings they reach the compiled backend in JSON that every parser reads.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Slot(Data):
    """Where a buffer lives: ``batch`` offsets are bytes per unit of batch (times B), ``fixed`` ones absolute."""

    space: Literal["batch", "fixed"]
    offset: Annotated[int, Field(ge=0)]


class View(Data):
    """A strided window onto another buffer: strides and offset in elements."""

    base: int
    offset: Annotated[int, Field(ge=0)] = 0
    strides: tuple[Annotated[int, Field(ge=0)], ...]


class Buffer(Data):
    """``bN`` in refs. Exactly one of ``slot`` and ``view`` is set once memory has been planned."""

    id: int
    name: str
    dtype: DType = "f32"
    shape: tuple[Dim, ...]
    slot: Slot | None = None
    view: View | None = None


class Constant(Data):
    """``cN`` in refs: ``nbytes`` at byte ``offset`` of the constants file, 64-byte aligned.

    ``shape`` is the logical shape; ``layout`` says how the bytes are packed:
    ``plain`` row-major; ``n16`` of [N, K]: [ceil(N/16)][K][16]; ``oc8`` of [O, I, kh, kw]: [ceil(O/8)][I][kh][kw][8];
    ``k2n16``, ``q4n16`` and ``q4oc8`` hold bf16 and integer weights (docs/plan-format.md, Formats); padding is zero.
    """

    id: int
    name: str
    dtype: WeightDType = "f32"
    shape: tuple[Annotated[int, Field(ge=0)], ...]
    layout: Literal["plain", "n16", "oc8", "k2n16", "q4n16", "q4oc8"] = "plain"
    offset: Annotated[int, Field(ge=0)] = 0
    nbytes: Annotated[int, Field(ge=0)] = 0


class Table(Data):
    """One row of float32 per micro-step of a loop; ``constant`` holds it as [rows, len(columns)]."""

    id: int
    name: str
    rows: Annotated[int, Field(ge=1)]
    columns: tuple[str, ...]
    constant: int


Variants = tuple[Annotated[int, Field(ge=0, lt=MAX_VARIANTS)], ...]


class Call(Data):
    """One kernel call. Operands are named roles; ``site`` is the node or layer it came from.

    ``variants`` are the kinds of rows it runs in (``Segment.variant``); none listed: all of them.
    """

    op: str
    ins: dict[str, Ref] = {}
    outs: dict[str, Ref] = {}
    attrs: dict[str, Any] = {}
    site: str = ""
    variants: Variants = ()


class Repeat(Data):
    """Round after round while any element of the buffer ``active`` is not 0, at most ``limit`` rounds.

    If it is still not all 0 then, ``strict`` makes that a run-time error; else the loop just ends.
    """

    active: Annotated[int, Field(ge=0)]
    limit: Annotated[int, Field(ge=1)]
    strict: bool = True


class NetworkUse(Data):
    """A network that rows of these variants evaluate, for ``branches`` rows per sample: what the counters count."""

    name: str
    branches: Annotated[int, Field(ge=1)] = 1
    variants: Variants = ()


class Segment(Data):
    """Calls run once, or once per row of a table, in order; with ``repeat``, all of that round after round.

    ``variant`` is the column of the table whose (whole) number says which kind a row is.
    """

    name: str
    table: int | None = None
    variant: Annotated[int, Field(ge=0)] | None = None
    repeat: Repeat | None = None
    networks: tuple[NetworkUse, ...] = ()
    calls: tuple[Call, ...]

    @property
    def is_loop(self) -> bool:
        """Whether its calls may run more than once."""
        return self.table is not None or self.repeat is not None


class InputSpec(Data):
    """A value the caller gives. Shape is per call, so it starts with ``B`` unless it is shared by the batch."""

    name: str
    buffer: int
    low: float | None = None
    high: float | None = None
    default: float | None = None
    doc: str = ""


class OutputSpec(Data):
    """A value the caller receives."""

    name: str
    buffer: int


class Stage(Data):
    """Provenance: what a pass did, in what time. The text of the stage lies in ``stages/``."""

    name: str
    rewrites: int
    ms: float
    counters: dict[str, int] = {}
    misses: tuple[str, ...] = ()


class Plan(Data):
    """A whole sampling program for one device.

    ``bank`` is the buffer [B, draws, …] of the input that replaces generated noise, if there is one.
    """

    format: Literal["scoregraph-plan"] = "scoregraph-plan"
    version: Literal[3] = VERSION
    name: str
    device: str
    graph: str = ""
    inputs: tuple[InputSpec, ...] = ()
    outputs: tuple[OutputSpec, ...] = ()
    buffers: tuple[Buffer, ...]
    constants: tuple[Constant, ...] = ()
    tables: tuple[Table, ...] = ()
    segments: tuple[Segment, ...]
    bank: Annotated[int, Field(ge=0)] | None = None
    stages: tuple[Stage, ...] = ()
    constants_sha256: str = ""
