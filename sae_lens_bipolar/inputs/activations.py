"""Cached activations: hooks of one language model, read once and then from disk.

    manifest.json                what is held, and of which model and text; grows by the shard
    tokens/00000.safetensors     tokens [rows, context_size] int32, kept [rows, context_size] bool
    HOOK/00000.safetensors       activations [n, d]: of the n tokens of that shard that are kept

Rows are windows of training documents, in the order in which `split_tokens` shuffles them; held-out
documents are not in the cache. `caching` writes it. SAELens's `CacheActivationsRunner` has one hook
per cache, keeps special tokens, starts anew when it was stopped, notes neither model nor text, and
its reader neither checks nor shuffles nor serves several SAEs ("cached activations are not
supported in multi-hook mode"); so only its activation store is used here, for the forward passes.
"""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformer_lens import HookedTransformer

from sae_lens_bipolar.errors import ConfigError, DataError, ModelError, did_you_mean
from sae_lens_bipolar.files.atomic import sha256_of
from sae_lens_bipolar.files.fields import load_json
from sae_lens_bipolar.files.paths import inside
from sae_lens_bipolar.inputs.corpora import TokenSplit

MANIFEST = "manifest.json"
FORMAT = 1  # of the manifest and the shards
TOKENS = "tokens"
ACTIVATIONS = "activations"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_AGAIN = "Remove the folder and make the cache anew (sae-lens-bipolar cache)"


@dataclass(frozen=True)
class Shard:
    """Some rows of the cache: one file of tokens, and one per hook."""

    rows: int
    tokens: int  # of the rows, those that are kept
    files: Mapping[str, tuple[int, str]]  # path -> bytes and SHA-256
    norms: Mapping[str, tuple[float, float, float]]  # hook -> sum of |x|, of |x|^2, largest |x|


