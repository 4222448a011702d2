"""lm_eval's MMLU runs inside our context manager on the questions that lie in its wheel."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.abstopk.steering_mmlu import LETTERS, evaluate, offline_questions, offline_task
from sae_lens_bipolar.steering import AddVector

pytest.importorskip("lm_eval")


def test_the_development_questions_of_the_wheel() -> None:
    questions = offline_questions()
    assert len(questions) > 270
    assert len({one["subject"] for one in questions}) == 57
    assert all(len(one["choices"]) == len(LETTERS) and all(one["choices"]) for one in questions)
    assert {one["answer"] for one in questions} == {0, 1, 2, 3}
    comets = next(one for one in questions if "short-period comets" in one["question"])
    assert comets["subject"] == "astronomy"
    assert comets["choices"][comets["answer"]].startswith(
        "The Kuiper belt; short period comets tend"
    )


def test_an_edit_changes_the_scores_and_none_leaves_them(
    tiny_model_dirs: dict[str, Path], tmp_path: Path
) -> None:
    folder = tiny_model_dirs["llama"]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    task = offline_task(tmp_path, limit=12)

    def scores(edits: Any) -> torch.Tensor:
        found = evaluate(model, tokenizer, edits, [task])
        assert 0 <= found["results"]["mmlu_development"]["acc,none"] <= 1
        (rows,) = found["samples"].values()
        assert len(rows) == 12
        return torch.tensor(
            [[float(choice[0]) for choice in row["filtered_resps"]] for row in rows]
        )

    plain = scores([])
    edit = AddVector(torch.ones(32), 3.0, "blocks.0.hook_resid_post")
    steered = scores(edit)
    assert plain.shape == (12, 4)
    assert not torch.allclose(steered, plain, atol=1e-3)
    assert torch.equal(scores([]), plain)  # nothing is left behind
