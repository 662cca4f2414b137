"""Sixteen thousand plans that somebody damaged: each gives an error or an answer, and none takes the process down.

Two plans are damaged in turn, a small network's and one of loops whose rows differ and that go round after round; in
their text, and in the constants that hold their tables.

The mutants run in child processes, a few hundred each, so that a crash is seen and its mutant is named.
"""

from __future__ import annotations

import json
import math
import os
import random
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.native

MUTANTS, PER_PROCESS = 16_000, 4_000
MOST_STEPS, MOST_BYTES = 200, 2**28
EXTREMES: list[Any] = [
    *(0, 1, 2, -1, 3, 7, 63, 64, 65, 4096, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**46, 2**53),
    *(2**63 - 1, 2**63, 2**64 - 1, 2**64, 1e308, -1e308, 1e-308, 0.5, None, True, False),
    *("B", "2B", "0B", "999999999B", "99999999999999999999B", "b0", "b1", "b8", "b9", "b13", "c0", "c4", "b99", "c99"),
    *("", "\u0000", "i64", "u8", "f32", "fixed", "batch", "n16", "oc8", "plain", "Infinity"),
    *([], {}, [0, 0], [1, 1], [2**40, 2**40], [["const", 1e39]]),
]


STRANGE = (math.nan, math.inf, -1.0, -0.0, 0.5, 1.0, 2.0, 3.0, 63.0, 64.0, 2.0**24, 2.0**31, 2.0**63, 3e38)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a JSON document."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found += places(inner, (*path, index))
    return found


def parent_of(body: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        body = body[key]
    return body


def mutate(body: Any, rng: random.Random) -> None:
    """One to three edits: a value replaced, deleted, doubled, renamed, nudged, swapped with another, or aliased."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        paths = places(body)
        path = rng.choice(paths)
        target, key = parent_of(body, path), path[-1]
        kind = rng.randrange(8)
        if kind == 0:
            del target[key]
        elif kind in (1, 2):
            target[key] = rng.choice(EXTREMES)
        elif kind == 3 and isinstance(target, list):
            target.insert(rng.randrange(len(target) + 1), json.loads(json.dumps(target[key])))
        elif kind == 4 and isinstance(target, dict):
            target[rng.choice(("x", "y", "w", "act", "offset", "extra", "r2", "p1"))] = target.pop(key)
        elif kind == 5 and isinstance(target[key], int) and not isinstance(target[key], bool):
            target[key] += rng.choice((-64, -16, -8, -1, 1, 8, 16, 64, 128))
        elif kind == 6:
            other = rng.choice([p for p in paths if p[: len(path)] != path and path[: len(p)] != p] or [path])
            target[key] = json.loads(json.dumps(parent_of(body, other)[other[-1]]))
        else:
            # Alias: one operand of some call becomes another buffer.
            count = max(1, len(body["buffers"])) if isinstance(body.get("buffers"), list) else 1
            operands = [p for p in paths if len(p) > 1 and p[-2] in ("ins", "outs")]
            if operands:
                alias = rng.choice(operands)
                parent_of(body, alias)[alias[-1]] = f"b{rng.randrange(count)}"


class TooLongError(Exception):
    """A damaged plan may go on for hours, which is no fault: its run is ended from outside."""


def stop(done: int, _total: int) -> None:
    if done > MOST_STEPS:
        raise TooLongError


@dataclass(frozen=True)
class Subject:
    """A plan to damage, what it is run with, and what it gives."""

    plan: Any
    inputs: dict[str, np.ndarray]
    exact: dict[str, np.ndarray]


def subjects(seeds: np.ndarray) -> list[Subject]:
    import looping_plan
    import small_plan

    level = np.array([[0.5], [-1.0]], np.float32)
    x = small_plan.expected(level, seeds)
    several = looping_plan.some_inputs(len(seeds))
    return [
        Subject(small_plan.small_plan(), {"level": level}, {"x": x, "half": x[:, ::2]}),
        Subject(looping_plan.looping_plan(), several, looping_plan.expected(several, seeds)),
    ]


def damaged(subject: Subject, rng: random.Random) -> tuple[bytes, bytes]:
    """The text and constants of a plan, one of them spoilt."""
    constants, text = subject.plan.constants, subject.plan.json()
    kind = rng.random()
    if kind < 0.05:
        constants = constants[: rng.randrange(len(constants))]
    elif kind < 0.15:
        # Numbers become others; those of tables say which calls run, and are read while they do.
        cells = bytearray(constants)
        for _ in range(rng.randrange(1, 4)):
            constant = rng.choice(subject.plan.body["constants"])
            at = constant["offset"] + 4 * rng.randrange(constant["nbytes"] // 4)
            struct.pack_into("<f", cells, at, rng.choice(STRANGE))
        constants = bytes(cells)
    elif kind < 0.25:
        spoilt = bytearray(text)
        for _ in range(rng.randrange(1, 4)):
            spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
        text = bytes(spoilt[: rng.choice((len(spoilt), rng.randrange(len(spoilt))))])
    else:
        body = subject.plan.mutable()
        mutate(body, rng)
        text = json.dumps(body).encode()
    return text, constants


def run_mutants(first: int, last: int) -> dict[str, int]:
    """Runs mutants ``first … last-1`` in this process; says before each which it is, so that a crash names it."""
    from scoregraph import _native

    seeds = np.array([3, 4], np.uint64)
    both = subjects(seeds)
    counts = {"refused": 0, "large": 0, "ran": 0, "right": 0}
    for number in range(first, last):
        os.write(1, f"{number}\n".encode())
        subject = both[number % 2]
        text, constants = damaged(subject, random.Random(number))
        made = {name: np.empty(value.shape, np.float32) for name, value in subject.exact.items()}
        try:
            program = _native.Program(text, constants, 1 + number // 2 % 2)
            if sum(program.memory(2).values()) > MOST_BYTES:
                counts["large"] += 1  # it may have them, and takes its time to clear them
                continue
            program.run(subject.inputs, made, seeds, stop)
        except (_native.NativeError, ValueError, TooLongError) as error:
            if error.args and error.args[0] == "internal":
                raise RuntimeError(f"mutant {number} found a fault of ours") from error
            counts["refused"] += 1
            continue
        counts["ran"] += 1
        counts["right"] += all(np.abs(made[name] - value).max() <= 1e-4 for name, value in subject.exact.items())
    return counts


@pytest.mark.parametrize("first", range(0, MUTANTS, PER_PROCESS))
def test_a_damaged_plan_is_an_error_or_runs_and_never_crashes(first):
    code = f"import test_untrusted_plans as t; print(t.run_mutants({first}, {first + PER_PROCESS}))"
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    child = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        timeout=280,
        check=False,
    )
    lines = child.stdout.splitlines()
    assert child.returncode == 0, f"mutant {lines[-1] if lines else '?'}: {child.returncode}\n{child.stderr[-2000:]}"
    counts = json.loads(lines[-1].replace("'", '"'))
    # A mutation of a name, a comment or an unread constant leaves the plan right, and most others are refused.
    assert counts["refused"] > PER_PROCESS // 2
    assert counts["right"] > PER_PROCESS // 100
    print(counts)
