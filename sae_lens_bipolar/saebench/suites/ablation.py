"""What SCR and TPP share: SAEBench's code for ablating latents, and its options.

Works around, in sae_bench 0.6.0 (evals/scr_and_tpp/main.py):
- :612 and :655 leave gradients disabled (the isolation restores them).
- :600 caches under a name without sizes, seed and context, and a cached run draws other random
  numbers than the run that filled the cache: each stage starts from the seed. So does each
  accuracy (:196 draws the negatives anew), or adding an n would change those after it.
- :137 asserts that no more latents are ablated than there are; numbers outside
  {2, 5, 10, 20, 50, 100, 500} vanish from the JSON, where TPP keeps them unstructured.
- its data (dataset_creation.py:60) fails by an assertion, or by a class's name, where a class has
  too few examples: the error names the sizes.
- :395 drops the SCR metric where both directions start equal, and averages over the rest; its
  field says "else dir2".
- :231 decodes latents at padding, which any top-k SAE has there: masked, unless switched off.
- :197 encodes every text anew for each class and n (see `host.ablated_means`).
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from sae_lens_bipolar.errors import BenchError
from sae_lens_bipolar.inputs.patching import replaced
from sae_lens_bipolar.saebench.host.ablated_means import ablated_means
from sae_lens_bipolar.saebench.host.hub_data import readable_data
from sae_lens_bipolar.saebench.host.isolation import seed_everything
from sae_lens_bipolar.saebench.job import Job
from sae_lens_bipolar.saebench.options import CommonOptions
from sae_lens_bipolar.saebench.suites.record import Need, data_sets

HOST = "sae_bench.evals.scr_and_tpp.main"
# SAEBench's result JSON has a place for these numbers of ablated latents and for no other.
ABLATION_N = (2, 5, 10, 20, 50, 100, 500)
ABLATION_DATASETS = ("LabHC/bias_in_bios_class_set1", "canrager/amazon_reviews_mcauley_1and5")


@dataclass(frozen=True)
class AblationOptions(CommonOptions):
    """Options of SCR and TPP; the defaults are SAEBench's own sizes."""

    ablation_n: tuple[int, ...] = ABLATION_N  # latents ablated
    ablation_train_size: int = 4000  # examples a probe is trained on
    ablation_test_size: int = 1000  # examples it is tested on
    ablation_epochs: int = 20  # of the probes
    ablation_datasets: tuple[str, ...] = ABLATION_DATASETS  # labelled texts of SCR and TPP
    ablation_mask_padding: bool = True  # no latents at padding (SAEBench has them)


ALLOWED = {
    "ablation_n": ABLATION_N,
    "ablation_train_size": range(4, sys.maxsize),
    "ablation_test_size": range(4, sys.maxsize),
    "ablation_datasets": ABLATION_DATASETS,
}
SMALL = {"ablation_train_size": 400, "ablation_test_size": 200}
CACHED = (
    *("seed", "context_length", "ablation_train_size", "ablation_test_size"),
    *("ablation_epochs", "ablation_datasets"),
)


def needs(options: AblationOptions) -> list[Need]:
    """The labelled data sets."""
    return data_sets(options.ablation_datasets)


def latents_ablated(options: AblationOptions, d_sae: int, doubled: bool) -> list[int]:
    """The n that are run: those configured and, where latents are poles, twice each as well."""
    chosen = set(options.ablation_n)
    if doubled:
        chosen |= {2 * n for n in options.ablation_n}
    return sorted(n for n in chosen if n <= d_sae)


def evaluate(job: Job[AblationOptions], n_values: list[int], scr_pairs: int | None) -> None:
    """Run SCR on `scr_pairs` class pairs of each data set or, if that is None, TPP."""
    from sae_bench.evals.scr_and_tpp import main
    from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig

    config = job.config
    host = ScrAndTppEvalConfig(
        model_name=job.model.alias,
        random_seed=config.seed,
        dataset_names=list(config.ablation_datasets),
        perform_scr=scr_pairs is not None,
        train_set_size=config.ablation_train_size,
        test_set_size=config.ablation_test_size,
        context_length=config.context_length,
        probe_epochs=config.ablation_epochs,
        early_stopping_patience=config.ablation_epochs,
        sae_batch_size=job.sizes.sae_batch_size,
        llm_batch_size=job.sizes.llm_batch_size,
        llm_dtype=config.llm_dtype,
        n_values=n_values,
    )
    pairs = host.column1_vals_lookup
    host.column1_vals_lookup = {name: pairs[name][:scr_pairs] for name in pairs}
    with worked_around(config):
        job.evaluate(main.run_eval, host, artifacts_path=str(job.cache))


@contextmanager
def worked_around(config: AblationOptions) -> Iterator[None]:
    """SAEBench's module with the faults named above worked around."""
    from sae_bench.evals.scr_and_tpp import main

    seed = partial(seed_everything, config.seed)
    collect, effects = main.get_dataset_activations, main.get_all_node_effects_for_one_sae
    test = main.get_probe_test_accuracy
    ablate, plot = main.ablated_precomputed_activations, main.get_scr_plotting_dict

    def naming_sizes(read: Callable[..., Any]) -> Callable[..., Any]:
        def named(*args: Any, **kwargs: Any) -> Any:
            try:
                return read(*args, **kwargs)
            except (AssertionError, KeyError) as error:
                raise BenchError(
                    "a data set has too few examples of a class for "
                    f"ablation_train_size={config.ablation_train_size} and "
                    f"ablation_test_size={config.ablation_test_size}: lower them"
                ) from error

        return named

    def seeded_activations(*args: Any, **kwargs: Any) -> Any:
        seed()  # what is cached depends on no SAE that ran before
        return collect(*args, **kwargs)

    def seeded_effects(*args: Any, **kwargs: Any) -> Any:
        seed()
        return effects(*args, **kwargs)

    def seeded_accuracy(*args: Any, **kwargs: Any) -> dict[str, float]:
        seed()  # every n on the same negatives as the clean model, whichever other n are run
        return test(*args, **kwargs)

    def with_ties(*args: Any, **kwargs: Any) -> dict[str, float]:
        found = plot(*args, **kwargs)
        for key in [key for key in found if key.startswith("scr_dir2_threshold_")]:
            found.setdefault(key.replace("scr_dir2", "scr_metric"), found[key])
        return found

    with ExitStack() as stack:
        stack.enter_context(readable_data(config.trust_remote_code, config.data_folder))
        creation, utils = main.dataset_creation, main.dataset_utils
        stack.enter_context(
            replaced(creation, get_train_test_data=naming_sizes(creation.get_train_test_data))
        )
        stack.enter_context(replaced(utils, filter_dataset=naming_sizes(utils.filter_dataset)))
        stack.enter_context(
            replaced(
                main,
                get_dataset_activations=seeded_activations,
                get_all_node_effects_for_one_sae=seeded_effects,
                get_probe_test_accuracy=seeded_accuracy,
                get_scr_plotting_dict=with_ties,
                ablated_precomputed_activations=ablated_means(ablate, config.ablation_mask_padding),
            )
        )
        yield
