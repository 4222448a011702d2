"""Every architecture with default options and one sparsity number, beside tuned settings.

One sweep per hook: SmolLM2 layer 12, the residual stream and the MLP's output, 100,000 tokens,
expansion 8. The plain SAEs have the number alone (`k` or `l0_target`); the tuned ones have what
gave the best R^2 in a small search. Both train in shared forward passes. A plain SAE is held to its
own architecture's tuned one, if that met the number; its R^2 over that of the best tuned SAE with
the same kind of number (k, or an L0 target) stands beside it.

    results/defaults.json   one row per SAE: L0, R^2, dead and two-sided latents, and the bars
    results/defaults.md     the table
    report/defaults.png     the same as a figure, with a CSV of what it shows

    python -m recipes.defaults.table --output runs/defaults
    python -m recipes.defaults.table --output runs/defaults --hooks hook_mlp_out --l0 32

The same command continues a run that stopped.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from recipes.common.arguments import command, parse
from recipes.defaults.figure import draw
from sae_lens_bipolar import ARCHITECTURES
from sae_lens_bipolar.files.atomic import write_json, write_text
from sae_lens_bipolar.reports import drawing
from sae_lens_bipolar.runs.directory import start_run
from sae_lens_bipolar.runs.sweep import run_sweep
from sae_lens_bipolar.runs.sweep_config import SweepConfig, SweepSAE

EXPANSION, D_IN = 8, 576
EVAL_SEQUENCES = 96  # held-out sequences of 128 tokens
# Tuned for R^2 alone: shorter rows cost up to a third of the latents.
TUNED: Mapping[str, Any] = {
    "normalize_activations": "expected_average_only_in",
    "decoder_init_norm": 0.3,
}
# The bars: L0 within a quarter of its number, few dead, R^2 near that of the tuned SAE.
L0_OFF, DEAD, OF_BEST = 0.25, 0.2, 0.9


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is not trained yet, then write the table."""
    parser = command("defaults.table", __doc__)
    parser.add_argument("--output", type=Path, required=True, help="run directory")
    parser.add_argument("--hooks", nargs="+", default=["hook_resid_post", "hook_mlp_out"])
    parser.add_argument("--layer", type=int, default=12, help="layer of the hooks")
    parser.add_argument("--l0", type=int, default=32, help="latents per token")
    parser.add_argument("--tokens", type=int, default=100_000, help="training tokens")
    parser.add_argument("--names", nargs="+", help="architectures; all if not given")
    options = parse(parser, argv)
    drawing.require_matplotlib()  # now rather than after the training
    asked = {key: getattr(options, key) for key in ("hooks", "layer", "l0", "tokens", "names")}
    start_run(options.output, {**asked, "seed": SweepConfig.seed}, options.command)
    rows = []
    for hook in options.hooks:
        saes = contestants(f"blocks.{options.layer}.{hook}", options.l0, options.names)
        config = SweepConfig(
            training_tokens=options.tokens, loss_sequences=1, eval_sequences=EVAL_SEQUENCES
        )
        rows += run_sweep(config, saes, options.output / "cells" / hook)
    judged = judge(rows, options.l0)
    write_json(options.output / "results/defaults.json", judged)
    write_text(options.output / "results/defaults.md", markdown(judged))
    draw(judged, options.l0, L0_OFF, DEAD, options.output / "report")
    print(markdown(judged))


def contestants(hook: str, l0: int, names: Sequence[str] | None = None) -> dict[str, SweepSAE]:
    """Plain and tuned SAEs of every architecture of this package at one hook."""
    found: dict[str, SweepSAE] = {}
    d_sae = EXPANSION * D_IN
    for name, record in ARCHITECTURES.items():
        if record.training is None or record.at_l0 is None or (names and name not in names):
            continue
        number = record.at_l0(d_sae, l0)
        for settings, more in {"plain": {}, "tuned": TUNED}.items():
            config = partial(record.training[1], d_sae=d_sae, **number, **more)
            tags = {"settings": settings, "number": next(iter(number))}
            found[f"{name}.{settings}"] = SweepSAE(hook, config, tags)
    return found


def judge(rows: Sequence[Mapping[str, Any]], l0: int) -> list[dict[str, Any]]:
    """The rows, each with its bars: `l0_met`, `alive`, `near_best`; the last is None where the
    tuned SAE missed its number, which then says nothing."""

    def met(row: Mapping[str, Any]) -> bool:
        return abs(row["l0"] / l0 - 1) <= L0_OFF

    own: dict[tuple[str, str], float] = {}
    best: dict[tuple[str, str], float] = {}
    for row in rows:
        if row["settings"] == "tuned" and met(row):
            hook, r2 = row["hook_name"], row["r2"]
            own[hook, _architecture(row)] = r2
            best[hook, row["number"]] = max(best.get((hook, row["number"]), 0.0), r2)
    kept = ("name", "hook_name", "settings", "number", "d_sae", "l0", "r2")
    kept += ("dead_fraction", "bipolar_fraction", "train_seconds", "n_train_tokens")
    judged = []
    for row in rows:
        tuned = own.get((row["hook_name"], _architecture(row)))
        of_number = best.get((row["hook_name"], row["number"]))
        judged.append(
            {
                **{key: row[key] for key in kept},
                "r2_over_tuned": None if tuned is None else row["r2"] / tuned,
                "r2_over_best": None if of_number is None else row["r2"] / of_number,
                "l0_met": met(row),
                "alive": row["dead_fraction"] < DEAD,
                "near_best": None if tuned is None else row["r2"] >= OF_BEST * tuned,
            }
        )
    return judged


def _architecture(row: Mapping[str, Any]) -> str:
    return str(row["name"]).partition(".")[0]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table."""
    lines = [
        "| SAE | hook | L0 | R² | over its tuned | over the best tuned | dead "
        "| two-sided (of live) | bars |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        missed = [name for name in ("l0_met", "alive", "near_best") if row[name] is False]
        verdict = "met" if not missed else "missed: " + ", ".join(missed)
        ratios = (row["r2_over_tuned"], row["r2_over_best"])
        own, best = ("no tuned one" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
        lines.append(
            f"| {row['name']} | {row['hook_name']} | {row['l0']:.1f} | {row['r2']:.3f} "
            f"| {own} | {best} | {row['dead_fraction']:.1%} | {row['bipolar_fraction']:.1%} "
            f"| {verdict if row['settings'] == 'plain' else 'reference'} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
