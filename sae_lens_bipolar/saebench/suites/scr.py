"""SCR: ablating latents removes a spurious correlation that a probe has learnt.

`ablation` says which of SAEBench's faults are worked around.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sae_lens_bipolar.saebench.job import Job
from sae_lens_bipolar.saebench.suites import ablation
from sae_lens_bipolar.saebench.suites.ablation import AblationOptions
from sae_lens_bipolar.saebench.suites.record import Cache, Headline, Number, Suite


@dataclass(frozen=True)
class ScrOptions(AblationOptions):
    """Options of SCR, besides those that it shares with TPP."""

    scr_pairs: int = 4  # class pairs per data set, of SAEBench's four


def run(job: Job[ScrOptions]) -> None:
    """Run the suite; SAEBench's JSON lies below `job.results`."""
    n_values = ablation.latents_ablated(job.config, job.sae.cfg.d_sae, doubled=False)
    ablation.evaluate(job, n_values, scr_pairs=job.config.scr_pairs)


def read(result: Mapping[str, Any]) -> list[Number]:
    """The numbers of a result; "_threshold_" stands before the n."""
    found = []
    for name, value in result["eval_result_metrics"]["scr_metrics"].items():
        metric, _, n = name.partition("_threshold_")
        found.append((metric, int(n), value))
    return found


SUITE = Suite(
    name="scr",
    label="SCR",
    options=ScrOptions,
    allowed={**ablation.ALLOWED, "scr_pairs": range(1, 5)},
    small={**ablation.SMALL, "scr_pairs": 1},
    paths={},
    texts=(),
    labelled=True,
    needs=ablation.needs,
    refusal=None,
    cache=Cache((*ablation.CACHED, "scr_pairs"), of_hook=True),
    host=ablation.HOST,
    run=run,
    read=read,
    headline=Headline(
        metric="scr_metric",
        budget=20,
        protocol="signed",
        higher_is_better=True,
        column="scr (n=20)",
        measure="SCR, n = 20",
    ),
)
