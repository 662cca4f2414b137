"""What flows along the edges of a sampling graph, and the networks the graph names.

Every type is a frozen dataclass that prints the way the text form writes it: ``Latent[kappa, 1x128x128]``. Shapes are
those of one sample; the batch is never written. A graph holds no tensors: a network appears as a ``NetRef``.

    | type      | what it is                                                  |
    |-----------|-------------------------------------------------------------|
    | Array     | a raw value the caller gives, of a dtype and a shape        |
    | Latent    | the state of a continuous sampler, in a space               |
    | Tokens    | the state of a discrete sampler                             |
    | Logits    | one score per position and vocabulary entry                 |
    | Hidden    | features of a token network before its head                 |
    | Pred      | what a score network answers, in a parameterization         |
    | Cond      | an encoded condition of one network                         |
    | Grad      | the gradient of an energy with respect to a latent          |
    | Noise     | unit normals shaped like a latent, not yet at a noise level |
    | Start     | a clean latent and noise, not yet at a noise level          |
    | Time      | where the loop stands on its schedule                       |
    | Mask      | one yes or no per position                                  |
    | Scalar    | one number: static, per step or per sample                  |
    | Decoded   | what a head makes of a latent                               |
    | Carry     | the values that leave a loop, in order                      |
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal, get_args

from scoregraph.errors import IncompleteNetwork
from scoregraph.graph.spec import Spec

Space = Literal["vp", "kappa", "flow"]
"""How a latent is scaled: ``vp`` alpha^2 + sigma^2 = 1; ``kappa`` alpha = 1, so x = x0 + kappa eps (EDM, Karras);
``flow`` alpha = 1 - sigma."""

DType = Literal["f32", "i64", "u8"]
Rate = Literal["static", "per-step", "per-sample"]
TimeConvention = Literal["timestep", "sigma", "c_noise", "flow", "flow1000", "angle", "none"]
"""What a network calls time: the training index 0..T-1; sigma; ln(sigma) / 4; sigma in 0..1; 1000 sigma; atan(sigma);
nothing."""

Shape = tuple[int, ...]

DTYPES: tuple[DType, ...] = get_args(DType)


def shape_text(shape: Shape) -> str:
    """``1x128x128``; the empty shape is the empty text."""
    return "x".join(map(str, shape))


def word(name: str) -> str:
    """A name as the text form writes it: bare when it is one word, quoted otherwise."""
    return name if re.fullmatch(r"[\w.\-]+", name, re.ASCII) else repr(name)


def plain_shape(shape: Iterable[int]) -> Shape:
    """A shape as a tuple of Python's own integers, whatever kind of sequence it came as."""
    return tuple(int(size) for size in shape)


def _text(value: Shape | Spec | ValueType | str | int) -> str:
    if isinstance(value, tuple):
        return shape_text(value)
    return word(value) if isinstance(value, str) else str(value)


