"""The values that a recipe quantizes, looked at channel by channel while the graph itself runs.

``observe`` adds to a draft what records the least, the largest and the mean square number of every channel of every
site at every step; running that plan on some seeds gives the statistics of the compiled graph's own trajectories, all
guided branches among them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoregraph.passes.quantize.sites import Selection, Site
from scoregraph.plan.dims import Batch, per_unit
from scoregraph.plan.draft import Draft, Drafter, Value
from scoregraph.plan.schema import Call, OutputSpec, Plan, Segment

_ROW_COLUMN = "observed row"

_BOUNDS = {"low": "min", "high": "max", "power": "mean"}
"""What is recorded, and the reduction that it is."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Statistics:
    """What the value of one site was: float32 [S, R, C], by sample, row of its loop, and channel.

    Values that stand outside of loops have one row; so have those of loops that choose their own steps, with the
    extremes over all rounds. A row that did not read the value is all zeros. C is 1 where channels were not asked for.

    Attributes:
        low, high: the least and the largest number, 0 included.
        power: the mean square.
    """

    low: Floats
    high: Floats
    power: Floats


def observe(draft: Draft, selection: Selection, by_channel: Collection[int]) -> Draft:
    """The same plan with three outputs a site, ``low0`` ``high0`` ``power0`` …: [B, R, C], or [B, C] without rows.

    Sites whose number is not in ``by_channel`` count as one channel.
    """
    return _Observation(draft, selection, by_channel).run()


def statistics_of(results: Mapping[str, NDArray[Any]], sites: int) -> list[Statistics]:
    """The statistics from what the observing plan answered."""

    def found(name: str) -> Floats:
        values = results[name].astype(np.float32)
        return values if values.ndim == 3 else values[:, None]

    return [
        Statistics(np.minimum(found(f"low{i}"), 0), np.maximum(found(f"high{i}"), 0), found(f"power{i}"))
        for i in range(sites)
    ]


def groups_of_rows(rows: int, groups: int) -> NDArray[np.int64]:
    """The group of each row: as equal as can be, none of them empty, at most one a row."""
    return np.arange(rows) * min(groups, rows) // rows


def in_groups(seen: Statistics, groups: int) -> Statistics:
    """The same with the extremes of all samples and rows of a row's group in place of its own."""
    of_row = groups_of_rows(seen.low.shape[1], groups)
    low, high = np.empty_like(seen.low), np.empty_like(seen.high)
    for group in range(of_row[-1] + 1):
        rows = of_row == group
        low[:, rows] = seen.low[:, rows].min(axis=(0, 1))
        high[:, rows] = seen.high[:, rows].max(axis=(0, 1))
    return Statistics(low, high, seen.power)


def add_column(drafter: Drafter, table: int, name: str, values: NDArray[Any]) -> int:
    """A new last column of a table; gives its index."""
    old = drafter.tables[table]
    rows = np.concatenate([drafter.arrays[old.constant], values[:, None].astype(np.float32)], axis=1)
    made = drafter.constant(rows, f"table.{old.name}")
    update = {"columns": (*old.columns, name), "constant": int(made.storage[1:])}
    drafter.tables[table] = old.model_copy(update=update)
    return len(old.columns)


