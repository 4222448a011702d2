"""TPP on classes that latents carry on their negative side.

sae_bench 0.6.0 (evals/scr_and_tpp/main.py) takes mean latents of the class minus those of the
others, clamps them at 0 (:126-128) and keeps the largest effects, not the largest magnitudes
(:187). A latent that fires at -1 on its class drops out; those of *other* classes, which fire at
-1 where the class does not, have a positive difference and a positive product with the probe, and
are ablated in its place.

In the planted model a word's embedding is the direction of its class (or of a gender, or filler),
and the SAE has one latent per direction. Without its own latent a class's probe loses what it
reads, and the other probes hardly suffer; without other classes' latents it is the other way round.
"""

from typing import Any

import pytest
import torch

from sae_lens_bipolar.saebench import BenchConfig
from tests.hub.fake.server import HubServer
from tests.saebench.planted_model import planted_model, planted_sae, run_twins, save_planted, value
from tests.saebench.suite_data import FILLER, PROFESSIONS, SIDES, class_words

N = 2  # latents ablated
SCALE = 10  # large, so that the probes are done within a hundred epochs of five steps


@pytest.fixture(scope="module")
def rows(suite_hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("tpp")
    groups = [class_words(number) for number in PROFESSIONS] + [*SIDES.values(), FILLER]
    directions = torch.eye(len(groups))
    embeddings = {
        word: SCALE * direction
        for group, direction in zip(groups, directions, strict=True)
        for word in group
    }
    model, tokenizer = planted_model(embeddings)
    sae = planted_sae(save_planted(folder / "model", model, tokenizer), directions, directions, k=1)
    config = BenchConfig(
        suites=("tpp",),
        context_length=20,
        llm_batch_size=32,
        ablation_train_size=80,
        ablation_test_size=40,
        ablation_epochs=100,
        ablation_datasets=("LabHC/bias_in_bios_class_set1",),
        ablation_n=(N,),
    )
    return run_twins(folder, sae, range(len(PROFESSIONS)), config)


def test_split_ablates_the_class_whichever_side_carries_it(rows: list[dict[str, Any]]) -> None:
    for kind in ("total_metric", "intended_diff_only", "unintended_diff_only"):
        right = value(rows, "upright", "signed", f"tpp_{kind}", N)
        for sae in ("upright", "flipped"):
            assert value(rows, sae, "split", f"tpp_{kind}", N) == pytest.approx(right, abs=1e-6)
    assert value(rows, "flipped", "split", "tpp_total_metric", N) > 0.2


def test_signed_ablates_other_classes_instead(rows: list[dict[str, Any]]) -> None:
    intended = value(rows, "flipped", "signed", "tpp_intended_diff_only", N)
    unintended = value(rows, "flipped", "signed", "tpp_unintended_diff_only", N)
    assert unintended > intended, "others lose more than the class whose latents were to go"
    assert value(rows, "flipped", "signed", "tpp_total_metric", N) < 0
