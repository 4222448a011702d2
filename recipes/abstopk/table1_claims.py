"""What the paper's Table 1 claims, tested on the lines and texts of a run."""

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recipes.abstopk.steering_judges import JUDGES
from recipes.abstopk.steering_methods import METHODS
from recipes.abstopk.steering_statistics import Test, bootstrap, verdict_of
from recipes.common.claims import NOT_RUN, Claim
from sae_lens_bipolar.errors import require_number

LOG_P = "log p"  # the effect without generation
MEASURES = (*JUDGES, LOG_P)
RIVALS = ("topk", "topk_pair", "topk_2x", "jumprelu")
_PAPER = {
    "topk": "HarmBench AbsTopK 81.3, 79.0, 70.2, 71.7; TopK 78.2, 77.0, 69.8, 70.0 (Table 1)",
    "jumprelu": "HarmBench AbsTopK 81.3, 79.0, 70.2, 71.7; JumpReLU 79.1, 78.5, 69.5, 69.8",
    "dim": "HarmBench AbsTopK 81.3, 79.0, 70.2, 71.7; DiM 80.6, 80.0, 70.8, 72.0",
}


@dataclass(frozen=True, kw_only=True)
class Margins:
    """What counts as a difference, fixed before a run; a judge's effect lies in [-2, 2].

    Raises:
        ConfigError: if a number is out of range.
    """

    better: float = 0.0  # AbsTopK must be above its rivals by more
    dim: float = 0.1  # and at most this much below DiM
    control: float = 0.0  # a method must be above its random control by more
    draws: int = 4000  # of the bootstrap

    def __post_init__(self) -> None:
        for name in ("better", "dim", "control"):
            require_number(getattr(self, name), name, 0)
        require_number(self.draws, "draws", 100)


class Effects(NamedTuple):
    """Effects of all methods: `[seeds, prompts or texts]` by method, measure and budget."""

    found: Mapping[tuple[str, str, float], np.ndarray]

    def difference(self, ours: str, theirs: str, measure: str, budget: float) -> np.ndarray | None:
        """Ours less theirs, seed by seed and prompt by prompt; None where one is missing."""
        mine = self.found.get((ours, measure, budget))
        other = self.found.get((theirs, measure, budget))
        return None if mine is None or other is None else mine - other

    @property
    def budgets(self) -> list[float]:
        return sorted({budget for _, _, budget in self.found})


def effects_of(lines: Sequence[Mapping[str, Any]], folder: Path) -> Effects:
    """Side 1 less side -1 of every method, from the lines of the curve and the judged texts."""
    sides: dict[tuple[str, str, float], dict[tuple[int, int], list[float]]] = {}
    for row in lines:
        if row["split"] == "test" and row["side"]:
            key = (row["method"], LOG_P, row["budget"])
            sides.setdefault(key, {})[row["seed"], row["side"]] = row["effect_by_text"]
    for row in texts_in(folder):
        if row["split"] == "test" and row["side"]:
            for judge in JUDGES:
                key = (row["method"], judge, row["budget"])
                place = sides.setdefault(key, {}).setdefault((row["seed"], row["side"]), [])
                place.append(row[judge])
    found = {}
    for key, by_side in sides.items():
        seeds = sorted({seed for seed, _ in by_side})
        found[key] = np.array(
            [np.subtract(by_side[seed, 1], by_side[seed, -1]) for seed in seeds], dtype=float
        )
    return Effects(found)


def texts_in(folder: Path) -> list[dict[str, Any]]:
    """The rows of all files of generated texts."""
    return [
        json.loads(line)
        for file in sorted(folder.glob("*.jsonl.gz"))
        for line in gzip.decompress(file.read_bytes()).decode().splitlines()
    ]


def claims(
    effects: Effects,
    lines: Sequence[Mapping[str, Any]],
    margins: Margins,
    error: str,
    tokens: int,
) -> list[Claim]:
    """The paper's claims; each must hold under both judges at every budget that was judged.

    Args:
        lines: of the curve.
        error: whether latents were steered with the error term kept.
        tokens: training tokens per SAE.
    """
    seeds = max((len(one) for one in effects.found.values()), default=0)

    def claim(text: str, paper: str, pairs: Sequence[tuple[str, str]], margin: float) -> Claim:
        cells = _cells(effects, pairs, margin, margins.draws)
        verdict = verdict_of([test for _, test in cells])
        ours = "; ".join(f"{name} {test}" for name, test in cells)
        return Claim(text, paper, ours, seeds if cells else 0, tokens, verdict)

    kept = "with the error term kept" if error == "keep" else "on the reconstruction (eq. 22)"
    topk = [("abstopk", rival) for rival in RIVALS if rival.startswith("topk")]
    found = [
        claim(
            f"AbsTopK steers more than TopK at equal utility, {kept}",
            _PAPER["topk"],
            topk,
            margins.better,
        ),
        claim(
            f"AbsTopK steers more than JumpReLU at equal utility, {kept}",
            _PAPER["jumprelu"],
            [("abstopk", "jumprelu")],
            margins.better,
        ),
        claim(
            f"AbsTopK steers at most {margins.dim:g} less than difference in means (DiM)",
            _PAPER["dim"],
            [("abstopk", "dim")],
            -margins.dim,
        ),
    ]
    for name, method in METHODS.items():
        if method.control is not None:
            text = f"{method.label} steers more than {METHODS[method.control].label}"
            found.append(claim(text, "no such control", [(name, method.control)], margins.control))
    if error == "keep":
        found.append(_without_error(effects, lines))
    return found


def _cells(
    effects: Effects, pairs: Sequence[tuple[str, str]], margin: float, draws: int
) -> list[tuple[str, Test]]:
    """Every pair, budget and judge there is."""
    found = []
    for ours, theirs in pairs:
        for budget in effects.budgets:
            for measure in JUDGES:
                difference = effects.difference(ours, theirs, measure, budget)
                if difference is not None:
                    name = f"{theirs}, {measure}, {budget:g} nats:"
                    found.append((name, bootstrap(difference, margin, draws)))
    return found


def _without_error(effects: Effects, lines: Sequence[Mapping[str, Any]]) -> Claim:
    """Eq. 22 to the letter, which a budget rules out where the reconstruction costs more."""
    costs = [row["cost"] for row in lines if row["method"].endswith("_reconstruction")]
    largest = max(effects.budgets, default=0.0)
    why = ""
    if costs:
        beyond = "above" if min(costs) > largest else "not above"
        why = (
            f"the reconstruction alone costs {min(costs):.3f} to {max(costs):.3f} nats per token, "
            f"{beyond} the largest budget, {largest:g}"
        )
    return Claim(
        "AbsTopK steers more than TopK and JumpReLU on the reconstruction, nothing kept (eq. 22)",
        "not said whether the error term is kept",
        why,
        0,
        0,
        NOT_RUN,
    )
