"""The scale `medium` of the sign-aware gated recipes, its code path on a tiny model."""

from pathlib import Path

import pytest
import yaml

from recipes.sagsae import ablations, cells, census
from sae_lens_bipolar.files.atomic import read_json
from tests.recipes.sagsae.test_cells import options, tiny_scale


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model_dirs, tiny_text):
    folder = tmp_path_factory.mktemp("medium")
    scale = tiny_scale(tiny_model_dirs["gpt2"], tiny_text)
    scale |= {
        "kinds": ["SA-GSAE H", "Gated 2H"],
        "margins": {"r2": 0.005, "l0": 0.1},
        "search": {"rates": [0.001, 0.01], "training_tokens": 640, "seed": 9, "sequences": 4},
        "cache": {
            "model": str(tiny_model_dirs["gpt2"]),
            "corpus": str(tiny_text),
            "hooks": ["blocks.1.hook_mlp_out", "blocks.1.hook_resid_post"],
            "tokens": 2400,
            "held_out": 8,
            "context_size": 32,
        },
    }
    one = {k: v for k, v in scale.items() if k not in ("kinds", "repeated", "l0_targets")}
    one |= {"l0_target": 6, "hookpoints": ["resid_post"], "margins": {"l0": 0.1}}
    one["variants"] = ["recommended", "one-sided gate"]
    (folder / "cells.yaml").write_text(yaml.safe_dump({"tiny": scale}))
    (folder / "ablations.yaml").write_text(yaml.safe_dump({"tiny": one}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_LENS_BIPOLAR_CACHE", str(folder / "user"))
        cache = f"--cache={folder / 'cache'}"
        cells.main(options(folder / "cells.yaml", folder / "cells", cache))
        ablations.main(options(folder / "ablations.yaml", folder / "ablations", cache))
        yield folder


def test_each_kind_trains_at_its_own_rate(finished: Path) -> None:
    rows = read_json(finished / "cells/results/saes.json")
    assert len(rows) == 2 * 2 * 2 * 2  # hookpoints, targets, kinds, seeds
    chosen = read_json(finished / "cells/results/learning_rates.json")["chosen"]
    for kind, rate in chosen.items():
        cell = finished / f"cells/cells/gpt2.layer1.seed1.{kind.replace(' ', '_')}"
        config = yaml.safe_load((cell / "config.yaml").read_text())
        assert (config["lr"], config["seed"]) == (rate, 1)
        assert {sae["tags"]["label"] for sae in config["saes"].values()} == {kind}
    claims = read_json(finished / "cells/results/claims.json")
    assert claims[0]["margin"] == 0.005
    assert "within 10%" in claims[-1]["claim"]


def test_the_ablations_share_the_cache_and_the_recommended_rate(finished: Path) -> None:
    rows = read_json(finished / "ablations/results/saes.json")
    assert {(row["label"], row["seed"]) for row in rows} == {
        (label, seed) for label in ("recommended", "one-sided gate") for seed in (0, 1)
    }
    (rate,) = read_json(finished / "ablations/results/learning_rates.json")["chosen"].values()
    for seed in (0, 1):
        cell = finished / f"ablations/cells/gpt2.layer1.resid_post.seed{seed}/config.yaml"
        assert yaml.safe_load(cell.read_text())["lr"] == rate
    assert "within 10%" in read_json(finished / "ablations/results/claims.json")[-1]["claim"]


def test_the_census_counts_several_seeds(finished: Path, tmp_path: Path) -> None:
    scale = {"model": "m", "corpus": "c", "context_size": 1, "seed": 0, "sequences": 6}
    scale |= {"min_count": 2, "d_ins": [32], "widths": [64]}
    (tmp_path / "census.yaml").write_text(yaml.safe_dump({"tiny": scale}))
    runs = sorted((finished / "cells/cells").glob("*.SA-GSAE_H"))
    assert len(runs) == 2
    more = [f"--run={run}" for run in runs]
    census.main(options(tmp_path / "census.yaml", tmp_path / "run", *more))
    rows = read_json(tmp_path / "run/results/census.json")
    assert sorted({row["name"].split("@")[1] for row in rows}) == ["seed0", "seed1"]
    assert {(row["name"].split("@seed")[1], row["seed"]) for row in rows} == {("0", 0), ("1", 1)}
    claims = read_json(tmp_path / "run/results/claims.json")
    assert claims[0]["seeds"] == 2
    assert claims[0]["low"] <= claims[0]["estimate"] <= claims[0]["high"]
