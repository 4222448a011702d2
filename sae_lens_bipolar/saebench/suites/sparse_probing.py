"""Sparse probing: SAEBench's suite with seeds, and its own functions called as they are meant.

Works around, in sae_bench 0.6.0:
- evals/sparse_probing/probe_training.py:134, `@beartype` without jaxtyping inherits the caller's
  dimensions and raises in every run: the undecorated function.
- evals/sparse_probing/main.py:110, a cached run draws other random numbers than the run that
  filled the cache: each stage starts from the seed.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from sae_lens_bipolar.errors import BenchError
from sae_lens_bipolar.inputs.patching import replaced
from sae_lens_bipolar.saebench.host.hub_data import readable_data
from sae_lens_bipolar.saebench.host.isolation import seed_everything
from sae_lens_bipolar.saebench.job import Job
from sae_lens_bipolar.saebench.options import CommonOptions
from sae_lens_bipolar.saebench.suites.record import (
    Cache,
    Headline,
    Need,
    Number,
    Suite,
    data_sets,
    flat,
)

PROBING_K = (1, 2, 5, 10, 20, 50, 100)
PROBING_DATASETS = (
    *(f"LabHC/bias_in_bios_class_set{i}" for i in (1, 2, 3)),
    *("canrager/amazon_reviews_mcauley_1and5", "canrager/amazon_reviews_mcauley_1and5_sentiment"),
    *("codeparrot/github-code", "fancyzhx/ag_news", "Helsinki-NLP/europarl"),
)


@dataclass(frozen=True)
class SparseProbingOptions(CommonOptions):
    """Options of sparse probing; the defaults are SAEBench's own sizes, apart from k."""

    probing_k: tuple[int, ...] = (1, 2, 5)  # latents a probe may use
    probing_train_size: int = 4000  # examples a probe is trained on
    probing_test_size: int = 1000  # examples it is tested on
    probing_datasets: tuple[str, ...] = PROBING_DATASETS  # labelled texts


def needs(options: SparseProbingOptions) -> list[Need]:
    """The labelled data sets."""
    return data_sets(options.probing_datasets, "leave it out of --probing-datasets")


def run(job: Job[SparseProbingOptions]) -> None:
    """Run the suite; SAEBench's JSON lies below `job.results`."""
    from sae_bench.evals.sparse_probing import main
    from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig

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
def _host(config: SparseProbingOptions) -> Iterator[None]:
    from sae_bench.evals.sparse_probing import main, probe_training
    from sae_bench.sae_bench_utils import activation_collection

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


def read(result: Mapping[str, Any]) -> list[Number]:
    """The numbers of a result; k stands between "_top_" and "_test_accuracy"."""
    found: list[Number] = []
    for name, _, value in flat(result):
        side, is_top, rest = name.partition("_top_")
        if is_top:
            found.append((f"{side}_top_k_test_accuracy", int(rest.split("_")[0]), value))
        else:
            found.append((name, None, value))
    return found


SUITE = Suite(
    name="sparse_probing",
    label="sparse probing",
    options=SparseProbingOptions,
    allowed={"probing_k": PROBING_K, "probing_datasets": PROBING_DATASETS},
    small={"probing_train_size": 400, "probing_test_size": 200},
    paths={},
    texts=(),
    labelled=True,
    needs=needs,
    refusal=None,
    cache=Cache(
        (
            *("seed", "context_length", "probing_train_size", "probing_test_size"),
            *("probing_datasets", "probing_k"),
        ),
        of_hook=True,
    ),
    host="sae_bench.evals.sparse_probing.main",
    run=run,
    read=read,
    headline=Headline(
        metric="sae_top_k_test_accuracy",
        budget=5,
        protocol="signed",
        higher_is_better=True,
        column="sparse_probing (k=5)",
        measure="sparse probing, k = 5: accuracy",
    ),
)
