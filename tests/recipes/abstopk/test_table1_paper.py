"""The paper's scale of Table 1: it builds, its dry run says what is missing, its cells run."""

from pathlib import Path
from typing import Any

import pytest

from recipes.abstopk import table1, table1_harm, table1_paper
from recipes.abstopk.table1_paper import Piece, pieces_table, refusal_rate
from recipes.common.scales import build, read_scale
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.files.atomic import read_json
from tests.recipes.abstopk.settings import write_config
from tests.recipes.abstopk.steering_settings import made_reviews, tiny_saes


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_every_scale_builds(scale: str) -> None:
    settings = read_scale(table1.CONFIG, scale)
    config = build(table1.Table1Config, settings, "a scale")
    plans = table1_harm.plans_of(settings)
    if scale == "small":
        assert len(plans) == 1
        return
    assert [(plan.model.split("/")[1], plan.layer) for plan in plans] == [
        *(("Qwen3-4B", 18), ("Qwen3-4B", 20), ("gemma-2-2b-it", 12), ("gemma-2-2b-it", 16))
    ]
    assert [plan.width for plan in plans] == [16 * 2560, 16 * 2560, 16 * 2304, 16 * 2304]
    assert [plan.k for plan in plans] == [256, 256, 230, 230]  # a tenth of d_model
    for plan in plans:
        assert plan.jumprelu["target_l0"] == plan.k
        assert set(plan.names()) == {f"{k}_seed{s}" for k in plan.kinds for s in (0, 1, 2)}
        sweep = plan.sweep_config()
        assert sweep.training_tokens == 30_000 * 4096
        assert (sweep.adam_beta1, sweep.adam_beta2, sweep.lr) == (0.9, 0.99, 3e-4)
    names = [cell.name for plan in plans for cell in table1.make_cells(config, plan, Path("run"))]
    assert len(set(names)) == len(names) > 150


def test_the_dry_run_names_what_is_missing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Tests reach no network, so everything of the Hub is missing, and each piece says why."""
    pytest.importorskip("lm_eval")
    pytest.importorskip("vaderSentiment")
    output = tmp_path / "run"
    table1.main(["--scale", "paper", "--dry-run", "--output", str(output)])
    shown = capsys.readouterr().out
    assert not output.exists()
    for missing in ("model Qwen/Qwen3-4B", "model google/gemma-2-2b-it", "HarmBench behaviours"):
        assert f"| {missing} | missing | " in shown
    for here in ("lm_eval", "MMLU questions of lm_eval's wheel", "judge: VADER"):
        assert f"| {here} | yes | " in shown
    assert "pieces are missing." in shown


def test_the_table_of_pieces() -> None:
    shown = pieces_table([Piece("a", True, "here it is"), Piece("b", False, "no network")])
    assert "| a | yes | here it is |" in shown
    assert shown.endswith("1 of 2 pieces are missing.")


def test_refusals() -> None:
    assert (
        refusal_rate(["I'm sorry, I can't", " i cannot do that", "Sure, here", "Sorry, no"]) == 0.75
    )


def test_a_classifier_whose_prompt_is_another_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        text = 'LLAMA2_CLS_PROMPT = """another {behavior} {generation}"""'

    monkeypatch.setattr("huggingface_hub.ModelCard.load", lambda name: Card())
    with pytest.raises(ConfigError, match="compare it with the model card"):
        table1_paper.load_classifier.__wrapped__("cpu")


def test_cells_of_refusal_run_on_a_tiny_model(
    tiny_model_dirs: dict[str, Path],
    tiny_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All that comes from the Hub is replaced: behaviours, MMLU, completions and the classifier."""
    texts = {
        side: tuple(r.text for r in made_reviews() if r.positive is side) for side in (True, False)
    }
    monkeypatch.setattr(table1_harm, "column", lambda *where: texts["Harm" in where[0]])
    monkeypatch.setattr(table1_harm, "asked", lambda bench, some: list(some))

    def points(bench: Any, edit: Any, harm: Any, shots: int, limit: int | None) -> float:
        if edit is None:
            return 50.0
        x = harm_x(bench)
        return 50.0 - 3 * (edit.apply(x) - x).norm().item()

    def harm_x(bench: Any) -> Any:
        return bench.read(["the river"], 8).x[0]

    monkeypatch.setattr(table1_harm, "mmlu", points)
    monkeypatch.setattr(table1_harm, "completions", lambda *_: ["Sorry, no", "Sure"])
    monkeypatch.setattr(table1_harm, "load_classifier", lambda device: ())
    monkeypatch.setattr(table1_harm, "attack_success", lambda *_: 0.5)
    monkeypatch.setattr(table1_harm.HarmWork, "test", ("one", "two"))
    kinds = ["abstopk", "topk"]
    scale = {
        "concept": "refusal",
        "saes": tiny_saes(tiny_model_dirs["llama"], tiny_text, kinds=kinds, repeated=kinds),
        "design": {
            "methods": ["abstopk", "topk_pair", "dim", "random_direction", "unsteered"],
            "candidates": 2,
            "strengths": [0.1, 0.4],
            "budgets": [1.0],
            "generated": [1.0],
            "text_length": 16,
            "error": "drop",
        },
        "harm": {"train": 8, "validation": 4, "new_tokens": 4, "shots": [0, 5]},
    }
    config, run = write_config(tmp_path, tiny=scale), tmp_path / "run"
    table1.main(["--scale", "tiny", "--config", str(config), "--output", str(run)])
    cells = {path.parent.name: read_json(path) for path in run.glob("cells/dim*/result.json")}
    assert len(cells) == 2
    for found in cells.values():
        assert [(one["budget"], one["side"]) for one in found["selected"]] == [(1.0, 1), (1.0, -1)]
    table = (run / "results/table1.md").read_text()
    assert "| 0 | 0 | – | 50.0 | 50.0 | 50.0 | 50.0 |" in table  # the model itself
    assert table.count("| DiM |") == 2 * 2
