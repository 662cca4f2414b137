"""``scoregraph compare``: the numbers, and what the command prints and writes."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import quantized_networks as q

from scoregraph import cli, comparison

LABEL = np.linspace(-1.0, 1.0, 6).reshape(2, 3)


def test_every_recipe_is_measured_against_full_precision():
    recipes = ["w8a8", "w6a7", "w8a8:groups=2", "bf16"]
    told: list[str] = []
    found = comparison.compare(
        q.guided("image"),
        recipes,
        inputs={"label": LABEL},
        seed=3,
        batch=2,
        device="reference",
        use_cache=False,
        told=told.append,
    )
    assert told == ["none", *recipes]
    assert [row.recipe for row in found.rows] == ["none", "w8a8", "w6a7", "w8a8:groups=2"]
    assert found.refused.keys() == {"bf16"}
    assert found.refused["bf16"].startswith("convolutions have no bf16 form (4)")
    by_recipe = {row.recipe: row for row in found.rows}
    for recipe, got in found.results.items():
        row = by_recipe[recipe]
        assert row.sqnr == q.sqnr(got, found.exact)
        assert row.worst <= row.sqnr + 1e-9
        assert row.layers == 2
        assert row.kept >= 2
    assert by_recipe["w8a8"].sqnr > by_recipe["w6a7"].sqnr + 6
    assert by_recipe["w6a7"].weights == by_recipe["w8a8"].weights < by_recipe["none"].weights
    both = comparison.pairs(found, "w8a8")
    np.testing.assert_array_equal(both[0::2], found.exact)
    np.testing.assert_array_equal(both[1::2], found.results["w8a8"])


GRAPH = """
import sys
import quantized_networks as q

graph = q.guided("image", steps=2)
"""


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    (tmp_path / "image.py").write_text(GRAPH)

    def run(*args: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["scoregraph", *args])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out + err

    return run


def test_the_command_prints_a_table_or_json(command):
    common = ("compare", "image.py", "--device", "reference", "--set", "label=[0.5,0.25,-1]", "--batch", "1")
    status, text = command(*common, "--quant", "w8a8", "--quant", "bf16")
    assert status == 0
    assert "w8a8" in text
    assert "bf16 changes nothing: convolutions have no bf16 form (4)" in text
    status, text = command(*common, "--quant", "w8a8", "--json")
    body = json.loads(text)
    none, w8a8 = body["rows"]
    assert (status, none["sqnr"], body["output"]) == (0, None, "sample")
    assert w8a8["sqnr"] > 30


@pytest.mark.parametrize(
    ("args", "code"),
    [(["--quant", "w9a8"], "SG101"), (["--quant", "w8a8:block=5"], "SG411"), (["--picture", "x.gif"], "SG703"),
     (["--quant", "w8a8", "--picture", "x.png"], "SG703")],
)  # fmt: skip
def test_mistakes_are_told(command, args, code):
    status, text = command("compare", "image.py", "--device", "reference", "--set", "label=0", *args)
    assert status == 1
    assert f"error {code} " in text


def test_the_ranges_are_shown(command):
    status, text = command(
        "show", "image.py", "--device", "reference", "--quant", "w8a8:groups=2", "--stage", "quantization"
    )
    assert status == 0
    assert [row["site"] for row in json.loads(text)["ranges"]] == ["image.score.module.down", "image.score.module.up"]
