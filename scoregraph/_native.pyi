"""The compiled extension (native/py): plans on a CPU. Only ``scoregraph.backends.cpu`` imports it."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, final

from numpy.typing import NDArray
from typing_extensions import Buffer

VERSION: str

# numpy's stubs give arrays the buffer protocol from Python 3.12 on only.
_Buffer = Buffer | NDArray[Any]

class _Event(Protocol):
    def is_set(self) -> bool: ...

class NativeError(Exception):
    """A bad plan or a failed run; ``args`` are (code, place, text, subject, numbers)."""

@final
class CancelFlag:
    """A flag that ends a run before its next kernel call. May be set from any thread."""

    def __new__(cls) -> CancelFlag: ...
    def set(self) -> None:
        """Ends the runs that watch this flag."""
    def clear(self) -> None:
        """Lets new runs go on."""
    def is_set(self) -> bool:
        """Whether the flag is set."""

@final
class Program:
    """A plan, proved and ready to run for any batch. ``constants`` is held, never copied."""

    def __new__(
        cls, plan: bytes, constants: _Buffer, threads: int | None = None, isa: str | None = None
    ) -> Program: ...
    def run(
        self,
        inputs: Mapping[str, _Buffer],
        outputs: Mapping[str, _Buffer],
        seeds: _Buffer,
        progress: Callable[[int, int], object] | None = None,
        cancel: CancelFlag | _Event | None = None,
    ) -> None:
        """The whole trajectory of ``len(seeds)`` samples in one call; fills ``outputs``."""
    def memory(self, batch: int) -> dict[str, int]:
        """Bytes that a run needs: ``batch``, ``fixed``, ``scratch``, ``constants``."""
    def stats(self) -> dict[str, int]:
        """Counters since it was made, by the names of ``scoregraph.backends.protocol.COUNTERS``."""
    def set_timing(self, on: bool) -> None:
        """Turns the timing of every call on or off, from the next run on."""
    def timings(self) -> list[tuple[int, int, int, int]]:
        """The last run's calls as (segment, call, row, nanoseconds over all rounds)."""
    def target(self) -> tuple[str, int]:
        """The instruction set and the number of threads."""
    def source(self) -> str:
        """What runs, one call a line."""

def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> list[int]:
    """Four random words."""

def normals(seed: int, site: int, micro: int, count: int, isa: str | None = None) -> bytes:
    """Standard normals of elements 0 … count-1 of a noise site, as the bytes of float32."""

def cpu_features() -> dict[str, bool]:
    """The processor's features that matter to kernels."""

def isa() -> str:
    """The instruction set that programs use when none is asked for."""

def threads() -> int:
    """The number of threads that programs use when none is asked for."""

def ops() -> list[str]:
    """The ops that programs can run."""
