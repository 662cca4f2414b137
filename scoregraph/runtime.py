"""A compiled plan as its user holds it: run it, save it, load it, look at every stage. Torch is not imported here."""

from __future__ import annotations

import math
import operator
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scoregraph import backends
from scoregraph.backends.protocol import Cancel, Constants, Program, Progress
from scoregraph.errors import BadInput, BatchMismatch, CannotWrite, MissingInput, UnknownName, here
from scoregraph.plan import files
from scoregraph.plan.dims import Batch, at, has_batch, parse_dim
from scoregraph.plan.schema import InputSpec, Plan

if TYPE_CHECKING:
    from scoregraph.passes.plan.plan_memory import Memory

_NUMPY = {"f32": np.dtype(np.float32), "i64": np.dtype(np.int64), "u8": np.dtype(np.uint8)}
ArrayLike = Any


class Stages(dict[str, str]):
    """The text of the graph or plan after each stage, by name, in order. Prints as one line a stage."""

    def __init__(self, texts: Mapping[str, str], plan: Plan) -> None:
        super().__init__(texts)
        self._plan = plan

    def __str__(self) -> str:
        lines: list[str] = []
        for stage in self._plan.stages:
            counted = "".join(f", {k} {v:,}" for k, v in stage.counters.items())
            lines.append(f"after {stage.name} ({stage.rewrites} rewrites, {stage.ms:.1f} ms{counted})")
            lines.extend(f"    missed: {miss}" for miss in stage.misses)
        return "\n".join(lines)

    __repr__ = __str__


