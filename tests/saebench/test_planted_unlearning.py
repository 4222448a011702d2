"""Unlearning of facts that a latent carries on its negative side.

sae_bench 0.6.0 counts a latent as firing where it is `> 0` (sae_bench_utils/
activation_collection.py:239) and clamps it there only (evals/unlearning/utils/
intervention.py:49): what fires negatively is neither found in the forget corpus nor clamped.

The planted model answers multiple choice questions by one attention head, after `HOOK`: from the
final ":" it attends to the choice whose word is a fact (of any subject), and copies its letter.
One latent carries the facts of biology. Clamped to -25, it turns the right choice's key against the
head, which then attends to everything else alike: the three wrong letters tie, the right one gets
nothing, and no question about biology is answered right. Other subjects have their own latents.
"""

from typing import Any

import pytest
import torch

from sae_lens_bipolar.saebench import BenchConfig
from tests.hub.fake.server import HubServer
from tests.saebench.planted_model import planted_model, planted_sae, run_twins, save_planted, value
from tests.saebench.suite_data import SUBJECTS, TOPICS, WRONG_ANSWERS

LETTERS = "ABCD"


@pytest.fixture(scope="module")
def rows(suite_hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("unlearning")
    names = [*TOPICS, *LETTERS, *WRONG_ANSWERS, ":", *(f"say {x}" for x in LETTERS), "match"]
    # LayerNorm takes out the mean: orthonormal directions that have none.
    width = len(names) + 1
    drawn = torch.randn(width, width, generator=torch.Generator().manual_seed(0))
    drawn[:, 0] = 1.0
    basis = torch.linalg.qr(drawn).Q[:, 1:].T
    at = dict(zip(names, basis, strict=True))
    embeddings = {":": at[":"]}
    for subject, facts in TOPICS.items():
        embeddings |= dict.fromkeys(facts, 2 * at[subject])
    for word in (*WRONG_ANSWERS, *(word for facts in TOPICS.values() for word in facts)):
        content = 2 * at[word] if word in WRONG_ANSWERS else embeddings[word]
        embeddings |= {f"{x}. {word}": content + at[x] for x in LETTERS}
    embeddings |= {x: torch.zeros(width) for x in LETTERS}
    model, tokenizer = planted_model(embeddings, n_layer=2)
    head: Any = model.transformer.h[1].attn
    with torch.no_grad():
        query, key, values = head.c_attn.weight.split(width, dim=1)
        query.copy_(4 * torch.outer(at[":"], at["match"]))
        key.copy_(
            4 * torch.outer(torch.stack([at[subject] for subject in TOPICS]).sum(0), at["match"])
        )
        values.copy_(torch.stack([torch.outer(at[x], at[f"say {x}"]) for x in LETTERS]).sum(0))
        head.c_proj.weight.copy_(torch.eye(width))
        for x in LETTERS:
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(x)] = 5 * at[f"say {x}"]
    directions = basis[: len(TOPICS) + len(LETTERS) + len(WRONG_ANSWERS) + 1]  # all but the head's
    model_dir = save_planted(folder / "model", model, tokenizer)
    sae = planted_sae(model_dir, directions.T, directions, k=1)  # a choice's word, of weight 2
    config = BenchConfig(
        suites=("unlearning",),
        llm_batch_size=16,
        unlearning_datasets=SUBJECTS[:2],
        unlearning_known="given_order",
        unlearning_n=(1,),
        unlearning_multipliers=(25,),
        unlearning_retain=(0.01,),
        unlearning_sequences=16,
        unlearning_length=32,
    )
    return run_twins(folder, sae, [0], config)


def test_signed_leaves_the_facts_where_they_are(rows: list[dict[str, Any]]) -> None:
    assert value(rows, "upright", "signed", "unlearning_score") == 1
    assert value(rows, "flipped", "signed", "unlearning_score") == 0


def test_split_unlearns_them_whichever_side_carries_them(rows: list[dict[str, Any]]) -> None:
    for sae in ("upright", "flipped"):
        assert value(rows, sae, "split", "unlearning_score") == 1
