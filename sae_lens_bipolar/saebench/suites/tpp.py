"""TPP: ablating the latents of a class perturbs the probe of that class.

`ablation` says which of SAEBench's faults are worked around.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from sae_lens_bipolar.saebench.job import Job
from sae_lens_bipolar.saebench.suites import ablation
from sae_lens_bipolar.saebench.suites.ablation import AblationOptions
from sae_lens_bipolar.saebench.suites.record import Cache, Headline, Number, Suite


def run(job: Job[AblationOptions]) -> None:
    """Run the suite, on poles also at twice each n; SAEBench's JSON lies below `job.results`."""
    n_values = ablation.latents_ablated(job.config, job.sae.cfg.d_sae, doubled=job.poles)
    ablation.evaluate(job, n_values, scr_pairs=None)


def read(result: Mapping[str, Any]) -> list[Number]:
    """The numbers of a result: means over classes, then over data sets.

    The JSON's metrics keep some n only; its unstructured part has all that were run.
    """
    data_sets = result["eval_result_unstructured"].values()
    found = []
    for name, value in _mean(_mean(classes.values()) for classes in data_sets).items():
        n, _, kind = name.removeprefix("tpp_threshold_").partition("_")
        found.append((f"tpp_{kind}", int(n), value))
    return found


def _mean(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    parts = list(parts)
    return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}


SUITE = Suite(
    name="tpp",
    label="TPP",
    options=AblationOptions,
    allowed=ablation.ALLOWED,
    small=ablation.SMALL,
    paths={},
    texts=(),
    labelled=True,
    needs=ablation.needs,
    refusal=None,
    cache=Cache(ablation.CACHED, of_hook=True),
    host=ablation.HOST,
    run=run,
    read=read,
    headline=Headline(
        metric="tpp_total_metric",
        budget=20,
        protocol="split",
        higher_is_better=True,
        column="tpp (n=20)",
        measure="TPP, n = 20",
    ),
)
