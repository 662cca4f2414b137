"""Plans on disk: what is written is read back, by Arrow readers too, and what was damaged is an error with a code."""

from __future__ import annotations

import json
import os
import random
import shutil

import numpy as np
import pyarrow as pa
import pytest

import scoregraph as sg
from scoregraph.errors import CannotWrite, PlanCorrupt, PlanMissing, PlanVersion
from scoregraph.plan import files
from scoregraph.plan.schema import Plan


def test_a_saved_plan_is_read_back(toy_plan, saved):
    loaded = sg.load(saved)
    assert loaded.plan == toy_plan.plan
    assert dict(loaded.stages) == dict(toy_plan.stages)
    assert list(loaded.stages) == list(toy_plan.stages)
    assert str(loaded.stages) == str(toy_plan.stages)
    np.testing.assert_array_equal(loaded.run(tilt=0.5, seed=3)["sample"], toy_plan.run(tilt=0.5, seed=3)["sample"])


def test_saving_again_gives_the_same_bytes(saved, tmp_path):
    again = sg.load(saved).save(tmp_path / "again")
    for name in ("plan.json", "constants.arrow"):
        assert (again / name).read_bytes() == (saved / name).read_bytes()


def test_the_json_is_one_call_a_line(toy_plan, saved):
    text = (saved / "plan.json").read_text()
    calls = [call for segment in toy_plan.plan.segments for call in segment.calls]
    lines = [json.loads(line.rstrip(",")) for line in text.splitlines() if line.startswith('   {"op"')]
    assert [line["op"] for line in lines] == [call.op for call in calls]


