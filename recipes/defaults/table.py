"""Every architecture with default options and one sparsity number, beside tuned settings.

One sweep per hook: SmolLM2 layer 12, the residual stream and the MLP's output, 100,000 tokens,
expansion 8. The plain SAEs have the number alone (`k` or `l0_target`); the tuned ones have what
gave the best R^2 in a small search. Both train in shared forward passes.

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
# The kinds whose SAEs are compared: with exactly k latents per token, or with about as many.
# Tuned for R^2 alone: shorter rows cost a third of the latents, and L0 control without damping
# swings in longer runs.
_SCALED = {"normalize_activations": "expected_average_only_in"}
TUNED: Mapping[str, Any] = {**_SCALED, "decoder_init_norm": 0.3}
_TUNED_NAMES = ("abstopk", "sparse_topk", "gated_l0", "sign_aware_gated")  # two of each kind
TUNED_GATED: Mapping[str, Any] = {**_SCALED, "l0_damping": 0.0}
# The bars: L0 within a quarter of its number, few dead, R^2 near the best tuned one of the kind.
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
        config = SweepConfig(training_tokens=options.tokens, loss_sequences=1)
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
        kinds: dict[str, Mapping[str, Any]] = {"plain": {}}
        if name in _TUNED_NAMES:
            kinds["tuned"] = TUNED_GATED if "l0_target" in number else TUNED
        for settings, more in kinds.items():
            config = partial(record.training[1], d_sae=d_sae, **number, **more)
            tags = {"settings": settings, "number": next(iter(number))}
            found[f"{name}.{settings}"] = SweepSAE(hook, config, tags)
    return found


def judge(rows: Sequence[Mapping[str, Any]], l0: int) -> list[dict[str, Any]]:
    """The rows, each with its bars: `l0_met`, `alive`, `near_best`."""
    best: dict[tuple[str, str], float] = {}
    for row in rows:
        kind = (row["hook_name"], row["number"])
        if row["settings"] == "tuned":
            best[kind] = max(best.get(kind, 0.0), row["r2"])
    kept = ("name", "hook_name", "settings", "number", "d_sae", "l0", "r2")
    kept += ("dead_fraction", "bipolar_fraction", "train_seconds", "n_train_tokens")
    return [
        {
            **{key: row[key] for key in kept},
            "l0_met": abs(row["l0"] / l0 - 1) <= L0_OFF,
            "alive": row["dead_fraction"] < DEAD,
            "near_best": row["r2"] >= OF_BEST * best[row["hook_name"], row["number"]],
        }
        for row in rows
    ]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table."""
    lines = [
        "| SAE | hook | L0 | R² | dead | two-sided (of live) | bars |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        missed = [name for name in ("l0_met", "alive", "near_best") if not row[name]]
        lines.append(
            f"| {row['name']} | {row['hook_name']} | {row['l0']:.1f} | {row['r2']:.3f} "
            f"| {row['dead_fraction']:.1%} | {row['bipolar_fraction']:.1%} "
            f"| {'met' if not missed else 'missed: ' + ', '.join(missed)} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