@dataclass(frozen=True)
class Manifest:
    """What a cache holds, and what it was made of."""

    model: str  # as it was asked for
    model_sha256: str  # of the weights as they ran; see `model_digest`
    corpus: str
    text_column: str | None
    text_sha256: str  # of the rows of token ids, training and held out; see `text_digest`
    seed: int  # of the split by document
    context_size: int
    prepend_bos: bool
    excluded_tokens: tuple[int, ...]  # token ids whose activations are left out
    hooks: Mapping[str, int]  # hook name -> numbers per token
    dtype: str  # of the shards
    batch_size: int  # rows in one forward pass
    shard_rows: int  # rows per shard; the last may have fewer
    rows: int  # training rows in all
    held_out_rows: int  # rows of held-out documents, which are not cached
    shards: tuple[Shard, ...] = ()
    format: int = field(default=FORMAT)
    autocast_lm: bool = False  # the model ran in bfloat16 where autocast allows it

    @property
    def is_whole(self) -> bool:
        return sum(shard.rows for shard in self.shards) == self.rows

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest in a folder.

        Raises:
            DataError: if there is none, it is damaged, or of another version.
        """
        try:
            found = load_json(inside(folder, MANIFEST))
        except FileNotFoundError as error:
            raise DataError(
                f"{folder} holds no {MANIFEST}: it is no cache of activations; make one with "
                "sae-lens-bipolar cache"
            ) from error
        try:
            if found.pop("format") != FORMAT:
                raise DataError(f"{folder} is a cache of another version. {_AGAIN}")
            shards = tuple(
                Shard(
                    one["rows"],
                    one["tokens"],
                    {name: (size, digest) for name, (size, digest) in one["files"].items()},
                    {name: (a, b, c) for name, (a, b, c) in one["norms"].items()},
                )
                for one in found.pop("shards")
            )
            excluded = tuple(found.pop("excluded_tokens"))
            return cls(**found, excluded_tokens=excluded, shards=shards)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{folder / MANIFEST} is damaged ({error}). {_AGAIN}") from error


class CachedActivations:
    """A finished cache, memory-mapped. A shard's checksum is compared before it is first read.

    Args:
        folder: as `cache_activations` wrote it.

    Raises:
        DataError: if it is no cache, unfinished, or a file is missing or has another length.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()
        self.manifest = Manifest.read(self.folder)
        self._checked: set[str] = set()
        done = sum(shard.rows for shard in self.manifest.shards)
        if not self.manifest.is_whole:
            raise DataError(
                f"the cache {self.folder} is unfinished: {done} of {self.manifest.rows} rows. Give "
                "the command that began it again; it goes on from there"
            )
        for shard in self.manifest.shards:
            for name, (size, _) in shard.files.items():
                file = inside(self.folder, name)
                found = file.stat().st_size if file.is_file() else None
                if found != size:
                    what = "is missing" if found is None else f"has {found} bytes and not {size}"
                    raise DataError(f"{file} of the cache {what}: it is damaged. {_AGAIN}")

    @property
    def n_tokens(self) -> int:
        """Tokens whose activations are held."""
        return sum(shard.tokens for shard in self.manifest.shards)

    def norms(self, hook: str) -> dict[str, float]:
        """`mean`, `root_mean_square` and `max` of |x| over all tokens at a hook."""
        sums, squares, largest = zip(*(s.norms[hook] for s in self.manifest.shards), strict=True)
        mean, square = (sum(values) / self.n_tokens for values in (sums, squares))
        return {"mean": mean, "root_mean_square": square**0.5, "max": max(largest)}

    def require_hooks(self, hooks: Sequence[str]) -> None:
        """Raise ConfigError if a hook is not in the cache; names those that are."""
        for hook in hooks:
            if hook not in self.manifest.hooks:
                raise ConfigError(
                    f"hook_name={hook!r} is not in the cache {self.folder}, which holds "
                    f"{', '.join(self.manifest.hooks)}{did_you_mean(hook, self.manifest.hooks)}: "
                    "choose one of these, or make a cache with that hook"
                )

    def require_model(self, model: HookedTransformer, name: str) -> None:
        """Raise ModelError unless these are the weights that the cache was made with."""
        if model_digest(model) != self.manifest.model_sha256:
            raise ModelError(
                f"the cache {self.folder} was made with another model: with "
                f"{self.manifest.model!r}, whose weights are not those of {name!r} as loaded now "
                f"(in {model.cfg.dtype}). Give that model, or make a cache with this one"
            )

    def require_text(self, tokens: TokenSplit, name: str) -> None:
        """Raise DataError unless these are the rows that the cache was made of."""
        if text_digest(tokens) != self.manifest.text_sha256:
            raise DataError(
                f"the cache {self.folder} was made of another text: of {self.manifest.corpus!r} as "
                f"it was then, and {name!r} gives other tokens now. Give that text, or make a "
                "cache of this one"
            )

    def tokens(self, shard: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and which of them are kept, each `[rows, context_size]`."""
        held = self._open(file_of(TOKENS, shard), shard)
        return held[TOKENS], held["kept"]

    def activations(self, hook: str, shard: int) -> torch.Tensor:
        """Activations of a shard's kept tokens, `[n, d]`, as stored; memory-mapped."""
        return self._open(file_of(hook, shard), shard)[ACTIVATIONS]

    def batches(
        self, hooks: Sequence[str], size: int, *, seed: int, start: int = 0, mixed_rows: int = 1
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Endless batches `{hook: [size, d]}` in float32, the same tokens at all hooks.

        Shards come in an order drawn by `seed`, anew for every epoch; tokens are drawn without
        replacement from as many shards at a time as hold `mixed_rows` rows. So a batch depends on
        `seed` and its place alone.

        Args:
            hooks: some of the manifest's.
            size: tokens in a batch.
            seed: of the order.
            start: tokens that were read before.
            mixed_rows: rows whose tokens are mixed, at least.
        """
        parts: list[dict[str, torch.Tensor]] = []
        n = 0
        for shards, order in self._groups(seed, start, mixed_rows):
            held = {hook: [self.activations(hook, shard) for shard in shards] for hook in hooks}
            at = 0
            while at < len(order):
                chosen = order[at : at + size - n]
                parts.append({hook: _gather(held[hook], chosen) for hook in hooks})
                at, n = at + len(chosen), n + len(chosen)
                if n == size:
                    yield {hook: torch.cat([part[hook] for part in parts]) for hook in hooks}
                    parts, n = [], 0

    def _groups(
        self, seed: int, start: int, mixed_rows: int
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Shards that are mixed, and the order of their tokens, from the token `start` on."""
        sizes = [shard.tokens for shard in self.manifest.shards]
        together = -(-mixed_rows // self.manifest.shard_rows)
        epoch, skip = divmod(start, self.n_tokens)
        while True:
            # RandomState's stream is frozen for good, Generator's is not.
            shards = np.random.RandomState([seed, epoch]).permutation(len(sizes)).tolist()
            for first in range(0, len(shards), together):
                group = shards[first : first + together]
                n = sum(sizes[shard] for shard in group)
                if skip < n:
                    order = np.random.RandomState([seed, epoch, first + 1]).permutation(n)
                    yield group, order[skip:]
                skip = max(skip - n, 0)
            epoch += 1

    def _open(self, name: str, shard: int) -> dict[str, torch.Tensor]:
        file = inside(self.folder, name)
        size, digest = self.manifest.shards[shard].files[name]
        if name not in self._checked and (file.stat().st_size != size or sha256_of(file) != digest):
            raise DataError(
                f"{file} of the cache is not as it was written: a byte changed on disk. {_AGAIN}"
            )
        self._checked.add(name)
        with safe_open(file, framework="pt") as held:
            return {key: held.get_tensor(key) for key in held.keys()}  # noqa: SIM118


def file_of(folder: str, shard: int) -> str:
    return f"{folder}/{shard:05d}.safetensors"


def _gather(shards: Sequence[torch.Tensor], chosen: np.ndarray) -> torch.Tensor:
    """The rows `chosen` of tensors `[n, d]` that lie one behind the other, in float32."""
    rows = torch.from_numpy(chosen)
    found = torch.empty(len(rows), shards[0].shape[1])
    start = 0
    for held in shards:
        here = ((rows >= start) & (rows < start + len(held))).nonzero().squeeze(1)
        found[here] = held[rows[here] - start].float()
        start += len(held)
    return found


def model_digest(model: HookedTransformer) -> str:
    """SHA-256 of all parameters and buffers, by name, with shapes and dtypes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return digest.hexdigest()


def text_digest(tokens: TokenSplit) -> str:
    """SHA-256 of the rows of token ids, training and held out, and of their number."""
    digest = hashlib.sha256()
    for side in (tokens.train, tokens.held_out):
        digest.update(struct.pack("<q", len(side)))
        for part in side.with_format("numpy").iter(batch_size=4096):
            rows: Any = part
            digest.update(np.ascontiguousarray(rows["input_ids"], dtype="<i4").tobytes())
    return digest.hexdigest()
