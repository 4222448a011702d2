"""Lines and a figure from what `training_step.py` measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_lens_bipolar.files.atomic import atomic_path


def line_of_comparison(shape: str, result: dict[str, Any]) -> str:
    """One comparison: medians, the ratio with its spread, and ours over the encoder's product."""
    ours, reference = result["ours"], result["reference"]
    times, speedup, over = result["seconds"], result["speedup"], result["over_encoder"]
    return (
        f"{shape:11s} {ours:20s} {_duration(times[ours]['median'])}   "
        f"{reference:15s} {_duration(times[reference]['median'])}   "
        f"{speedup['median']:5.2f}x ({speedup['min']:.2f} to {speedup['max']:.2f})   "
        f"encoder product {_duration(times['encoder']['median'])}, ours is {over['median']:.2f}x "
        f"({over['min']:.2f} to {over['max']:.2f})   L0 {result['l0']:.0f}"
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


def _duration(seconds: float) -> str:
    return f"{seconds:7.3f} s" if seconds >= 0.1 else f"{seconds * 1000:7.2f} ms"
