"""What a loop emits: room for every step, and the calls that fill it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scoregraph.graph import nodes as n
from scoregraph.passes.lower import shape as shapes
from scoregraph.passes.lower.mover import Mover, Outside
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Drafter, Value

SLOTS = {"before": "first", "register": "called", "statistic": "called", "after": "last", "log_prob": "last"}
"""The column that says where in its record a row's observation goes."""


@dataclass(frozen=True)
class Record:
    """One emitted value: what of which step, and its room [B, steps, …]."""

    name: str
    seen: n.Observe
    mover: Mover
    room: Value


@dataclass(frozen=True)
class Records:
    """All that a loop emits."""

    drafter: Drafter
    records: tuple[Record, ...]

    @classmethod
    def of(cls, outside: Outside, loop: n.Loop, movers: Sequence[Mover]) -> Records:
        """Make room; raises ``UncoveredNode`` for what no step of the loop can show."""
        records: list[Record] = []
        for emit in loop.emits:
            assert isinstance(emit, n.Emit)
            seen = emit.value
            mover = next((m for m in movers if isinstance(seen, n.Observe) and m.step is seen.step), None)
            if not isinstance(seen, n.Observe) or mover is None:
                cure = "emit the state, a prediction about it, a norm or a log-probability"
                raise outside.refuse(emit, f"a {seen.op} in a loop", cure)
            steps = mover.table.steps[-1] + 1
            shape = () if seen.what in ("statistic", "log_prob") else mover.registers[0].shape[1:]
            room = outside.filled((Batch(), steps, *shape), 0.0, "f32", emit.name)
            records.append(Record(emit.name, seen, mover, room))
        return cls(outside.drafter, tuple(records))

    def rooms(self) -> dict[str, Value]:
        """What was emitted, by name."""
        return {record.name: record.room for record in self.records}

    def fill(self, *, before: bool) -> None:
        """Append the calls that record what is seen before the steps of a row, or behind them."""
        for record in self.records:
            if (record.seen.what == "before") == before:
                attrs = {"table": record.mover.number, "column": record.mover.column(SLOTS[record.seen.what])}
                self.drafter.call("record", {"x": self._value(record)}, {"y": record.room}, attrs, record.name)

    def _value(self, record: Record) -> Value:
        seen, mover = record.seen, record.mover
        match seen.what:
            case "before" | "after":
                return mover.registers[0]
            case "register":
                return mover.registers[seen.index]
            case "statistic":
                return shapes.squeeze(mover.observed[seen.index], [1])
            case _:
                return self._log_prob(record)

    def _log_prob(self, record: Record) -> Value:
        """log N(x'; mean, c^2): -|z|^2 / 2 - E (ln c + ln(2 pi) / 2) over the E elements; 0 where nothing is drawn."""
        drafter, name, z = self.drafter, record.name, record.mover.registers[record.seen.index]
        elements = math.prod(d for d in z.shape[1:] if isinstance(d, int))
        squares = drafter.new(z.shape, name=f"{name}.squares")
        drafter.call("pointwise", {"x0": z}, {"y": squares}, {"program": [["square", 0]]}, name)
        total = drafter.new((Batch(),), name=f"{name}.sum")
        axes = list(range(1, len(z.shape)))
        drafter.call("reduce", {"x": squares}, {"y": total}, {"kind": "sum", "axes": axes}, name)
        made = drafter.new((Batch(), 1), name=f"{name}.value")
        program = [
            ["in", 0, 0], ["const", -0.5], ["mul", 0, 1],
            ["row", record.mover.column("c0")], ["abs", 3], ["const", 1e-37], ["max", 4, 5], ["log", 6],
            ["const", 0.5 * math.log(2 * math.pi)], ["add", 7, 8], ["const", float(elements)], ["mul", 9, 10],
            ["sub", 2, 11], ["const", 0.0], ["where", 3, 12, 13],
        ]  # fmt: skip
        attrs = {"table": record.mover.number, "program": program, "results": [14]}
        drafter.call("scalars", {"x0": shapes.unsqueeze(total, 1)}, {"y": made}, attrs, name)
        return shapes.squeeze(made, [1])
