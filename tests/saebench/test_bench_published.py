"""What `bench` measured goes to the Hub with the SAE, as it is documented."""

from pathlib import Path

import pytest

from sae_lens_bipolar.errors import DataError
from sae_lens_bipolar.hub.publishing import PublishConfig, publish
from sae_lens_bipolar.saebench import bench, read_rows
from tests.saebench.bench_models import bench_sae, save_bench_model, save_bench_sae, tiny_config
from tests.tiny_models import write_text


def test_results_in_the_checkpoints_own_folder_reach_the_card(tmp_path: Path) -> None:
    model_dir = save_bench_model(tmp_path / "gpt2", "gpt2")
    path = save_bench_sae(tmp_path / "abstopk", bench_sae("abstopk", model_dir))
    text = str(write_text(tmp_path / "text.jsonl"))
    found = bench([path], path / "bench", tiny_config(suites=("core",), core_dataset=text))

    config = PublishConfig("ada/signed", license="mit", id="layer0")
    folder = publish(path, config, dry_run=True).folder
    assert folder is not None
    published = read_rows(folder / "results/saebench.csv")
    assert published == [row | {"sae": "layer0"} for row in found.rows]
    card = (folder / "README.md").read_text(encoding="utf-8")
    score = next(row["value"] for row in found.rows if row["metric"] == "ce_loss_score")
    assert f"| core: loss recovered | both | {score:.3f} |" in card
    assert str(tmp_path) not in card + (folder / "results/saebench/bench/config.yaml").read_text()

    save_bench_sae(path, bench_sae("abstopk", model_dir, seed=1))
    with pytest.raises(DataError, match="other weights of abstopk"):
        publish(path, config, dry_run=True)
