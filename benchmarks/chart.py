"""Draw and tabulate committed results: ``python benchmarks/chart.py [--isa avx2] [--threads 2]``.

Writes ``docs/images/benchmarks.png``, one panel per case with the engines' medians and their 10th to 90th percentiles,
and prints the ratios as a table of Markdown: how many times faster ours is than each peer that it is compared with.
Only what is in ``results/`` is shown; nothing is measured here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs/images/benchmarks.png"
ORDER = (
    "dit-384x12x256", "dit-768x4x256", "dit-1152x4x256", "dit-256x8x16", "dit-384x12x64", "dit-128x4x64",
    "dit-384x12x64-loop20", "terrain", "unet-sd15-320", "vae-decode-128", "minilm-b1", "minilm-b32",
)  # fmt: skip
SHOWN = ("dit-384x12x256", "dit-384x12x64-loop20", "terrain", "unet-sd15-320", "vae-decode-128", "minilm-b32")
EIGHT_BITS = ("scoregraph w8a8", "scoregraph w8a7")
"""Bytes in products and float32 in attention: the latter where the processor has no VNNI."""

OURS, THEIRS, PALE = "#1b6ca8", "#8c8c8c", "#c9c9c9"

Engines = Mapping[str, Mapping[str, Any]]


def main(
    isa: Annotated[str | None, typer.Option(help="Instruction set of the results; this machine's by default.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of the results in the picture.")] = 2,
    results: Annotated[Path, typer.Option(help="Where results are.")] = HERE / "results",
    picture: Annotated[Path, typer.Option(help="Where the picture goes.")] = PICTURE,
) -> None:
    """Draw one number of threads, print the ratios of all."""
    if isa is None:
        from scoregraph import _native

        isa = _native.isa()
    for count in (2, 1):
        found = load(results, isa, count)
        if not found:
            continue
        print(f"\n{isa}, {count} threads: times faster than the peer, by medians\n")
        print("\n".join(table(found)))
        if count == threads:
            draw({name: result for name, result in found.items() if name in SHOWN}, picture)
            print(f"\nwrote {picture}")


def load(folder: Path, isa: str, threads: int) -> dict[str, Any]:
    """The results of every case, in the order of ``ORDER``."""
    paths = {name: folder / f"{name}-{isa}-{threads}t.json" for name in ORDER}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


def mine(engines: Engines, form: str) -> tuple[str, float, float] | None:
    """Our fastest engine of a format: its name, milliseconds and SQNR."""
    measured = {name: each for name, each in engines.items() if "median_ms" in each}
    names = [name for name, each in measured.items() if name.startswith("scoregraph") and each["format"] == form]
    name = min(names, key=lambda each: engines[each]["median_ms"], default=None)
    return None if name is None else (name, engines[name]["median_ms"], engines[name]["sqnr_db"])


def peer(engines: Engines, *names: str) -> float | None:
    """Milliseconds of the fastest of some peers, or of all that compute in the format ``names[0]``."""
    times = [
        e["median_ms"]
        for n, e in engines.items()
        if "median_ms" in e and not n.startswith("scoregraph") and (n in names or e["format"] in names)
    ]
    return min(times, default=None)


def table(found: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown: a row per case. An empty cell was not measured."""
    header = (
        "case", "float32 ms", "÷ best float32 peer", "8 bits ms (dB)", "÷ ONNX Runtime int8", "÷ OpenVINO int8",
        "÷ torch.compile", "fastest integer ms (dB)", "÷ ONNX Runtime int8", "bf16 ms (dB)", "÷ torch.compile bf16",
    )  # fmt: skip
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for name, result in found.items():
        engines = result["engines"]
        full, half, fastest = (mine(engines, form) for form in ("float32", "bf16", "integer"))
        eight = mine({each: engines[each] for each in EIGHT_BITS if each in engines}, "integer")
        cells = [
            name,
            f"{full[1]:.2f}" if full else "",
            _times(peer(engines, "float32"), full),
            _shown(eight),
            _times(peer(engines, "ONNX Runtime dynamic int8"), eight),
            _times(peer(engines, "OpenVINO int8"), eight),
            _times(peer(engines, "torch.compile"), eight),
            _shown(fastest),
            _times(peer(engines, "ONNX Runtime dynamic int8"), fastest),
            _shown(half),
            _times(peer(engines, "torch.compile bf16"), half),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _shown(ours: tuple[str, float, float] | None) -> str:
    return "" if ours is None else f"{ours[1]:.2f} ({ours[0].removeprefix('scoregraph ')}, {ours[2]:.0f})"


def _times(theirs: float | None, ours: tuple[str, float, float] | None) -> str:
    return "" if theirs is None or ours is None else f"{theirs / ours[1]:.2f}×"


def draw(found: Mapping[str, Any], picture: Path) -> None:
    """A panel per case: bars for engines, fastest first, ours in colour, formats other than float32 hatched."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure, panels = pyplot.subplots(rows, columns, figsize=(5.2 * columns, 3.3 * rows), squeeze=False)
    for panel in panels.flat[len(found) :]:
        panel.set_visible(False)
    for panel, (name, result) in zip(panels.flat, found.items(), strict=False):
        engines = chosen(result["engines"])
        for place, (engine, each) in enumerate(engines):
            ours = engine.startswith("scoregraph")
            colour = OURS if ours else THEIRS if each["format"] == "float32" else PALE
            spread = [[each["median_ms"] - each["p10_ms"]], [each["p90_ms"] - each["median_ms"]]]
            hatch = "" if each["format"] == "float32" else "///"
            panel.barh(
                place, each["median_ms"], color=colour, edgecolor="white", hatch=hatch, xerr=spread,
                error_kw={"ecolor": "#444444", "elinewidth": 0.8},
            )  # fmt: skip
            loss = "" if each["format"] == "float32" else f", {each['sqnr_db']:.0f} dB"
            panel.text(each["p90_ms"], place, f"  {each['median_ms']:.3g}{loss}", va="center", fontsize=7)
        panel.set_yticks(range(len(engines)), [engine for engine, _ in engines], fontsize=7)
        panel.invert_yaxis()
        panel.set_xlim(0, 1.35 * max(each["p90_ms"] for _, each in engines))
        panel.set_title(f"{name}, ms", fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
    first = next(iter(found.values()))
    machine = f"{first['processor']}, {first['isa']}, {first['threads']} threads"
    figure.suptitle(f"{machine}: medians, 10th to 90th percentile; dB: SQNR to float64", fontsize=9)
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=140)


def chosen(engines: Engines) -> list[tuple[str, Mapping[str, Any]]]:
    """Our fastest engine of every format and all peers but eager torch, fastest first."""
    ours = {each[0] for form in ("float32", "integer", "bf16") if (each := mine(engines, form))}
    kept = [
        (name, each)
        for name, each in engines.items()
        if "median_ms" in each and (name in ours if name.startswith("scoregraph") else name != "torch eager")
    ]
    return sorted(kept, key=lambda pair: pair[1]["median_ms"])


if __name__ == "__main__":
    typer.run(main)
