"""Checks of the options of specs, shared by every family: what fails names the option and what it may be.

A check also puts the value into its canonical type (an int given for a real option becomes a float, a list a tuple), so
that equal specs print equally.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from scoregraph.errors import EmptyRange, OptionOutOfRange, UnknownName, here
from scoregraph.graph.spec import Spec


def _value(spec: Spec, option: str) -> Any:
    value: Any = getattr(spec, option)
    if isinstance(value, np.generic):
        return cast(Any, value).item()
    return value


def _refusal(spec: Spec, option: str, expected: str) -> OptionOutOfRange:
    value: Any = getattr(spec, option)
    return OptionOutOfRange(spec=spec.name, option=option, expected=expected, value=value, where=here())


def whole(spec: Spec, option: str, low: int, high: int = 2**31 - 1) -> None:
    """The option is an integer in low … high."""
    value = _value(spec, option)
    if type(value) is not int or not low <= value <= high:
        raise _refusal(
            spec, option, f"an integer of at least {low}" if high == 2**31 - 1 else f"an integer from {low} to {high}"
        )
    object.__setattr__(spec, option, value)


def real(spec: Spec, option: str, low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> None:
    """The option is a finite real number in [low, high], or in (low, high] with ``above``."""
    value = _value(spec, option)
    if (
        type(value) not in (int, float)
        or not -1e300 < value < 1e300
        or not low <= value <= high
        or (above and value == low)
    ):
        raise _refusal(spec, option, _range(low, high, above=above))
    object.__setattr__(spec, option, float(value))


def _range(low: float, high: float, *, above: bool) -> str:
    """Words for a range of real numbers."""
    if math.isinf(low) and math.isinf(high):
        return "a finite number"
    if math.isinf(high):
        return f"a number above {low:g}" if above else f"a number of at least {low:g}"
    return f"a number above {low:g} and at most {high:g}" if above else f"a number from {low:g} to {high:g}"


def optional_real(spec: Spec, option: str, low: float = -math.inf, high: float = math.inf) -> None:
    """The option is None or a finite real number in [low, high]."""
    if getattr(spec, option) is not None:
        real(spec, option, low, high)


def reals(spec: Spec, option: str, at_least: int = 1) -> None:
    """The option is a tuple of finite real numbers, ``at_least`` many."""
    try:
        numbers = tuple(float(x) for x in _value(spec, option))
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    if len(numbers) < at_least or not all(map(math.isfinite, numbers)):
        raise _refusal(spec, option, f"a tuple of at least {at_least} finite numbers")
    object.__setattr__(spec, option, numbers)


def wholes(spec: Spec, option: str, low: int) -> None:
    """The option is a tuple of integers of at least ``low``; it may be empty."""
    value = _value(spec, option)
    if not isinstance(value, (tuple, list)) or any(type(x) is not int or x < low for x in cast("tuple[Any]", value)):
        raise _refusal(spec, option, f"a tuple of integers of at least {low}")
    object.__setattr__(spec, option, tuple(cast("tuple[int]", value)))


def flag(spec: Spec, option: str) -> None:
    """The option is True or False."""
    if not isinstance(_value(spec, option), bool):
        raise _refusal(spec, option, "True or False")


def choice(spec: Spec, option: str, known: Sequence[str]) -> None:
    """The option is one of the known names; the nearest is suggested otherwise."""
    value = _value(spec, option)
    if not isinstance(value, str):
        raise _refusal(spec, option, "one of " + ", ".join(known))
    if value not in known:
        raise UnknownName(kind=f"{option} of {spec.name}", name=value, known=known, where=here())


def ordered(spec: Spec, low: str, high: str) -> None:
    """Option ``low`` is below option ``high``."""
    low_value: float = getattr(spec, low)
    high_value: float = getattr(spec, high)
    if not low_value < high_value:
        raise EmptyRange(spec=spec.name, low=low, low_value=low_value, high=high, high_value=high_value, where=here())
