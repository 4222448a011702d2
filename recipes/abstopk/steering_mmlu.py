"""MMLU of a steered model: EleutherAI's lm_eval around the live model, inside `steering`.

lm_eval's own `steered` model is not used: it holds one latent per hookpoint, clamps a projection
rather than z, and reads pickles.
"""

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from sae_lens_bipolar.errors import ConfigError, DataError
from sae_lens_bipolar.files.atomic import write_text
from sae_lens_bipolar.steering import steering
from sae_lens_bipolar.steering.edits import Edit

LETTERS = "ABCD"
_OFFLINE = "tasks/mmlu/flan_cot_fewshot"  # in lm_eval's wheel: the development questions
_TEMPLATE = "tasks/mmlu/default/_default_template_yaml"  # how lm_eval asks MMLU
_CHOICE = re.compile(r"\(([A-D])\)\s*")
_ANSWER = re.compile(r"answer is \(([A-D])\)")


def require_lm_eval() -> Any:
    """The package lm_eval.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import lm_eval
    except ImportError as error:
        raise ConfigError("MMLU needs lm_eval: pip install 'sae-lens-bipolar[steering]'") from error
    return lm_eval


def offline_questions() -> list[dict[str, Any]]:
    """MMLU's development questions as they lie in lm_eval's wheel, five per subject or fewer.

    Their chains of thought are left out, and so are the few that are not of four choices.
    """
    require_lm_eval()
    found = []
    for file in sorted(files("lm_eval").joinpath(_OFFLINE).iterdir(), key=lambda one: one.name):
        if not file.name.startswith("mmlu_"):
            continue
        task = yaml.load(file.read_text(encoding="utf-8"), Loader=_without_tags())
        for sample in task["fewshot_config"]["samples"]:
            question, *parts = _CHOICE.split(sample["question"])
            answer = _ANSWER.search(sample["target"])
            if answer is None or tuple(parts[0::2]) != tuple(LETTERS):
                continue
            found.append(
                {
                    "subject": task["dataset_name"],
                    "question": question.strip(),
                    "choices": [choice.strip() for choice in parts[1::2]],
                    "answer": LETTERS.index(answer[1]),
                }
            )
    if not found:
        raise DataError("lm_eval's wheel holds no development questions of MMLU where they were")
    return found


def offline_task(folder: Path, limit: int | None = None) -> dict[str, Any]:
    """A task of lm_eval over `offline_questions`, asked as lm_eval asks MMLU, 0-shot.

    Args:
        folder: where the questions are written.
        limit: how many, drawn evenly from all subjects.
    """
    import json

    questions = offline_questions()
    if limit is not None:
        questions = questions[:: max(1, len(questions) // limit)][:limit]
    file = folder / "mmlu_development.jsonl"
    write_text(file, "".join(json.dumps(one) + "\n" for one in questions))
    template = files("lm_eval").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    asked = yaml.load(template, Loader=_without_tags())
    return {
        **{key: asked[key] for key in ("output_type", "doc_to_text", "doc_to_choice")},
        **{key: asked[key] for key in ("doc_to_target", "metric_list")},
        "task": "mmlu_development",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "metadata": {"version": 1.0},
    }


def evaluate(
    model: Any,
    tokenizer: Any,
    edits: Edit | Sequence[Edit],
    tasks: Sequence[str | dict[str, Any]],
    *,
    num_fewshot: int | None = 0,
    batch_size: int = 8,
    limit: int | None = None,
) -> dict[str, Any]:
    """Accuracy of a Transformers model on tasks of lm_eval while edits apply to all tokens.

    Args:
        model: a Transformers model; it is used as it is, not loaded again.
        edits: as `steering` takes them; none for the model itself.
        tasks: names such as "mmlu", or tasks of `offline_task`.

    Returns:
        `results` and `samples` of lm_eval, the latter with the log probability of every choice.
    """
    lm_eval = require_lm_eval()
    from lm_eval.models import huggingface

    device = str(next(model.parameters()).device)
    live_model: Any = huggingface.HFLM  # its arguments are those of a class it is made from
    live = live_model(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device=device)
    with steering(model, edits):
        found = lm_eval.simple_evaluate(
            model=live,
            tasks=list(tasks),
            num_fewshot=num_fewshot,
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            verbosity="ERROR",
        )
    assert found is not None
    return {"results": found["results"], "samples": found["samples"]}


def _without_tags() -> Any:
    """A safe loader for lm_eval's YAML, which names Python functions by tags of its own."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda _loader, _suffix, _node: None)
    return Loader
