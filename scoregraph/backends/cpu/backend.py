"""Plans on this machine's processor, through the compiled extension ``scoregraph._native`` (native/).

The extension proves a plan before it runs it, and reports a mistake as (code, place, sentence, subject, numbers); this
file gives each its error class. Nothing else is done here: no kernel, no loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scoregraph.backends.protocol import COUNTERS, Cancel, Constants, Miss, Progress
from scoregraph.errors import (
    BadInput,
    BadMachineSetting,
    BatchMismatch,
    Cancelled,
    IndexOutOfRange,
    InternalFault,
    LoopUnfinished,
    MissingInput,
    NativeMissing,
    NotEnoughMemory,
    PlanCorrupt,
    PlanVersion,
    ScoregraphError,
)
from scoregraph.plan.dims import Batch, at, parse_dim
from scoregraph.plan.schema import VERSION, Call, InputSpec, OutputSpec, Plan

if TYPE_CHECKING:
    from scoregraph import _native

_NUMPY = {"f32": np.dtype(np.float32), "i64": np.dtype(np.int64), "u8": np.dtype(np.uint8)}


def _extension() -> ModuleType:
    try:
        from scoregraph import _native
    except ImportError as error:
        raise NativeMissing(problem=str(error)) from None
    return _native


def backend(threads: int | None = None) -> Cpu:
    """The backend for ``device="cpu"``; ``threads=None`` takes ``SCOREGRAPH_THREADS``, else all cores.

    Raises:
        NativeMissing: the extension was not built.
    """
    _extension()
    return Cpu(threads)


def describe() -> dict[str, str]:
    """What programs use on this machine: instruction set, threads, and the processor's features.

    Raises:
        NativeMissing: the extension was not built.
        BadMachineSetting: the environment asks for what the machine has not.
    """
    native = _extension()
    features = ", ".join(name for name, there in native.cpu_features().items() if there)
    try:
        return {"instruction set": native.isa(), "threads": str(native.threads()), "features": features}
    except ValueError as error:
        raise BadMachineSetting(problem=str(error)) from None


@dataclass(frozen=True)
class Cpu:
    """The backend.

    Attributes:
        threads: how many threads run kernels; results do not depend on it.
        isa: ``"scalar"``, ``"avx2"`` or ``"avx512"``; None takes ``SCOREGRAPH_ISA``, else the best there is.
    """

    threads: int | None = None
    isa: str | None = None
    name: str = "cpu"

    @property
    def capabilities(self) -> frozenset[str]:
        """The ops the extension has kernels for."""
        return frozenset(_extension().ops())

    def supports(self, call: Call) -> Miss | None:
        """None if there is a kernel for the op; whether its operands fit is proved by ``compile``."""
        return None if call.op in self.capabilities else Miss(f"there is no CPU kernel for {call.op!r}")

    def compile(self, plan: Plan, constants: Constants) -> CpuProgram:
        """Prove ``plan`` and make it runnable; ``constants`` is held and never copied.

        Raises:
            PlanCorrupt, PlanVersion: the plan breaks a rule of docs/plan-format.md; the message names the call.
            BadMachineSetting: the thread count or instruction set cannot be had here.
        """
        native = _extension()
        try:
            program = native.Program(
                plan.model_dump_json(exclude_defaults=True).encode(), constants, self.threads, self.isa
            )
        except native.NativeError as error:
            raise _translate(error, plan) from None
        except ValueError as error:
            raise BadMachineSetting(problem=str(error)) from None
        return CpuProgram(plan, program)


class _End(NamedTuple):
    """An input or output of a plan."""

    name: str
    dims: tuple[int | Batch, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True, eq=False)
class CpuProgram:
    """A proved plan with its memory; runs for any batch, and remembers the memory of the last one.

    ``native`` is the extension's own object: ``native.timings()`` holds the time of every call at every step once
    ``native.set_timing(True)`` was called.
    """

    plan: Plan
    native: _native.Program

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        seeds: np.ndarray,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
    ) -> dict[str, np.ndarray]:
        """One run of ``len(seeds)`` samples, in one call without the interpreter lock.

        Raises:
            MissingInput, BadInput, BatchMismatch: the inputs do not fit the plan.
            IndexOutOfRange: an index looked beyond its table.
            Cancelled: ``cancel`` was set.
            LoopUnfinished: a loop that chooses its own steps needs more rounds than it may make.
            NotEnoughMemory: the batch is too large for this machine.
        """
        given: dict[str, np.ndarray] = {}
        takes, gives = self._ends
        for name, dims, dtype in takes:
            if name not in inputs:
                raise MissingInput(name=name, known=", ".join(end.name for end in takes))
            shape, value = at(dims, len(seeds)), np.asarray(inputs[name])
            if value.shape != shape:
                problem = f"its shape is {list(value.shape)}, expected {list(shape)}"
                raise BadInput(name=name, problem=problem, help="the first dimension is the number of samples")
            given[name] = np.ascontiguousarray(value, dtype=dtype)
        made = {name: np.empty(at(dims, len(seeds)), dtype) for name, dims, dtype in gives}
        keys = np.ascontiguousarray(seeds, dtype=np.uint64)
        try:
            self.native.run(given, made, keys, progress, cancel)
        except _extension().NativeError as error:
            raise _translate(error, self.plan) from None
        return made

    @cached_property
    def _ends(self) -> tuple[tuple[_End, ...], tuple[_End, ...]]:
        """Inputs and outputs, read off the plan once."""
        buffers = {buffer.id: buffer for buffer in self.plan.buffers}

        def end(spec: InputSpec | OutputSpec) -> _End:
            buffer = buffers[spec.buffer]
            return _End(spec.name, tuple(map(parse_dim, buffer.shape)), _NUMPY[buffer.dtype])

        return tuple(map(end, self.plan.inputs)), tuple(map(end, self.plan.outputs))

    def memory(self, batch: int) -> dict[str, int]:
        """Bytes that a run of ``batch`` samples needs: ``batch``, ``fixed``, ``scratch``, ``constants``."""
        try:
            return self.native.memory(batch)
        except _extension().NativeError as error:
            raise _translate(error, self.plan) from None

    def counters(self) -> dict[str, int]:
        """What the program has done since it was made; see ``scoregraph.backends.protocol.COUNTERS``."""
        stats = self.native.stats()
        return {name: stats[name] for name in COUNTERS}

    def source(self) -> str:
        """What will run: one call a line with its operands' shapes and memory."""
        return self.native.source()


