"""Rows of tokens as SAELens's own activation store makes them, from a data set of rows.

For data sets on the Hugging Face Hub (text, conversations or token ids) the store concatenates,
separates and cuts; here its sequences become rows that the runners read, so that a stopped run goes
on at the very row it had reached. The first rows of the data set are held out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import datasets
from sae_lens.training.activations_store import (
    ActivationsStore,
    validate_pretokenized_dataset_tokenizer,
)
from transformer_lens import HookedTransformer

from sae_lens_bipolar.errors import ConfigError, DataError
from sae_lens_bipolar.inputs.fetch import check_hub
from sae_lens_bipolar.inputs.models import tokenizer_of

_TOKENISING = (
    *("prepend_bos", "disable_concat_sequences", "sequence_separator_token"),
    "use_chat_formatting",
)


@dataclass(frozen=True)
class StoredTokens:
    """Training and held-out rows of one data set; `train` may be read any number of times."""

    train: "TokenRows"
    held_out: datasets.Dataset  # column `input_ids`


class TokenRows:
    """`{"input_ids": [context_size ids]}`, row by row, tokenised while they are read."""

    def __init__(
        self,
        rows: Any,
        model: HookedTransformer,
        context_size: int,
        options: Mapping[str, Any],
    ):
        self._rows, self._model, self._context_size = rows, model, context_size
        self._options = {key: options[key] for key in _TOKENISING if key in options}

    def store(self) -> ActivationsStore:
        """A fresh store at the first row; it is asked for tokens only, never for activations."""
        return ActivationsStore.from_config_multi_hook(
            model=self._model,
            dataset=self._rows,
            hook_names=["hook_embed"],
            hook_d_ins={"hook_embed": self._model.cfg.d_model},
            context_size=self._context_size,
            **self._options,
        )

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        for ids in self.store()._iterate_tokenized_sequences():
            yield {"input_ids": ids.tolist()}


def read_stored(
    name: str,
    model: HookedTransformer,
    *,
    context_size: int,
    n_held_out: int,
    options: Mapping[str, Any],
) -> StoredTokens:
    """The split "train" of data set `name` as rows of tokens; the first `n_held_out` are held out.

    Args:
        name: of a data set on the Hugging Face Hub.
        model: its tokenizer is used, unless the data set holds token ids already.
        options: of SAELens's runners: `streaming`, `dataset_trust_remote_code`, `prepend_bos`,
            `disable_concat_sequences`, `sequence_separator_token`, `use_chat_formatting`; and
            `is_dataset_tokenized`, which only says what is expected.

    Raises:
        DataError: if the data set cannot be read, has no column that SAELens knows, holds too few
            rows, or is not of the kind `is_dataset_tokenized` says.
    """
    rows = _load(name, options)
    try:
        store = TokenRows(rows, model, context_size, options).store()
        _require_kind(name, store, options.get("is_dataset_tokenized"))
        if store.is_dataset_tokenized:
            _require_tokenizer(name, model)
        tokens = store.get_batch_tokens(n_held_out, raise_at_epoch_end=True)
        # The row being read is neither held out as a whole nor trained on.
        train = TokenRows(rows.skip(store.n_dataset_processed + 1), model, context_size, options)
        next(iter(train))
    except StopIteration:
        raise DataError(
            f"data set {name!r} is too short: {n_held_out} rows of {context_size} tokens are held "
            "out, and nothing is left to train on; give another data set, or fewer n_eval_batches"
        ) from None
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"data set {name!r}: {error}") from error
    return StoredTokens(train, datasets.Dataset.from_dict({"input_ids": tokens.cpu().numpy()}))


def _load(name: str, options: Mapping[str, Any]) -> Any:
    trust: dict[str, Any] = (
        {"trust_remote_code": True} if options.get("dataset_trust_remote_code") else {}
    )
    check_hub(name, "dataset", "README.md", None, lambda: True, DataError)
    try:
        return datasets.load_dataset(
            name, split="train", streaming=options.get("streaming", True), **trust
        )
    except Exception as error:  # whatever a reader of its files, or its own code, raises
        raise DataError(
            f"data set {name!r} (split 'train') cannot be read: "
            f"{type(error).__name__}: {str(error)[:500]}"
        ) from error


def _require_kind(name: str, store: ActivationsStore, expected: bool | None) -> None:
    if expected is not None and expected != store.is_dataset_tokenized:
        kind = "token ids" if store.is_dataset_tokenized else "text"
        raise ConfigError(
            f"is_dataset_tokenized={expected} is not allowed for {name!r}: its column "
            f"{store.tokens_column!r} holds {kind}; leave the option out"
        )


def _require_tokenizer(name: str, model: HookedTransformer) -> None:
    try:
        validate_pretokenized_dataset_tokenizer(name, tokenizer_of(model))
    except OSError:  # no network, or no note of the tokenizer: SAELens goes on too
        return
