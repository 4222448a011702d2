"""Table and figure of what `gpu_check.py` measured.

python -m recipes.speed.gpu_report --output runs/gpu_check  # again, from its results
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.common.arguments import command, parse
from recipes.speed.gpu_parts import FLOOR, PRECISIONS
from sae_lens_bipolar.files.atomic import atomic_path, read_json, write_text


def write_report(output: Path) -> bool:
    """Write `results/gpu_check.md` and its figure and CSV in `report` from `results/steps-*.json`.

    Returns:
        Whether there was something to report.
    """
    found = [read_json(path) for path in sorted((output / "results").glob("steps-*.json"))]
    found.sort(key=lambda part: (PRECISIONS.index(part["precision"]), part["d_in"]))
    if not found:
        return False
    rows = [row for part in found for row in _rows(part)]
    write_text(output / "report/gpu_check.csv", _as_csv(rows))
    write_text(output / "results/gpu_check.md", _as_table(found))
    _draw(found, output / "report/gpu_check.png")
    return True


def _rows(part: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each contestant and each part of the floor."""
    where = {key: part[key] for key in ("precision", "shape", "d_in", "d_sae", "k", "batch")}
    rows = []
    for name, time in part["seconds"].items():
        size = part["extra_peak_bytes"].get(name)
        ms = {f"ms_{key}": f"{1000 * value:.3f}" for key, value in time.items()}
        memory = "" if size is None else f"{size / 2**20:.0f}"
        rows.append({**where, "name": name, **ms, "extra_peak_mib": memory})
    return rows


def _as_csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _as_table(found: Sequence[dict[str, Any]]) -> str:
    """Milliseconds by contestant, one line per precision and shape, and the ratios below."""
    names = list(dict.fromkeys(name for part in found for name in part["seconds"]))
    contestants = [name for name in names if name not in FLOOR]
    lines = ["Milliseconds of a training step, median:", ""]
    lines.append(
        "| precision | shape | " + " | ".join(contestants) + " | product + reading + Adam |"
    )
    lines.append("|---" * (len(contestants) + 3) + "|")
    for part in found:
        taken = part["seconds"]
        cells = [f"{1000 * taken[n]['median']:.2f}" if n in taken else "-" for n in contestants]
        floor = 1000 * sum(taken[name]["median"] for name in FLOOR)
        line = [part["precision"], part["shape"], *cells, f"{floor:.2f}"]
        lines.append("| " + " | ".join(line) + " |")
    lines += ["", "How many times as fast, median (smallest to largest of the pairs):", ""]
    lines += ["| precision | shape | ours | beside | ratio |", "|---|---|---|---|---|"]
    for part in found:
        for ours, others in part["speedup"].items():
            for other, ratio in others.items():
                spread = "{median:.2f} ({min:.2f} to {max:.2f})".format(**ratio)
                line = [part["precision"], part["shape"], ours, other, spread]
                lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines) + "\n"


def _draw(found: Sequence[dict[str, Any]], path: Path) -> None:
    """Bars of the median step: a row per precision, a panel per shape."""
    from matplotlib.figure import Figure

    precisions = list(dict.fromkeys(part["precision"] for part in found))
    shapes = list(dict.fromkeys(part["shape"] for part in found))
    figure = Figure(figsize=(1 + 4.2 * len(shapes), 0.5 + 3 * len(precisions)))
    figure.set_layout_engine("constrained")
    grid = figure.subplots(len(precisions), len(shapes), squeeze=False)
    for axes in grid.flat:
        axes.set_visible(False)
    for part in found:
        axes = grid[precisions.index(part["precision"])][shapes.index(part["shape"])]
        axes.set_visible(True)
        names = [name for name in part["seconds"] if name not in FLOOR]
        for i, name in enumerate(names):
            time = {key: 1000 * value for key, value in part["seconds"][name].items()}
            color = "tab:blue" if "(triton)" in name else "tab:cyan" if "our" in name else "0.6"
            spread = [[time["median"] - time["min"]], [time["max"] - time["median"]]]
            axes.barh(i, time["median"], 0.7, color=color, xerr=spread, capsize=2)
            text = f" {time['median']:.1f}"
            axes.annotate(text, (time["max"], i), va="center", fontsize=8)
        floor = 1000 * sum(part["seconds"][name]["median"] for name in FLOOR)
        axes.axvline(floor, color="tab:red", lw=1, ls="--")
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        sizes = "d_in {d_in}, d_sae {d_sae}, k {k}, batch {batch}".format(**part)
        axes.set_title(f"{part['shape']}, {part['precision']}\n{sizes}", fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
    figure.supxlabel(
        "ms per step; dashed: encoder product, one reading of it, and Adam", fontsize=9
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def main(arguments: Sequence[str] | None = None) -> None:
    made = command("speed.gpu_report", __doc__)
    made.add_argument("--output", type=Path, required=True, help="run directory of the check")
    given = parse(made, arguments)
    if not write_report(given.output):
        made.error(f"{given.output}: no results/steps-*.json; run recipes.speed.gpu_check first")


if __name__ == "__main__":
    main()