@dataclass(frozen=True)
class ValueType:
    """Base of the types of values. Two types are the same when their fields are."""

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.type == "Shape":
                object.__setattr__(self, f.name, plain_shape(getattr(self, f.name)))

    def __str__(self) -> str:
        shown = [_text(getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}[{', '.join(shown)}]" if fields(self) else type(self).__name__


@dataclass(frozen=True)
class Array(ValueType):
    """What the caller passes in, per sample: ``f32[128x128]``, ``i64[]``."""

    dtype: DType
    shape: Shape

    def __str__(self) -> str:
        return f"{self.dtype}[{shape_text(self.shape)}]"


@dataclass(frozen=True)
class Latent(ValueType):
    """The state x of a continuous sampler, float32."""

    space: Space
    shape: Shape


@dataclass(frozen=True)
class Tokens(ValueType):
    """The state of a discrete sampler: ``length`` indices below ``vocab``, int64."""

    length: int
    vocab: int


@dataclass(frozen=True)
class Logits(ValueType):
    """Unnormalised log-probabilities, float32 [length, vocab] for each branch."""

    length: int
    vocab: int
    branches: int = 1


@dataclass(frozen=True)
class Hidden(ValueType):
    """Features of a token network before its head, float32 [length, width] for each branch."""

    length: int
    width: int
    branches: int = 1


@dataclass(frozen=True)
class Pred(ValueType):
    """What a network says about a latent. ``branches`` answers are interleaved per sample."""

    prediction: Spec
    latent: Latent
    branches: int = 1


@dataclass(frozen=True)
class Cond(ValueType):
    """Encoded conditions of the network named ``net``; only that network can read them."""

    net: str


@dataclass(frozen=True)
class Grad(ValueType):
    """The gradient of an energy with respect to a latent, in the shape of that latent."""

    latent: Latent


@dataclass(frozen=True)
class Noise(ValueType):
    """Unit normals shaped like a latent. A loop scales them to the noise level at which its schedule starts."""

    latent: Latent


@dataclass(frozen=True)
class Start(ValueType):
    """A clean latent and noise for it. A loop mixes them at the point where its schedule starts: alpha x + sigma z."""

    latent: Latent


@dataclass(frozen=True)
class Time(ValueType):
    """The point of the schedule at which a loop stands. Each network reads it in its own convention."""


@dataclass(frozen=True)
class Mask(ValueType):
    """One yes or no per position; the empty shape is one per sample."""

    shape: Shape


@dataclass(frozen=True)
class Scalar(ValueType):
    """One float32 number that is fixed, changes by step, or is given per sample."""

    rate: Rate


@dataclass(frozen=True)
class Decoded(ValueType):
    """What a head makes of one sample, float32."""

    shape: Shape


@dataclass(frozen=True)
class Carry(ValueType):
    """The values that leave a loop, in the order in which they entered."""

    items: tuple[ValueType, ...]

    def __str__(self) -> str:
        return "(" + ", ".join(map(str, self.items)) + ")"


TYPES: dict[str, type[ValueType]] = {
    cls.__name__: cls
    for cls in (Latent, Tokens, Logits, Hidden, Pred, Cond, Grad, Noise, Start, Time, Mask, Scalar, Decoded)
}
"""The types that are written ``Name[fields]``, by name. ``Array`` and ``Carry`` have spellings of their own."""


@dataclass(frozen=True)
class CondInput:
    """One condition a network takes, per sample.

    ``low`` and ``high`` bound what the caller may give. ``null`` is the value that stands for an absent condition;
    None says that the network has no unconditional branch.
    """

    name: str
    shape: Shape = ()
    dtype: DType = "f32"
    low: float | None = None
    high: float | None = None
    null: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", plain_shape(self.shape))
        for bound in ("low", "high", "null"):
            value = getattr(self, bound)
            object.__setattr__(self, bound, None if value is None else float(value))

    @property
    def type(self) -> Array:
        """The type of the raw value."""
        return Array(self.dtype, self.shape)


@dataclass(frozen=True)
class HeadRef:
    """A decoder that comes with a network: ``shape`` is what it makes of one sample."""

    name: str
    shape: Shape

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", plain_shape(self.shape))


@dataclass(frozen=True)
class NetRef:
    """A network as a graph knows it: what it takes and answers, and which weights it has.

    ``fingerprint`` (16 hex digits) is that of the weights. ``latent`` is the type of the state it reads: ``Latent`` for
    continuous networks, whose ``prediction`` says what they answer; ``Tokens`` for discrete ones, which have no
    ``prediction`` and answer ``Logits``, or ``Hidden`` features of size ``width`` when the last layer is a head.
    An ``energy`` reads a latent and answers one number per sample, E(x, t, *conds); it has no ``prediction`` either.
    With ``variance`` a network says, behind its prediction, as many numbers again: the v of a learned variance.
    """

    name: str
    fingerprint: str
    latent: Latent | Tokens
    prediction: Spec | None = None
    time: TimeConvention = "timestep"
    conds: tuple[CondInput, ...] = ()
    heads: tuple[HeadRef, ...] = ()
    width: int | None = None
    energy: bool = False
    variance: bool = False

    def __post_init__(self) -> None:
        predicts = isinstance(self.latent, Latent) and not self.energy
        if predicts == (self.prediction is None) or (self.energy and isinstance(self.latent, Tokens)):
            raise IncompleteNetwork(net=self.name, latent=self.latent, prediction=self.prediction)

    def head(self, name: str) -> HeadRef | None:
        """The head of that name, if there is one."""
        return next((head for head in self.heads if head.name == name), None)

    def answer(self, branches: int = 1) -> Pred | Logits | Hidden:
        """The type of what the network says for ``branches`` conditions at once."""
        if isinstance(self.latent, Latent) and self.prediction is not None:
            return Pred(self.prediction, self.latent, branches)
        assert isinstance(self.latent, Tokens), "only networks without a prediction read tokens"
        if self.width is not None:
            return Hidden(self.latent.length, self.width, branches)
        return Logits(self.latent.length, self.latent.vocab, branches)


@dataclass(frozen=True)
class FunctionRef:
    """Any network that is neither a score nor an energy, such as a text encoder: named inputs to named outputs.

    A graph has no use for one by itself; ``compile`` makes a plan of it that evaluates it once.
    """

    name: str
    fingerprint: str
    inputs: tuple[CondInput, ...]
    outputs: tuple[str, ...]
