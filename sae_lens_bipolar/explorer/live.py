"""What the live panels ask of a model: the latents of a text, and a text with a latent turned.

One request runs at a time. Each is limited in tokens and in time, and can be stopped between two
passes of the model; however it ends, the model is left as it was.
"""

import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.sae import SAE
from torch.nn.functional import log_softmax
from transformer_lens import HookedTransformer

from sae_lens_bipolar.errors import BipolarError, ConfigError, require_number
from sae_lens_bipolar.evaluation.placement import activations, placement
from sae_lens_bipolar.explorer import site
from sae_lens_bipolar.explorer.config import SHARD
from sae_lens_bipolar.explorer.dials import cost_in_nats
from sae_lens_bipolar.explorer.records import read_record
from sae_lens_bipolar.explorer.vocabulary import token_texts
from sae_lens_bipolar.inputs.models import tokenizer_of
from sae_lens_bipolar.steering import EditLatents, ExtrapolationWarning, steering

_SHOWN = 32  # latents told per token, the strongest


class Stopped(BipolarError):
    """A request was cancelled, took too long, or found the model busy."""


@dataclass(frozen=True)
class Limits:
    """What one request may cost."""

    max_tokens: int = 256  # of a text or prompt
    max_new_tokens: int = 40
    max_seconds: float = 60.0
    max_wait_seconds: float = 30.0  # for the requests before it
    max_bytes: int = 1 << 16  # of a request


@dataclass
class Stop:
    """Whether a request should end: it was cancelled, or its time is over."""

    seconds: float
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _start: float = field(default_factory=time.monotonic)

    def set(self) -> None:
        """Cancel the request; it ends before its next pass."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise Stopped if the request should end."""
        if self._cancelled.is_set():
            raise Stopped("the request was cancelled")
        if time.monotonic() - self._start > self.seconds:
            raise Stopped(f"the request took longer than {self.seconds:g} s: give less text")


@dataclass(frozen=True)
class _Guard:
    """An edit that changes nothing: it stops a pass whose request should end."""

    stop: Stop
    hook: str

    def hooks_in(self, model: Any) -> list[str]:
        return [self.hook]

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        self.stop.check()
        return x


