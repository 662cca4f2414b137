"""The terrain network against the published ONNX, run by ONNX Runtime."""

import importlib.util
import math
import sys

import numpy as np
import pytest
import torch

from scoregraph import errors, models
from scoregraph.models import terrain
from scoregraph.models.adm import ADMConfig, ADMUNet

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("terrain_diffusion") is None, reason="adaptive-terrain-diffusion is not installed"
)

SIGMAS = (0.002, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0, 80.0)


@pytest.fixture(scope="module")
def network():
    return models.load("terrain")


@pytest.fixture(scope="module")
def published():
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    file = str(terrain.weights_file())
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def relative_error(network, published, sigma, difficulty):
    """Largest difference between ``prediction`` around our network and the ONNX, over the largest output."""
    batch = len(difficulty)
    generator = torch.Generator().manual_seed(int(1000 * sigma) + batch)
    x = sigma * torch.randn(batch, 1, 128, 128, generator=generator)
    level = torch.tensor(difficulty)
    feeds = {"noisy": x, "sigma": torch.full((batch,), sigma), "difficulty": (level - 1) / 99}
    (expected,) = published.run(None, {key: value.numpy() for key, value in feeds.items()})
    prediction = network.ref.prediction
    p, q = prediction.to_x0(1.0, sigma)
    with torch.no_grad():
        time = torch.full((batch,), math.log(sigma) / 4)
        answer = network.score(x * prediction.c_in(1.0, sigma), time, *network.encode(level))
        got = (p * x + q * answer).clamp(-1, 1).numpy()
    return np.abs(got - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
@pytest.mark.parametrize("difficulty", [[50.0], [1.0, 100.0]], ids=["batch1", "batch2"])
def test_the_network_is_the_published_one(network, published, sigma, difficulty):
    assert relative_error(network, published, sigma, difficulty) <= 5e-5


@pytest.mark.slow
@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_network_is_the_published_one_everywhere(network, published, sigma):
    batches = [[1.0], [50.0], [100.0], [50.0, 1.0], [1.0, 25.0, 50.0, 75.0, 100.0]]
    found = [relative_error(network, published, sigma, difficulties) for difficulties in batches]
    assert max(found) <= 1e-4


def test_the_reference_says_what_the_network_is(network):
    ref = network.ref
    assert str(ref.latent) == "Latent[kappa, 1x128x128]"
    assert str(ref.prediction) == "consistency(sigma_data=0.5, sigma_min=0.002)"
    assert ref.time == "c_noise"
    assert [(c.name, c.shape, c.low, c.high, c.null) for c in ref.conds] == [("difficulty", (), 1.0, 100.0, 1.0)]
    assert [(head.name, head.shape) for head in ref.heads] == [("terrain", (128, 128))]
    assert sum(p.numel() for p in network.score.parameters()) == 10_456_545


def test_the_fingerprint_is_that_of_the_weights(network):
    assert len(network.ref.fingerprint) == 16
    assert models.load("terrain").ref == network.ref
    other = models.load("terrain").score
    with torch.no_grad():
        other.out[2].bias.add_(1e-6)
    assert models.network.fingerprint(other) != models.network.fingerprint(network.score)


def test_the_encoder_maps_1_to_0_and_100_to_1(network):
    (feature,) = network.encode(torch.tensor([1.0, 34.0, 100.0]))
    assert feature.shape == (3, 1)
    assert torch.allclose(feature[:, 0], torch.tensor([0.0, 1 / 3, 1.0]))


def test_the_head_is_the_published_scale(network):
    x = torch.linspace(-1.3, 1.3, 2 * 128 * 128).reshape(2, 1, 128, 128)
    got = network.heads["terrain"](x)
    u = np.clip((x.double().numpy()[:, 0] + 1) / 2, 0, 1)
    heights = np.clip(0.1 * np.sinh(u * np.arcsinh(22.16864013671875 / 0.1)), 0, 22.16864013671875)
    expected = heights - heights.min(axis=(1, 2), keepdims=True)
    assert got.shape == (2, 128, 128)
    assert np.abs(got.numpy() - expected).max() <= 1e-5 * expected.max()
    assert (got.amin(dim=(1, 2)) == 0).all()


def test_one_step_gives_a_smooth_field(network):
    """At sigma 80 the network alone makes terrain: neighbours differ far less than the field spans."""
    generator = torch.Generator().manual_seed(7)
    x = 80 * torch.randn(1, 1, 128, 128, generator=generator)
    p, q = network.ref.prediction.to_x0(1.0, 80.0)
    c_in = network.ref.prediction.c_in(1.0, 80.0)
    with torch.no_grad():
        answer = network.score(x * c_in, torch.tensor([math.log(80) / 4]), *network.encode(torch.tensor([40.0])))
        heights = network.heads["terrain"](p * x + q * answer)[0]
    assert 0.3 < heights.max() < 22.2
    assert heights.diff(dim=1).abs().mean() < 0.02 * heights.max()


def test_a_missing_weights_package_names_its_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.MissingPackage) as caught:
        models.load("terrain")
    assert "pip install --no-deps adaptive-terrain-diffusion==0.4.2" in str(caught.value)


def test_a_missing_onnx_names_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(errors.MissingPackage) as caught:
        models.load("terrain")
    assert "run: pip install onnx" in str(caught.value)


def test_weights_of_another_network_are_refused():
    pytest.importorskip("onnx")
    small = ADMUNet(ADMConfig(1, 1, 32, (1, 1), 1, (1,), 32, 1))
    with pytest.raises(errors.WrongWeights) as caught:
        terrain.load_weights(small, terrain.weights_file())
    assert "parameters differ" in str(caught.value)


@pytest.mark.slow
def test_every_part_is_captured_exactly(network):
    programs = network.capture()
    assert set(programs) == {"score", "encoder", "head.terrain"}
    assert max(max(program.report.proved.values()) for program in programs.values()) <= 1e-10
    inputs = network.score_example(2)
    with torch.no_grad():
        expected = network.score(*inputs)
    got = programs["score"](*inputs)
    assert float((got - expected).abs().max() / expected.abs().max()) <= 1e-5
