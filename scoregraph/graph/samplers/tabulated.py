"""A sampler that is its table: what another library's scheduler does, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import hypot
from typing import Any, ClassVar, cast

import numpy as np

from scoregraph.errors import ImportedElsewhere, Location
from scoregraph.graph import options
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers.base import Sampler
from scoregraph.graph.schedules import Point, Schedule
from scoregraph.graph.table import Row, StepTable, machine_columns

REPORT = ("step", "alpha", "sigma", "alpha_next", "sigma_next", "calls")


@dataclass(frozen=True)
class Tabulated(Sampler):
    """The rows of a register machine (docs/samplers.md), as ``from_diffusers`` finds them by probing a scheduler.

    It walks only the schedule it was read with, with a network that answers as the scheduler assumes. A latent in kappa
    space may also be carried as vp, which is how most networks want it: the state is then x / sqrt(1 + kappa^2).

    Attributes:
        names: the registers, the state x first.
        rows: t, c_in, A row-major, B, C, and then ``REPORT``, per micro-step.
        scale: the loop starts from ``scale`` * noise.
        carried: the space of the state: vp, kappa, flow, or "" where the scheduler does not say it.
        time: the convention of t; networks with another one are told what follows from alpha and sigma.
        answers: the name of the parameterization that the scheduler assumes; "" if it could be any.
    """

    name: ClassVar[str] = "tabulated"
    names: tuple[str, ...]
    rows: tuple[tuple[float, ...], ...]
    scale: float = 1.0
    carried: str = ""
    time: str = "timestep"
    answers: str = ""

    def __post_init__(self) -> None:
        options.real(self, "scale")
        # Text and JSON may give lists.
        rows = cast("tuple[tuple[Any, ...], ...]", self.rows)
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "rows", tuple(tuple(float(number) for number in row) for row in rows))
        self._own()  # raises BadTable

    def memory(self) -> tuple[str, ...]:
        """The registers besides x."""
        return self.names[1:]

    def _own(self) -> StepTable:
        """The table as it was read."""
        columns = (*machine_columns(len(self.names), 1), *REPORT)
        return StepTable(columns, self.rows, self.names, init_scale=self.scale)

    def check(self, schedule: Schedule, prediction: Prediction, where: Location | None = None) -> None:
        """Raise ``ImportedElsewhere`` unless this is the schedule, and such the network, that it was read with."""
        own = self._own()
        points = {step: (a, s) for step, a, s in zip(own.steps, own.values("alpha"), own.values("sigma"), strict=True)}
        grid = schedule.grid()
        same = grid.steps == len(points) and all(
            abs(grid.alpha[i] * s - grid.sigma[i] * a) <= 1e-5 * hypot(a, s) * hypot(grid.alpha[i], grid.sigma[i])
            for i, (a, s) in points.items()
        )
        if not same:
            raise ImportedElsewhere(has=f"its own schedule of {len(points)} steps", got=str(schedule), where=where)
        if self.answers and prediction.name != self.answers:
            has = f"a network that predicts {self.answers}"
            raise ImportedElsewhere(has=has, got=f"one that predicts {prediction.name}", where=where)

    def table(
        self,
        schedule: Schedule,
        prediction: Prediction,
        time: str,
        space: str,
        where: Location | None = None,
        *,
        corrected: bool = False,
        split: bool = False,
    ) -> StepTable:
        """The numbers as they are, in ``space``; x0 and eps do not occur in them, so they cannot be corrected."""
        self.check(schedule, prediction, where)
        if corrected or split:
            got = "one whose x0 is corrected" if corrected else "two answers (CFG++)"
            raise ImportedElsewhere(has="the plain answer of a network", got=got, where=where)
        table = self._own()
        if self.carried and space != self.carried:
            if (self.carried, space) != ("kappa", "vp") or not _scales_to_vp(table):
                has, got = f"a latent in {self.carried} space", f"one in {space} space"
                raise ImportedElsewhere(has=has, got=got, where=where)
            table = _as_vp(table)
        if time in (self.time, "timestep"):
            return table
        grid = schedule.grid()
        points = [Point(a, s) for a, s in zip(table.values("alpha"), table.values("sigma"), strict=True)]
        at = table.column("t")
        times = [grid.in_space(space).time_at(point, time, where) for point in points]
        rows = tuple((*row[:at], t, *row[at + 1 :]) for row, t in zip(table.rows, times, strict=True))
        return replace(table, rows=rows)


def _scales_to_vp(table: StepTable) -> bool:
    """Whether the network sees x / sqrt(1 + kappa^2): the state of a vp network."""
    return all(
        abs(c_in * hypot(1.0, sigma) - 1.0) < 1e-4
        for c_in, sigma, call in zip(table.values("c_in"), table.values("sigma"), table.values("calls"), strict=True)
        if call
    )


def _as_vp(table: StepTable) -> StepTable:
    """The same machine whose state is c_in x: what the network sees, so that c_in becomes 1."""
    last = 1.0 / hypot(1.0, table.values("sigma_next")[-1])
    scales = [last]
    for c_in, call in zip(reversed(table.values("c_in")), reversed(table.values("calls")), strict=True):
        scales.append(c_in if call else scales[-1])
    scales.reverse()
    rows: list[Row] = []
    for i in range(len(table.rows)):
        row = table.row(i)
        into, out = np.ones(len(table.registers)), np.ones(len(table.registers))
        into[0], out[0] = scales[i], scales[i + 1]
        rows.append(replace(row, a=out[:, None] * row.a / into, b=out[:, None] * row.b, c=out * row.c))
    norm = [hypot(1.0, sigma) for sigma in table.values("sigma")]
    norm_next = [hypot(1.0, sigma) for sigma in table.values("sigma_next")]
    report = {
        **table.report,
        "alpha": [1.0 / n for n in norm],
        "sigma": [s / n for s, n in zip(table.values("sigma"), norm, strict=True)],
        "alpha_next": [1.0 / n for n in norm_next],
        "sigma_next": [s / n for s, n in zip(table.values("sigma_next"), norm_next, strict=True)],
    }
    ones = [1.0] * len(rows)
    return StepTable.from_rows(
        table.registers, table.values("t"), ones, rows, report, init_scale=table.init_scale * scales[0]
    )
