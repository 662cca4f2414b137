"""What a calibration finds: the ranges of the values that a recipe quantizes, and what evens out their channels.

Steps fall into equal groups; each group and site has the grid that covers what was seen in it. Where a site is
smoothed, that is of its values divided by λ: one calibration gives both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from scoregraph.passes.quantize.observe import Floats, Statistics, groups_of_rows
from scoregraph.passes.quantize.sites import Site
from scoregraph.passes.quantize.smoothing import Smoothing

GROUP_COLUMN = "grid group"
"""The column of a loop's table that names the group of a row's grids."""


@dataclass(frozen=True)
class Calibration:
    """What was seen.

    Attributes:
        seeds: of the samples that ran.
        inputs: how each input of the graph was chosen, by name.
        sites: the names of the sites, in the order of the plan.
        low, high: by site and row of its loop, the least and the largest number, 0 included. Values that stand outside
            of loops have one row; so have those of loops that choose their own steps.
        smoothing: of each site, None where it has none.
    """

    seeds: tuple[int, ...]
    inputs: Mapping[str, str]
    sites: tuple[str, ...]
    low: tuple[tuple[float, ...], ...]
    high: tuple[tuple[float, ...], ...]
    smoothing: tuple[Smoothing | None, ...]

    @classmethod
    def of(
        cls,
        statistics: Sequence[Statistics],
        smoothing: Sequence[Smoothing | None],
        sites: Sequence[Site],
        seeds: Sequence[int],
        inputs: Mapping[str, str],
    ) -> Calibration:
        """The ranges of all samples, of the values as they are quantized."""
        low: list[tuple[float, ...]] = []
        high: list[tuple[float, ...]] = []
        for seen, chosen in zip(statistics, smoothing, strict=True):
            factor = np.array(1.0 if chosen is None else chosen.factor, np.float32)
            low.append(tuple((seen.low / factor).min(axis=(0, 2)).tolist()))
            high.append(tuple((seen.high / factor).max(axis=(0, 2)).tolist()))
        names = tuple(site.name for site in sites)
        return cls(tuple(seeds), dict(inputs), names, tuple(low), tuple(high), tuple(smoothing))

    def grids(self, site: int, groups: int, top: int) -> Floats:
        """The grid of each group: float32 [G, 2] of (scale, zero) over 0 … ``top``.

        A loop with fewer rows than groups has as many groups as rows.
        """
        low, high = np.array(self.low[site], np.float32), np.array(self.high[site], np.float32)
        of_row = groups_of_rows(len(low), groups)
        return np.stack([_grid(low[of_row == g].min(), high[of_row == g].max(), top) for g in range(of_row[-1] + 1)])

    def to_json(self) -> str:
        """A line a site, for people and for tools: its ranges by step, the strength and factors of its λ."""
        lines = ",\n  ".join(
            json.dumps({"site": site, "low": low, "high": high, **({} if chosen is None else asdict(chosen))})
            for site, low, high, chosen in zip(self.sites, self.low, self.high, self.smoothing, strict=True)
        )
        head = {"seeds": list(self.seeds), "inputs": dict(self.inputs)}
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
            smoothing=tuple(
                Smoothing(row["alpha"], row["of"], tuple(row["factor"])) if "factor" in row else None for row in ranges
            ),
        )


def _grid(low: np.float32, high: np.float32, top: int) -> Floats:
    """(scale, zero) as docs/plan-format.md computes them for a dynamic grid."""
    span = np.float32(high - low)
    if span < np.float32(top) / np.finfo(np.float32).max:  # its inverse would be infinite
        return np.zeros(2, np.float32)
    zero = np.rint(-low * np.float32(np.float32(top) / span))
    return np.array([span / np.float32(top), zero], np.float32)
