"""The ranges of the values that a recipe quantizes, looked at while the graph itself runs.

``observe`` adds to a draft what records the least and the largest number of every site at every step; running that plan
on some seeds gives the ranges of the compiled graph's own trajectories, all guided branches among them. Steps fall into
equal groups; each group and site has the grid that covers what was seen in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoregraph.passes.quantize.sites import Selection, Site
from scoregraph.plan.dims import Batch, per_unit
from scoregraph.plan.draft import Draft, Drafter, Value
from scoregraph.plan.schema import Call, OutputSpec, Plan, Segment

GROUP_COLUMN = "grid group"
"""The column of a loop's table that names the group of a row's grids."""

_ROW_COLUMN = "observed row"

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Calibration:
    """What was seen.

    Attributes:
        seeds: of the samples that ran.
        inputs: how each input of the graph was chosen, by name.
        sites: the names of the sites, in the order of the plan.
        low, high: by site and row of its loop, the least and the largest number, 0 included. Values that stand outside
            of loops have one row; so have those of loops that choose their own steps.
    """

    seeds: tuple[int, ...]
    inputs: Mapping[str, str]
    sites: tuple[str, ...]
    low: tuple[tuple[float, ...], ...]
    high: tuple[tuple[float, ...], ...]

    def grids(self, site: int, groups: int, top: int) -> Floats:
        """The grid of each group: float32 [G, 2] of (scale, zero) over 0 … ``top``.

        A loop with fewer rows than groups has as many groups as rows.
        """
        low, high = np.array(self.low[site], np.float32), np.array(self.high[site], np.float32)
        of_row = groups_of_rows(len(low), groups)
        return np.stack([_grid(low[of_row == g].min(), high[of_row == g].max(), top) for g in range(of_row[-1] + 1)])

    def to_json(self) -> str:
        """A line a site, for people and for tools."""
        body = asdict(self)
        rows = [
            {"site": site, "low": low, "high": high}
            for site, low, high in zip(self.sites, self.low, self.high, strict=True)
        ]
        head = {"seeds": list(body["seeds"]), "inputs": dict(self.inputs)}
        lines = ",\n  ".join(json.dumps(row) for row in rows)
        return f'{json.dumps(head)[:-1]}, "ranges": [\n  {lines}\n]}}\n'

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """The way back."""
        body = json.loads(text)
        ranges: Sequence[Mapping[str, Any]] = body["ranges"]
        return cls(
            seeds=tuple(body["seeds"]),
            inputs=body["inputs"],
            sites=tuple(str(row["site"]) for row in ranges),
            low=tuple(tuple(row["low"]) for row in ranges),
            high=tuple(tuple(row["high"]) for row in ranges),
        )


def groups_of_rows(rows: int, groups: int) -> NDArray[np.int64]:
    """The group of each row: as equal as can be, none of them empty, at most one a row."""
    return np.arange(rows) * min(groups, rows) // rows


def _grid(low: np.float32, high: np.float32, top: int) -> Floats:
    """(scale, zero) as docs/plan-format.md computes them for a dynamic grid."""
    span = np.float32(high - low)
    if span < np.float32(top) / np.finfo(np.float32).max:  # its inverse would be infinite
        return np.zeros(2, np.float32)
    zero = np.rint(-low * np.float32(np.float32(top) / span))
    return np.array([span / np.float32(top), zero], np.float32)


def observe(draft: Draft, selection: Selection) -> Draft:
    """The same plan with two outputs a site, ``low0`` ``high0`` …: [B, rows], or [B] where there are no rows."""
    return _Observation(draft, selection).run()


def calibration_of(
    results: Mapping[str, NDArray[Any]], sites: Sequence[Site], seeds: Sequence[int], inputs: Mapping[str, str]
) -> Calibration:
    """The ranges from what the observing plan answered."""

    def over_samples(values: NDArray[Any], pick: Any, bound: Any) -> tuple[float, ...]:
        rows = pick(values.reshape(len(values), -1).astype(np.float32), axis=0)
        return tuple(bound(rows, np.float32(0.0)).tolist())

    return Calibration(
        seeds=tuple(seeds),
        inputs=dict(inputs),
        sites=tuple(site.name for site in sites),
        low=tuple(over_samples(results[f"low{i}"], np.min, np.minimum) for i in range(len(sites))),
        high=tuple(over_samples(results[f"high{i}"], np.max, np.maximum) for i in range(len(sites))),
    )


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

    def __init__(self, draft: Draft, selection: Selection) -> None:
        self.drafter = Drafter.reopen(draft)
        self.plan: Plan = draft.plan
        self.sites = selection.sites
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
        """The calls that note the range of a site."""
        calls: list[Call] = []

        def call(op: str, ins: dict[str, Value], out: Value, **attrs: object) -> None:
            named = {role: self.drafter.ref(value) for role, value in ins.items()}
            outs = {"y": self.drafter.ref(out)}
            calls.append(Call(op=op, ins=named, outs=outs, attrs=attrs, site=site.name, variants=reader.variants))

        x = self.drafter.value(site.ref)
        if not x.dense():
            whole = self.drafter.new(x.shape, name=f"all of {site.name}")
            call("copy", {"x": x}, whole)
            x = whole
        width = per_unit(x.shape)
        x = Value(x.storage, (Batch(), width), (width, 1), x.offset)
        for bound, kind in (("low", "min"), ("high", "max")):
            seen = self.drafter.new((Batch(),), name=f"{bound} of {site.name}")
            call("reduce", {"x": x}, seen, kind=kind, axes=[1])
            if segment.table is not None and segment.repeat is None:
                kept = self._kept(f"{bound}s of {site.name}", (Batch(), self.plan.tables[segment.table].rows))
                attrs = {"table": segment.table, "column": self._row_column(segment.table)}
                call("record", {"x": seen}, kept, **attrs)
            elif segment.is_loop:
                kept = self._kept(f"{bound} of all rounds of {site.name}", (Batch(),))
                wider = self.drafter.new((Batch(),), name=f"wider {bound} of {site.name}")
                call("pointwise", {"x0": kept, "x1": seen}, wider, program=[[kind, 0, 1]])
                call("copy", {"x": wider}, kept)
            else:
                kept = seen
            self.outputs.append(OutputSpec(name=f"{bound}{i}", buffer=int(kept.storage[1:])))
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
