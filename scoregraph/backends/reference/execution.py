"""One run of a plan: its segments in order, row by row and round by round, and the counters of what has been run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scoregraph.backends.protocol import Cancel, Progress
from scoregraph.backends.reference.frame import Frame
from scoregraph.backends.reference.ops import OPS
from scoregraph.errors import Cancelled, LoopUnfinished
from scoregraph.plan.schema import Call, Plan, Segment


@dataclass
class Run:
    """A plan over the tensors of one run.

    Attributes:
        storage: every buffer and constant by reference.
        seeds: int64 [B], the samples' noise keys.
        counted: what has been executed, added to as the run goes on.
        done: the micro-steps that are complete.
    """

    plan: Plan
    storage: Mapping[str, Tensor]
    seeds: Tensor
    dtype: torch.dtype
    counted: Counter[str]
    progress: Progress | None = None
    cancel: Cancel | None = None
    done: int = 0

    def __post_init__(self) -> None:
        self.tables = {table.id: self.storage[f"c{table.constant}"] for table in self.plan.tables}
        self.total = sum(self._most_steps(segment) for segment in self.plan.segments)

    def _row_count(self, segment: Segment) -> int:
        return 1 if segment.table is None else self.tables[segment.table].shape[0]

    def _most_steps(self, segment: Segment) -> int:
        """The micro-steps of a loop, or 0 for calls that run once."""
        if not segment.is_loop:
            return 0
        return self._row_count(segment) * (1 if segment.repeat is None else segment.repeat.limit)

    def segment(self, segment: Segment) -> None:
        """A segment from its first row to its last, and again while it repeats."""
        limit = 1 if segment.repeat is None else segment.repeat.limit
        rounds, unfinished = 0, self._unfinished(segment)
        if not unfinished:
            self.total -= self._most_steps(segment)
        while unfinished and rounds < limit:
            unfinished = self._round(segment, rounds, limit)
            rounds += 1
        if segment.repeat is None:
            return
        self.counted["rounds"] += rounds
        if segment.repeat.strict and unfinished:
            raise LoopUnfinished(loop=segment.name, rounds=rounds, unfinished=unfinished, samples=len(self.seeds))

    def _unfinished(self, segment: Segment) -> int:
        """How many samples want another round; all of them where there is but one."""
        if segment.repeat is None:
            return len(self.seeds)
        active = self.storage[f"b{segment.repeat.active}"]
        return int(active.reshape(len(self.seeds), -1).any(dim=1).sum())

    def _round(self, segment: Segment, round_: int, limit: int) -> int:
        """All rows of a segment; how many samples are unfinished after them."""
        rows = self._row_count(segment)
        unfinished = len(self.seeds)
        for row in range(rows):
            if segment.is_loop and self.cancel is not None and self.cancel.is_set():
                raise Cancelled(done=self.done, total=self.total)
            self._row(segment, row, round_)
            if not segment.is_loop:
                continue
            if row + 1 == rows:
                unfinished = self._unfinished(segment)
                # No further round: the micro-steps of those will not come.
                self.total -= 0 if unfinished else (limit - round_ - 1) * rows
            self.done += 1
            self.counted["steps"] += 1
            if self.progress is not None:
                self.progress(self.done, self.total)
        return unfinished

    def _row(self, segment: Segment, row: int, round_: int) -> None:
        variant = 0
        if segment.table is not None and segment.variant is not None:
            variant = int(self.tables[segment.table][row, segment.variant])
        for network in segment.networks:
            if variant in (network.variants or (variant,)):
                self.counted["network_calls"] += 1
                self.counted["branch_evaluations"] += network.branches
        for call in segment.calls:
            if variant in (call.variants or (variant,)):
                self._call(call, segment, None if segment.table is None else row, round_)

    def _call(self, call: Call, segment: Segment, row: int | None, round_: int) -> None:
        ins = {role: self.storage[ref] for role, ref in call.ins.items()}
        outs = {role: self.storage[ref] for role, ref in call.outs.items()}
        dtypes = {role: self.plan.buffers[int(ref[1:])].dtype for role, ref in call.outs.items()}
        frame = Frame(outs, self.tables, row, self.seeds, self.dtype, call.site, segment.variant, round_, dtypes)
        made = OPS[call.op](ins, call.attrs, frame)
        results = {next(iter(outs)): made} if isinstance(made, Tensor) else made
        for role, value in results.items():
            planned = frame.shape(role)
            if tuple(value.shape) != planned:
                raise AssertionError(f"{call.op} at {call.site}: {role} is {tuple(value.shape)}, planned {planned}")
            outs[role].copy_(value)
        self.counted["calls"] += 1
