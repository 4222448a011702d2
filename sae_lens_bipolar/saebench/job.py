"""One run of one suite on one SAE, and the folders it may write to."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from sae_lens_bipolar.saebench.host.llm import LanguageModel
from sae_lens_bipolar.saebench.options import CommonOptions
from sae_lens_bipolar.saebench.sizes import Sizes

Options = TypeVar("Options", bound=CommonOptions, covariant=True)


@dataclass(frozen=True)
class Job(Generic[Options]):
    """What a suite is given; every path is absolute."""

    name: str  # of the SAE
    sae: Any  # what SAEBench evaluates: an SAE, or a view of one
    poles: bool  # whether its latents are the two poles of signed ones
    model: LanguageModel
    layer: int  # of the hook
    config: Options
    sizes: Sizes
    folder: Path  # working directory of this run alone
    cache: Path  # read by later runs of the same hook; the first of them fills it

    @property
    def results(self) -> Path:
        """Where SAEBench writes its JSON."""
        return self.folder / "results"

    def evaluate(self, run_eval: Callable[..., Any], host: Any, **options: Any) -> None:
        """A suite's `run_eval` on this SAE alone, under the host's own configuration."""
        saes = [(self.name, self.sae)]
        run_eval(host, saes, self.config.device, str(self.results), force_rerun=True, **options)
