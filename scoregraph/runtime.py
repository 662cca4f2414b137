"""A compiled plan as its user holds it: run it, save it, load it, look at every stage. Torch is not imported here."""

from __future__ import annotations

import operator
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scoregraph import backends
from scoregraph.backends.protocol import Cancel, Constants, Program, Progress
from scoregraph.errors import BadInput, BatchMismatch, CannotWrite, Location, MissingInput, UnknownName, here
from scoregraph.plan import files
from scoregraph.plan.dims import at, has_batch, parse_dim
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
        where = here()
        specs = {spec.name: spec for spec in self.plan.inputs}
        bank = self._bank
        for name in inputs:
            if name not in specs or specs[name] is bank:
                raise UnknownName(kind="input", name=name, known=self._names(), where=where)
        if bank is not None:
            inputs[bank.name] = noise
        elif noise is not None:
            problem = "this plan generates its noise from the seed"
            raise BadInput(name="noise", problem=problem, help="compile with noise='bank' to give it", where=where)
        given = {name: self._array(spec, inputs, where) for name, spec in specs.items()}
        if bank is not None:
            self._check_bank(bank, given[bank.name], where)
        keys = None if seeds is None else _keys(seeds, where)
        first = np.uint64(_key(seed, "seed", where))
        size = self._batch(given, keys, batch, where)
        if keys is None:
            keys = first + np.arange(size, dtype=np.uint64)  # arrays of unsigned integers wrap around
        bound = {name: self._fit(specs[name], array, size, where) for name, array in given.items()}
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

    @property
    def _bank(self) -> InputSpec | None:
        """The input that holds the noise of every draw."""
        return next((spec for spec in self.plan.inputs if spec.buffer == self.plan.bank), None)

    def _names(self) -> list[str]:
        """The inputs by which a run tells samples apart; noise has an argument of its own."""
        return [spec.name for spec in self.plan.inputs if spec is not self._bank]

    def shape(self, spec: InputSpec, batch: int = 1) -> tuple[int, ...]:
        """The shape of an input for ``batch`` samples."""
        return at((parse_dim(d) for d in self.plan.buffers[spec.buffer].shape), batch)

    def _array(self, spec: InputSpec, inputs: Mapping[str, ArrayLike], where: Location | str | None) -> np.ndarray:
        value = inputs.get(spec.name, spec.default)
        if value is None:
            known = ", ".join(other.name for other in self.plan.inputs)
            raise MissingInput(name=spec.name, known=known, where=where)
        dtype = _NUMPY[self.plan.buffers[spec.buffer].dtype]
        try:
            array = np.asarray(value)
            if array.dtype.kind not in "biuf":
                raise TypeError
            with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite or wraps is refused below
                cast = array.astype(dtype)
        except (TypeError, ValueError, RuntimeError):
            problem = f"{value!r} is not a number or an array of numbers"
            raise BadInput(name=spec.name, problem=problem, help="pass numbers", where=where) from None
        if dtype.kind in "iu" and not np.array_equal(cast, array):
            raise BadInput(name=spec.name, problem="whole numbers are expected", help="round the values", where=where)
        if dtype.kind == "f" and not np.isfinite(cast).all():
            first = tuple(int(i) for i in np.argwhere(~np.isfinite(cast))[0])
            problem = f"it holds {cast[first]} at index {list(first)}"
            raise BadInput(name=spec.name, problem=problem, help="give finite numbers", where=where)
        low, high = spec.low, spec.high
        if (low is not None and (cast < low).any()) or (high is not None and (cast > high).any()):
            worst = cast.min() if low is not None and (cast < low).any() else cast.max()
            bounds = f"{'-inf' if low is None else f'{low:g}'} to {'inf' if high is None else f'{high:g}'}"
            problem = f"{worst:g} is outside {bounds}"
            raise BadInput(name=spec.name, problem=problem, help=f"give values from {bounds}", where=where)
        return cast

    def _check_bank(self, bank: InputSpec, array: np.ndarray, where: Location | str | None) -> None:
        """A bank states every draw: one that fits by repeating numbers along the draws would be a mistake."""
        wanted = self.shape(bank)[1:]
        if array.ndim > len(wanted) + 1 or array.shape[-len(wanted) :] != wanted:
            problem = f"its shape is {list(array.shape)}; each sample takes {wanted[0]} draws of {list(wanted[1:])}"
            shapes = f"[batch, {', '.join(map(str, wanted))}]"
            raise BadInput(name=bank.name, problem=problem, help=f"give {shapes} or {list(wanted)}", where=where)

    def _batch(
        self, given: Mapping[str, np.ndarray], keys: np.ndarray | None, batch: int | None, where: Location | str | None
    ) -> int:
        """The number of samples, agreed by everything that states one."""
        stated: dict[str, int] = {}
        if batch is not None:
            stated["batch"] = _whole(batch, "batch", where)
        if keys is not None:
            stated["seeds"] = len(keys)
        for spec in self.plan.inputs:
            shape = tuple(parse_dim(d) for d in self.plan.buffers[spec.buffer].shape)
            if has_batch(shape) and given[spec.name].ndim == len(shape) and given[spec.name].shape[0] != 1:
                stated[spec.name] = given[spec.name].shape[0]
        sizes = set(stated.values())
        if len(sizes) > 1 or min(sizes, default=1) < 1:
            said = ", ".join(f"{name} says {size}" for name, size in stated.items())
            raise BatchMismatch(said=said, where=where)
        return sizes.pop() if sizes else 1

    def _fit(self, spec: InputSpec, array: np.ndarray, batch: int, where: Location | str | None) -> np.ndarray:
        shape = self.shape(spec, batch)
        try:
            return np.array(np.broadcast_to(array, shape), order="C")  # a copy: nobody else's memory, and writable
        except ValueError:
            problem = f"its shape is {list(array.shape)}"
            raise BadInput(
                name=spec.name, problem=problem, help=f"give {list(shape)} or {list(shape[1:])}", where=where
            ) from None


def _whole(value: Any, name: str, where: Location | str | None) -> int:
    """A whole number of whatever integer type."""
    try:
        return operator.index(value)
    except TypeError:
        raise BadInput(name=name, problem=f"{value!r} is not a whole number", help="pass an int", where=where) from None


def _key(value: Any, name: str, where: Location | str | None) -> int:
    """A seed as the 64 bits that key the noise; negative ones count from the top."""
    return _whole(value, name, where) & 0xFFFF_FFFF_FFFF_FFFF


def _keys(seeds: ArrayLike, where: Location | str | None) -> np.ndarray:
    """One key per sample, uint64 [B]."""
    try:
        # As objects, since numpy would turn a list with numbers above 2^63 into floats.
        each = np.asarray(seeds, dtype=None if hasattr(seeds, "dtype") else object).reshape(-1).tolist()
    except (TypeError, ValueError, RuntimeError):
        problem = f"{seeds!r} is not a list of whole numbers"
        raise BadInput(name="seeds", problem=problem, help="pass one int per sample", where=where) from None
    return np.array([_key(value, "seeds", where) for value in each], np.uint64)


def load(folder: str | Path, threads: int | None = None) -> CompiledPlan:
    """Open a saved plan. Nothing in it is executed or trusted; torch is not needed to run a CPU plan.

    Raises:
        PlanMissing, PlanCorrupt, PlanVersion: see ``scoregraph.plan.files``.
    """
    plan, constants = files.load(Path(folder))
    return CompiledPlan(plan, constants, files.load_stages(Path(folder)), threads)