class CompiledPlan:
    """A plan with its constants, ready to run any number of times and from any thread (one run at a time).

    Attributes:
        plan: the plan as data.
        stages: the text of every stage of its compilation; printing it lists the passes with what they did.
    """

    def __init__(self, plan: Plan, constants: Constants, stages: Mapping[str, str], threads: int | None = None) -> None:
        self.plan = plan
        self.stages = Stages(stages, plan)
        self._constants = constants
        self._threads = threads
        self._program: Program | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        inputs = ", ".join(spec.name for spec in self.plan.inputs) or "nothing"
        outputs = ", ".join(spec.name for spec in self.plan.outputs)
        calls = sum(len(segment.calls) for segment in self.plan.segments)
        return f"<plan {self.plan.name} for {self.plan.device}: {inputs} -> {outputs}, {calls} kernel calls>"

    @property
    def program(self) -> Program:
        """The plan made runnable; built on first use."""
        if self._program is None:
            self._program = backends.load(self.plan.device, self._threads).compile(self.plan, self._constants)
        return self._program

    def run(
        self,
        *,
        seed: int = 0,
        seeds: ArrayLike | None = None,
        batch: int | None = None,
        noise: ArrayLike | None = None,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
        **inputs: ArrayLike,
    ) -> dict[str, np.ndarray]:
        """Generate samples.

        Args:
            seed: sample i draws its noise from the key ``seed + i`` (mod 2^64).
            seeds: one whole number per sample, [batch], in place of ``seed``.
            batch: the number of samples; taken from ``seeds`` or the inputs where it is not given, else 1.
            noise: for a plan compiled to take its noise (``draws`` is not None) the standard normals it uses in place
                of generated ones, float32 [batch, *draws], or [*draws] for all samples.
            progress: called as ``progress(done, total)`` after each step; the total falls when a loop that chooses its
                own steps ends before its most.
            cancel: a flag such as ``threading.Event``; setting it ends the run before the next step.
            **inputs: the graph's inputs by name: a number, an array for all samples, or one per sample [batch, …].

        Returns:
            The graph's outputs by name, float32 [batch, …].

        Raises:
            MissingInput, UnknownName, BadInput, BatchMismatch: the inputs do not fit the plan.
            Cancelled: ``cancel`` was set.
            LoopUnfinished: a loop that chooses its own steps needs more rounds than it may make.
        """
        bank = self._bank
        for name in inputs:
            if name not in self._inputs or (bank is not None and name == bank.name):
                raise UnknownName(kind="input", name=name, known=self._names(), where=here())
        if bank is not None:
            inputs[bank.name] = noise
        elif noise is not None:
            problem = "this plan generates its noise from the seed"
            raise BadInput(name="noise", problem=problem, help="compile with noise='bank' to give it", where=here())
        given = {name: held.array(inputs.get(name, held.spec.default)) for name, held in self._inputs.items()}
        if bank is not None:
            self._check_bank(bank, given[bank.name])
        keys = None if seeds is None else _keys(seeds)
        first = _key(seed, "seed")
        size = self._batch(given, keys, batch)
        if keys is None:
            keys = _following(first, size)
        bound = {name: self._inputs[name].fit(array, size) for name, array in given.items()}
        with self._lock:
            return self.program.run(bound, keys, progress, cancel)

    def save(self, folder: str | Path) -> Path:
        """Write the plan as a folder (plan.json, constants.arrow, stages/), atomically. Returns the folder.

        Raises:
            PlanCorrupt: the folder holds something else than a plan; it is left alone.
            CannotWrite: the folder cannot be written.
        """
        folder = Path(folder)
        try:
            files.save(self.plan, bytes(self._constants), self.stages, folder)
        except OSError as error:
            raise CannotWrite(path=folder, problem=error.strerror or error, where=here()) from None
        return folder

    def counters(self) -> dict[str, int]:
        """What all runs so far have executed: see ``scoregraph.backends.protocol.COUNTERS``.

        ``network_calls`` and ``branch_evaluations`` tell what sampling costs: a guided step whose two branches run as
        one call of the network is one call and two evaluations.
        """
        return self.program.counters()

    def memory(self, batch: int = 1) -> Memory:
        """Bytes that a run of ``batch`` samples takes: weights, the largest live set, the arena that holds it."""
        from scoregraph.passes.plan.plan_memory import memory

        return memory(self.plan, batch)

    @property
    def draws(self) -> tuple[int, ...] | None:
        """(draws, *latent shape) of one sample's noise, if the plan takes its noise from ``run(noise=…)``."""
        return None if self._bank is None else self.shape(self._bank)[1:]

    @cached_property
    def _inputs(self) -> dict[str, _Input]:
        """The plan's inputs by name, read once: a run of a small network takes less time than reading a plan."""
        buffers, known = self.plan.buffers, ", ".join(spec.name for spec in self.plan.inputs)
        return {
            spec.name: _Input(
                spec, tuple(map(parse_dim, buffers[spec.buffer].shape)), _NUMPY[buffers[spec.buffer].dtype], known
            )
            for spec in self.plan.inputs
        }

    @cached_property
    def _bank(self) -> InputSpec | None:
        """The input that holds the noise of every draw."""
        return next((spec for spec in self.plan.inputs if spec.buffer == self.plan.bank), None)

    def _names(self) -> list[str]:
        """The inputs by which a run tells samples apart; noise has an argument of its own."""
        return [spec.name for spec in self.plan.inputs if spec is not self._bank]

    def shape(self, spec: InputSpec, batch: int = 1) -> tuple[int, ...]:
        """The shape of an input for ``batch`` samples."""
        return at((parse_dim(d) for d in self.plan.buffers[spec.buffer].shape), batch)

    def _check_bank(self, bank: InputSpec, array: np.ndarray) -> None:
        """A bank states every draw: one that fits by repeating numbers along the draws would be a mistake."""
        wanted = self.shape(bank)[1:]
        if array.ndim > len(wanted) + 1 or array.shape[-len(wanted) :] != wanted:
            problem = f"its shape is {list(array.shape)}; each sample takes {wanted[0]} draws of {list(wanted[1:])}"
            shapes = f"[batch, {', '.join(map(str, wanted))}]"
            raise BadInput(name=bank.name, problem=problem, help=f"give {shapes} or {list(wanted)}", where=here())

    def _batch(self, given: Mapping[str, np.ndarray], keys: np.ndarray | None, batch: int | None) -> int:
        """The number of samples, agreed by everything that states one."""
        stated: dict[str, int] = {}
        if batch is not None:
            stated["batch"] = _whole(batch, "batch")
        if keys is not None:
            stated["seeds"] = len(keys)
        for name, held in self._inputs.items():
            array = given[name]
            if held.grows and array.ndim == len(held.dims) and array.shape[0] != 1:
                stated[name] = array.shape[0]
        sizes = set(stated.values())
        if len(sizes) > 1 or min(sizes, default=1) < 1:
            said = ", ".join(f"{name} says {size}" for name, size in stated.items())
            raise BatchMismatch(said=said, where=here())
        return sizes.pop() if sizes else 1


