"""A network: what a graph knows of it (a ``NetRef``) together with the torch modules that compute it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scoregraph.graph.prediction import Prediction
from scoregraph.graph.values import CondInput, HeadRef, Latent, NetRef, TimeConvention

if TYPE_CHECKING:
    from scoregraph.models.capture import TensorProgram
    from scoregraph.models.energies import EnergyNetwork

DTYPES = {"f32": torch.float32, "i64": torch.int64, "u8": torch.uint8}


@dataclass(frozen=True, eq=False)
class Network:
    """A score network with its encoder and heads, weights and all.

    ``score(x, t, *encoded) -> m``: the state at the network's input (already times c_in) [n, *shape], the time in the
    convention of ``ref.time`` [n], the encoded conditions [n, …]; n counts samples times branches. float32.
    ``encoder(*raw) -> encoded``: the conditions as the caller gives them [B, *shape], in the order of ``ref.conds``,
    to a tensor or a tuple of tensors. None passes them on as they are.
    ``heads[name](x) -> decoded``: from the final state [B, *shape].
    """

    ref: NetRef
    score: nn.Module
    encoder: nn.Module | None = None
    heads: Mapping[str, nn.Module] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def latent(self) -> Latent:
        """The type of the state the network reads."""
        assert isinstance(self.ref.latent, Latent), "a Network is continuous"
        return self.ref.latent

    def raw_conditions(self, batch: int, *, null: bool = False) -> tuple[Tensor, ...]:
        """Example values of every condition: the null values, or values within the bounds. Shapes [batch, *shape]."""
        return example_values(self.ref.conds, batch, null=null)

    def encode(self, *raw: Tensor) -> tuple[Tensor, ...]:
        """The encoded conditions as a tuple."""
        if self.encoder is None:
            return raw
        with torch.no_grad():
            encoded = self.encoder(*raw)
        return (encoded,) if isinstance(encoded, Tensor) else tuple(encoded)

    def score_example(self, batch: int = 3) -> tuple[Tensor, ...]:
        """Example inputs of ``score``: unit noise, times over the range of the convention, encoded conditions."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(batch, *self.latent.shape, generator=generator)
        return (x, example_times(self.ref.time, batch), *self.encode(*self.raw_conditions(batch)))

    def capture(self) -> dict[str, TensorProgram]:
        """The tensor programs by part: ``score``, ``encoder`` (where there is one) and ``head.<name>``."""
        names = ["score", "encoder", *(f"head.{head}" for head in self.heads)]
        captured = {part: self.capture_part(part) for part in names}
        return {part: program for part, program in captured.items() if program is not None}

    def capture_part(self, part: str, energies: Mapping[str, EnergyNetwork] | None = None) -> TensorProgram | None:
        """One part by itself, None where there is nothing to compute (no encoder).

        Besides those of ``capture`` there are the derivatives, which a graph asks for when it needs them:

        ``score.divergence``                 (x, t, *encoded)        -> m, trace of dm/dx [n]
        ``score.jvp``                        (x, t, *encoded, probe) -> m, s^T (dm/dx) s [n], s = sign(probe)
        ``score.energy.grad:<energy>``       (x, t, *encoded, t of the energy [n], *values, p, q [n]) -> dE/dx
        ``score.energy.root.grad:<energy>``  the same of sqrt(2 E)

        The last two are gradients of E(x0) with x0 = p x + q m, through the network; ``energies`` has the energy by its
        name. x is always the network's input, already times c_in, and the derivative is taken in that x.
        """
        from scoregraph.models.capture import capture, exported  # the tracer takes a second to import

        name = f"{self.ref.name}.{part}"
        if part == "score":
            return capture(self.score, self.score_example(), name=name)
        if part == "encoder":
            if self.encoder is None:
                return None
            # Tracing by name keeps all tensors of a tuple: an encoder may answer several conditions.
            return capture(self.encoder, self.raw_conditions(3), name=name, trace=exported)
        if part.startswith("head."):
            head = part.removeprefix("head.")
            return capture(self.heads[head], self.score_example()[:1], name=f"{self.ref.name}.{head}")

        from scoregraph.models import gradients

        given = self.score_example()
        batch = len(given[0])
        if part == "score.divergence":
            return capture(gradients.Divergence(self.score), given, name=name, trace=gradients.differentiated)
        if part == "score.jvp":
            probe = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(2))
            module = gradients.ProbedDivergence(self.score)
            return capture(module, (*given, probe), name=name, trace=gradients.differentiated)
        derivative, _, chosen = part.partition(":")
        assert derivative in ("score.energy.grad", "score.energy.root.grad"), f"a network has no part {part!r}"
        energy = (energies or {})[chosen]
        rooted = derivative == "score.energy.root.grad"
        joint = gradients.JointEnergyGradient(self.score, energy.energy, len(given) - 2, rooted=rooted)
        p, q = torch.linspace(0.5, 1.0, batch), torch.linspace(-0.2, -0.6, batch)
        return capture(joint, (*given, *energy.example(batch)[1:], p, q), name=name, trace=gradients.differentiated)