def _translate(error: Exception, plan: Plan) -> ScoregraphError:
    """The error class for what the extension reports."""
    code, place, text, subject, numbers = error.args
    where = place or None
    simple: dict[str, Any] = {
        "json": lambda: PlanCorrupt(problem=text, where=where),
        "plan": lambda: PlanCorrupt(problem=text, where=where),
        "memory": lambda: PlanCorrupt(problem=text, where=where),
        "constants": lambda: PlanCorrupt(problem=f"the constants are not those of the plan: {text}", where=where),
        "version": lambda: PlanVersion(found=plan.version, expected=VERSION),
        "input": lambda: BadInput(name=subject, problem=text, help="give the inputs that the plan lists"),
        "not-finite": lambda: BadInput(name=subject, problem=text, help="give finite numbers"),
        "range": lambda: BadInput(name=subject, problem=text, help="give values in the range the plan states"),
        "index": lambda: IndexOutOfRange(site=subject, index=numbers[0], rows=numbers[1], where=where),
        "unfinished": lambda: LoopUnfinished(
            loop=subject, rounds=numbers[0], unfinished=numbers[1], samples=numbers[2]
        ),
        "batch": lambda: BatchMismatch(said=text),
        "too-large": lambda: NotEnoughMemory(problem=text),
        "machine": lambda: BadMachineSetting(problem=text),
        "cancelled": lambda: Cancelled(done=numbers[0], total=numbers[1]),
    }
    return simple[code]() if code in simple else InternalFault(problem=f"{place}: {text}" if place else text)
