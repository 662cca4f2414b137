"""Plans on a CUDA card through Triton; without a card, the same kernels under Triton's interpreter on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scoregraph.backends.protocol import Cancel, Constants, Miss, Progress
from scoregraph.backends.triton.calls import LAUNCHES, Scope, launch_of, supports
from scoregraph.backends.triton.launch import KERNELS_FILE, Launch
from scoregraph.backends.triton.memory import Memory, allocate, load_constants
from scoregraph.errors import Cancelled
from scoregraph.plan.schema import Call, Plan

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
        program = TritonProgram(plan, load_constants(plan, constants, device), device, interpret)
        program.launches(batch=1)
        return program


@dataclass(frozen=True)
class Bound:
    """A plan at one batch size: its memory, and per segment the rows to run and the launches of each row."""

    memory: Memory
    segments: tuple[tuple[int, bool, tuple[Launch, ...]], ...]  # (rows, is a loop, launches)


class TritonProgram:
    """A plan with its constants on a device. One batch size's memory is kept from run to run."""

    def __init__(
        self, plan: Plan, constants: Mapping[str, torch.Tensor], device: torch.device, interpret: bool
    ) -> None:
        self.plan = plan
        self.device = device
        self.interpret = interpret
        self._constants = constants
        self._bound: Bound | None = None

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
        total = sum(rows for rows, loop, _ in bound.segments if loop)
        done = 0
        for rows, loop, launches in bound.segments:
            for row in range(rows):
                if cancel is not None and cancel.is_set():
                    raise Cancelled(done=done, total=total)
                for launch in launches:
                    launch.run(row, interpret=self.interpret)
                done += loop
                if loop and progress is not None:
                    progress(done, total)
        return {out.name: bound.memory[f"b{out.buffer}"].cpu().numpy().copy() for out in self.plan.outputs}

    def source(self) -> str:
        """The launches of every segment at batch 1, then the text of every kernel."""
        bound = self.launches(batch=1)
        lines = [f"# {self.plan.name}: {sum(len(s) for _, _, s in bound.segments)} launches, shapes at batch 1"]
        for segment, (rows, loop, launches) in zip(self.plan.segments, bound.segments, strict=True):
            lines.append(f"{segment.name}: " + (f"for row in range({rows})" if loop else "once"))
            lines += [f"  {launch}  # {launch.site}" for launch in launches]
        generated = dict.fromkeys(x.kernel.text for _, _, s in bound.segments for x in s if x.kernel.text)
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
        return self._bound

    def _bind_on(self, device: torch.device, constants: Mapping[str, torch.Tensor], batch: int) -> Bound:
        memory = allocate(self.plan, constants, batch, device)
        segments: list[tuple[int, bool, tuple[Launch, ...]]] = []
        for segment in self.plan.segments:
            scope = Scope(self.plan, memory, segment.table)
            rows = 1 if segment.table is None else scope.table_at(segment.table).rows
            launches = tuple(launch_of(call, scope) for call in segment.calls)
            segments.append((rows, segment.table is not None, launches))
        return Bound(memory, tuple(segments))
