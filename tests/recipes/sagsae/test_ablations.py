"""The ablations recipe end to end on a tiny model, and verdicts that follow the rows."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes.common.scales import build, read_scale
from recipes.sagsae import ablations, ablations_verdicts
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.files.atomic import read_json
from sae_lens_bipolar.runs.sweep import SweepConfig


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model_dirs, tiny_text) -> Path:
    root = tmp_path_factory.mktemp("ablations")
    scale = {
        "models": [{"model": str(tiny_model_dirs["gpt2"]), "layer": 1, "corpus": str(tiny_text)}],
        "width": 32,
        "l0_target": 6,
        "seeds": [0],
        "sweep": {
            "context_size": 32,
            "training_tokens": 1600,
            "train_batch_size_tokens": 64,
            "n_checkpoints": 1,
            "eval_sequences": 8,
            "loss_sequences": 4,
            "n_batches_in_buffer": 16,
        },
    }
    (root / "a.yaml").write_text(yaml.safe_dump({"tiny": scale}))
    ablations.main(["--scale=tiny", f"--config={root / 'a.yaml'}", f"--output={root / 'run'}"])
    return root / "run"


def test_every_variant_is_trained_with_its_change(finished: Path) -> None:
    rows = read_json(finished / "results/saes.json")
    assert [row["label"] for row in rows] == list(ablations.VARIANTS)
    assert [row["d_sae"] for row in rows] == [32 * w for w, _ in ablations.VARIANTS.values()]
    (cell,) = (finished / "cells").iterdir()
    settings = yaml.safe_load((cell / "config.yaml").read_text())["saes"]
    for row in rows:
        for key, value in ablations.VARIANTS[row["label"]][1].items():
            assert settings[row["name"]][key] == value
    by_label = {row["label"]: row for row in rows}
    assert by_label["one-sided gate"]["bipolar_fraction"] == 0
    assert by_label["recommended"]["bipolar_fraction"] > 0


def test_report_files(finished: Path) -> None:
    assert (finished / "report/ablations.png").read_bytes()[:4] == b"\x89PNG"
    lines = (finished / "report/ablations.csv").read_text().splitlines()
    claims = read_json(finished / "results/claims.json")
    assert len(lines) - 1 == len(read_json(finished / "results/variants.json"))
    assert all(claim["ours"] for claim in claims)
    assert {claim["seeds"] for claim in claims} == {1}


def rows_by_hand(**r2: float) -> list[dict[str, Any]]:
    """Rows of two seeds; `r2` by label, spaces for underscores."""
    return [
        {
            "label": label.replace("_", " "),
            "model": "m",
            "hookpoint": "resid_post",
            "seed": seed,
            "r2": value + 0.1 * seed,
            "loss_recovered": value,
            "dead_fraction": 1 - value,
            "l0": 10.0,
            "n_train_tokens": 100,
        }
        for label, value in r2.items()
        for seed in (0, 1)
    ]


def test_gaps_are_matched_by_seed() -> None:
    rows = rows_by_hand(recommended=0.7, symmetry_none=0.701)
    found = ablations_verdicts.gap(rows, "symmetry none", "recommended", "r2")
    assert found is not None
    assert found.mean == pytest.approx(0.001)
    assert found.error == pytest.approx(0.0, abs=1e-12)
    assert ablations_verdicts.gap(rows, "one-sided gate", "recommended", "r2") is None


def test_changing_a_row_changes_the_verdict() -> None:
    rows = rows_by_hand(
        recommended=0.7, symmetry_none=0.701, symmetry_gain=0.7, no_auxiliary_loss=0.05
    )

    def outcome(words: str) -> str:
        (claim,) = [claim for claim in ablations_verdicts.claims(rows) if words in claim.claim]
        return claim.verdict

    assert outcome("tying thresholds") == "holds"
    assert outcome("without the auxiliary loss") == "holds"
    assert outcome("two-sided gate") == "not run at this scale"
    for row in rows:
        if row["label"] == "symmetry none":
            row["r2"] += 0.1
        if row["label"] == "no auxiliary loss":
            row["loss_recovered"] = 0.9
    assert outcome("tying thresholds") == "does not hold"
    assert outcome("without the auxiliary loss") == "does not hold"
    rows = [row for row in rows if row["seed"] == 0]
    assert outcome("tying thresholds") == "undecided"


@pytest.mark.parametrize(
    ("words", "changes", "expected"),
    [
        ("two-sided gate", {"one-sided gate": 0.65}, "holds"),
        ("two-sided gate", {"one-sided gate": 0.695}, "does not hold"),
        ("do not collapse", {"2H: recommended": 0.71}, "holds"),
        ("do not collapse", {"2H: recommended": 0.5}, "does not hold"),
        ("than from small", {"2H: large thresholds, no resets": 0.5}, "holds"),
        ("than from small", {"2H: large thresholds, no resets": 0.65}, "does not hold"),
        ("than from thresholds of", {"2H: large thresholds, no resets": 0.5}, "holds"),
        ("than from thresholds of", {"2H: large thresholds, no resets": 0.65}, "does not hold"),
        ("train the decoder costs", {"auxiliary loss trains the decoder": 0.6}, "holds"),
        ("train the decoder costs", {"auxiliary loss trains the decoder": 0.71}, "does not hold"),
        ("width: from small", {"2H: small thresholds, no resets": 0.6}, "holds"),
        ("width: from small", {"2H: small thresholds, no resets": 0.8}, "does not hold"),
        ("width: from thresholds of", {"2H: no resets": 0.6}, "holds"),
        ("width: from thresholds of", {"2H: no resets": 0.8}, "does not hold"),
        ("width: from thresholds of", {"2H: small thresholds": 0.6}, "not run at this scale"),
    ],
)
def test_differences_have_the_sign_of_their_claim(
    words: str, changes: dict[str, float], expected: str
) -> None:
    values = dict.fromkeys(("recommended", "2H: recommended", "2H: small thresholds"), 0.7)
    values |= changes
    rows = [row | {"l0_target": 10, "name": "n"} for row in rows_by_hand(**values)]
    found = ablations_verdicts.claims(rows, {"r2": 0.002, "dead_fraction": 0.01, "l0": 0.1})
    (claim,) = [claim for claim in found if words in claim.claim]
    assert claim.verdict == expected
    assert found[-1].verdict == "holds"  # L0 targets


@pytest.mark.parametrize("scale", ["small", "medium", "paper"])
def test_published_scales_are_whole(scale: str) -> None:
    config = build(ablations.AblationsConfig, read_scale(ablations.CONFIG, scale), scale)
    cells = ablations.make_cells(config)
    assert len({cell.name for cell in cells}) == len(cells)
    for cell in cells:
        SweepConfig(**cell.params["sweep"])
        for label in cell.params["variants"]:
            ablations.make_sae(cell.params, label).config(d_in=8)


def test_a_variant_that_is_not_known() -> None:
    with pytest.raises(ConfigError, match="did you mean 'one-sided gate'"):
        ablations.AblationsConfig(
            models=({"model": "m", "layer": 1},),
            width=8,
            l0_target=2,
            seeds=(0,),
            variants=("one-sidedgate",),
        )


def test_the_variant_that_misses_its_l0_is_named() -> None:
    rows = rows_by_hand(recommended=0.7, no_auxiliary_loss=0.7)
    rows = [row | {"name": "04", "l0_target": 10 if "rec" in row["label"] else 8} for row in rows]
    claim = ablations_verdicts.claims(rows, {"l0": 0.1})[-1]
    assert claim.ours == "2 of 4; furthest off no auxiliary loss, by 25.0%"
    assert claim.verdict == "does not hold"
