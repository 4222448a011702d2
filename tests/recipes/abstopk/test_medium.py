"""The scale `medium` of the AbsTopK recipes, its code path on a tiny model: in parts, and whole."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes.abstopk import figure4, table2
from recipes.abstopk.jumprelu import JumpReLUAtL0TrainingSAEConfig
from recipes.abstopk.training import METHODS, read_plan
from recipes.common.medium_text import texts
from recipes.common.scales import read_scale
from recipes.common.time_limit import EXIT_UNFINISHED, limited
from recipes.sagsae import ablations, cells
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.files.atomic import read_json
from sae_lens_bipolar.runs.checkpoints import load_sae
from tests.recipes.abstopk.settings import tiny_scale, write_config


def medium_scale(model: Path, text: Path) -> dict[str, Any]:
    """What `medium` has more than `small`, at the smallest sizes."""
    scale = tiny_scale(model, text)
    scale["models"]["tiny"] |= {
        "layers": [1],
        "jumprelu": [{"l0_target": 4}, {"l0_target": 8}],
        "zero_start_k": [4],
    }
    scale["sweep"].pop("corpus")
    return scale | {
        "start": "data",
        "seeds": [0, 1],
        "cache": {
            "model": str(model),
            "corpus": str(text),
            "hooks": ["blocks.1.hook_resid_post"],
            "tokens": 2000,
            "held_out": 8,
            "context_size": 32,
            "dtype": "bfloat16",
        },
        "search": {"rates": [0.001, 0.01], "training_tokens": 256, "seed": 9, "sequences": 4},
        "margins": {"nmse": 0.02, "l0": 0.1},
    }


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, tiny_model_dirs, tiny_text):
    folder = tmp_path_factory.mktemp("medium")
    config = write_config(folder, tiny=medium_scale(tiny_model_dirs["gpt2"], tiny_text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_LENS_BIPOLAR_CACHE", str(folder / "user"))
        yield [
            *("--scale", "tiny", "--config", str(config), "--device", "cpu"),
            *("--cache", str(folder / "cache"), "--output", str(folder / "run")),
        ]


@pytest.fixture(scope="module")
def finished(arguments: list[str]) -> Path:
    figure4.main([*arguments, "--cells", "lr.*"])
    run = Path(arguments[-1])
    assert not (run / "results/summary.json").exists()
    figure4.main(arguments)
    return run


def test_rates_are_chosen_on_validation_documents_by_the_same_budget(finished: Path) -> None:
    found = read_json(finished / "results/learning_rates.json")
    tried = [(row["method"], row["lr"]) for row in found["candidates"]]
    assert tried == [(m, lr) for m in ("topk", "abstopk", "jumprelu") for lr in (0.001, 0.01)]
    for row in found["candidates"]:
        config = yaml.safe_load(
            (finished / f"cells/lr.{row['method']}.{row['lr']:g}/sweep/config.yaml").read_text()
        )
        assert (config["training_tokens"], config["seed"], config["lr"]) == (256, 9, row["lr"])
    for name, rate in found["chosen"].items():
        config = yaml.safe_load(
            (finished / f"cells/tiny-l1-{name}-seed1/sweep/config.yaml").read_text()
        )
        assert (config["lr"], config["seed"]) == (rate, 1)
        assert config["activations"].endswith("cache")


def test_every_method_has_every_seed_and_the_zero_starts(finished: Path) -> None:
    rows = read_json(finished / "results/summary.json")
    found = sorted((row["method"], row["k"], row["start"], row["seed"]) for row in rows)
    assert found == sorted(
        (method, k, start, seed)
        for seed in (0, 1)
        for method, k, start in (
            *((m, k, "mean") for m in ("abstopk", "jumprelu", "topk") for k in (4, 8)),
            *((m, 4, "zeros") for m in ("abstopk", "topk")),
        )
    )
    assert len({row["name"] for row in rows}) == len(rows)
    assert {row["architecture"] for row in rows} == {"abstopk", "topk", "jumprelu"}
    claims = read_json(finished / "results/claims.json")
    assert len(claims) == 3 + 3 + 1 + 1
    assert all(claim["seeds"] == 2 for claim in claims)
    assert claims[1]["margin"] == 0.02
    assert claims[1]["low"] < claims[1]["estimate"] < claims[1]["high"]
    place = next(finished.glob("cells/*/sweep/checkpoints/jumprelu_l1_l0_4_seed0"))
    assert load_sae(place).cfg.architecture() == "jumprelu"


def test_the_benchmark_reads_these_saes(finished: Path) -> None:
    settings = {"trained": {"k": 4, "seeds": [0, 1]}, "bench": {"suites": ["tpp"]}}
    (cell,) = table2.cells_of_run({**settings, "held_out": 0.4}, finished, "cpu")
    assert cell.params["held_out"] == 0.4
    with pytest.raises(ConfigError, match="held_out=2"):
        table2.cells_of_run({**settings, "held_out": 2}, finished, "cpu")
    rows = cell.params["trained"]
    assert {(row["method"], row["seed"], row["k"], row["start"]) for row in rows} == {
        (method, seed, 4, "mean") for method in METHODS for seed in (0, 1)
    }
    assert len(rows) == 6
    assert [Path(p).name for p in cell.params["saes"]] == [row["name"] for row in rows]
    with pytest.raises(ConfigError, match="lacks SAEs of k=5 and seed 0"):
        table2.cells_of_run({**settings, "trained": {"k": 5, "seeds": [0]}}, finished, "cpu")
    with pytest.raises(ConfigError, match="not a finished run"):
        table2.cells_of_run(settings, finished / "nowhere", "cpu")


def test_time_is_up_anywhere_and_the_same_command_goes_on(
    arguments: list[str], finished: Path, tmp_path: Path
) -> None:
    """Ends with the code for "try again", and then with the same rows as without a stop."""
    again = [*arguments[:-1], str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        figure4.main([*again, "--minutes", "0.02"])
    assert ended.value.code == EXIT_UNFINISHED
    assert not (tmp_path / "run/results/summary.json").exists()
    figure4.main(again)
    timed = {"train_seconds": 0}
    one, other = (
        [row | timed for row in read_json(run / "results/summary.json")]
        for run in (tmp_path / "run", finished)
    )
    assert one == other


def test_no_limit_and_time_enough_change_nothing() -> None:
    for minutes in (None, 1.0):
        with limited(minutes):
            pass


def test_validation_documents_are_set_aside(arguments: list[str], tiny_text: Path) -> None:
    found = texts(str(tiny_text))
    sides = [set(file.read_text().splitlines()) for file in found]
    assert all(sides)
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 60
    with pytest.raises(ConfigError, match="neither a file"):
        texts("nothing")


def test_the_recipes_share_one_cache() -> None:
    sections = [read_scale(r.CONFIG, "medium")["cache"] for r in (figure4, cells, ablations)]
    assert sections[0] == sections[1] == sections[2]


def test_the_medium_scale_is_as_large_as_it_says() -> None:
    settings = read_scale(figure4.CONFIG, "medium")
    plan = read_plan(settings)
    (model,) = plan.models.values()
    config = plan.sweep_config(model, "cpu")
    assert config.training_tokens >= 4_000_000
    assert 2048 <= config.train_batch_size_tokens <= 4096
    assert len(plan.seeds) >= 3
    assert plan.search["seed"] not in plan.seeds
    assert model.d_sae == 16 * 576
    # Eight batches estimate the scale of activations, and one more may be begun.
    assert plan.cache["tokens"] >= config.training_tokens + 9 * config.train_batch_size_tokens
    assert plan.cache["held_out"] >= config.eval_sequences
    for recipe in (cells, ablations):
        sweep = read_scale(recipe.CONFIG, "medium")["sweep"]
        assert sweep["training_tokens"] >= 4_000_000


def test_table2_finds_all_three_methods_among_the_saes_of_figure4() -> None:
    plan = read_plan(read_scale(figure4.CONFIG, "medium"))
    wanted = read_scale(table2.CONFIG, "medium")["trained"]
    assert wanted["seeds"] == list(plan.seeds)
    (model,) = plan.models.values()
    saes = plan.saes(model, model.layers).values()
    found = {sae.tags["method"] for sae in saes if sae.tags["k"] == wanted["k"]}
    assert found == set(METHODS)
    searched = {method: plan.saes(model, model.layers, method) for method in METHODS}
    assert {next(iter(one.values())).tags["k"] for one in searched.values()} == {wanted["k"]}


def test_seeds_cache_and_search_belong_together(tiny_model_dirs, tiny_text: Path) -> None:
    scale = medium_scale(tiny_model_dirs["gpt2"], tiny_text)
    for key in ("seeds", "cache", "search"):
        with pytest.raises(ConfigError, match="belong together"):
            read_plan({k: v for k, v in scale.items() if k != key})
    scale["models"]["tiny"]["layers"] = [0, 1]
    with pytest.raises(ConfigError, match="one model and one layer"):
        read_plan(scale)


def test_jumprelu_keeps_the_field_checks_of_both() -> None:
    with pytest.raises(ConfigError, match="l0_target"):
        JumpReLUAtL0TrainingSAEConfig(d_in=4, d_sae=8, l0_target=9)
