"""Spared layers: the search finds what measuring each would, within its budget, and plans keep what it found."""

from __future__ import annotations

import numpy as np
import pytest
import quantized_networks as q
from hypothesis import given
from hypothesis import strategies as st

import scoregraph as sg
from scoregraph.passes.quantize.spare import LOST, NEGLIGIBLE, Layer, Measurement, most_sensitive, noise_of_samples

LABEL = np.linspace(-1.0, 1.0, 12).reshape(4, 3)

NETWORKS = st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1).map(lambda u: u**6)), min_size=1, max_size=40)


def search(network, share: float) -> tuple[list[str], int]:
    """The names that are found where noise adds up, and the number of measurements."""
    layers = [Layer(str(i), cost) for i, (cost, _) in enumerate(network)]
    measured: list[int] = []
    found = most_sensitive(
        layers,
        share,
        lambda names: sum(network[int(name)][1] for name in names),
        lambda count, _: measured.append(count),
    )
    assert all(len(each.layers) == 1 for each in found)
    return [each.layers[0].name for each in found], len(measured)


@given(NETWORKS, st.floats(0, 1))
def test_it_finds_what_measuring_each_would(network, share):
    """The most noise for each multiply-add first, as long as it fits; what hardly matters not at all."""
    found, _ = search(network, share)
    total = sum(noise for _, noise in network)
    left = share * sum(cost for cost, _ in network)
    ratios = [network[int(name)][1] / network[int(name)][0] for name in found]
    assert ratios == sorted(ratios, reverse=True)
    for name in found:
        left -= network[int(name)][0]
    assert left >= -1e-9
    for i, (cost, noise) in enumerate(network):
        if str(i) not in found and noise > NEGLIGIBLE * total:
            assert cost > left, "it would still fit"


def test_a_few_loud_layers_are_found_without_measuring_each():
    rng = np.random.default_rng(0)
    network = [(1, noise) for noise in rng.random(256) * 1e-6]
    for at in (3, 100, 101, 250):
        network[at] = (1, 1.0 + at)
    found, measured = search(network, 4 / 256)
    assert found == ["250", "101", "100", "3"]
    assert measured < 64


def test_a_set_bounds_each_of_its_layers():
    assert Measurement((Layer("a", 2), Layer("b", 8)), 4.0).bound == 2.0


def compiled(recipe: str, **options) -> sg.CompiledPlan:
    return sg.compile(q.guided("image"), device="reference", quant=recipe, **{"use_cache": False, **options})


def test_spared_layers_are_named_and_lose_nothing():
    told: list[str] = []
    plan = compiled("w8a8:spare=60%,smooth=no", on_stage=told.append)
    stage = next(stage for stage in plan.plan.stages if stage.name == "insert-quantization")
    spared = [miss.partition(": ")[0] for miss in stage.misses if miss.endswith("it is spared: it loses most")]
    assert spared
    assert all(name in plan.stages["spare"] for name in spared)
    assert stage.rewrites >= 1
    assert any(text.startswith("measuring ") for text in told)
    exact = compiled("none").run(label=LABEL)["sample"]
    before = compiled("w8a8:smooth=no").run(label=LABEL)["sample"]
    assert q.sqnr(plan.run(label=LABEL)["sample"], exact) > q.sqnr(before, exact) + 1
    again = compiled("w8a8:spare=60%,smooth=no")
    assert again.stages["spare"] == plan.stages["spare"], "it is deterministic"


@pytest.mark.parametrize("kind", ["tokens", "image"])
def test_no_budget_measures_nothing(kind):
    plan = sg.compile(q.guided(kind), device="reference", quant="w8a8", use_cache=False)
    assert "spare" not in plan.stages


def test_samples_that_are_lost_count_as_the_most_noise():
    exact = [np.array([[3.0, 4.0], [1.0, 0.0]])]
    assert noise_of_samples(exact, exact) == 0.0
    assert noise_of_samples([np.array([[3.0, 4.5], [1.0, 0.0]])], exact) == pytest.approx(0.25 / 25 / 2)
    for lost in (np.nan, np.inf, 1e300):
        assert noise_of_samples([np.array([[3.0, lost], [1.0, 0.0]])], exact) == LOST / 2
    assert noise_of_samples([np.array([[1.0]])], [np.array([[0.0]])]) == LOST, "nothing was to be there"
