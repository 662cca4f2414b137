"""A recipe says in what formats a plan's products compute: ``w8a8``, ``w4a8:block=64``, ``w8a8:groups=4,attention=i8``.

The name tells the bits of weights and activations; the options after the colon change the rest. A recipe prints as the
text that parses back to it, and that text is part of a plan's cache key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, cast, get_args

from scoregraph.errors import BadRecipe, Location, UnknownName

Weights = Literal["i8", "i7", "i6", "i4", "i2", "bf16"]
Activations = Literal["u8", "u7", "bf16"]
Attention = Literal["f32", "bf16", "i8"]
Smooth = Literal["conv", "yes", "no"] | float

MAGNITUDE = {"i8": 127, "i7": 63, "i6": 31, "i4": 8, "i2": 2}
"""W: the largest magnitude of each integer type of weights (docs/plan-format.md, Formats)."""

TOP = {"u8": 255, "u7": 127}
"""A: the largest number of each type of activations."""

NAMES = {
    "none": "float32 throughout",
    "w8a8": "8-bit weights and activations; the fastest where the processor has VNNI, and the most exact",
    "w8a7": "8-bit weights, 7-bit activations: sums of bytes that plain AVX2 holds without saturation",
    "w7a7": "7 bits both: chains of two products in AVX2, faster and a little coarser than w8a7",
    "w6a7": "6-bit weights, 7-bit activations: chains of four",
    "w4a8": "4-bit weights of linear layers (half the memory), 8 bits else; coarse, better with block=32 or 64",
    "w2a8": "2-bit weights of linear layers: for experiments and for networks trained to bear it",
    "bf16": "products of bf16 numbers, summed in float32",
}
"""The recipes that help texts name, and what each means. Any of w8 w7 w6 w4 w2 goes with any of a8 a7."""

_SMOOTH = "conv, yes, no or a strength from 0 to 1"

_SPARE = "a share of the multiply-adds, as in 5%"

_FORM = re.compile(r"w([87642])a([87])")


@dataclass(frozen=True)
class Recipe:
    """How products compute.

    Attributes:
        weights: type of the weights, symmetric per output channel; those of convolutions have at least 6 bits.
        activations: type of what they read; bf16 goes with bf16 weights only.
        block: inputs of a weight that share one scale, a multiple of 32; 0: one scale per output channel.
        groups: groups of equal numbers of steps that each have one static grid per site, found by calibration; 0:
            grids are dynamic, measured as the plan runs, per token (linear) or per sample (convolutions).
        attention: format of attention's two products.
        conv: whether convolutions are quantized.
        modulation: whether the products that scale, shift and gate other layers are: one row per sample, bound by
            reading their weights. Loops whose times are known compute them in front, in float32.
        smooth: the products whose operands are divided by a factor for each channel, and their weights multiplied
            (``smoothing``): ``conv`` convolutions, as far as calibration can run; ``yes`` all, ``no`` none. A number
            0 … 1: all, with that strength instead of the best one for each.
        clip: whether each scale of the weights is searched for the least squared error; otherwise the largest weight
            sets it. It pays where levels are few.
        spare: share of the multiply-adds that may stay in float32, in the layers whose rounding changes the samples
            most, found by measuring them (``spare``).
        keep: patterns (as in file names) of layers that stay in float32: ``*.to_out.*``. Attentions go by their sites.
    """

    weights: Weights = "i8"
    activations: Activations = "u8"
    block: int = 0
    groups: int = 0
    attention: Attention = "f32"
    conv: bool = True
    modulation: bool = True
    smooth: Smooth = "conv"
    clip: bool = False
    spare: float = 0.0
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.block < 0 or self.block % 32:
            raise BadRecipe(option="block", value=self.block, expected="0 or a multiple of 32")
        if self.groups < 0:
            raise BadRecipe(option="groups", value=self.groups, expected="dynamic or a number of groups")
        if not 0.0 <= self.spare < 1.0:
            raise BadRecipe(option="spare", value=self.spare, expected=_SPARE)
        if isinstance(self.smooth, float) and not 0.0 <= self.smooth <= 1.0:
            raise BadRecipe(option="smooth", value=self.smooth, expected=_SMOOTH)
        if (self.weights == "bf16") != (self.activations == "bf16"):
            raise BadRecipe(option="activations", value=self.activations, expected="bf16 with bf16 weights only")
        if self.weights == "bf16" and (self.block or self.groups or self.smooth not in ("conv", "no")):
            raise BadRecipe(
                option="block, groups or smooth", value="stated", expected="a recipe of integers: bf16 has no grids"
            )

    @property
    def name(self) -> str:
        """The bits: ``w8a8``."""
        return "bf16" if self.weights == "bf16" else f"w{self.weights[1:]}a{self.activations[1:]}"

    @property
    def is_integer(self) -> bool:
        """Whether activations are quantized to grids."""
        return self.weights != "bf16"

    @property
    def is_static(self) -> bool:
        """Whether grids are chosen by calibration."""
        return self.groups > 0

    @property
    def alpha(self) -> float | None:
        """The strength of smoothing that is asked for, if it is not searched."""
        return self.smooth if isinstance(self.smooth, float) else None

    def smooths(self, op: str) -> bool:
        """Whether operands of such products are smoothed."""
        wanted = op == "conv2d" if self.smooth == "conv" else self.smooth != "no"
        return wanted and self.is_integer

    def weights_of(self, op: str) -> str:
        """The type of the weights of an operation: convolutions have none that share bytes."""
        return "i8" if op == "conv2d" and self.weights in ("i4", "i2") else self.weights

    def chain_of(self, op: str) -> int:
        """Pairs of products that 16 bits hold: the most that ``2 * chain * A * W <= 32767`` allows, at most 32."""
        return chain_limit(self.weights_of(op), self.activations)

    def name_of(self, op: str) -> str:
        """The bits in which an operation computes."""
        return self.name if not self.is_integer else f"w{self.weights_of(op)[1:]}a{self.activations[1:]}"

    def keeps(self, layer: str) -> bool:
        """Whether a layer stays in float32 because a pattern says so."""
        return any(fnmatchcase(layer, pattern) for pattern in self.keep)

    def __str__(self) -> str:
        base = _named(self.name)
        shown = {field: getattr(self, field) for field in _OPTIONS if getattr(self, field) != getattr(base, field)}
        options = ",".join(f"{field}={_shown(value)}" for field, value in shown.items())
        return f"{self.name}:{options}" if options else self.name


def chain_limit(weights: str, activations: str) -> int:
    """The longest chain a loader accepts for these types; 0 where 16 bits never hold."""
    return min(32767 // (2 * MAGNITUDE[weights] * TOP[activations]), 32)


def parse_recipe(text: str, where: Location | str | None = None) -> Recipe | None:
    """The recipe of a text, None for ``none``.

    Raises:
        UnknownName: no recipe or option has that name.
        BadRecipe: an option's value is not one it may have.
    """
    name, colon, rest = text.strip().partition(":")
    if name == "none" and not colon:
        return None
    if name != "bf16" and not _FORM.fullmatch(name):
        raise UnknownName(kind="quantization recipe", name=text, known=NAMES, where=where)
    options: dict[str, object] = {}
    for part in rest.split(",") if colon else []:
        option, equals, value = (piece.strip() for piece in part.partition("="))
        if option not in _OPTIONS:
            raise UnknownName(kind=f"option of {name}", name=option, known=_OPTIONS, where=where)
        read, expected = _OPTIONS[option]
        try:
            options[option] = read(value) if equals else read("yes")
        except ValueError:
            raise BadRecipe(option=option, value=value, expected=expected, where=where) from None
    try:
        return _named(name, **options)
    except BadRecipe as error:
        raise error.at(where) from None


def _named(name: str, **options: object) -> Recipe:
    """The recipe of that name; what few levels need is on by default."""
    if name == "bf16":
        return Recipe("bf16", "bf16", **options)  # pyright: ignore[reportArgumentType]
    found = _FORM.fullmatch(name)
    assert found is not None, "the name was checked"
    weights, activations = cast(Weights, f"i{found[1]}"), cast(Activations, f"u{found[2]}")
    clip = {"clip": weights in ("i4", "i2"), **options}
    return Recipe(weights, activations, **clip)  # pyright: ignore[reportArgumentType]


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "|".join(map(str, cast("tuple[object, ...]", value))) if isinstance(value, tuple) else str(value)


def _groups(text: str) -> int:
    return 0 if text == "dynamic" else int(text)


def _smooth(text: str) -> Smooth:
    return cast(Smooth, text) if text in ("conv", "yes", "no") else float(text)


def _share(text: str) -> float:
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


def _patterns(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split("|") if part)


def _one_of(choices: Mapping[str, object]) -> Callable[[str], object]:
    """A reader of one of these words."""

    def read(text: str) -> object:
        if text not in choices:
            raise ValueError(text)
        return choices[text]

    return read


_SWITCH = _one_of({"yes": True, "no": False})

_OPTIONS: dict[str, tuple[Callable[[str], object], str]] = {
    "block": (int, "0 or a multiple of 32"),
    "groups": (_groups, "dynamic or a number of groups"),
    "attention": (_one_of({name: name for name in get_args(Attention)}), "f32, bf16 or i8"),
    "conv": (_SWITCH, "yes or no"),
    "modulation": (_SWITCH, "yes or no"),
    "smooth": (_smooth, _SMOOTH),
    "clip": (_SWITCH, "yes or no"),
    "spare": (_share, _SPARE),
    "keep": (_patterns, "patterns of sites, apart by |"),
}
"""Every option: how its text is read, and what it may be."""
