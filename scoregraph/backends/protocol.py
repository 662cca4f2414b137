"""What every backend offers: its name, which kernel calls it runs, and how it makes a plan runnable."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from scoregraph.plan.schema import Call, Plan

Constants = bytes | mmap.mmap | memoryview
"""The bytes of a plan's constants file, as ``scoregraph.plan.files.load`` maps them."""

Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)`` after each micro-step of a loop, with the counts over all loops.

A loop that repeats counts with its most rounds until it ends, and then with those it took: ``total`` may fall."""


COUNTERS = ("runs", "steps", "calls", "network_calls", "branch_evaluations", "rounds", "binds")
"""The keys of ``Program.counters()``, in order.

runs: finished runs. steps: rows of loops (a loop without a table has one row a round). calls: kernel calls.
network_calls, branch_evaluations: as the segments' ``networks`` say, over the rows that ran; a call of a network for
two branches is one call and two evaluations, whatever the batch. rounds: of segments that repeat. binds: times that
memory was allocated or kernels were bound for a new batch size.
"""


@dataclass(frozen=True, slots=True)
class Miss:
    """Why a backend does not run a call: one clause a person can act on."""

    reason: str


class Cancel(Protocol):
    """A flag another thread sets to end a run between two micro-steps; ``threading.Event`` is one."""

    def is_set(self) -> bool:
        """Whether the run shall end."""
        ...


class Program(Protocol):
    """A plan made runnable: device memory and compiled kernels, for any batch."""

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        seeds: np.ndarray,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
    ) -> dict[str, np.ndarray]:
        """One run of ``len(seeds)`` samples.

        Args:
            inputs: by name, each of its buffer's shape with B = ``len(seeds)``.
            seeds: uint64 [B], the noise key of each sample.
            progress: told after each micro-step.
            cancel: asked before each micro-step.

        Returns:
            The outputs by name.
        """
        ...

    def counters(self) -> dict[str, int]:
        """What the program has done since it was made, over all its runs, under the names of ``COUNTERS``."""
        ...

    def source(self) -> str:
        """What will run, as text a person can read."""
        ...


class Backend(Protocol):
    """A device's way to run plans."""

    @property
    def name(self) -> str:
        """How ``device=`` names it."""
        ...

    @property
    def capabilities(self) -> frozenset[str]:
        """The plan ops it has kernels for."""
        ...

    def supports(self, call: Call) -> Miss | None:
        """None if the backend runs ``call``, else the reason why not."""
        ...

    def compile(self, plan: Plan, constants: Constants) -> Program:
        """Make ``plan`` runnable."""
        ...