def test_arrow_reads_the_constants(toy_plan, saved):
    with pa.memory_map(str(saved / "constants.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
    rows = table.to_pylist()[1:]  # the first row is the padding that aligns the others
    assert [row["name"] for row in rows] == [c.name for c in toy_plan.plan.constants]
    whole = (saved / "constants.arrow").read_bytes()
    weights = {}
    for row, constant in zip(rows, toy_plan.plan.constants, strict=True):
        assert constant.offset % 64 == 0
        assert row["dtype"] == constant.dtype
        assert tuple(row["shape"]) == constant.shape
        assert whole[constant.offset : constant.offset + constant.nbytes] == row["data"][: constant.nbytes]
        weights[row["name"]] = np.frombuffer(row["data"], "<f4", constant.nbytes // 4).reshape(row["shape"])
    import toys

    score = toys.network().score
    np.testing.assert_array_equal(weights["toy.score.enter.weight"], score.enter.weight.numpy())
    np.testing.assert_array_equal(weights["toy.score.leave.bias"], score.leave.bias.numpy())
    (loop,) = toy_plan.plan.tables
    assert weights["table.steps"].shape == (loop.rows, len(loop.columns))


@pytest.mark.parametrize("sizes", [[], [0], [1], [3, 5, 7], [64] * 40, [1000, 1]])
def test_constants_of_any_number_and_size_are_aligned(sizes):
    from scoregraph.plan.draft import Drafter

    d = Drafter("sizes", "reference")
    d.begin("once")
    arrays = [np.arange(n, dtype=np.float32) + i for i, n in enumerate(sizes)]
    for array in arrays:
        d.constant(array, f"c{len(array)}")
    draft = d.build()
    plan, data = files.lay_out(draft.plan, draft.arrays)
    for constant in plan.constants:
        assert constant.offset % 64 == 0
        assert constant.offset + constant.nbytes <= len(data)
        np.testing.assert_array_equal(files.read_constant(constant, data), draft.arrays[constant.id])


def test_a_save_that_fails_leaves_the_old_plan(toy_plan, saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir() if path.is_file()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "plan_json", full)
    with pytest.raises(CannotWrite, match=r"SG504.*No space left"):
        toy_plan.save(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir() if path.is_file()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["plan"], "nothing is left lying about"


def test_a_save_replaces_a_plan_and_nothing_else(toy_plan, saved, tmp_path):
    (saved / "stages" / "999-old.txt").write_text("old")
    toy_plan.save(saved)
    assert not (saved / "stages" / "999-old.txt").exists()
    mine = tmp_path / "photos"
    mine.mkdir()
    (mine / "cat.png").write_text("cat")
    with pytest.raises(PlanCorrupt, match="holds something else"):
        toy_plan.save(mine)
    assert (mine / "cat.png").read_text() == "cat"
    with pytest.raises(PlanCorrupt, match="holds something else"):
        toy_plan.save(mine / "cat.png")
    with pytest.raises(CannotWrite, match="SG504"):
        toy_plan.save(mine / "cat.png" / "below")


def test_stages_of_any_name_are_kept_in_order(toy_plan, tmp_path):
    names = [f"a/b: {i} % ü" for i in range(120)] + ["../../up", ".hidden"]
    files.save(toy_plan.plan, bytes(toy_plan._constants), {name: name for name in names}, tmp_path / "p")
    assert list(files.load_stages(tmp_path / "p").items()) == [(name, name) for name in names]
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def edited(saved, change) -> None:
    body = (saved / "plan.json").read_text()
    changed = change(body)
    assert changed != body
    (saved / "plan.json").write_text(changed)


DAMAGE = {
    "truncated json": (lambda s: edited(s, lambda t: t[: len(t) // 2]), PlanCorrupt, "not JSON"),
    "an edited number": (lambda s: edited(s, lambda t: t.replace('"site": 1', '"site": 2')), PlanCorrupt, "digest"),
    "an unknown field": (lambda s: edited(s, lambda t: t.replace('"name"', '"nom"', 1)), PlanCorrupt, "digest"),
    "another version": (
        lambda s: edited(s, lambda t: t.replace('"version": 3', '"version": 4')),
        PlanVersion,
        "version 3",
    ),
    "another format": (
        lambda s: edited(s, lambda t: t.replace("scoregraph-plan", "something")),
        PlanCorrupt,
        "not a scoregraph plan",
    ),
    "a list": (lambda s: edited(s, lambda t: "[]"), PlanCorrupt, "not a scoregraph plan"),
    "empty": (lambda s: edited(s, lambda t: ""), PlanCorrupt, "not JSON"),
    "a long number": (lambda s: edited(s, lambda t: "9" * 5000), PlanCorrupt, "not JSON"),
    "deep lists": (lambda s: edited(s, lambda t: "[" * 100_000), PlanCorrupt, "not JSON"),
    "not text": (lambda s: (s / "plan.json").write_bytes(b"\xff\xfe\x00"), PlanCorrupt, "UTF-8"),
    "no plan.json": (lambda s: (s / "plan.json").unlink(), PlanMissing, "holds no plan.json"),
    "no constants": (lambda s: (s / "constants.arrow").unlink(), PlanCorrupt, "constants.arrow is missing"),
    "empty constants": (lambda s: (s / "constants.arrow").write_bytes(b""), PlanCorrupt, "not the one"),
    "truncated constants": (lambda s: os.truncate(s / "constants.arrow", 700), PlanCorrupt, "not the one"),
    "constants of another plan": (
        lambda s: (s / "constants.arrow").write_bytes(bytes(4096)),
        PlanCorrupt,
        "not the one",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(saved, case):
    damage, error, message = DAMAGE[case]
    damage(saved)
    with pytest.raises(error, match=message) as caught:
        sg.load(saved)
    assert str(saved) in str(caught.value)


def test_a_signed_plan_must_still_follow_the_schema(toy_plan):
    """Whoever knows the digest can sign anything; the schema is checked all the same."""
    body = toy_plan.plan.model_copy(update={"name": 3})
    with pytest.warns(UserWarning, match="serializ"):
        text = files.plan_json(body)
    with pytest.raises(PlanCorrupt, match=r"name: Input should be a valid string"):
        files.parse_plan(text, "plan.json")


def test_damaged_stages_do_not_keep_a_plan_from_running(toy_plan, saved):
    (saved / "stages" / "000-graph.txt").write_bytes(b"\xff")
    (saved / "stages" / "nonsense.txt").write_text("x")
    assert "nonsense" not in sg.load(saved).stages
    shutil.rmtree(saved / "stages")
    loaded = sg.load(saved)
    assert loaded.stages == {}
    np.testing.assert_array_equal(loaded.run(tilt=0.5)["sample"], toy_plan.run(tilt=0.5)["sample"])


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to three bytes changed, removed, repeated or inserted."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(out))
        kind = rng.randrange(5)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.randrange(256)
        elif kind == 2:
            del out[at : at + rng.randint(1, 40)]
        elif kind == 3:
            out[at:at] = out[max(0, at - 20) : at]
        else:
            out[at:at] = rng.choice([b"0", b"-", b"9" * 30, b"null", b"\n", b" ", b'"', b"\xff", b"{}"])
        out = out or bytearray(b"x")
    return bytes(out)


@pytest.mark.parametrize("name", ["plan.json", "constants.arrow"])
def test_five_thousand_mutations_each_are_errors_or_change_nothing(toy_plan, saved, name):
    rng = random.Random(7)
    whole = (saved / name).read_bytes()
    expected = toy_plan.run(tilt=0.5, seed=3)["sample"]
    refused = 0
    for _ in range(5000):
        (saved / name).write_bytes(mutated(whole, rng))
        try:
            plan = sg.load(saved)
        except (PlanCorrupt, PlanVersion, PlanMissing):
            refused += 1
            continue
        assert isinstance(plan.plan, Plan)
        np.testing.assert_array_equal(plan.run(tilt=0.5, seed=3)["sample"], expected)
    assert refused >= 4750
