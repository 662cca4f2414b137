"""The built-in networks by name, the toy network, and an import without torch."""

import subprocess
import sys

import pytest
import torch

from scoregraph import errors, models
from scoregraph.graph.prediction import Flow
from scoregraph.models import toy
from scoregraph.models.capture import capture


def test_names_and_a_suggestion():
    assert models.names() == ("terrain", "toy")
    with pytest.raises(errors.UnknownName) as caught:
        models.load("terain")
    assert "did you mean 'terrain'?" in str(caught.value)
    assert "test_registry.py:" in str(caught.value)


def test_listing_the_names_does_not_import_torch():
    code = "import sys, scoregraph.models as m; m.names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_toy_network_is_the_same_every_time():
    network = models.load("toy")
    assert network.ref == models.load("toy").ref
    assert network.ref.fingerprint != toy.load(seed=1).ref.fingerprint
    assert str(network.latent) == "Latent[vp, 16]"
    null = network.raw_conditions(2, null=True)
    assert torch.equal(null[0], torch.zeros(2, 4))
    x = torch.randn(2, 16)
    conditional = network.score(x, torch.tensor([500.0, 500.0]), torch.ones(2, 4))
    blank = network.score(x, torch.tensor([500.0, 500.0]), *null)
    assert float((conditional - blank).abs().max()) > 0.1, "the condition matters"


def test_the_toy_network_comes_in_every_parameterization():
    network = toy.load(Flow(), space="flow", time="flow")
    assert (network.ref.prediction, network.latent.space, network.ref.time) == (Flow(), "flow", "flow")
    program = network.capture()["score"]
    assert set(program.report.operators) == {
        "aten.add.Tensor",
        "aten.linear.default",
        "aten.mul.Tensor",
        "aten.silu.default",
        "aten.unsqueeze.default",
    }


def test_an_encoder_that_passes_on_is_none():
    network = models.load("toy")
    raw = network.raw_conditions(3)
    assert all(given is got for given, got in zip(raw, network.encode(*raw), strict=True))
    assert float(raw[0].min()) == -1.0
    assert capture(network.score, network.score_example(1)).report.batch == (1, None)
