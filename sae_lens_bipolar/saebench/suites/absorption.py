"""Feature absorption: SAEBench's suite with seeds, its own folders, and words of one token.

Works around, in sae_bench 0.6.0 (evals/absorption/):
- common.py:33 probes and raw results go into site-packages; main.py:91 others into the working
  directory.
- `random_seed` is never read, and vocab.py:18 walks the vocabulary in an order that differs
  from call to call: words are sorted, and each stage starts from the seed, cached probe or not.
- feature_absorption_calculator.py:264 raises where prompts differ in tokens; the prompt position
  assumes five tokens after the word: only words of one token are used, at the position the
  tokenizer gives.
- probing.py:345 and feature_absorption_calculator.py:166 run every layer for an early one.
- main.py:112 writes no result, silently, if the model knows too few letters.
"""

import random
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sae_lens_bipolar.errors import BenchError
from sae_lens_bipolar.files.atomic import read_json
from sae_lens_bipolar.inputs.patching import replaced
from sae_lens_bipolar.saebench.host.isolation import seed_everything
from sae_lens_bipolar.saebench.job import Job
from sae_lens_bipolar.saebench.options import CommonOptions
from sae_lens_bipolar.saebench.suites.record import Cache, Headline, Need, Suite, flat

_HOOK = re.compile(r"blocks\.\d+\.hook_resid_post")
_FEWEST_WORDS = 10 * 26  # every prompt holds ten examples; with fewer words a letter has too few


@dataclass(frozen=True)
class AbsorptionOptions(CommonOptions):
    """Options of absorption; the defaults are SAEBench's own sizes."""

    absorption_max_k: int = 10  # largest k of the k-sparse probes
    absorption_min_letters: int = 20  # letters the model's own probe must find
    absorption_min_f1: float = 0.6  # F1 above which it counts as found
    absorption_epochs: int = 50  # of the k-sparse probe
    absorption_words: int | None = None  # words of the vocabulary, balanced by letter; None: all


def needs(_: AbsorptionOptions) -> list[Need]:
    """Nothing besides the model and its tokenizer."""
    return []


def refusal(hook_name: str) -> str | None:
    """Why the suite cannot measure an SAE at `hook_name`; None if it can."""
    if _HOOK.fullmatch(hook_name):
        return None
    return f"absorption reads blocks.N.hook_resid_post, and this SAE reads {hook_name}"


def run(job: Job[AbsorptionOptions]) -> None:
    """Run the suite; SAEBench's JSON lies below `job.results`.

    Raises:
        BenchError: if the model's own probe finds too few first letters.
    """
    from sae_bench.evals.absorption import main
    from sae_bench.evals.absorption.eval_config import AbsorptionEvalConfig

    config = job.config
    words, position = one_token_words(job.model.tokenizer, config)
    host = AbsorptionEvalConfig(
        model_name=job.model.alias,
        random_seed=config.seed,
        max_k_value=min(config.absorption_max_k, job.sae.cfg.d_sae),
        prompt_token_pos=position,
        llm_batch_size=job.sizes.llm_batch_size,
        llm_dtype=config.llm_dtype,
        k_sparse_probe_num_epochs=config.absorption_epochs,
        min_GT_probe_f1=config.absorption_min_f1,
        min_feats_for_eval=config.absorption_min_letters,
    )
    with _host(job, words):
        job.evaluate(main.run_eval, host)
    if not list(job.results.glob("*.json")):
        raise BenchError(_too_few_letters(job, host))


@contextmanager
def _host(job: Job[AbsorptionOptions], words: list[str]) -> Iterator[None]:
    from sae_bench.evals.absorption import common, feature_absorption, k_sparse_probing, main

    raw = job.folder / "raw"
    probes = job.cache / "probes"
    seed = partial(seed_everything, job.config.seed)
    load_or_train = k_sparse_probing.load_or_train_probe

    def load_or_train_probe(*args: Any, **kwargs: Any) -> Any:
        seed()
        probe = load_or_train(*args, **kwargs)
        seed()  # the same numbers whether the probe was trained or read
        return probe

    run_probing = partial(
        main.run_k_sparse_probing_experiment,
        experiment_dir=raw / "k_sparse_probing",
        probes_dir=probes,
    )
    run_absorption = partial(
        main.run_feature_absortion_experiment,
        experiment_dir=raw / "feature_absorption",
        sparse_probing_experiment_dir=raw / "k_sparse_probing",
        probes_dir=probes,
    )

    def run_seeded(**kwargs: Any) -> Any:
        seed()
        return run_absorption(**kwargs)

    def known_words(*_: Any, **__: Any) -> list[str]:
        return list(words)

    with ExitStack() as stack:
        enter = stack.enter_context
        enter(replaced(k_sparse_probing, load_or_train_probe=load_or_train_probe))
        enter(
            replaced(
                main,
                run_k_sparse_probing_experiment=run_probing,
                run_feature_absortion_experiment=run_seeded,
            )
        )
        enter(replaced(common, get_alpha_tokens=known_words))
        enter(replaced(feature_absorption, get_alpha_tokens=known_words))
        enter(stopping_at(job))
        yield


