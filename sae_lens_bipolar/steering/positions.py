"""Which tokens of a forward pass are edited: never padding, and the same with or without a cache.

A token counts by its index among the tokens of its row that are not padding, so rows padded on
either side, and passes that continue a cache of keys and values, agree on what the prompt is.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch.utils.hooks import RemovableHandle
from transformer_lens import HookedTransformer
from transformers import PreTrainedModel

from sae_lens_bipolar.errors import ConfigError, require_choice
from sae_lens_bipolar.steering.hook_points import Model

Positions = Literal["all", "prompt", "generated", "last"]
CHOICES = ("all", "prompt", "generated", "last")


class PassTracker:
    """Follows the forward passes of one model and says which of their tokens are edited.

    Args:
        positions: "all"; "prompt", the tokens of the prompt; "generated", those after it; "last",
            the last of the prompt; or a bool mask over the columns of the input, padding included,
            `[length]` or `[batch, length]`: columns beyond it are not edited.
        prompt_lengths: tokens of each row's prompt without padding. None: a pass that starts
            without a cache is a prompt of its own.
    """

    def __init__(
        self,
        positions: Positions | torch.Tensor,
        prompt_lengths: int | Sequence[int] | torch.Tensor | None,
    ) -> None:
        self.mask: torch.Tensor | None = None
        if isinstance(positions, torch.Tensor):
            if positions.dtype != torch.bool or positions.ndim not in (1, 2):
                raise ConfigError(
                    f"positions is a {positions.dtype} tensor of shape {list(positions.shape)}: a "
                    "mask must be bool, [length] or [batch, length]"
                )
            self.mask, self.positions = positions, "mask"
        else:
            require_choice(positions, CHOICES, "positions")
            self.positions = positions
        self.given = _lengths(prompt_lengths)
        self._real: torch.Tensor | None = None  # [batch, past + new]: not padding
        self._prompt: torch.Tensor | None = None  # [batch]
        self._input: torch.Tensor | None = None  # of the pass before, where it had no cache
        self._new = 0

    def selected(self, x: torch.Tensor) -> torch.Tensor:
        """Bool `[batch, position]`: the tokens of `x`, `[batch, position, ...]`, to edit."""
        if self._real is None or x.shape[:2] != (len(self._real), self._new):
            raise ConfigError(
                f"the hook holds {list(x.shape[:2])} rows and positions, not those of the model's "
                "input: steer inside the blocks of the model, and call the model itself"
            )
        real, new = self._real.to(x.device), self._new
        if self.positions == "all":
            return real[:, -new:]
        if self.mask is not None:
            return (real & self._columns(self.mask.to(x.device), real))[:, -new:]
        index = real.cumsum(-1) - 1
        length = self._prompt_lengths(len(real)).to(x.device)[:, None]
        chosen = {
            "prompt": index < length,
            "generated": index >= length,
            "last": index == length - 1,
        }[self.positions]
        return (real & chosen)[:, -new:]

    def begin(
        self,
        batch: int,
        new: int,
        past: int,
        mask: torch.Tensor | None,
        inputs: torch.Tensor | None,
    ) -> None:
        """Note a pass over `new` tokens after `past` cached ones.

        Args:
            mask: `[batch, past + new]`, nonzero where a token is not padding; None if none is.
            inputs: token ids `[batch, new]`, or what stands for them, `[batch, new, ...]`.
        """
        if mask is None:
            before = self._real
            if before is None or not past or before.shape[0] != batch or before.shape[1] < past:
                before = torch.ones(batch, past, dtype=torch.bool)
            mask = torch.cat([before[:, :past].cpu(), torch.ones(batch, new, dtype=torch.bool)], 1)
        if past == 0:
            self._refuse_growing(inputs)
            self._prompt = (mask != 0).sum(-1).cpu()
        elif self._real is None:
            self._prompt = None  # the prompt was read before the context was entered
        self._real, self._new = mask != 0, new

    def _columns(self, mask: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        if mask.ndim == 2 and mask.shape[0] != len(real):
            raise ConfigError(
                f"positions has {mask.shape[0]} rows, the batch {len(real)}: give a row for each"
            )
        length = min(mask.shape[-1], real.shape[1])
        columns = torch.zeros_like(real)
        columns[:, :length] = mask[..., :length]
        return columns

    def _prompt_lengths(self, batch: int) -> torch.Tensor:
        lengths = self._prompt if self.given is None else self.given
        if lengths is None:
            raise ConfigError(
                f"positions={self.positions!r}: the prompt was read before steering began; give "
                "prompt_lengths, the number of tokens of each row's prompt"
            )
        if lengths.ndim == 0:
            return lengths.expand(batch)
        if batch % len(lengths):
            raise ConfigError(
                f"prompt_lengths holds {len(lengths)} numbers, the batch {batch} rows: give one "
                "number per row"
            )
        return lengths.repeat_interleave(batch // len(lengths))  # beams of a row lie together

    def _refuse_growing(self, inputs: torch.Tensor | None) -> None:
        """Without a cache, generation looks like a row of prompts: it must say where each ends."""
        if self.given is not None or self.positions in ("all", "mask") or inputs is None:
            return
        before, self._input = self._input, inputs.detach()
        if before is None or before.shape[::2] != inputs.shape[::2]:
            return
        length = before.shape[1]
        if inputs.shape[1] > length and torch.allclose(inputs[:, :length], before, atol=1e-4):
            raise ConfigError(
                f"positions={self.positions!r}: this pass repeats the tokens of the one before and "
                "goes on, as generation without a cache does; give prompt_lengths, the number of "
                "tokens of each row's prompt"
            )

    def follow(self, model: Model, layers: Sequence[int | None]) -> list[RemovableHandle]:
        """Watch the passes of `model`, whose blocks `layers` hold edits."""
        if isinstance(model, HookedTransformer):
            return _follow_hooked(self, model, sorted({at for at in layers if at is not None}))
        return [_follow_transformers(self, model)]


def _lengths(given: int | Sequence[int] | torch.Tensor | None) -> torch.Tensor | None:
    if given is None:
        return None
    lengths = torch.as_tensor(given).cpu()
    if lengths.is_floating_point() or lengths.ndim > 1 or not lengths.numel() or lengths.min() < 1:
        raise ConfigError(
            f"prompt_lengths={given!r} is not allowed: it must be the number of tokens of the "
            "prompt, at least 1, or one such number per row"
        )
    return lengths.long()


def _follow_hooked(
    tracker: PassTracker, model: HookedTransformer, layers: list[int]
) -> list[RemovableHandle]:
    # HookedTransformer.generate calls `forward` itself, so hooks on the model would not run; and it
    # embeds each token once, so that the input of the first edited block stands for the tokens.
    last: dict[str, torch.Tensor] = {}

    def on_tokens(_module: torch.nn.Module, args: Any) -> None:
        last["tokens"] = args[0]

    def on_block(layer: int, args: Any, kwargs: dict[str, Any]) -> None:
        x = args[0]
        entry, mask = kwargs.get("past_kv_cache_entry"), kwargs.get("attention_mask")
        past = 0 if entry is None else entry.past_keys.shape[1]
        tokens = last.get("tokens")
        if mask is None and tokens is not None and tokens.shape == x.shape[:2] and not past:
            mask = _not_trailing(model, tokens)
        batch, new = x.shape[:2]
        tracker.begin(batch, new, past, mask, x if layer == layers[0] else None)

    return [
        model.embed.register_forward_pre_hook(on_tokens),
        *(
            model.blocks[layer].register_forward_pre_hook(
                lambda _module, args, kwargs, layer=layer: on_block(layer, args, kwargs),
                with_kwargs=True,
            )
            for layer in layers
        ),
    ]


def _not_trailing(model: HookedTransformer, tokens: torch.Tensor) -> torch.Tensor | None:
    """False at the run of padding tokens that ends a row: TransformerLens masks none of these."""
    pad = None if model.tokenizer is None else model.tokenizer.pad_token_id
    if not isinstance(pad, int):
        return None
    return tokens.ne(pad).flip(-1).cumsum(-1).flip(-1) > 0


def _follow_transformers(tracker: PassTracker, model: PreTrainedModel) -> RemovableHandle:
    base = model.base_model
    signature = inspect.signature(base.forward)

    def on_pass(_module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        given = signature.bind_partial(*args, **kwargs).arguments
        given |= given.get("kwargs", {})
        tokens, embeddings = given.get("input_ids"), given.get("inputs_embeds")
        batch, new = (embeddings if tokens is None else tokens).shape[:2]
        past = _cached(given)
        mask = _two_dimensional(given.get("attention_mask"), past + new)
        tracker.begin(batch, new, past, mask, tokens)

    return base.register_forward_pre_hook(on_pass, with_kwargs=True)


def _cached(given: Mapping[str, Any]) -> int:
    """Tokens in the cache of keys and values among a model's arguments.

    Transformers has called it `past_key_values` and `cache`, so it is known by what it can do.
    """
    cache = next((one for one in given.values() if hasattr(one, "get_seq_length")), None)
    if cache is not None:
        return int(cache.get_seq_length())
    tensors = given.get("past_key_values")  # as older callers pass it: keys and values per layer
    return int(tensors[0][0].shape[-2]) if tensors else 0


def _two_dimensional(mask: Any, length: int) -> torch.Tensor | None:
    """`[batch, length]` of a mask as `generate` passes it: 2D, or made for a cache of fixed size.

    What the last query may attend to is what is not padding.
    """
    if isinstance(mask, dict):
        mask = mask.get("full_attention")
    if mask is None:
        return None
    if mask.ndim == 4:
        seen = mask[:, 0, -1]
        mask = seen if seen.dtype == torch.bool else seen >= 0
    return mask[:, :length] != 0
