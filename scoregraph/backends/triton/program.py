"""Plans on a CUDA card through Triton; without a card, the same kernels under Triton's interpreter on the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scoregraph.backends.protocol import COUNTERS, Cancel, Constants, Miss, Progress
from scoregraph.backends.triton.binding import Scope
from scoregraph.backends.triton.calls import LAUNCHES, launch_of, supports
from scoregraph.backends.triton.launch import KERNELS_FILE, Launch
from scoregraph.backends.triton.memory import Memory, allocate, load_constants
from scoregraph.errors import Cancelled, LoopUnfinished
from scoregraph.plan.files import read_constant
from scoregraph.plan.schema import Call, Plan, Segment

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TritonBackend:
    """Float32 kernels for Hopper and everything else Triton compiles for; plans have ``plain`` layouts.

    Args:
        interpret: run under Triton's interpreter. None: only on a machine without a CUDA card.
    """

    interpret: bool | None = None
    name: str = "triton"

    @property
    def capabilities(self) -> frozenset[str]:
        """The plan ops that have a kernel."""
        return frozenset(LAUNCHES)

    def supports(self, call: Call) -> Miss | None:
        """None if ``call`` has a kernel, else the reason why not."""
        return supports(call)

    def compile(self, plan: Plan, constants: Constants) -> TritonProgram:
        """Place the constants on the device and bind every call once, without memory, to find what is not covered.

        Raises:
            UncoveredCall: a call, or the form of its operands, has no kernel.
        """
        import torch

        interpret = not torch.cuda.is_available() if self.interpret is None else self.interpret
        device = torch.device("cpu" if interpret else "cuda")
        program = TritonProgram(plan, constants, device, interpret)
        program.launches(batch=1)
        return program


@dataclass(frozen=True)
class Part:
    """A segment at one batch size: the launches of each of its rows (of its one turn, if it is no loop)."""

    segment: Segment
    variants: tuple[int, ...]
    rows: tuple[tuple[Launch, ...], ...]

    @property
    def kinds(self) -> list[tuple[tuple[Launch, ...], list[int]]]:
        """The different rows: their launches, and which they are."""
        found: dict[int, tuple[tuple[Launch, ...], list[int]]] = {}
        for i, launches in enumerate(self.rows):
            found.setdefault(id(launches), (launches, []))[1].append(i)
        return list(found.values())


@dataclass(frozen=True)
class Bound:
    """A plan at one batch size: its memory, and the launches of its segments."""

    memory: Memory
    parts: tuple[Part, ...]

    @property
    def steps(self) -> int:
        """The micro-steps of all loops, at most."""
        return sum(len(part.rows) * most_rounds(part.segment) for part in self.parts if part.segment.is_loop)


def most_rounds(segment: Segment) -> int:
    """How often a segment is run from its first row to its last, at most."""
    return 1 if segment.repeat is None else segment.repeat.limit


class TritonProgram:
    """A plan with its constants on a device. One batch size's memory is kept from run to run."""

    def __init__(self, plan: Plan, constants: Constants, device: torch.device, interpret: bool) -> None:
        self.plan = plan
        self.device = device
        self.interpret = interpret
        self._constants = load_constants(plan, constants, device)
        self._variants = tuple(variants_of(plan, segment, constants) for segment in plan.segments)
        self._bound: Bound | None = None
        self._counted: Counter[str] = Counter()

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        seeds: np.ndarray,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
    ) -> dict[str, np.ndarray]:
        """One run of ``len(seeds)`` samples.

        Between the inputs and the outputs nothing waits for the device, so on a card ``progress`` tells how many
        micro-steps have been enqueued, and ``cancel`` ends the enqueuing.

        Args:
            inputs: by name, each of its buffer's shape with B = ``len(seeds)``.
            seeds: uint64 [B], the noise key of each sample.
            progress: called as ``progress(done, total)`` after each micro-step.
            cancel: asked before each micro-step.

        Returns:
            The outputs by name.

        Raises:
            Cancelled: ``cancel`` was set.
        """
        import torch

        bound = self._bind(len(seeds))
        bound.memory.seeds.copy_(torch.from_numpy(np.ascontiguousarray(seeds, np.uint64).view(np.int64)))
        for spec in self.plan.inputs:
            bound.memory[f"b{spec.buffer}"].copy_(torch.from_numpy(np.ascontiguousarray(inputs[spec.name])))
        run = Run(bound, self._counted, self.interpret, progress, cancel)
        for part in bound.parts:
            run.part(part)
        self._counted["runs"] += 1
        return {out.name: bound.memory[f"b{out.buffer}"].cpu().numpy().copy() for out in self.plan.outputs}

    def counters(self) -> dict[str, int]:
        """What all runs so far have launched; a bind is a change of the batch size."""
        return {name: self._counted[name] for name in COUNTERS}

    def source(self) -> str:
        """The launches of every segment at batch 1, then the text of every kernel."""
        bound = self.launches(batch=1)
        listed = [(part, launches) for part in bound.parts for launches, _ in part.kinds]
        lines = [f"# {self.plan.name}: {sum(len(s) for _, s in listed)} launches, shapes at batch 1"]
        for part in bound.parts:
            repeat = part.segment.repeat
            often = "" if repeat is None else f", while any of b{repeat.active} is not 0, {repeat.limit} times at most"
            for launches, rows in part.kinds:
                which = f"range({len(rows)})" if len(rows) == len(part.rows) else str(rows)
                lines.append(
                    f"{part.segment.name}: " + (f"for row in {which}{often}" if part.segment.is_loop else "once")
                )
                lines += [f"  {launch}  # {launch.site}" for launch in launches]
        generated = dict.fromkeys(x.kernel.text for _, s in listed for x in s if x.kernel.text)
        return "\n".join([*lines, "", *generated, KERNELS_FILE.read_text(encoding="utf-8")])

    def launches(self, batch: int) -> Bound:
        """Every launch at ``batch`` samples over tensors that have shapes but no memory."""
        import torch

        meta = torch.device("meta")
        return self._bind_on(meta, {ref: tensor.to(meta) for ref, tensor in self._constants.items()}, batch)

    def _bind(self, batch: int) -> Bound:
        if self._bound is None or self._bound.memory.batch != batch:
            self._bound = None  # the old arenas go before the new ones come
            self._bound = self._bind_on(self.device, self._constants, batch)
            self._counted["binds"] += 1
        return self._bound

    def _bind_on(self, device: torch.device, constants: Mapping[str, torch.Tensor], batch: int) -> Bound:
        memory = allocate(self.plan, constants, batch, device)
        parts: list[Part] = []
        for segment, variants in zip(self.plan.segments, self._variants, strict=True):
            # Behind the last row nothing is prepared, whatever variant it is thought to be.
            pairs = list(zip(variants, (*variants[1:], 0), strict=True))
            known: dict[tuple[int, int], tuple[Launch, ...]] = {}
            for variant, following in pairs:
                if (variant, following) not in known:
                    scope = Scope(self.plan, memory, segment.table, following)
                    calls = [call for call in segment.calls if variant in (call.variants or (variant,))]
                    known[variant, following] = tuple(launch_of(call, scope) for call in calls)
            parts.append(Part(segment, variants, tuple(known[pair] for pair in pairs)))
        return Bound(memory, tuple(parts))


