"""Training from cached activations: what stands where SAELens's activation store stands."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from sae_lens import MultiSAETrainingRunnerConfig
from sae_lens.constants import ACTIVATIONS_STORE_STATE_FILENAME
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformer

from sae_lens_bipolar.errors import ConfigError, DataError
from sae_lens_bipolar.inputs.activations import CachedActivations
from sae_lens_bipolar.inputs.caching import split_as
from sae_lens_bipolar.inputs.corpora import TokenSplit
from sae_lens_bipolar.runs.sweep_config import SweepConfig, SweepSAE

_STATE = "n_dataset_processed"  # as SAELens's store calls its place in the data

# Options of SAELens's runner that a cache has settled, with the value it has.
_SETTLED = {
    "seqpos_slice": (None,),
    "exclude_special_tokens": True,
    "prepend_bos": True,
}


class CachedStore:
    """Batches of a cache, for a runner; its place is the number of tokens read.

    Every SAE of a run reads the same batches, whichever hooks they read. They are mixed already:
    the buffer of the runner's batches holds one of them and keeps none.
    """

    n_batches_in_buffer = 1
    activations_mixing_fraction = 0.0

    def __init__(
        self, cache: CachedActivations, cfg: MultiSAETrainingRunnerConfig, hooks: Sequence[str]
    ):
        self.cache, self.cfg, self._hook_names = cache, cfg, list(hooks)
        self.train_batch_size_tokens = self.training_context_size = cfg.train_batch_size_tokens
        self.device = torch.device(cfg.act_store_device or cfg.device)
        self.n_dataset_processed = 0

    def get_multi_hook_data_loader(self) -> Iterator[dict[str, torch.Tensor]]:
        """Batches from the present place on: `{hook_name: [batch, d_in]}`."""
        size = self.train_batch_size_tokens
        for batch in self.cache.batches(
            self._hook_names,
            size,
            seed=self.cfg.seed,
            start=self.n_dataset_processed,
            mixed_rows=self.cfg.n_batches_in_buffer,
        ):
            self.n_dataset_processed += size
            yield {hook: x.to(self.device) for hook, x in batch.items()}

    _iterate_filtered_multi_hook_activations = get_multi_hook_data_loader  # as SAELens's store

    def save_to_checkpoint(self, checkpoint_path: str | Path) -> None:
        """Write the place, as SAELens's store writes it."""
        state = {_STATE: torch.tensor(self.n_dataset_processed)}
        save_file(state, Path(checkpoint_path) / ACTIVATIONS_STORE_STATE_FILENAME)

    def load_from_checkpoint(self, checkpoint_path: str | Path) -> None:
        """Go to the place of a checkpoint."""
        state = load_file(Path(checkpoint_path) / ACTIVATIONS_STORE_STATE_FILENAME)
        self.n_dataset_processed = int(state[_STATE])


def open_cache(config: SweepConfig) -> CachedActivations | None:
    """The cache that a sweep trains on, if it names one."""
    return None if config.activations is None else CachedActivations(config.activations)


def cached_tokens(
    config: SweepConfig,
    saes: Mapping[str, SweepSAE],
    cache: CachedActivations,
    model: HookedTransformer,
) -> TokenSplit:
    """The rows a cache was made of, split by document as it was, once the sweep fits the cache.

    Raises:
        ConfigError: naming the field of the sweep, or the hook, that the cache does not have.
        ModelError: if the cache was made with another model.
        DataError: if it was made of another text, or holds too few tokens.
    """
    made = cache.manifest
    settled = {**_SETTLED, "autocast_lm": made.autocast_lm}
    for field, value, held in (
        ("context_size", config.context_size, made.context_size),
        ("text_column", config.text_column, made.text_column),
        ("reading", config.reading, "drawn"),
        *((name, config.options.get(name, held), held) for name, held in settled.items()),
    ):
        if value != held:
            raise ConfigError(
                f"{field}={value!r} is not allowed with activations={config.activations!r}, which "
                f"were cached with {held!r}: give that, or make a cache with {value!r}"
            )
    if config.eval_sequences > made.held_out_rows:
        raise ConfigError(
            f"eval_sequences={config.eval_sequences} is not allowed: {cache.folder} holds out "
            f"{made.held_out_rows} sequences; give as many at most, or a cache with more (held_out)"
        )
    for name, sae in saes.items():
        if sae.head is not None:
            raise ConfigError(
                f"head={sae.head} of SAE {name!r} is not allowed: a cache holds all heads of a "
                "hook as one vector; leave activations out"
            )
    cache.require_hooks([sae.hook_name for sae in saes.values()])
    cache.require_model(model, config.model)
    tokens = split_as(made, config.corpus, model)
    cache.require_text(tokens, config.corpus)
    return tokens


def require_tokens(cache: CachedActivations, cfg: MultiSAETrainingRunnerConfig) -> None:
    """Check that a cache lasts for a run, so that it needs no second epoch.

    Raises:
        DataError: with the number of tokens needed.
    """
    estimates = any(
        sae.normalize_activations in ("expected_average_only_in", "covariance_whitening")
        for sae in cfg.saes.values()
    )
    batches = cfg.n_batches_for_norm_estimate if estimates else 0
    needed = cfg.training_tokens + (batches + 1) * cfg.train_batch_size_tokens
    if cache.n_tokens < needed:
        raise DataError(
            f"the cache {cache.folder} holds {cache.n_tokens} tokens; training_tokens="
            f"{cfg.training_tokens} needs {needed}: make a larger cache, give fewer tokens, or "
            "repeat=True"
        )