class _Observation:
    """One plan in the making."""

    def __init__(self, draft: Draft, selection: Selection, by_channel: Collection[int]) -> None:
        self.drafter = Drafter.reopen(draft)
        self.plan: Plan = draft.plan
        self.sites, self.by_channel = selection.sites, by_channel
        self.outputs: list[OutputSpec] = []
        self.before: list[Call] = []
        self.columns: dict[int, int] = {}

    def run(self) -> Draft:
        """All segments, and in front of them what fills the records."""
        segments = [self._segment(number, segment) for number, segment in enumerate(self.plan.segments)]
        first = Segment(name="records", calls=tuple(self.before))
        update = {"tables": tuple(self.drafter.tables), "outputs": tuple(self.outputs)}
        return self.drafter.closed(self.plan.model_copy(update=update), [first, *segments])

    def _segment(self, number: int, segment: Segment) -> Segment:
        calls: list[Call] = []
        for at, call in enumerate(segment.calls):
            for i, site in enumerate(self.sites):
                if site.place == (number, at):
                    calls += self._record(i, site, segment, call)
            calls.append(call)
        return segment.model_copy(update={"calls": tuple(calls)})

    def _record(self, i: int, site: Site, segment: Segment, reader: Call) -> list[Call]:
        """The calls that note the statistics of a site."""
        calls: list[Call] = []

        def call(op: str, ins: dict[str, Value], out: Value, **attrs: object) -> Value:
            named = {role: self.drafter.ref(value) for role, value in ins.items()}
            outs = {"y": self.drafter.ref(out)}
            calls.append(Call(op=op, ins=named, outs=outs, attrs=attrs, site=site.name, variants=reader.variants))
            return out

        x = self.drafter.value(site.ref)
        if i in self.by_channel:
            x = channels_first(x, reader.op)
        channels = x.shape[1] if i in self.by_channel else 1
        if not x.dense():
            x = call("copy", {"x": x}, self.drafter.new(x.shape, name=f"all of {site.name}"))
        each = per_unit(x.shape) // _whole(channels)
        x = Value(x.storage, (Batch(), channels, each), (per_unit(x.shape), each, 1), x.offset)
        square = self.drafter.new(x.shape, name=f"square of {site.name}")
        call("pointwise", {"x0": x}, square, program=[["square", 0]])
        for name, kind in _BOUNDS.items():
            seen = self.drafter.new((Batch(), channels), name=f"{name} of {site.name}")
            call("reduce", {"x": square if name == "power" else x}, seen, kind=kind, axes=[2])
            if segment.table is not None and segment.repeat is None:
                shape = (Batch(), self.plan.tables[segment.table].rows, channels)
                attrs = {"table": segment.table, "column": self._row_column(segment.table)}
                kept = call("record", {"x": seen}, self._kept(f"{name} by row of {site.name}", shape), **attrs)
            elif segment.is_loop:
                kept = self._kept(f"{name} of all rounds of {site.name}", seen.shape)
                wider = self.drafter.new(seen.shape, name=f"wider {name} of {site.name}")
                widen = "min" if name == "low" else "max"
                call("pointwise", {"x0": kept, "x1": seen}, wider, program=[[widen, 0, 1]])
                call("copy", {"x": wider}, kept)
            else:
                kept = seen
            self.outputs.append(OutputSpec(name=f"{name}{i}", buffer=int(kept.storage[1:])))
        return calls

    def _kept(self, name: str, shape: tuple[int | Batch, ...]) -> Value:
        """A buffer that is 0 before everything."""
        made = self.drafter.new(shape, name=name)
        self.before.append(Call(op="fill", outs={"x": made.storage}, attrs={"value": 0.0}, site=name))
        return made

    def _row_column(self, table: int) -> int:
        if table not in self.columns:
            rows = np.arange(self.plan.tables[table].rows)
            self.columns[table] = add_column(self.drafter, table, _ROW_COLUMN, rows)
        return self.columns[table]


def channels_first(x: Value, reader: str) -> Value:
    """What a product reads, [kB, C, H, W] or [kB, …, C], as [B, C, k, …]: a window without a copy."""
    branches = per_unit(x.shape[:1])
    at = 1 if reader == "conv2d" else len(x.shape) - 1
    rest = [d for d in range(1, len(x.shape)) if d != at]
    shape = (Batch(), x.shape[at], branches, *(x.shape[d] for d in rest))
    strides = (branches * x.strides[0], x.strides[at], x.strides[0], *(x.strides[d] for d in rest))
    return Value(x.storage, shape, strides, x.offset)


def _whole(size: int | Batch) -> int:
    assert isinstance(size, int), "the batch stands outermost"
    return size