def network(
    name: str,
    score: nn.Module,
    *,
    latent: Latent,
    prediction: Prediction,
    time: TimeConvention,
    conds: Sequence[CondInput] = (),
    encoder: nn.Module | None = None,
    heads: Mapping[str, nn.Module] | None = None,
    variance: bool = False,
) -> Network:
    """A ``Network`` with its reference: the fingerprint from the weights, head shapes by running the heads.

    With ``variance`` the score answers twice the channels of its latent: the prediction, then v of its variance.
    """
    heads = dict(heads or {})
    modules = [module.eval() for module in (score, encoder, *heads.values()) if module is not None]
    refs: list[HeadRef] = []
    for head, module in heads.items():
        with torch.no_grad():
            refs.append(HeadRef(head, tuple(module(torch.zeros(1, *latent.shape)).shape[1:])))
    ref = NetRef(
        name=name,
        fingerprint=fingerprint(*modules),
        latent=latent,
        prediction=prediction,
        time=time,
        conds=tuple(conds),
        heads=tuple(refs),
        variance=variance,
    )
    return Network(ref, score, encoder, MappingProxyType(heads))


def fingerprint(*modules: nn.Module, text: str = "") -> str:
    """16 hex digits of SHA-256 over the structure (``repr``) and every parameter and buffer: name, dtype, shape, bytes,
    and over ``text``, what else the answer depends on.

    Two modules whose ``forward`` differs although ``repr``, names and weights agree have the same fingerprint.
    """
    digest = hashlib.sha256(text.encode())
    for module in modules:
        digest.update(repr(module).encode())
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for name, value in sorted(tensors.items()):
            digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


_TIME_RANGE: dict[str, tuple[float, float]] = {
    "timestep": (999.0, 1.0),
    "sigma": (14.0, 0.02),
    "c_noise": (1.0, -1.5),
    "flow": (1.0, 0.02),
    "flow1000": (1000.0, 20.0),
    "angle": (1.5, 0.02),
    "none": (0.0, 0.0),
}
"""Typical times per convention, from noise to data, for examples."""


def example_times(convention: TimeConvention, batch: int) -> Tensor:
    """Times over the range of a convention, from noise to data: [batch]."""
    low, high = _TIME_RANGE[convention]
    return torch.linspace(low, high, batch)


def example_values(conds: Sequence[CondInput], batch: int, *, null: bool = False) -> tuple[Tensor, ...]:
    """Example values of each condition: the null value, or values within its bounds. Shapes [batch, *shape]."""
    return tuple(_example(cond, batch, null) for cond in conds)


def _example(cond: CondInput, batch: int, null: bool) -> Tensor:
    dtype = DTYPES[cond.dtype]
    if null:
        return torch.full((batch, *cond.shape), cond.null or 0.0).to(dtype)
    if cond.low is None and cond.high is None and cond.dtype == "f32":
        return torch.randn(batch, *cond.shape, generator=torch.Generator().manual_seed(1))
    low = 0.0 if cond.low is None else cond.low
    high = low + 1.0 if cond.high is None else cond.high
    values = torch.linspace(low, high, batch).reshape(batch, *[1] * len(cond.shape))
    return values.expand(batch, *cond.shape).to(dtype).contiguous()
