"""`with steering(model, edits): ...`: edits applied in every forward pass inside the block."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.steering.edits import Edit
from sae_lens_bipolar.steering.hook_points import Change, Model, find_site
from sae_lens_bipolar.steering.positions import PassTracker, Positions


@contextmanager
def steering(
    model: Model,
    edits: Edit | Sequence[Edit],
    positions: Positions | torch.Tensor = "all",
    prompt_lengths: int | Sequence[int] | torch.Tensor | None = None,
) -> Iterator[None]:
    """Apply edits in every forward pass of `model` inside the block, and in none after it.

    Works for plain passes and for `generate`, with and without a cache of keys and values.
    Padding is never edited. Edits at one hook apply in the order given; contexts may be nested.
    A prompt that is generated from without a cache needs `prompt_lengths` unless all tokens are
    edited.

    Args:
        model: a HookedTransformer or a Transformers model.
        edits: `AddVector`, `AblateDirection`, `EditLatents`; one or several.
        positions: "all"; "prompt"; "generated", the tokens after the prompt; "last", the last
            token of the prompt; or a bool mask `[length]` or `[batch, length]` over the columns of
            the input, beyond which nothing is edited.
        prompt_lengths: the number of tokens of each row's prompt, padding not counted. None: each
            pass that starts without a cache is a prompt of its own.

    Raises:
        ConfigError: for impossible positions, or an edit of another width than the hook's.
        ModelError: if the model has no such hook, or its family is not mapped.
    """
    given = list(edits) if isinstance(edits, Sequence) else [edits]
    for one in given:
        if not hasattr(one, "apply"):
            raise ConfigError(
                f"edits holds a {type(one).__name__}: give AddVector, AblateDirection or "
                "EditLatents"
            )
    tracker = PassTracker(positions, prompt_lengths)
    places = [(find_site(model, hook), one) for one in given for hook in one.hooks_in(model)]
    with ExitStack() as stack:
        for handle in tracker.follow(model, [site.layer for site, _ in places]):
            stack.callback(handle.remove)
        for site, one in places:
            stack.callback(site.register(_on_selected(one, tracker)).remove)
        yield


def _on_selected(edit: Edit, tracker: PassTracker) -> Change:
    """The change of a whole tensor, `[batch, position, ...]`, of which only some tokens change."""

    def change(x: torch.Tensor) -> torch.Tensor:
        selected = tracker.selected(x)
        if not selected.any():
            return x
        edited = edit.apply(x[selected])
        # Not in place: the model may hold the tensor elsewhere, as the residual stream.
        return x.index_put(tuple(selected.nonzero(as_tuple=True)), edited)

    return change
