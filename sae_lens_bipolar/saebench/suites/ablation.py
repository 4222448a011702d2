"""SCR and TPP: spurious correlations removed, and targeted probes perturbed, by ablating latents.

Works around, in sae_bench 0.6.0 (evals/scr_and_tpp/main.py):
- :612 and :655 leave gradients disabled (the isolation restores them).
- :600 caches under a name without sizes, seed and context, and a cached run draws other random
  numbers than the run that filled the cache: each stage starts from the seed. So does each
  accuracy (:196 draws the negatives anew), or adding an n would change those after it.
- :137 asserts that no more latents are ablated than there are; numbers outside
  {2, 5, 10, 20, 50, 100, 500} vanish from the JSON, where TPP keeps them unstructured.
- :395 drops the SCR metric where both directions start equal, and averages over the rest; its
  field says "else dir2".
- :231 decodes latents at padding, which any top-k SAE has there: masked, unless switched off.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from sae_bench.evals.scr_and_tpp import main
from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig

from sae_lens_bipolar.saebench.config import BenchConfig
from sae_lens_bipolar.saebench.host.hosts import replaced
from sae_lens_bipolar.saebench.host.hub_data import readable_data
from sae_lens_bipolar.saebench.host.isolation import seed_everything
from sae_lens_bipolar.saebench.job import Job


def cache_key(config: BenchConfig) -> dict[str, Any]:
    """What cached activations and probes depend on, beside model and hook."""
    return {
        "seed": config.seed,
        "context_length": config.context_length,
        "train_size": config.ablation_train_size,
        "test_size": config.ablation_test_size,
        "epochs": config.ablation_epochs,
        "datasets": config.ablation_datasets,
        "scr_pairs": config.scr_pairs,
    }


def latents_ablated(config: BenchConfig, d_sae: int, doubled: bool) -> list[int]:
    """The n that are run: those configured and, where latents are poles, twice each as well."""
    chosen = set(config.ablation_n)
    if doubled:
        chosen |= {2 * n for n in config.ablation_n}
    return sorted(n for n in chosen if n <= d_sae)


def run_scr(job: Job) -> None:
    """Run SCR; SAEBench's JSON lies below `job.results`."""
    _run(job, perform_scr=True, doubled=False)


def run_tpp(job: Job, doubled: bool) -> None:
    """Run TPP; with `doubled` also at twice each n, since the split's latents are poles."""
    _run(job, perform_scr=False, doubled=doubled)


def _run(job: Job, perform_scr: bool, doubled: bool) -> None:
    config = job.config
    host = ScrAndTppEvalConfig(
        model_name=job.model.alias,
        random_seed=config.seed,
        dataset_names=list(config.ablation_datasets),
        perform_scr=perform_scr,
        train_set_size=config.ablation_train_size,
        test_set_size=config.ablation_test_size,
        context_length=config.context_length,
        probe_epochs=config.ablation_epochs,
        early_stopping_patience=config.ablation_epochs,
        sae_batch_size=job.sizes.sae_batch_size,
        llm_batch_size=job.sizes.llm_batch_size,
        llm_dtype=config.llm_dtype,
        n_values=latents_ablated(config, job.sae.cfg.d_sae, doubled),
    )
    pairs = host.column1_vals_lookup
    host.column1_vals_lookup = {name: pairs[name][: config.scr_pairs] for name in pairs}
    with _host(config):
        job.evaluate(main.run_eval, host, artifacts_path=str(job.cache))


@contextmanager
def _host(config: BenchConfig) -> Iterator[None]:
    seed = partial(seed_everything, config.seed)
    collect, effects = main.get_dataset_activations, main.get_all_node_effects_for_one_sae
    test = main.get_probe_test_accuracy
    ablate, plot = main.ablated_precomputed_activations, main.get_scr_plotting_dict

    def seeded_activations(*args: Any, **kwargs: Any) -> Any:
        seed()  # what is cached depends on no SAE that ran before
        return collect(*args, **kwargs)

    def seeded_effects(*args: Any, **kwargs: Any) -> Any:
        seed()
        return effects(*args, **kwargs)

    def seeded_accuracy(*args: Any, **kwargs: Any) -> dict[str, float]:
        seed()  # every n on the same negatives as the clean model, whichever other n are run
        return test(*args, **kwargs)

    def masked_ablation(
        acts: torch.Tensor, sae: Any, to_ablate: torch.Tensor, batch_size: int
    ) -> torch.Tensor:
        return ablate(acts, _SilentAtPadding(sae), to_ablate, batch_size)  # pyright: ignore

    def with_ties(*args: Any, **kwargs: Any) -> dict[str, float]:
        found = plot(*args, **kwargs)
        for key in [key for key in found if key.startswith("scr_dir2_threshold_")]:
            found.setdefault(key.replace("scr_dir2", "scr_metric"), found[key])
        return found

    with ExitStack() as stack:
        stack.enter_context(readable_data(config.trust_remote_code, config.data_folder))
        stack.enter_context(
            replaced(
                main,
                get_dataset_activations=seeded_activations,
                get_all_node_effects_for_one_sae=seeded_effects,
                get_probe_test_accuracy=seeded_accuracy,
                get_scr_plotting_dict=with_ties,
            )
        )
        if config.ablation_mask_padding:
            stack.enter_context(replaced(main, ablated_precomputed_activations=masked_ablation))
        yield


class _SilentAtPadding:
    """An SAE whose latents are 0 where the input is 0: SAEBench zeroes masked tokens."""

    def __init__(self, sae: Any):
        self.sae = sae

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.sae.encode(x) * (x != 0).any(dim=-1, keepdim=True)

    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        return self.sae.decode(feature_acts)
