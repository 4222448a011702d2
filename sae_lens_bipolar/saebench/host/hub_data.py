"""Data sets from the Hub as SAEBench reads them, with current clients and the user's settings."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import datasets

from sae_lens_bipolar.inputs.patching import replaced

RENAMED = {"wikitext": "Salesforce/wikitext"}


@contextmanager
def readable_data(trust_remote_code: bool, folder: str | None = None) -> Iterator[None]:
    """`load_dataset` in SAEBench with the user's `trust_remote_code` and full repository names.

    Data set OWNER/NAME is read from `folder`/OWNER/NAME if that exists, else from the Hub.

    Works around sae_bench 0.6.0: sae_bench_utils/dataset_utils.py:216 runs repository code unasked;
    evals/unlearning/utils/feature_activation.py:38 reads "wikitext", a short name that
    huggingface_hub 1 and newer do not follow.
    """
    from sae_bench.evals.scr_and_tpp import dataset_creation
    from sae_bench.evals.unlearning.utils import feature_activation, metrics
    from sae_bench.sae_bench_utils import dataset_utils

    def load_dataset(path: str, *args: Any, **kwargs: Any) -> Any:
        options = {**kwargs, "trust_remote_code": trust_remote_code}
        if folder and (Path(folder) / path).is_dir():
            path = str(Path(folder) / path)
        return datasets.load_dataset(RENAMED.get(path, path), *args, **options)

    with ExitStack() as stack:
        for module in (dataset_utils, dataset_creation, feature_activation, metrics):
            stack.enter_context(replaced(module, load_dataset=load_dataset))
        yield