@dataclass(frozen=True)
class _Input:
    """What a run must know of an input.

    Attributes:
        dims, dtype: of its buffer.
        known: the names of all inputs, for messages.
    """

    spec: InputSpec
    dims: tuple[int | Batch, ...]
    dtype: np.dtype[Any]
    known: str

    @cached_property
    def grows(self) -> bool:
        """Whether there is one value per sample."""
        return has_batch(self.dims)

    def array(self, value: ArrayLike) -> np.ndarray:
        """What was given as a dense array of its own, in the buffer's type, of any shape; in the input's range.

        Raises:
            MissingInput, BadInput: it is not given, or not numbers, or none that the plan takes.
        """
        name = self.spec.name
        if value is None:
            raise MissingInput(name=name, known=self.known, where=here())
        try:
            array = np.asarray(value)
            if array.dtype.kind not in "biuf":
                raise TypeError
            cast = self._cast(array)
        except (TypeError, ValueError, RuntimeError):
            problem = f"{value!r} is not a number or an array of numbers"
            raise BadInput(name=name, problem=problem, help="pass numbers", where=here()) from None
        if self.dtype.kind != "f" and array.dtype != self.dtype and not np.array_equal(cast, array):
            raise BadInput(name=name, problem="whole numbers are expected", help="round the values", where=here())
        if cast.size:
            # By index: a third of the time, of few numbers. A NaN anywhere is the least and the greatest value.
            self._check_range(cast, float(cast.item(cast.argmin())), float(cast.item(cast.argmax())))
        return cast

    def _cast(self, array: np.ndarray) -> np.ndarray:
        """Always a copy: a run works on nobody else's memory."""
        if array.dtype == self.dtype:
            return array.copy()  # row-major, whatever the order of the original
        with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite or wraps is refused later
            return array.astype(self.dtype, order="C")

    def _check_range(self, cast: np.ndarray, least: float, greatest: float) -> None:
        if not (math.isfinite(least) and math.isfinite(greatest)):
            first = tuple(int(i) for i in np.argwhere(~np.isfinite(cast))[0])
            problem = f"it holds {cast[first]} at index {list(first)}"
            raise BadInput(name=self.spec.name, problem=problem, help="give finite numbers", where=here())
        low, high = self.spec.low, self.spec.high
        if (low is not None and least < low) or (high is not None and greatest > high):
            worst = least if low is not None and least < low else greatest
            bounds = f"{'-inf' if low is None else f'{low:g}'} to {'inf' if high is None else f'{high:g}'}"
            problem = f"{worst:g} is outside {bounds}"
            raise BadInput(name=self.spec.name, problem=problem, help=f"give values from {bounds}", where=here())

    def fit(self, array: np.ndarray, batch: int) -> np.ndarray:
        """The array for ``batch`` samples; what serves all of them is repeated."""
        shape = at(self.dims, batch)
        if array.shape == shape:
            return array
        try:
            return np.array(np.broadcast_to(array, shape), order="C")
        except ValueError:
            problem = f"its shape is {list(array.shape)}"
            cure = f"give {list(shape)} or {list(shape[1:])}"
            raise BadInput(name=self.spec.name, problem=problem, help=cure, where=here()) from None


def _whole(value: Any, name: str) -> int:
    """A whole number of whatever integer type."""
    try:
        return operator.index(value)
    except TypeError:
        raise BadInput(
            name=name, problem=f"{value!r} is not a whole number", help="pass an int", where=here()
        ) from None


def _key(value: Any, name: str) -> int:
    """A seed as the 64 bits that key the noise; negative ones count from the top."""
    return _whole(value, name) & 0xFFFF_FFFF_FFFF_FFFF


def _following(first: int, count: int) -> np.ndarray:
    """The keys first, first + 1, … (mod 2^64), uint64 [count]."""
    if first + count <= 1 << 64:
        return np.arange(first, first + count, dtype=np.uint64)
    return np.arange(count, dtype=np.uint64) + np.uint64(first)  # arrays of unsigned integers wrap around


def _keys(seeds: ArrayLike) -> np.ndarray:
    """One key per sample, uint64 [B]."""
    try:
        # As objects, since numpy would turn a list with numbers above 2^63 into floats.
        each = np.asarray(seeds, dtype=None if hasattr(seeds, "dtype") else object).reshape(-1).tolist()
    except (TypeError, ValueError, RuntimeError):
        problem = f"{seeds!r} is not a list of whole numbers"
        raise BadInput(name="seeds", problem=problem, help="pass one int per sample", where=here()) from None
    return np.array([_key(value, "seeds") for value in each], np.uint64)


def load(folder: str | Path, threads: int | None = None) -> CompiledPlan:
    """Open a saved plan. Nothing in it is executed or trusted; torch is not needed to run a CPU plan.

    Raises:
        PlanMissing, PlanCorrupt, PlanVersion: see ``scoregraph.plan.files``.
    """
    plan, constants = files.load(Path(folder))
    return CompiledPlan(plan, constants, files.load_stages(Path(folder)), threads)
