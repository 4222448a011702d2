"""What a sweep reads: the language model and its text, as rows of tokens."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from transformer_lens import HookedTransformer

from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.inputs.corpora import TokenSplit, load_documents, split_tokens
from sae_lens_bipolar.inputs.documents import Document
from sae_lens_bipolar.inputs.models import load_model, tokenizer_of
from sae_lens_bipolar.runs.cached import cached_tokens, open_cache
from sae_lens_bipolar.runs.demands import require_widths, rows_needed
from sae_lens_bipolar.runs.streams import StoredTokens, read_stored
from sae_lens_bipolar.runs.sweep_config import SweepConfig, SweepSAE, runner_config


class Assets(NamedTuple):
    """The language model and its text, as token rows."""

    model: HookedTransformer
    tokens: TokenSplit | StoredTokens


def load_assets(config: SweepConfig, saes: Mapping[str, SweepSAE]) -> Assets:
    """Load the model and its text as training and held-out rows of tokens.

    As `config.reading` says: "drawn" reads all documents and draws as many as are needed, split by
    document; "stream" reads them in their own order and only as far as they are needed, split by
    document; "stored" leaves reading and tokenising to SAELens's activation store and holds out
    the first rows (for data sets of the Hugging Face Hub). With `config.activations` the rows are
    those that the cache was made of.

    Raises:
        ConfigError: if `context_size` is beyond the model's.
        ModelError, DataError: if the model or the text cannot be loaded.
    """
    options = config.options
    model = load_model(
        config.model,
        device=options.get("llm_device") or config.device,
        **_loading(config),
    )
    if config.context_size > model.cfg.n_ctx:
        raise ConfigError(
            f"context_size={config.context_size} is not allowed: {config.model} reads at most "
            f"{model.cfg.n_ctx} tokens"
        )
    cfg = runner_config(config, saes, model)
    require_widths(cfg, model)
    if (cache := open_cache(config)) is not None:
        return Assets(model, cached_tokens(config, saes, cache, model))
    if config.reading == "stored":
        tokens = read_stored(
            config.corpus,
            model,
            context_size=config.context_size,
            n_held_out=config.eval_sequences,
            options=options,
        )
        return Assets(model, tokens)
    documents = load_documents(
        config.corpus,
        text_column=config.text_column,
        streaming=True if config.reading == "stream" else None,  # None: by size
    )
    tokens = split_tokens(
        _of_kind(documents, config.corpus, options.get("is_dataset_tokenized")),
        tokenizer_of(model),
        context_size=config.context_size,
        max_train_tokens=rows_needed(cfg) * config.context_size,
        max_held_out_tokens=config.eval_sequences * config.context_size,
        prepend_bos=cfg.prepend_bos,
        seed=config.seed,
    )
    return Assets(model, tokens)


def _of_kind(
    documents: list[Document] | Iterator[Document], corpus: str, tokenized: bool | None
) -> list[Document] | Iterator[Document]:
    """`documents`, which are rows of token ids or text as `tokenized` says; None: either."""
    if tokenized is None:
        return documents

    def checked() -> Iterator[Document]:
        for document in documents:
            if tokenized != (document.ids is not None):
                kind = "text" if tokenized else "a row of token ids"
                raise ConfigError(
                    f"is_dataset_tokenized={tokenized} is not allowed for {corpus}: "
                    f"{document.name} is {kind}; leave the option out"
                )
            yield document

    return list(checked()) if isinstance(documents, list) else checked()


def _loading(config: SweepConfig) -> dict[str, Any]:
    """SAELens's options for loading a model, as `load_model` takes them."""
    given: Mapping[str, Any] = config.options.get("model_from_pretrained_kwargs") or {}
    chosen = {key: value for key, value in given.items() if key != "center_writing_weights"}
    return {"dtype": config.llm_dtype, **chosen}


def held_out(config: SweepConfig, assets: Assets) -> torch.Tensor:
    """The held-out token ids that are measured, `[sequences, context_size]`."""
    return torch.as_tensor(assets.tokens.held_out[: config.eval_sequences]["input_ids"])