@contextmanager
def stopping_at(job: Job[AbsorptionOptions]) -> Iterator[None]:
    """Forward passes that cache one hook end at the SAE's layer."""
    model = job.model.hooked
    run_with_cache = model.run_with_cache

    def run(*args: Any, **kwargs: Any) -> Any:
        return run_with_cache(*args, **{"stop_at_layer": job.layer + 1, **kwargs})

    with replaced(model, run_with_cache=run):
        yield


def one_token_words(tokenizer: Any, options: AbsorptionOptions) -> tuple[list[str], int]:
    """Words of one token in the prompt, sorted, and the word's position from the prompt's end.

    With `absorption_words`, that many of them, balanced by letter and drawn by the seed.

    Raises:
        BenchError: if there are too few.
    """
    from sae_bench.evals.absorption import vocab
    from sae_bench.evals.absorption.eval_config import AbsorptionEvalConfig

    template = AbsorptionEvalConfig().prompt_template
    candidates = sorted(set(vocab.get_alpha_tokens(tokenizer)))
    frame = template.format(word="")

    def lengths(texts: list[str]) -> list[int]:
        ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [len(row) for row in ids]

    newline, suffix = lengths(["\n", frame])
    prompts = ["\n" + template.format(word=word) for word in candidates]
    found = [
        word
        for word, length in zip(candidates, lengths(prompts), strict=True)
        if length == newline + 1 + suffix
    ]
    if len(found) < _FEWEST_WORDS:
        raise BenchError(
            f"absorption needs at least {_FEWEST_WORDS} words of one token, and this tokenizer has "
            f"{len(found)}: take a model with a larger vocabulary"
        )
    return _balanced(found, options), -(suffix + 1)


def _balanced(words: list[str], options: AbsorptionOptions) -> list[str]:
    limit = options.absorption_words
    if limit is None or limit >= len(words):
        return words
    draw = random.Random(options.seed)
    letters: dict[str, list[str]] = {}
    for word in words:
        letters.setdefault(word.strip()[0].lower(), []).append(word)
    for group in letters.values():
        draw.shuffle(group)
    chosen: list[str] = []
    while len(chosen) < limit:  # one of each letter in turn
        for group in letters.values():
            if group:
                chosen.append(group.pop())
    return sorted(chosen[:limit])


def _too_few_letters(job: Job[AbsorptionOptions], host: Any) -> str:
    files = list(Path(job.folder).glob("artifacts/absorption/*_k_sparse_probing.json"))
    rows = read_json(files[0]) if files else []
    known = [row["letter"] for row in rows if (row["f1_probe"] or 0) > host.min_GT_probe_f1]
    return (
        f"the model's own probe finds {len(known)} first letters with F1 above "
        f"{host.min_GT_probe_f1} ({''.join(known)}), and {host.min_feats_for_eval} are needed: "
        "a larger model or another layer, or lower absorption_min_letters"
    )


SUITE = Suite(
    name="absorption",
    label="absorption",
    options=AbsorptionOptions,
    allowed={},
    small={"absorption_words": 2000},
    paths={},
    texts=(),
    labelled=False,
    needs=needs,
    refusal=refusal,
    cache=Cache(("seed", "absorption_words"), of_hook=True),
    host="sae_bench.evals.absorption.main",
    run=run,
    read=flat,
    headline=Headline(
        metric="mean_absorption_fraction_score",
        budget=None,
        protocol="split",
        higher_is_better=False,
        column="absorption (1 - mean fraction)",
        measure="absorption: 1 - mean absorbed fraction",
    ),
)
