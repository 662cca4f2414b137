"""Reading what torch's tracer says: where in the user's code it stopped, and what it assumed about the batch."""

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parent)
_OPERATORS = str(Path(__file__).parent / "onnx")
"""The operators of imported graphs: the line to name is the node's, which calls them."""


@dataclass(frozen=True)
class Guard:
    """One condition on the batch size that the traced code holds, and the line that asks."""

    text: str
    """The condition with the batch written ``B``: ``B < 64``."""
    place: str | None
    expression: Any
    """The sympy expression, over symbols that all mean the batch."""

    def holds(self, batch: int) -> bool:
        """Whether the traced branch is the one taken at this batch size."""
        values = dict.fromkeys(self.expression.free_symbols, batch)
        return bool(self.expression.subs(values))

    def __str__(self) -> str:
        return f"{self.text} at {self.place}" if self.place else self.text


def batch_guards(shape_env: Any, symbols: Iterable[Any]) -> tuple[Guard, ...]:
    """The conditions on the batch that a trace met, without those that only equate the inputs' batches."""
    batch = set(symbols)
    guards: list[Guard] = []
    for guard in shape_env.guards:
        expression = guard.expr
        names = expression.free_symbols
        if not names or not names <= batch or (expression.func.__name__ == "Eq" and len(names) == 2):
            continue
        text = str(expression)
        for name in names:
            text = re.sub(rf"\b{name}\b", "B", text)
        guards.append(Guard(text, frame_place(guard.sloc), expression))
    return tuple(guards)


def telling_batches(guards: Iterable[Guard], largest: int) -> list[int]:
    """Batch sizes from 2 to ``largest`` that tell conditions apart: all small ones, and those around the powers of two
    and around every number that a condition names."""
    named = {int(number) for guard in guards for number in re.findall(r"\d+", guard.text)}
    powers = {2**exponent for exponent in range(6, 64)}
    around = {number + offset for number in named | powers for offset in (-1, 0, 1)}
    return sorted(size for size in {*range(2, 34), *around, largest} if 2 <= size <= largest)


def upper_bound(guards: Iterable[Iterable[Guard]]) -> int | None:
    """The largest batch at which some variant's conditions all hold, None where one has no upper bound."""
    variants = [tuple(variant) for variant in guards]
    far = 2**40  # more samples than any memory holds
    if any(all(guard.holds(far) for guard in variant) for variant in variants):
        return None
    low, high = 1, far
    while high - low > 1:
        middle = (low + high) // 2
        if any(all(guard.holds(middle) for guard in variant) for variant in variants):
            low = middle
        else:
            high = middle
    return low


def frame_place(location: Any) -> str | None:
    """The line behind a guard's source location: "upsampling.py:160 `if hidden_states.shape[0] >= 64:`".

    None where torch kept no line of the user's.
    """
    frame = location.maybe_user_loc or location.framework_loc
    if not isinstance(frame, traceback.FrameSummary) or frame.filename.startswith(_TORCH):
        return None
    line = (frame.line or "").strip()
    return f"{Path(frame.filename).name}:{frame.lineno}" + (f" `{line}`" if line else "")


def source_line(node: Any) -> str | None:
    """The innermost line of the user's code that made an fx node, from the stack that tracing kept."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    for number, line in reversed(list(enumerate(lines))):
        found = re.match(r'File "(.+)", line (\d+)', line)
        if found and not found[1].startswith((_TORCH, _OPERATORS)):
            source = lines[number + 1] if number + 1 < len(lines) else ""
            return f"{Path(found[1]).name}:{found[2]} `{source}`"
    return None


def place(error: BaseException) -> str | None:
    """The innermost line of code that is neither torch's nor ours on the way to the error, with its tensors' shapes."""
    frames = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if _is_users(frame)]
    if not frames:
        return None
    frame, number = frames[-1]
    filename = frame.f_code.co_filename
    source = linecache.getline(filename, number).strip()
    shapes = [
        f"{name} {_shape(value)}"
        for name, value in frame.f_locals.items()
        if isinstance(value, Tensor) and re.search(rf"\b{name}\b", source)
    ]
    text = f"{Path(filename).name}:{number} `{source}`"
    return text + (f" with {', '.join(shapes)}" if shapes else "")


def _is_users(frame: Any) -> bool:
    filename = frame.f_code.co_filename
    return not filename.startswith((_TORCH, _HERE, "<"))


def _shape(value: Tensor) -> str:
    sizes = (str(size) if isinstance(size, int) else "B" for size in value.shape)
    return f"[{', '.join(sizes)}]"


def operator(error: BaseException) -> str | None:
    """The ATen operator that the error names or that was called last, ``aten.convolution.default``."""
    found = re.search(r"\b(?:torch\.ops\.)?(aten\.\w+\.\w+)", str(error))
    if found:
        return found[1]
    last: TracebackType | None = error.__traceback__
    name = None
    while last is not None:
        target = last.tb_frame.f_locals.get("func")
        if isinstance(target, torch._ops.OpOverload):
            name = str(target)
        last = last.tb_next
    return name


def summary(error: BaseException) -> str:
    """The first line of an error's message, without what torch adds about its own options."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(" For more information")[0].strip()