def variants_of(plan: Plan, segment: Segment, constants: Constants) -> tuple[int, ...]:
    """The variant of every row of a segment."""
    if segment.table is None:
        return (0,)
    table = next(table for table in plan.tables if table.id == segment.table)
    if segment.variant is None:
        return (0,) * table.rows
    stored = next(constant for constant in plan.constants if constant.id == table.constant)
    return tuple(
        int(row[segment.variant]) for row in np.array(read_constant(stored, constants)).reshape(table.rows, -1)
    )


@dataclass
class Run:
    """One run over bound memory; ``counted`` grows as it goes on."""

    bound: Bound
    counted: Counter[str]
    interpret: bool
    progress: Progress | None
    cancel: Cancel | None
    done: int = 0

    def __post_init__(self) -> None:
        self.total = self.bound.steps

    def part(self, part: Part) -> None:
        """A segment from its first row to its last, and again while it repeats."""
        limit, rounds = most_rounds(part.segment), 0
        unfinished = self._unfinished(part)
        if not unfinished:
            self.total -= limit * len(part.rows)
        while unfinished and rounds < limit:
            unfinished = self._round(part, rounds)
            rounds += 1
        if part.segment.repeat is None:
            return
        self.counted["rounds"] += rounds
        if part.segment.repeat.strict and unfinished:
            samples = self.bound.memory.batch
            raise LoopUnfinished(loop=part.segment.name, rounds=rounds, unfinished=unfinished, samples=samples)

    def _unfinished(self, part: Part) -> int:
        """How many samples want another round, which only the device can tell; all where there is but one round."""
        if part.segment.repeat is None:
            return self.bound.memory.batch
        active = self.bound.memory[f"b{part.segment.repeat.active}"]
        return int(active.reshape(self.bound.memory.batch, -1).any(dim=1).sum())

    def _round(self, part: Part, round_: int) -> int:
        """All rows of a segment; how many samples are unfinished after them."""
        segment, rows = part.segment, len(part.rows)
        unfinished = self.bound.memory.batch
        for row, (variant, launches) in enumerate(zip(part.variants, part.rows, strict=True)):
            if self.cancel is not None and self.cancel.is_set():
                raise Cancelled(done=self.done, total=self.total)
            for launch in launches:
                launch.run(row, round_ * rows + row, interpret=self.interpret)
            self._count(segment, variant, len(launches))
            if not segment.is_loop:
                continue
            if row + 1 == rows:
                unfinished = self._unfinished(part)
                # No further round: the micro-steps of those will not come.
                self.total -= 0 if unfinished else (most_rounds(segment) - round_ - 1) * rows
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, self.total)
        return unfinished

    def _count(self, segment: Segment, variant: int, calls: int) -> None:
        self.counted["calls"] += calls
        self.counted["steps"] += segment.is_loop
        for network in segment.networks:
            if variant in (network.variants or (variant,)):
                self.counted["network_calls"] += 1
                self.counted["branch_evaluations"] += network.branches
