"""SAEBench on signed latents: its suites on two protocols, `signed` and `split`, run safely."""

from sae_lens_bipolar.saebench.config import BenchConfig
from sae_lens_bipolar.saebench.results import read_rows
from sae_lens_bipolar.saebench.run import BenchOutcome, NotRun, bench

__all__ = ["BenchConfig", "BenchOutcome", "NotRun", "bench", "read_rows"]
