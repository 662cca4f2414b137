"""A kernel before Triton has decided how to run it, and one launch of it.

Triton chooses between its interpreter and its compiler when a function is decorated. A process may need both (a test
interprets what it also compiles ahead of time), so a kernel here is source text, and is decorated once per way.
"""

from __future__ import annotations

import functools
import hashlib
import linecache
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Namespace = dict[str, Any]

KERNELS_FILE = Path(__file__).with_name("kernels.py")
_decorating = threading.Lock()  # the choice is a process-wide setting while a file is executed


@dataclass(frozen=True, slots=True)
class Kernel:
    """A Triton function by name: of ``kernels.py``, or of ``text``, which sees everything ``kernels.py`` defines."""

    name: str
    text: str = ""

    def function(self, *, interpret: bool) -> Any:
        """The decorated function: Triton's ``InterpretedFunction`` or ``JITFunction``."""
        return _namespace(self.text, interpret)[self.name]


@functools.cache
def _namespace(text: str, interpret: bool) -> Namespace:
    from triton import knobs

    if text:
        file = f"<scoregraph kernel {hashlib.sha256(text.encode()).hexdigest()[:12]}>"
        # Triton reads a kernel's source through inspect; this is how it finds text that lies in no file.
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        scope = dict(_namespace("", interpret))
    else:
        file, text, scope = str(KERNELS_FILE), KERNELS_FILE.read_text(encoding="utf-8"), {}
    scope["__name__"] = "scoregraph.backends.triton.kernels"
    with _decorating, knobs.runtime.scope():
        knobs.runtime.interpret = interpret
        exec(compile(text, file, "exec"), scope)
    return scope


@dataclass(frozen=True)
class Launch:
    """One kernel over one grid. Its row of the table, and the number of the micro-step over all rounds, are given when
    it runs, unless ``arguments`` fix them.

    ``arguments`` are run-time values by parameter name: tensors, numbers, tuples of either, None. ``constants`` are
    compile-time ones. ``fuse`` lets the compiler contract a multiply and an add, which the exact kernels forbid.
    """

    kernel: Kernel
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any] = field(default_factory=dict)
    takes_row: bool = False
    takes_micro: bool = False
    fuse: bool = False
    warps: int = 4
    site: str = ""

    def run(self, row: int, micro: int, *, interpret: bool) -> None:
        """Enqueue the kernel; nothing waits for the device."""
        self.kernel.function(interpret=interpret)[self.grid](
            **self.arguments,
            **self._step(row, micro),
            **self.constants,
            num_warps=self.warps,
            enable_fp_fusion=self.fuse,
        )

    def _step(self, row: int, micro: int) -> dict[str, int]:
        return ({"row": row} if self.takes_row else {}) | ({"micro": micro} if self.takes_micro else {})

    def compile(self, capability: int) -> dict[str, Any]:
        """Compile ahead of time for a CUDA compute capability (90 is Hopper); needs no card.

        Returns:
            The stages by name: ``ttir``, ``ttgir``, ``llir`` and ``ptx`` as text, ``cubin`` as bytes.
        """
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        function = self.kernel.function(interpret=False)
        values = {**self.arguments, **self._step(0, 0), **self.constants}
        constants: dict[tuple[int, ...], Any] = {}
        signature: dict[str, Any] = {}
        for place, parameter in enumerate(function.params):
            value = values[parameter.name]
            if parameter.is_constexpr:
                constants[(place,)] = value
                signature[parameter.name] = "constexpr"
            else:
                fixed = not parameter.do_not_specialize
                signature[parameter.name] = _type_of(value, (place,), constants, specialize=fixed)
        compiled = triton.compile(
            ASTSource(function, signature, constants),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": self.warps, "enable_fp_fusion": self.fuse},
        )
        return dict(compiled.asm)

    def __str__(self) -> str:
        shown = {name: _shown(value) for name, value in {**self.arguments, **self.constants}.items()}
        steps = [f"{name}={name}" for name in self._step(0, 0)]
        listed = ", ".join([*(f"{name}={text}" for name, text in shown.items()), *steps])
        return f"{self.kernel.name}[{'×'.join(map(str, self.grid))}]({listed})"


_POINTERS = {"torch.float32": "*fp32", "torch.int64": "*i64", "torch.uint8": "*u8"}


def _type_of(value: object, path: tuple[int, ...], constants: dict[tuple[int, ...], Any], *, specialize: bool) -> Any:
    """A run-time value's Triton type as signatures spell it. Like a launch, it compiles None and the number 1 in."""
    if isinstance(value, tuple):
        return tuple(_type_of(v, (*path, i), constants, specialize=specialize) for i, v in enumerate(value))
    if value is None or (specialize and isinstance(value, int) and value == 1):
        constants[path] = value
        return "constexpr"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, float):
        return "fp32"
    return _POINTERS[str(getattr(value, "dtype", None))]


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(_shown(part) for part in value) + ")"
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is not None and shape is not None:
        return f"{str(dtype).removeprefix('torch.')}{list(shape)}"
    return repr(value)
