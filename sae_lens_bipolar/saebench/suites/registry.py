"""The seven suites behind one call each: what they refuse, cache and run."""

from collections.abc import Callable
from typing import Any

from sae_lens_bipolar.saebench.assets import content_of
from sae_lens_bipolar.saebench.config import BenchConfig
from sae_lens_bipolar.saebench.host.llm import served
from sae_lens_bipolar.saebench.job import Job
from sae_lens_bipolar.saebench.suites import ablation, absorption, core, probing, ravel, unlearning

# suite -> what a run's cache depends on beside model and hook; None: the suite caches nothing
_CACHES: dict[str, Callable[[BenchConfig], dict[str, Any]] | None] = {
    "absorption": absorption.cache_key,
    "scr": ablation.cache_key,
    "tpp": ablation.cache_key,
    "sparse_probing": probing.cache_key,
    "ravel": ravel.cache_key,
    "unlearning": unlearning.cache_key,
    "core": None,
}
_OF_MODEL_ALONE = ("ravel", "unlearning")
_REFUSALS = {"absorption": absorption.refusal, "ravel": ravel.refusal}
_FIELDS = {
    "absorption": ("absorption_",),
    "scr": ("ablation_", "scr_"),
    "tpp": ("ablation_",),
    "sparse_probing": ("probing_",),
    "ravel": ("ravel_",),
    "unlearning": ("unlearning_", "forget_corpus"),
    "core": ("core_",),
}
_PATHS = ("ravel_data", "forget_corpus", "core_dataset")
_COMMON = ("device", "llm_dtype", "seed", "context_length", "trust_remote_code")


def refusal(suite: str, hook_name: str) -> str | None:
    """Why a suite cannot measure an SAE at a hook, or None."""
    refuse = _REFUSALS.get(suite)
    return refuse(hook_name) if refuse else None


def cache_key(suite: str, config: BenchConfig, hook_name: str) -> dict[str, Any] | None:
    """What decides whether two runs of a suite share a cache, beside the model; None: no cache."""
    key = _CACHES[suite]
    if key is None:
        return None
    hook = None if suite in _OF_MODEL_ALONE else hook_name
    return {"suite": suite, "hook": hook, **key(config)}


def fields_of(suite: str, config: BenchConfig) -> dict[str, Any]:
    """The configuration that decides a suite's numbers."""
    prefixes = _FIELDS[suite]
    return {
        name: content_of(value) if name in _PATHS else value
        for name, value in vars(config).items()
        if name in _COMMON or name.startswith(prefixes)
    }


def run(suite: str, job: Job, doubled: bool) -> None:
    """Run one suite on one SAE; SAEBench's JSON lies below `job.results`.

    `doubled`: latents are poles of signed ones, so TPP is also run at 2n.
    """
    job.results.mkdir(parents=True, exist_ok=True)
    job.cache.mkdir(parents=True, exist_ok=True)
    with served(job.model):
        if suite == "tpp":
            ablation.run_tpp(job, doubled)
        else:
            _RUNS[suite](job)


_RUNS: dict[str, Callable[[Job], None]] = {
    "absorption": absorption.run,
    "scr": ablation.run_scr,
    "sparse_probing": probing.run,
    "ravel": ravel.run,
    "unlearning": unlearning.run,
    "core": core.run,
}
