"""Sparse probing: SAEBench's suite with seeds, and its own functions called as they are meant.

Works around, in sae_bench 0.6.0:
- evals/sparse_probing/probe_training.py:134, `@beartype` without jaxtyping inherits the caller's
  dimensions and raises in every run: the undecorated function.
- evals/sparse_probing/main.py:110, a cached run draws other random numbers than the run that
  filled the cache: each stage starts from the seed.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from sae_bench.evals.sparse_probing import main, probe_training
from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig
from sae_bench.sae_bench_utils import activation_collection

from sae_lens_bipolar.saebench.config import BenchConfig
from sae_lens_bipolar.saebench.host.hosts import BenchError, replaced
from sae_lens_bipolar.saebench.host.hub_data import readable_data
from sae_lens_bipolar.saebench.host.isolation import seed_everything
from sae_lens_bipolar.saebench.job import Job


def cache_key(config: BenchConfig) -> dict[str, Any]:
    """What cached activations and baseline probes depend on, beside model and hook."""
    return {
        "seed": config.seed,
        "context_length": config.context_length,
        "train_size": config.probing_train_size,
        "test_size": config.probing_test_size,
        "datasets": config.probing_datasets,
        "k": config.probing_k,
    }


def run(job: Job) -> None:
    """Run the suite; SAEBench's JSON lies below `job.results`."""
    config = job.config
    host = SparseProbingEvalConfig(
        model_name=job.model.alias,
        random_seed=config.seed,
        dataset_names=list(config.probing_datasets),
        probe_train_set_size=config.probing_train_size,
        probe_test_set_size=config.probing_test_size,
        context_length=config.context_length,
        sae_batch_size=job.sizes.sae_batch_size,
        llm_batch_size=job.sizes.llm_batch_size,
        llm_dtype=config.llm_dtype,
        k_values=list(config.probing_k),
    )
    with _host(config):
        job.evaluate(main.run_eval, host, artifacts_path=str(job.cache))


@contextmanager
def _host(config: BenchConfig) -> Iterator[None]:
    seed = partial(seed_everything, config.seed)
    collect, encode = main.get_dataset_activations, activation_collection.get_sae_meaned_activations

    def seeded_activations(*args: Any, **kwargs: Any) -> Any:
        seed()
        try:
            return collect(*args, **kwargs)
        except KeyError as error:  # SAEBench leaves out classes with too few examples, then asks
            raise BenchError(
                f"sparse probing: class {error} of {args[0]} has too few examples for "
                f"probing_train_size={config.probing_train_size} and "
                f"probing_test_size={config.probing_test_size}: lower them"
            ) from error

    def seeded_encoding(*args: Any, **kwargs: Any) -> Any:
        seed()
        return encode(*args, **kwargs)

    plain: Any = probe_training.train_sklearn_probe
    with ExitStack() as stack:
        stack.enter_context(readable_data(config.trust_remote_code, config.data_folder))
        stack.enter_context(replaced(main, get_dataset_activations=seeded_activations))
        stack.enter_context(
            replaced(activation_collection, get_sae_meaned_activations=seeded_encoding)
        )
        stack.enter_context(
            replaced(probe_training, train_sklearn_probe=getattr(plain, "__wrapped__", plain))
        )
        yield
