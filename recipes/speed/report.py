"""Lines and figures from what `training_step.py` and `scaling.py` measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_lens_bipolar.files.atomic import atomic_path


def line_of_comparison(shape: str, result: dict[str, Any]) -> str:
    """One comparison: medians, the ratio with its spread, and ours over the encoder's product."""
    ours, reference = result["ours"], result["reference"]
    times, speedup, over = result["seconds"], result["speedup"], result["over_encoder"]
    same = result.get("speedup_same_products")
    return (
        f"{shape:11s} {ours:20s} {_duration(times[ours]['median'])}   "
        f"{reference:15s} {_duration(times[reference]['median'])}   "
        f"{speedup['median']:5.2f}x ({speedup['min']:.2f} to {speedup['max']:.2f})   "
        f"encoder product {_duration(times['encoder']['median'])}, ours is {over['median']:.2f}x "
        f"({over['min']:.2f} to {over['max']:.2f})   L0 {result['l0']:.0f}"
        + (f"   same products {same['median']:.2f}x" if same else "")
    )


def lines_of_memory(shape: str, extra_peak_bytes: dict[str, int]) -> str:
    """Peak memory of a step of each contestant, one line each."""
    return "\n".join(
        f"{shape:11s} {name:20s} {size / 2**20:8.0f} MiB beyond parameters and optimizer state"
        for name, size in extra_peak_bytes.items()
    )


def draw(shapes: Sequence[dict[str, Any]], path: Path) -> None:
    """Bars of the median step, one panel per shape, ours beside its counterpart."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 4 * len(shapes), 4.5), layout="constrained")
    for axes, shape in zip(figure.subplots(1, len(shapes), squeeze=False)[0], shapes, strict=True):
        for i, result in enumerate(shape["comparisons"]):
            ours, reference = result["ours"], result["reference"]
            for offset, name, color in ((-0.2, reference, "0.65"), (0.2, ours, "tab:blue")):
                time = result["seconds"][name]
                spread = [[time["median"] - time["min"]], [time["max"] - time["median"]]]
                axes.bar(i + offset, time["median"], 0.38, color=color, yerr=spread, capsize=3)
            top = max(time["max"] for time in result["seconds"].values())
            label = f"{result['speedup']['median']:.1f}x"
            axes.annotate(label, (i, top), (0, 4), textcoords="offset points", ha="center")
        encoder = [c["seconds"]["encoder"]["median"] for c in shape["comparisons"]]
        if encoder:
            axes.axhline(sum(encoder) / len(encoder), color="tab:red", lw=1, ls="--")
        axes.set_title(
            f"{shape['name']}\nd_in {shape['d_in']}, d_sae {shape['d_sae']}, k {shape['k']}, "
            f"batch {shape['batch']}",
            fontsize=9,
        )
        axes.set_xticks(
            range(len(shape["comparisons"])),
            [
                f"{c['ours']}\nbeside\n{c['reference']}".replace(" ", "\n")
                for c in shape["comparisons"]
            ],
            fontsize=7,
        )
        axes.set_ylabel("seconds per training step (dashed: encoder product alone)", fontsize=8)
        axes.margins(y=0.12)
    with atomic_path(path) as scratch:
        figure.savefig(scratch, dpi=150, format="png")


def draw_scaling(
    steps: Sequence[dict[str, Any]],
    jobs: Sequence[dict[str, Any]],
    sizes: dict[str, Any],
    path: Path,
) -> None:
    """Lines of step time and memory by d_sae, of step time by k, and of tokens per second."""
    from matplotlib.figure import Figure

    by_width = sorted((s for s in steps if s["k"] == sizes["d_sae_k"]), key=lambda s: s["d_sae"])
    by_k = sorted((s for s in steps if s["d_sae"] == sizes["k_d_sae"]), key=lambda s: s["k"])
    figure = Figure(figsize=(11, 8), layout="constrained")
    (time, memory), (active, job) = figure.subplots(2, 2)
    names = {"encoder": "encoder's product alone"}
    for axes, rows, x in ((time, by_width, "d_sae"), (active, by_k, "k")):
        for name in rows[0]["seconds"] if rows else ():
            found = [row["seconds"][name] for row in rows]
            medians = [one["median"] for one in found]
            below = [one["median"] - one["min"] for one in found]
            above = [one["max"] - one["median"] for one in found]
            style: dict[str, Any] = _STYLE.get(name, {})
            axes.errorbar(
                [row[x] for row in rows],
                medians,
                [below, above],
                label=names.get(name, name),
                **style,
            )
        axes.set(xlabel=x, ylabel="seconds per training step")
    time.set_title(f"k {sizes['d_sae_k']}, d_in {sizes['d_in']}, batch {sizes['batch']}")
    active.set_title(f"d_sae {sizes['k_d_sae']}, d_in {sizes['d_in']}, batch {sizes['batch']}")
    held = [row for row in by_width if "extra_peak_bytes" in row]
    for name in held[0]["extra_peak_bytes"] if held else ():
        mebibytes = [row["extra_peak_bytes"][name] / 2**20 for row in held]
        memory.plot([row["d_sae"] for row in held], mebibytes, label=name, **_STYLE.get(name, {}))
    memory.set(xlabel="d_sae", ylabel="MiB beyond parameters and optimizer state")
    memory.set_title("peak memory of a step")
    widths = [row["d_sae"] for row in jobs]
    for name in jobs[0]["tokens_per_second"] if jobs else ():
        speeds = [row["tokens_per_second"][name] for row in jobs]
        job.plot(widths, speeds, label=name, **_STYLE.get(name, {}))
    if jobs:
        job.axhline(jobs[0]["reading_alone"], **_STYLE["encoder"], label="reading activations")
    job.set(xlabel="d_sae", ylabel="tokens per second")
    job.set_title(f"whole run, bundled model, batch {sizes['job_batch']}")
    for axes in (time, memory, active, job):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        if axes.lines:
            axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    with atomic_path(path) as scratch:
        figure.savefig(scratch, dpi=150, format="png")


_OURS: dict[str, Any] = {"color": "tab:blue", "marker": "o"}
_HOST: dict[str, Any] = {"color": "0.45", "marker": "s"}
_STYLE: dict[str, dict[str, Any]] = {
    "our abstopk": _OURS,
    "ours": _OURS,
    "SAELens abstopk": _HOST,
    "SAELens's arithmetic": _HOST,
    "encoder": {"color": "tab:red", "ls": "--"},
}


def _duration(seconds: float) -> str:
    return f"{seconds:7.3f} s" if seconds >= 0.1 else f"{seconds * 1000:7.2f} ms"
