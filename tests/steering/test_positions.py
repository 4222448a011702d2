"""Which tokens are edited: prompts, what follows them, masks, padding, with and without a cache."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens import HookedTransformer

from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.steering import AddVector, steering
from sae_lens_bipolar.steering.hook_points import find_site
from tests.steering.models import HOOK, KINDS, direction, load, logits, some_tokens
from tests.tiny_models import TINY_ARCHITECTURES

PAD = 2
PROMPT = 6
EDIT_AT = "blocks.0.hook_resid_post"


def edit(hook: str = EDIT_AT) -> AddVector:
    return AddVector(direction(), 2.0, hook)


def edited_tokens(model: Any, hook: str, **options: Any) -> torch.Tensor:
    """Bool `[batch, position]`: where `steering` changed the hook in the pass `options["run"]`."""
    held: list[torch.Tensor] = []
    run = options.pop("run")
    before = find_site(model, hook).register(lambda x: (held.append(x), x)[1])
    with steering(model, edit(hook), **options):
        after = find_site(model, hook).register(lambda x: (held.append(x), x)[1])
        run()
        after.remove()
    before.remove()
    return torch.cat([(b != a).any(-1) for b, a in zip(held[::2], held[1::2], strict=True)], dim=1)


def generate(model: Any, tokens: torch.Tensor, n: int, cached: bool, **more: Any) -> torch.Tensor:
    """Greedy continuation, `[batch, position + n]`."""
    if isinstance(model, HookedTransformer):
        text: Any = model.generate(
            tokens,
            max_new_tokens=n,
            do_sample=False,
            stop_at_eos=False,
            prepend_bos=False,
            verbose=False,
            use_past_kv_cache=cached,
        )
        return text
    options = {"pad_token_id": PAD, "min_new_tokens": n, **more}
    return model.generate(
        tokens, max_new_tokens=n, do_sample=False, use_cache=cached, eos_token_id=None, **options
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("positions", "lengths", "expected"),
    [
        ("all", None, [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]),
        ("prompt", None, [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]),
        ("last", None, [[0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]),
        ("prompt", [2, 4], [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]),
        ("generated", [2, 4], [[0, 0, 1, 1, 1], [0, 0, 0, 0, 1]]),
        ("last", [2, 4], [[0, 1, 0, 0, 0], [0, 0, 0, 1, 0]]),
        ("generated", 3, [[0, 0, 0, 1, 1], [0, 0, 0, 1, 1]]),
        (torch.tensor([True, False, True]), None, [[1, 0, 1, 0, 0], [1, 0, 1, 0, 0]]),
        (torch.tensor([[True], [False]]), None, [[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]),
    ],
)
def test_positions(
    kind: str,
    positions: Any,
    lengths: Any,
    expected: list[list[int]],
    tiny_model_dirs: dict[str, Path],
) -> None:
    model, tokens = load(kind, tiny_model_dirs["llama"]), some_tokens(length=5)
    found = edited_tokens(
        *(model, EDIT_AT),
        positions=positions,
        prompt_lengths=lengths,
        run=lambda: logits(model, tokens),
    )
    assert found.int().tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", ["all", "prompt", "last"])
def test_padding_is_never_edited(
    kind: str, side: str, positions: str, tiny_model_dirs: dict[str, Path]
) -> None:
    model, tokens = load(kind, tiny_model_dirs["gpt2"]), some_tokens(length=5)
    real = torch.ones_like(tokens)
    real[0, :2] = 0
    real = real if side == "left" else real.flip(-1)
    tokens[real == 0] = PAD
    found = edited_tokens(
        *(model, EDIT_AT), positions=positions, run=lambda: logits(model, tokens, real)
    )
    last = {"left": [4, 4], "right": [2, 4]}[side]
    expected = real.bool()
    if positions == "last":
        expected = torch.arange(5) == torch.tensor(last)[:, None]
    assert torch.equal(found, expected)


def test_trailing_padding_of_a_hooked_transformer_needs_no_mask(
    tiny_model_dirs: dict[str, Path],
) -> None:
    model, tokens = load("hooked", tiny_model_dirs["gpt2"]), some_tokens(length=5)
    tokens[0, 3:] = model.tokenizer.pad_token_id
    found = edited_tokens(model, EDIT_AT, run=lambda: logits(model, tokens))
    assert found.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


@pytest.mark.parametrize("architecture", TINY_ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("positions", ["all", "prompt", "generated", "last", "mask"])
def test_cached_generation_equals_uncached(
    kind: str, architecture: str, positions: str, tiny_model_dirs: dict[str, Path]
) -> None:
    model = load(kind, tiny_model_dirs[architecture])
    tokens = some_tokens(length=PROMPT)
    given: Any = positions
    if positions == "mask":
        given = torch.arange(PROMPT + 3) % 2 == 0
    texts, passes = [], []
    for cached in (True, False):
        held: list[torch.Tensor] = []
        with steering(model, edit(), positions=given, prompt_lengths=PROMPT):
            handle = find_site(model, HOOK).register(lambda x, held=held: (held.append(x), x)[1])
            texts.append(generate(model, tokens, 6, cached))
            handle.remove()
        whole = torch.cat(held, dim=1) if cached else held[-1]
        passes.append(whole)
        assert len(held) == 6
        assert [one.shape[1] for one in held] == (
            [PROMPT, 1, 1, 1, 1, 1] if cached else [PROMPT + i for i in range(6)]
        )
    assert torch.equal(texts[0], texts[1])
    # Whatever was edited when it was new is what one pass over the whole text edits.
    torch.testing.assert_close(passes[0], passes[1], atol=2e-5, rtol=1e-5)
    unsteered = generate(model, tokens, 6, True)
    with steering(model, edit(), positions=given, prompt_lengths=PROMPT):
        steered_logits = logits(model, texts[0])
    assert not torch.allclose(steered_logits, logits(model, texts[0]), atol=1e-3)
    assert torch.equal(generate(model, tokens, 6, True), unsteered)


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_cache_prompt_lengths_are_known(kind: str, tiny_model_dirs: dict[str, Path]) -> None:
    model, tokens = load(kind, tiny_model_dirs["gpt2"]), some_tokens(length=4)
    for positions, expected in {
        "prompt": [1, 1, 1, 1, 0, 0, 0],
        "generated": [0, 0, 0, 0, 1, 1, 1],
        "last": [0, 0, 0, 1, 0, 0, 0],
    }.items():
        found = edited_tokens(
            *(model, EDIT_AT),
            positions=positions,
            run=lambda: generate(model, tokens, 4, cached=True),
        )
        assert found.int().tolist() == [expected, expected]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("positions", ["prompt", "generated", "last"])
def test_generation_without_a_cache_must_say_where_prompts_end(
    kind: str, positions: Any, tiny_model_dirs: dict[str, Path]
) -> None:
    model, tokens = load(kind, tiny_model_dirs["gpt2"]), some_tokens(length=4)
    with (
        pytest.raises(ConfigError, match="give prompt_lengths"),
        steering(model, edit(), positions=positions),
    ):
        generate(model, tokens, 3, cached=False)


@pytest.mark.parametrize("positions", ["all", "prompt", "generated", "last"])
def test_a_padded_batch_generates_what_each_row_does_alone(
    positions: Any, tiny_model_dirs: dict[str, Path]
) -> None:
    model = load("transformers", tiny_model_dirs["llama"])
    short, long = some_tokens(1, 4, seed=3), some_tokens(1, 7, seed=4)
    padded = torch.cat([torch.full((1, 3), PAD), short], dim=1)
    both, mask = torch.cat([padded, long]), torch.ones(2, 7, dtype=torch.long)
    mask[0, :3] = 0
    together, alone = [], []
    with steering(model, edit(), positions=positions):
        together = generate(model, both, 8, True, attention_mask=mask)
    for tokens in (short, long):
        with steering(model, edit(), positions=positions):
            alone.append(generate(model, tokens, 8, True)[:, -8:])
    assert torch.equal(together[:, -8:], torch.cat(alone))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_steered_as_its_rows_are(kind: str, tiny_model_dirs: dict[str, Path]) -> None:
    model, tokens = load(kind, tiny_model_dirs["qwen3"]), some_tokens(3, 9)
    real = torch.ones_like(tokens)
    for row, length in enumerate((4, 9, 6)):
        real[row, length:] = 0
    tokens[real == 0] = PAD
    for positions in ("all", "last"):
        with steering(model, edit(), positions=positions):
            together = logits(model, tokens, real)
            for row, length in enumerate((4, 9, 6)):
                alone = logits(model, tokens[row : row + 1, :length])
                torch.testing.assert_close(
                    together[row : row + 1, :length], alone, atol=1e-5, rtol=1e-5
                )


def test_beams_of_a_row_share_its_prompt_length(tiny_model_dirs: dict[str, Path]) -> None:
    model, tokens = load("transformers", tiny_model_dirs["llama"]), some_tokens(2, 5)
    found = []
    for lengths in (None, [5, 5]):
        with steering(model, edit(), positions="generated", prompt_lengths=lengths):
            found.append(generate(model, tokens, 4, True, num_beams=3))
    assert torch.equal(found[0], found[1])


def test_a_static_cache_is_understood(tiny_model_dirs: dict[str, Path]) -> None:
    # Its masks are as long as the cache and have four dimensions.
    model = load("transformers", tiny_model_dirs["llama"])
    both = some_tokens(2, 7)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0, :3] = 0
    both[0, :3] = PAD
    found = []
    for implementation in ("dynamic", "static"):
        with steering(model, edit(), positions="generated"):
            found.append(
                generate(
                    *(model, both, 5, True),
                    attention_mask=mask,
                    cache_implementation=implementation,
                    disable_compile=True,
                )
            )
    assert torch.equal(found[0], found[1])


def test_entering_in_the_middle_of_a_generation_asks_for_the_prompt(
    tiny_model_dirs: dict[str, Path],
) -> None:
    model, tokens = load("transformers", tiny_model_dirs["llama"]), some_tokens(1, 5)
    with torch.no_grad():
        cache = model(tokens[:, :4]).past_key_values
        with (
            pytest.raises(ConfigError, match="before steering began"),
            steering(model, edit(), positions="generated"),
        ):
            model(tokens[:, 4:], past_key_values=cache)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"positions": "first"}, "positions='first' is not allowed"),
        ({"positions": torch.ones(3)}, "a mask must be bool"),
        ({"positions": torch.ones(3, 4, dtype=torch.bool)}, "has 3 rows, the batch 2"),
        ({"positions": "last", "prompt_lengths": [1, 2, 3]}, "prompt_lengths holds 3 numbers"),
        ({"positions": "last", "prompt_lengths": 0}, "prompt_lengths=0 is not allowed"),
        ({"positions": "last", "prompt_lengths": [1.5, 2.0]}, "is not allowed"),
    ],
)
def test_impossible_positions_are_refused(
    options: dict[str, Any], words: str, tiny_model_dirs: dict[str, Path]
) -> None:
    model = load("transformers", tiny_model_dirs["gpt2"])
    with pytest.raises(ConfigError, match=words), steering(model, edit(), **options):
        logits(model, some_tokens(length=5))
