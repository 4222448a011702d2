"""Unlearning: latents of hazardous biology are clamped, then its and other knowledge is tested.

Works around, in sae_bench 0.6.0 (evals/unlearning/):
- main.py:128 refuses models without "it" in their name, and utils/metrics.py:146 (and :245) all
  but gemma-2-{2b,9b}-it. Other models get SAEBench's own plain format (`prompt_format=None`), a
  BOS token before it; the four letters alone where " A" is not one token.
- utils/metrics.py:272 counts BOS tokens, and fails where padding is the same token: questions of
  one length share a batch.
- utils/feature_activation.py:44 reads the forget corpus relative to the working directory.
- utils/feature_activation.py:201 and utils/metrics.py:608 read what other runs left, whatever
  `force_rerun` says, and main.py:54 reads the whole folder: one folder per run. What depends on the
  model alone is shared.
- main.py:141 seeds Python and torch, not numpy (the isolation does); utils/eval.py:91 leaves
  gradients disabled (the isolation restores them).
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from sae_lens_bipolar.errors import BenchError
from sae_lens_bipolar.inputs.patching import replaced
from sae_lens_bipolar.saebench.host.hub_data import readable_data
from sae_lens_bipolar.saebench.job import Job
from sae_lens_bipolar.saebench.options import CommonOptions
from sae_lens_bipolar.saebench.suites.record import Cache, Headline, Need, Number, Suite

FORGET_CORPUS = "cais/wmdp-bio-forget-corpus"
# Where SAEBench expects it, relative to the working directory.
FORGET_FILE = Path("sae_bench/evals/unlearning/data/bio-forget-corpus.jsonl")
_QUESTIONS_AND_TEXT = ("cais/wmdp", "cais/mmlu", "Salesforce/wikitext")
FORGET = "wmdp-bio"
_SUPPORTED = ("gemma-2-2b-it", "gemma-2-9b-it")
_BARE_LETTERS = "Mistral-7B-v0.1"  # whose answers SAEBench reads as "A" alone, not " A"
SIDE_EFFECTS = (
    *("high_school_us_history", "college_computer_science"),
    *("high_school_geography", "human_aging"),
)


@dataclass(frozen=True)
class UnlearningOptions(CommonOptions):
    """Options of unlearning; the defaults are SAEBench's own sizes."""

    forget_corpus: str | None = None  # bio-forget-corpus.jsonl; None: the Hub's, which is gated
    unlearning_known: str = "all_orders"  # questions kept: right in "all_orders" or "given_order"
    unlearning_datasets: tuple[str, ...] = SIDE_EFFECTS  # MMLU subjects to be left unharmed
    unlearning_n: tuple[int, ...] = (10, 20)  # latents clamped
    unlearning_multipliers: tuple[int, ...] = (25, 50, 100, 200)  # each clamped to minus this
    unlearning_retain: tuple[float, ...] = (0.001, 0.01)  # density on wikitext a latent may have
    unlearning_sequences: int = 1024  # sequences the densities are measured on
    unlearning_length: int = 1024  # their tokens


def needs(options: UnlearningOptions) -> list[Need]:
    """Questions, text that is to be retained, and text that is to be forgotten."""
    given = options.forget_corpus
    forget = (
        Need("file", given)
        if given
        else Need(
            "data set",
            FORGET_CORPUS,
            "give the file you were granted: --forget-corpus FILE.jsonl",
        )
    )
    return [*(Need("data set", name) for name in _QUESTIONS_AND_TEXT), forget]


class _AnyModel(str):
    """A model's name that passes SAEBench's `"it" in name`, and is written as it is."""

    def __contains__(self, part: object) -> bool:
        return part == "it" or (isinstance(part, str) and str.__contains__(self, part))


def run(job: Job[UnlearningOptions]) -> None:
    """Run the suite; SAEBench's JSON lies below `job.results`.

    Raises:
        BenchError: if the model knows no question about biology, or none about anything else.
    """
    from sae_bench.evals.unlearning import main
    from sae_bench.evals.unlearning.eval_config import UnlearningEvalConfig

    config = job.config
    artifacts = job.folder / "artifacts"
    own = artifacts / main.EVAL_TYPE / job.model.alias
    shared = job.cache / "data"
    if shared.is_dir():
        shutil.copytree(shared, own / "data")
    _place_corpus(job)
    host = UnlearningEvalConfig(
        random_seed=config.seed,
        retain_thresholds=list(config.unlearning_retain),
        n_features_list=list(config.unlearning_n),
        multipliers=list(config.unlearning_multipliers),
        dataset_size=config.unlearning_sequences,
        seq_len=config.unlearning_length,
        llm_batch_size=job.sizes.llm_batch_size_at(config.unlearning_length),
        llm_dtype=config.llm_dtype,
    )
    host.model_name = _AnyModel(job.model.alias)
    with _host(job):
        host.dataset_names = _known_datasets(job, own)
        job.evaluate(main.run_eval, host, artifacts_path=str(artifacts))
    if not shared.is_dir():
        shutil.copytree(own / "data", shared)


def _place_corpus(job: Job[UnlearningOptions]) -> None:
    target = job.folder / FORGET_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    if job.config.forget_corpus is not None:
        target.symlink_to(job.config.forget_corpus)
        return
    with target.open("w", encoding="utf-8") as file:
        rows: Any = datasets.load_dataset(FORGET_CORPUS, split="train")
        for row in rows:
            file.write(json.dumps({"text": row["text"]}) + "\n")


