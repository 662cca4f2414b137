"""The network ``terrain``: heightfields of 128 x 128, conditioned on a difficulty from 1 to 100.

A 10.46 M-parameter ADM U-Net that was distilled into a consistency model, from the package
adaptive-terrain-diffusion 0.4.2 (MIT), which carries it as ONNX. The architecture is written in ``adm``; only the
weights are read from the file. What the ONNX graph computes around the network (read off its nodes) is

    D(x, sigma) = clip(c_skip x + c_out F(c_in x, ln(sigma) / 4, difficulty), -1, 1)
    c_skip = sd^2 / ((sigma - sigma_min)^2 + sd^2)      c_out = (sigma - sigma_min) sd / sqrt(sigma^2 + sd^2)
    c_in = 1 / sqrt(sigma^2 + sd^2)                     sd = 0.5, sigma_min = 0.002

which is the prediction ``consistency(sigma_data=0.5, sigma_min=0.002)`` followed by a clip. The clip is not linear, so
it is not part of the prediction; the head clips to the same range, which gives the same heights after one step.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scoregraph.errors import MissingPackage, WrongWeights
from scoregraph.graph.prediction import Consistency
from scoregraph.graph.values import CondInput, Latent
from scoregraph.models.adm import ADMConfig, ADMUNet
from scoregraph.models.network import Network, network

SIZE = 128
CONFIG = ADMConfig(
    in_channels=1,
    out_channels=1,
    channels=32,
    multipliers=(1, 1, 2, 3, 4),
    blocks=4,
    attention=(2, 3, 4),
    head_width=32,
    label_width=1,
)
HIGHEST = 22.16864013671875
"""The height in metres that the state 1 stands for."""
BEND = 0.1
"""The height in metres below which the scale is linear and above which it is logarithmic."""

_PACKAGE = "terrain_diffusion"
_FILE = "weights/terrain_consistency_unet_difficulty100.onnx"
_COMMAND = "pip install --no-deps adaptive-terrain-diffusion==0.4.2"


class Difficulty(nn.Module):
    """The encoder: a difficulty of 1…100 [B] to the feature (d - 1) / 99 [B, 1]."""

    def forward(self, difficulty: Tensor) -> Tensor:
        """[B] to [B, 1]."""
        return ((difficulty - 1.0) / 99.0)[:, None]


class Heights(nn.Module):
    """The head: a state in -1…1 [B, 1, 128, 128] to heights in metres above the lowest point [B, 128, 128].

    The scale is h = 0.1 sinh(u asinh(221.7)) with u in 0…1, so that gentle slopes keep their share of it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, 128, 128] to [B, 128, 128]."""
        u = (0.5 * (x + 1.0)).clamp(0.0, 1.0).reshape(-1, SIZE, SIZE)
        bent = u * math.asinh(HIGHEST / BEND)
        heights = (BEND / 2) * (bent.exp() - (-bent).exp())  # sinh, from what every backend has
        heights = heights.clamp(0.0, HIGHEST)
        return heights - heights.amin(dim=(1, 2), keepdim=True)


def load() -> Network:
    """The network with its weights.

    ``difficulty`` may be any number from 1 to 100. The network was never trained without it, so the null condition is
    a choice, difficulty 1: guidance with a scale above 1 then leads away from the easiest terrain.

    Raises ``MissingPackage`` and ``WrongWeights``.
    """
    score = ADMUNet(CONFIG).requires_grad_(False)
    load_weights(score, weights_file())
    return network(
        "terrain",
        score,
        latent=Latent("kappa", (1, SIZE, SIZE)),
        prediction=Consistency(sigma_data=0.5, sigma_min=0.002),
        time="c_noise",
        conds=[CondInput("difficulty", (), low=1.0, high=100.0, null=1.0)],
        encoder=Difficulty(),
        heads={"terrain": Heights()},
    )


def weights_file() -> Path:
    """The ONNX file of the installed package. The package itself, which wants onnxruntime, is never imported."""
    found = importlib.util.find_spec(_PACKAGE)
    folders = list(found.submodule_search_locations or ()) if found else []
    for folder in folders:
        file = Path(folder) / _FILE
        if file.is_file():
            return file
    raise MissingPackage(what="the network 'terrain'", package="adaptive-terrain-diffusion", command=_COMMAND)


def load_weights(score: ADMUNet, file: Path) -> None:
    """Fill ``score`` from the ONNX file, by name, and the group norms by their place (see ``_norms``)."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise MissingPackage(what="the network 'terrain'", package="onnx", command="pip install onnx") from None

    graph = onnx.load(str(file)).graph
    norms = [name for name, module in score.named_modules() if isinstance(module, nn.GroupNorm)]
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    prefix = "network."
    weights = {name.removeprefix(prefix): value for name, value in constants.items() if name.startswith(prefix)}
    weights |= _norms(graph.node, constants, norms)

    expected = {name: tuple(value.shape) for name, value in score.state_dict().items()}
    given = {name: value.shape for name, value in weights.items()}
    if given != expected:
        odd = sorted(name for name in given.keys() | expected.keys() if given.get(name) != expected.get(name))
        problem = f"{len(odd)} parameters differ, first {odd[0]!r}"
        raise WrongWeights(file=file.name, name="terrain", problem=problem, help=f"run: {_COMMAND}")
    score.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})


def _norms(nodes: Iterable[Any], constants: dict[str, np.ndarray], order: list[str]) -> dict[str, np.ndarray]:
    """Weights and biases of the group norms.

    The export wrote each group norm as InstanceNormalization, Reshape, Mul by the weight, Add of the bias; weight and
    bias became nameless constants [C, 1, 1]. Nodes stand in the order of execution, and ``adm`` defines its norms in
    the order in which it calls them: ``order`` is that list of names.
    """
    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    found: dict[str, np.ndarray] = {}
    norms = iter(order)
    for node in nodes:
        if node.op_type != "InstanceNormalization":
            continue
        name = next(norms, "one norm too many")
        value = node.output[0]
        for operation, parameter in (("Reshape", None), ("Mul", "weight"), ("Add", "bias")):
            reader = next(reader for reader in readers[value] if reader.op_type == operation)
            if parameter:
                found[f"{name}.{parameter}"] = constants[reader.input[1]].reshape(-1)
            value = reader.output[0]
    return found
