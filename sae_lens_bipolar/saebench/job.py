"""One run of one suite on one SAE, and the folders it may write to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_lens_bipolar.saebench.config import BenchConfig
from sae_lens_bipolar.saebench.llm import LanguageModel
from sae_lens_bipolar.saebench.sizes import Sizes


@dataclass(frozen=True)
class Job:
    """What a suite is given; every path is absolute."""

    name: str  # of the SAE
    sae: Any  # what SAEBench evaluates: an SAE, or a view of one
    model: LanguageModel
    layer: int  # of the hook
    config: BenchConfig
    sizes: Sizes
    folder: Path  # working directory of this run alone
    cache: Path  # what later runs of the same hook read; filled if it is this run's to fill

    @property
    def results(self) -> Path:
        """Where SAEBench writes its JSON."""
        return self.folder / "results"