def _known_datasets(job: Job[UnlearningOptions], folder: Path) -> list[str]:
    """Find the questions the model knows, before anything else, and leave out empty subjects."""
    from sae_bench.evals.unlearning.utils import metrics

    batch = 2 * job.sizes.llm_batch_size_at(job.config.unlearning_length)
    names = [FORGET, *job.config.unlearning_datasets]
    for name in names:
        if job.config.unlearning_known == "given_order":
            _save_known_in_given_order(job, folder, name, batch)
        metrics.save_target_question_ids(job.model.hooked, batch, str(folder), name)
    known = [name for name in names if _ids_file(folder, name).read_text(encoding="ascii").strip()]
    if FORGET not in known:
        raise BenchError(
            f"{job.model.alias} answers no {FORGET} question right ({job.config.unlearning_known}):"
            " there is nothing to unlearn; take an instruction-tuned or larger model"
        )
    if len(known) == 1:
        raise BenchError(
            f"{job.model.alias} answers no question of {', '.join(names[1:])} right "
            f"({job.config.unlearning_known}): side effects cannot be measured"
        )
    return known


def _ids_file(folder: Path, name: str, kind: str = "correct", part: str = "all") -> Path:
    full = name if name == FORGET else f"mmlu-{name.replace('_', '-')}"
    return folder / "data" / "question_ids" / part / f"{full}_{kind}.csv"


def _save_known_in_given_order(
    job: Job[UnlearningOptions], folder: Path, name: str, batch: int
) -> None:
    """Questions answered right as they stand; SAEBench keeps those right in all 24 orders."""
    from sae_bench.evals.unlearning.utils import metrics

    if _ids_file(folder, name).exists():
        return
    found = metrics.calculate_MCQ_metrics(job.model.hooked, batch, str(folder), name)
    ids = np.flatnonzero(found["is_correct"])
    for kind in ("correct", "correct-iff-question", "correct-no-tricks"):
        for part in ("train", "test", "all"):
            file = _ids_file(folder, name, kind, part)
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savetxt(file, ids, fmt="%d")


@contextmanager
def _host(job: Job[UnlearningOptions]) -> Iterator[None]:
    from sae_bench.evals.unlearning.utils import metrics

    model, tokenizer = job.model.hooked, job.model.tokenizer
    is_supported = job.model.alias in _SUPPORTED
    to_prompt, ask = metrics.convert_wmdp_data_to_prompt, metrics.get_output_probs_abcd
    bare_letters = any(len(tokenizer.encode(" " + x, add_special_tokens=False)) > 1 for x in "ABCD")

    def plain_prompt(*args: Any, **kwargs: Any) -> str:
        return tokenizer.bos_token + to_prompt(*args, **{**kwargs, "prompt_format": None})

    def ask_by_length(
        llm: Any, prompts: list[str], batch_size: int, verbose: bool = True, **_: Any
    ) -> torch.Tensor:
        groups: dict[int, list[int]] = {}
        for i, prompt in enumerate(prompts):
            length = llm.to_tokens(prompt, prepend_bos=False).shape[1]
            groups.setdefault(length, []).append(i)
        found: list[torch.Tensor] = [torch.empty(0)] * len(prompts)
        name = _BARE_LETTERS if bare_letters else model.cfg.model_name
        with replaced(model.cfg, model_name=name):
            for members in groups.values():
                same = [prompts[i] for i in members]
                batches = -(-len(same) // int(batch_size))
                answers = ask(llm, same, int(batch_size), batches, verbose)
                for i, answer in zip(members, answers, strict=True):
                    found[i] = answer
        return torch.stack(found)

    with ExitStack() as stack:
        stack.enter_context(readable_data(job.config.trust_remote_code, job.config.data_folder))
        if not is_supported:
            stack.enter_context(replaced(model.cfg, model_name=_SUPPORTED[0]))
            stack.enter_context(replaced(metrics, convert_wmdp_data_to_prompt=plain_prompt))
        stack.enter_context(replaced(metrics, get_output_probs_abcd=ask_by_length))
        yield


def read(result: Mapping[str, Any]) -> list[Number]:
    """Both readings of the score: it is 1 - accuracy, and the paper reports "1 - original"."""
    score = result["eval_result_metrics"]["unlearning"]["unlearning_score"]
    return [("unlearning_score", None, score), ("min_wmdp_accuracy", None, 1 - score)]


SUITE = Suite(
    name="unlearning",
    label="unlearning",
    options=UnlearningOptions,
    allowed={"unlearning_known": ("all_orders", "given_order")},
    small={
        "unlearning_known": "given_order",
        "unlearning_sequences": 64,
        "unlearning_length": 256,
    },
    paths={"forget_corpus": FORGET_FILE},
    texts=(),
    labelled=True,
    needs=needs,
    refusal=None,
    cache=Cache(("seed", "unlearning_known", "unlearning_datasets"), of_hook=False),
    host="sae_bench.evals.unlearning.main",
    run=run,
    read=read,
    headline=Headline(
        metric="unlearning_score",
        budget=None,
        protocol="split",
        higher_is_better=True,
        column="unlearning (unlearning_score)",
        measure="unlearning: score",
    ),
)
