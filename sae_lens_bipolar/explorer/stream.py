"""One pass of a corpus through the model: every SAE's statistics, and where a stopped pass goes on.

The pass is cut into batches that depend on the configuration alone. What is saved after a batch is
all that the next one needs, so a pass that was killed ends with the same bytes.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from sae_lens.saes.sae import SAE
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

from sae_lens_bipolar.architectures.training.checks import require_finite
from sae_lens_bipolar.evaluation.placement import Placement, placement, shared_hook
from sae_lens_bipolar.evaluation.reconstruction import sink_threshold
from sae_lens_bipolar.evaluation.text_reader import BATCH, TextReader
from sae_lens_bipolar.explorer.config import ExplorerConfig
from sae_lens_bipolar.explorer.latents import Firings, LatentStatistics, State
from sae_lens_bipolar.explorer.pairs import Sample
from sae_lens_bipolar.explorer.words import TokenStatistics
from sae_lens_bipolar.files.atomic import atomic_path

_ELEMENTS = 1 << 24  # latents held at a time, of one SAE: 64 MiB
_UNSAVED = (  # do not shape a pass
    *("text", "save_seconds", "dials", "dial_sequences", "neighbours", "output_tokens"),
)


class Pass:
    """The statistics of several SAEs over one corpus.

    Args:
        saes: by name; all read one hook of the model.
        model: the model they were trained on.
        tokens: the corpus, `[sequences, context_size]`.
        config: sizes.
        reader: of this model; what it keeps of the corpus is not read again.
    """

    def __init__(
        self,
        saes: Mapping[str, SAE[Any]],
        model: HookedTransformer,
        tokens: torch.Tensor,
        config: ExplorerConfig,
        reader: TextReader | None = None,
    ) -> None:
        self.reader = reader or TextReader(model)
        self.saes, self.model, self.tokens, self.config = saes, model, tokens, config
        self.hook_name = shared_hook(saes.values())
        self.places = {name: placement(sae) for name, sae in saes.items()}
        widths = {name: sae.cfg.d_sae for name, sae in saes.items()}
        self.d_vocab = max(model.cfg.d_vocab, int(tokens.max()) + 1)
        self.latents = {
            name: LatentStatistics(d_sae, config.contexts, config.radius)
            for name, d_sae in widths.items()
        }
        self.words = {
            name: TokenStatistics(self.d_vocab, d_sae, config.occurrences)
            for name, d_sae in widths.items()
        }
        compared = config.compared_tokens if len(saes) > 1 else 0
        self.samples = {name: Sample(d_sae, compared) for name, d_sae in widths.items()}
        self.thresholds: dict[Placement, float] = {}
        self.n_tokens = dict.fromkeys(saes, 0)  # that count: no sinks
        self.done = 0  # sequences
        held = tokens.shape[1] * max(widths.values())
        self.batch = max(1, min(BATCH, _ELEMENTS // held))

    @torch.no_grad()
    def run(self, file: Path, fingerprint: str) -> None:
        """Read the rest of the corpus, saving to `file` now and then."""
        self._restore(file, fingerprint)
        progress = tqdm(
            total=self.tokens.numel(),
            initial=self.done * self.tokens.shape[1],
            desc="reading text",
            unit="token",
        )
        saved = time.monotonic()
        while self.done < len(self.tokens):
            batch = self.tokens[self.done : self.done + self.batch]
            self._add(batch)
            self.done += len(batch)
            progress.update(batch.numel())
            if time.monotonic() - saved >= self.config.save_seconds:
                self._save(file, fingerprint)
                saved = time.monotonic()
        progress.close()
        self._save(file, fingerprint)

    def _add(self, batch: torch.Tensor) -> None:
        whole = self.reader.activations(batch, self.hook_name).float()
        require_finite(whole, self.hook_name, self.done)
        for name, sae in self.saes.items():
            z, keep = self._latents(name, sae, batch, whole)
            firings = Firings.of(z)
            self.n_tokens[name] += int(keep.sum())
            self.latents[name].add(z, firings, self.done)
            self.words[name].add(batch, keep, z, firings)
            self.samples[name].add(z, firings, self.done)

    def _latents(
        self, name: str, sae: SAE[Any], batch: torch.Tensor, whole: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`z`, `[batch, position, d_sae]`, 0 at what does not count; and what does count."""
        place = self.places[name]
        x = place.read(whole)
        norms = x.flatten(2).norm(dim=-1)
        here = place.covers(whole).expand(norms.shape)
        threshold = self.thresholds.setdefault(place, sink_threshold(x.flatten(2)[here]))
        keep = here & (norms <= threshold)
        z = self.reader.latents(name, sae, batch, x).float() * keep.unsqueeze(-1).to(sae.device)
        return z.cpu(), keep.cpu()

    def _save(self, file: Path, fingerprint: str) -> None:
        tensors = {
            f"{kind}/{name}/{key}": value
            for kind, name, state in self._states()
            for key, value in state.items()
        }
        facts = {
            "fingerprint": fingerprint,
            "done": self.done,
            "n_tokens": list(self.n_tokens.values()),
            "thresholds": [self.thresholds[place].hex() for place in self._own_places()],
        }
        with atomic_path(file) as scratch:
            safetensors.torch.save_file(
                {name: value.contiguous() for name, value in tensors.items()},
                scratch,
                metadata={"facts": json.dumps(facts)},
            )

    def _restore(self, file: Path, fingerprint: str) -> None:
        if not file.is_file():
            return
        with safetensors.safe_open(file, framework="pt") as saved:
            facts = json.loads(saved.metadata()["facts"])
            if facts["fingerprint"] != fingerprint:
                return
            tensors = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118
        for kind, name, state in self._states():
            found = {key: tensors[f"{kind}/{name}/{key}"] for key in state}
            if kind == "latents":
                for key, value in found.items():
                    state[key].copy_(value)
            else:
                {"words": self.words, "samples": self.samples}[kind][name].restore(found)
        self.done = facts["done"]
        self.n_tokens = dict(zip(self.saes, facts["n_tokens"], strict=True))
        values = map(float.fromhex, facts["thresholds"])
        self.thresholds = dict(zip(self._own_places(), values, strict=True))

    def _own_places(self) -> list[Placement]:
        return list(dict.fromkeys(self.places.values()))

    def _states(self) -> Iterator[tuple[str, str, State]]:
        for name in self.saes:
            yield "latents", name, self.latents[name].state
            yield "words", name, self.words[name].saved()
            yield "samples", name, self.samples[name].state


def fingerprint(digests: Mapping[str, str], tokens: torch.Tensor, config: ExplorerConfig) -> str:
    """What a pass is of: the SAEs, the tokens and the sizes."""
    shaping = {key: value for key, value in asdict(config).items() if key not in _UNSAVED}
    digest = hashlib.sha256(json.dumps([dict(digests), shaping], sort_keys=True).encode())
    digest.update(tokens.to(torch.int64).numpy().tobytes())
    return digest.hexdigest()
