"""What a training run demands of its model and text: hooks of the SAEs' width, and enough rows."""

import math

from sae_lens import MultiSAETrainingRunnerConfig
from transformer_lens import HookedTransformer

from sae_lens_bipolar.errors import ConfigError, DataError
from sae_lens_bipolar.inputs.models import hook_shape


def require_widths(cfg: MultiSAETrainingRunnerConfig, model: HookedTransformer) -> None:
    """Check that every SAE's `d_in` is the width of its hook, or of its head there.

    Raises:
        ModelError: if the model has no such hook.
        ConfigError: naming the SAE, its d_in and the width.
    """
    for name, hook_name in cfg.hook_names_per_sae.items():
        head = cfg.hook_head_indices_per_sae[name]
        width, found = hook_width(model, hook_name, head), cfg.saes[name].d_in
        if found != width:
            of_head = "" if head is None else f" for head {head}"
            raise ConfigError(
                f"d_in={found} of SAE {name!r} is not allowed: {hook_name} has width "
                f"{width}{of_head}"
            )


def hook_width(model: HookedTransformer, hook_name: str, head: int | None = None) -> int:
    """d_in of an SAE at a hook: of all its heads together, or of head `head` alone.

    Raises:
        ModelError: if the model has no such hook.
        ConfigError: if the hook has no heads, or fewer.
    """
    *heads, width = hook_shape(model, hook_name)
    if head is None:
        return math.prod([*heads, width])
    if not heads or not 0 <= head < heads[0]:
        has = f"has heads 0 to {heads[0] - 1}" if heads else "has no heads"
        raise ConfigError(f"hook_head_index={head} is not allowed: {hook_name} {has}")
    return width


def require_rows(cfg: MultiSAETrainingRunnerConfig, n_rows: int) -> None:
    """Check that `n_rows` rows of tokens last for the run, so that it needs no second epoch.

    Raises:
        DataError: with the number of rows needed.
    """
    needed = rows_needed(cfg)
    if n_rows < needed:
        raise DataError(
            f"the training data hold {n_rows} rows of {cfg.context_size} tokens; "
            f"training_tokens={cfg.training_tokens} needs {needed}: give more text, fewer tokens, "
            "or repeat the rows yourself"
        )


def rows_needed(cfg: MultiSAETrainingRunnerConfig) -> int:
    """Rows a run reads: its tokens (one in a row may be a special token), the mixing buffer, and
    one forward pass more than is used."""
    positions = len(range(cfg.context_size)[slice(*cfg.seqpos_slice)])
    tokens_in_row = max(1, positions - (1 if cfg.exclude_special_tokens else 0))
    row = -(-cfg.training_tokens // tokens_in_row)
    buffer = -(-cfg.n_batches_in_buffer * positions // tokens_in_row)
    estimate = 0
    if any(
        sae.normalize_activations in ("expected_average_only_in", "covariance_whitening")
        for sae in cfg.saes.values()
    ):
        estimate = -(
            -cfg.n_batches_for_norm_estimate * cfg.train_batch_size_tokens // tokens_in_row
        )
    return row + estimate + buffer + cfg.store_batch_size_prompts
