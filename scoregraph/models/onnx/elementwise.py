"""The operators of ONNX that work element by element, on tensors and on the plain numbers of shape arithmetic."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from scoregraph.models.onnx.values import Number, Plain, Value, is_number, tensor

# TensorProto's numbers of element types.
_FLOATS = {1, 10, 11, 16}
_INTEGERS = {2: torch.uint8, 3: torch.int8, 4: torch.uint16, 5: torch.int16, 6: torch.int32, 7: torch.int64}
_BOOL = 9


def _spread(plain: Callable[..., Any], *operands: Plain) -> Plain:
    """Apply to plain numbers, a single one or a vector of length 1 with every element of a longer vector."""
    lengths = [len(each) for each in operands if isinstance(each, tuple)]
    if not lengths:
        return plain(*operands)
    longest = max(lengths) if min(lengths) else 0
    columns = [
        each if isinstance(each, tuple) and len(each) == longest else (_only(each),) * longest for each in operands
    ]
    return tuple(plain(*row) for row in zip(*columns, strict=True))


def _only(value: Plain) -> Number:
    return value[0] if isinstance(value, tuple) else value


def _elementwise(plain: Callable[..., Any], tensors: Callable[..., Tensor]) -> Callable[..., Value]:
    """The operator that is ``plain`` on numbers and ``tensors`` as soon as one operand is a tensor."""

    def apply(*operands: Value) -> Value:
        like = next((each for each in operands if isinstance(each, Tensor)), None)
        if like is None:
            return _spread(plain, *operands)
        # A number may stay one, which the passes read better; the first operand of torch's functions may not.
        first, *rest = (
            each if isinstance(each, Tensor) or is_number(each) else tensor(each, like) for each in operands
        )
        if not isinstance(first, Tensor):
            first = torch.full((), first, dtype=like.dtype)
        return tensors(first, *rest)

    return apply


def _sum_like(plain: Callable[..., Any], forward: Callable[..., Tensor], backward: Callable[..., Tensor]) -> Any:
    """A binary operator where a number in front has a form of its own: ``1 - x`` is ``rsub(x, 1)``."""
    general = _elementwise(plain, forward)

    def apply(a: Value, b: Value) -> Value:
        return backward(a, b) if is_number(a) and isinstance(b, Tensor) else general(a, b)

    return apply


def _quotient(a: Any, b: Any) -> Any:
    """Division of numbers: integers are truncated towards zero."""
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    if isinstance(a, int) and isinstance(b, int):
        return int(math.copysign(1, a) * math.copysign(1, b)) * (abs(a) // abs(b))
    return a // b


def _divide(a: Tensor, b: Any) -> Tensor:
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _integral_floor(value: Any) -> Any:
    return float(math.floor(value))


Add = _sum_like(operator.add, torch.add, lambda a, b: torch.add(b, a))
Sub = _sum_like(operator.sub, torch.sub, lambda a, b: torch.rsub(b, a))
Mul = _sum_like(operator.mul, torch.mul, lambda a, b: torch.mul(b, a))
Div = _sum_like(_quotient, _divide, lambda a, b: torch.mul(torch.reciprocal(b), a) if a != 1 else torch.reciprocal(b))
Pow = _sum_like(operator.pow, torch.pow, lambda a, b: torch.pow(a, b))
Neg = _elementwise(operator.neg, torch.neg)
Abs = _elementwise(abs, torch.abs)
Exp = _elementwise(math.exp, torch.exp)
Log = _elementwise(math.log, torch.log)
Sqrt = _elementwise(lambda x: math.sqrt(x), torch.sqrt)
Reciprocal = _elementwise(lambda x: 1 / x, torch.reciprocal)
Sin = _elementwise(math.sin, torch.sin)
Cos = _elementwise(math.cos, torch.cos)
Tanh = _elementwise(math.tanh, torch.tanh)
Sigmoid = _elementwise(lambda x: 1 / (1 + math.exp(-x)), torch.sigmoid)
Erf = _elementwise(math.erf, torch.erf)
Relu = _elementwise(lambda x: max(x, 0), torch.relu)
Floor = _elementwise(_integral_floor, torch.floor)
Ceil = _elementwise(lambda x: float(math.ceil(x)), lambda x: torch.neg(torch.floor(torch.neg(x))))
Sign = _elementwise(lambda x: (x > 0) - (x < 0), torch.sign)
Not = _elementwise(operator.not_, torch.logical_not)
And = _elementwise(lambda a, b: a and b, torch.logical_and)
Or = _elementwise(lambda a, b: a or b, torch.logical_or)
Equal = _elementwise(lambda a, b: bool(a == b), torch.eq)
Greater = _elementwise(lambda a, b: bool(a > b), torch.gt)
Less = _elementwise(lambda a, b: bool(a < b), torch.lt)
GreaterOrEqual = _elementwise(lambda a, b: bool(a >= b), torch.ge)
LessOrEqual = _elementwise(lambda a, b: bool(a <= b), torch.le)
IsNaN = _elementwise(math.isnan, torch.isnan)
Softplus = _elementwise(lambda x: math.log1p(math.exp(x)), functional.softplus)
Mish = _elementwise(lambda x: x * math.tanh(math.log1p(math.exp(x))), functional.mish)


def Mod(a: Value, b: Value, *, fmod: int = 0) -> Value:
    """The remainder with the sign of the divisor, or of the dividend with ``fmod``."""
    return _elementwise(math.fmod, torch.fmod)(a, b) if fmod else _elementwise(operator.mod, torch.remainder)(a, b)


def Max(*operands: Value) -> Value:
    """The largest of any number of operands."""
    return functools.reduce(_elementwise(max, lambda a, b: _bounded(torch.maximum, a, low=b)), operands)


def Min(*operands: Value) -> Value:
    """The smallest of any number of operands."""
    return functools.reduce(_elementwise(min, lambda a, b: _bounded(torch.minimum, a, high=b)), operands)


def _bounded(both: Callable[..., Tensor], a: Tensor, low: Any = None, high: Any = None) -> Tensor:
    bound = high if low is None else low
    return both(a, bound) if isinstance(bound, Tensor) else torch.clamp(a, min=low, max=high)


def Clip(x: Value, min: Value | None = None, max: Value | None = None) -> Value:
    """``x`` between two bounds, either of which may be absent."""
    if not isinstance(x, Tensor):
        x = x if min is None else Max(x, min)
        return x if max is None else Min(x, max)
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        x = x if min is None else torch.maximum(x, tensor(min, x))
        return x if max is None else torch.minimum(x, tensor(max, x))
    return torch.clamp(x, min, max)


def Where(condition: Value, a: Value, b: Value, *, unit: Tensor) -> Value:
    """``a`` where the condition holds, else ``b``."""
    if not any(isinstance(each, Tensor) for each in (condition, a, b)):
        return _spread(lambda c, x, y: x if c else y, condition, a, b)
    chosen = tensor(condition)
    like = next((each for each in (a, b) if isinstance(each, Tensor)), unit)
    return torch.where(chosen, _operand(a, like), _operand(b, like))


def _operand(value: Value, like: Tensor) -> Tensor:
    if is_number(value):
        return torch.full((), value, dtype=like.dtype)
    return tensor(value, like)


def Cast(x: Value, *, to: int, saturate: int = 1, round_mode: str = "", unit: Tensor) -> Value:
    """Another element type. All floats are one type here, that of ``unit``: a cast between floats is nothing."""
    if to not in _FLOATS and to != _BOOL and to not in _INTEGERS:
        raise TypeError(f"a cast to the element type {to} of ONNX")
    if not isinstance(x, Tensor):
        kind = float if to in _FLOATS else bool if to == _BOOL else None
        return _spread(lambda value: _integer(value) if kind is None else kind(value), x)
    if to in _FLOATS:
        return x if x.is_floating_point() else x.to(unit.dtype)
    return (x if x.dtype == torch.bool else x != 0) if to == _BOOL else x.to(_INTEGERS[to])


def _integer(value: Any) -> Any:
    return int(value) if isinstance(value, (float, bool)) else value  # a SymInt stays symbolic


def CastLike(x: Value, like: Value, *, saturate: int = 1, unit: Tensor) -> Value:
    """``x`` in the element type of ``like``."""
    if isinstance(like, Tensor):
        if like.is_floating_point():
            return Cast(x, to=1, unit=unit)
        return tensor(x).to(like.dtype)
    return Cast(x, to=1 if isinstance(like, float) else 7, unit=unit)


def Identity(x: Value) -> Value:
    """``x``."""
    return x


def Dropout(x: Value, ratio: Value | None = None, training: Value | None = None, *, seed: int = 0) -> Value:
    """``x``: this is inference."""
    if training:
        raise TypeError("dropout in training mode")
    return x


def Gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """The Gaussian error linear unit; ``approximate`` may be ``tanh``."""
    return functional.gelu(x, approximate=approximate)


def LeakyRelu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """``x`` where positive, else ``alpha * x``."""
    return torch.where(x < 0, x * alpha, x)


def Elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``x`` where positive, else ``alpha * (exp(x) - 1)``."""
    return torch.where(x < 0, torch.expm1(x) * alpha, x)


def HardSigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """``clip(alpha * x + beta, 0, 1)``."""
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def HardSwish(x: Tensor) -> Tensor:
    """``x * clip(x / 6 + 0.5, 0, 1)``."""
    return x * HardSigmoid(x, alpha=1 / 6)


def Swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``x * sigmoid(alpha * x)``."""
    return functional.silu(x) if alpha == 1.0 else x * torch.sigmoid(x * alpha)