class Live:
    """A model and SAEs behind one lock.

    Args:
        folder: a finished explorer, which says how far each latent goes.
        model: the model the SAEs read.
        saes: by the names they have in the explorer.
        limits: of one request.
    """

    def __init__(
        self,
        folder: Path,
        model: HookedTransformer,
        saes: Mapping[str, SAE[Any]],
        limits: Limits | None = None,
    ) -> None:
        self.folder, self.model, self.saes = folder, model, saes
        self.limits = limits or Limits()
        self._neutral = torch.tensor(site.get(folder, "site")["neutral"])
        self._lock = threading.Lock()

    @torch.no_grad()
    def read(self, asked: Mapping[str, Any], stop: Stop) -> dict[str, Any]:
        """Latents of a text: `asked` holds `sae` and `text`.

        Returns:
            `tokens`: for each its `text` and its `latents`, `[index, z]`, the strongest first.
        """
        sae, ids = self._sae(asked), self._tokens(asked, "text")
        place = placement(sae)
        with self._alone(stop):
            x = place.read(activations(self.model, ids, place.hook_name).float())
            z = sae.encode(x.to(sae.device))
            z = (z.to_dense() if z.is_sparse else z)[0].float().cpu()
        top = z.abs().topk(min(_SHOWN, z.shape[1]), dim=1).indices
        texts = token_texts(tokenizer_of(self.model), ids[0].tolist())
        rows = [
            [[i, round(row[i].item(), 4)] for i in order.tolist() if row[i] != 0]
            for row, order in zip(z, top, strict=True)
        ]
        return {
            "tokens": [
                {"text": text, "latents": row} for text, row in zip(texts, rows, strict=True)
            ]
        }

    @torch.no_grad()
    def steer(self, asked: Mapping[str, Any], stop: Stop) -> dict[str, Any]:
        """A continuation with a latent turned, beside the unsteered one.

        `asked` holds `sae`, `latent`, `value` in [-1, 1] (the share of the range of its side),
        `prompt` and `max_new_tokens`.

        Returns:
            `unsteered` and `steered` texts; `cost`, the rise of the next-token cross-entropy on
            neutral text, in nats per token; whether the side was `extrapolated`.
        """
        sae, ids = self._sae(asked), self._tokens(asked, "prompt")
        value, new = asked.get("value"), asked.get("max_new_tokens", self.limits.max_new_tokens)
        require_number(value, "value", -1.0, 1.0)
        assert value is not None
        require_number(new, "max_new_tokens", 1, self.limits.max_new_tokens)
        edit, extrapolated = self._edit(sae, str(asked["sae"]), asked.get("latent"), float(value))
        guard = _Guard(stop, edit.hooks_in(self.model)[0])
        with self._alone(stop):
            with steering(self.model, guard):
                unsteered, plain = self._continue(ids, int(new)), self._log_probabilities()
            with steering(self.model, [guard, edit]):
                steered, turned = self._continue(ids, int(new)), self._log_probabilities()
        return {
            "unsteered": unsteered,
            "steered": steered,
            "cost": cost_in_nats(turned, plain, self._neutral),
            "value": value,
            "extrapolated": extrapolated,
        }

    @contextmanager
    def _alone(self, stop: Stop) -> Iterator[None]:
        if not self._lock.acquire(timeout=self.limits.max_wait_seconds):
            raise Stopped("the model is busy with other requests: try again")
        try:
            stop.check()
            yield
        finally:
            self._lock.release()

    def _sae(self, asked: Mapping[str, Any]) -> SAE[Any]:
        name = asked.get("sae")
        if not isinstance(name, str) or name not in self.saes:
            raise ConfigError(f"sae={name!r}: there are {', '.join(self.saes)}")
        return self.saes[name]

    def _tokens(self, asked: Mapping[str, Any], name: str) -> torch.Tensor:
        text = asked.get(name)
        if not isinstance(text, str) or not text:
            raise ConfigError(f"{name} must be a text that is not empty")
        ids = self.model.to_tokens(text)
        most = min(self.limits.max_tokens, self.model.cfg.n_ctx - self.limits.max_new_tokens)
        if ids.shape[1] > most:
            raise ConfigError(f"{name} has {ids.shape[1]} tokens: give at most {most}")
        return ids

    def _edit(
        self, sae: SAE[Any], name: str, latent: Any, value: float
    ) -> tuple[EditLatents, bool]:
        if type(latent) is not int or not 0 <= latent < sae.cfg.d_sae:  # True is an int, too
            raise ConfigError(f"latent={latent!r}: there are 0 to {sae.cfg.d_sae - 1}")
        records = site.get(self.folder, f"{name}/latents-{latent // SHARD}")
        largest = read_record(records[latent % SHARD])["largest"]
        reach = largest[value < 0] or max(largest)  # a side that never fired borrows the other's
        if not reach:
            raise ConfigError(f"latent {latent} never fired on the text: its range is not known")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExtrapolationWarning)  # told in the answer
            edit = EditLatents(sae, {latent: value * reach}, mode="clamp", unit="raw")
        return edit, value != 0 and not largest[value < 0]

    def _continue(self, ids: torch.Tensor, new: int) -> str:
        found: Any = self.model.generate(
            ids, max_new_tokens=new, do_sample=False, prepend_bos=False, verbose=False
        )
        tokenizer = tokenizer_of(self.model)
        return str(tokenizer.decode(found[0, ids.shape[1] :].tolist(), skip_special_tokens=True))

    def _log_probabilities(self) -> torch.Tensor:
        logits: Any = self.model(self._neutral, prepend_bos=False)
        return log_softmax(logits.float(), dim=-1)
