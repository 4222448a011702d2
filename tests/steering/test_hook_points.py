"""A TransformerLens hook name is the same place in both kinds of model, for every family."""

from pathlib import Path

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM

from sae_lens_bipolar.errors import ModelError
from sae_lens_bipolar.steering import AddVector, steering
from sae_lens_bipolar.steering.hook_points import find_site, n_layers
from tests.steering.models import KINDS, direction, load, logits, some_tokens
from tests.tiny_models import TINY_ARCHITECTURES

PLACES = ("hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "attn.hook_z")


@pytest.mark.parametrize("architecture", TINY_ARCHITECTURES)
def test_a_hook_name_means_the_same_in_both_kinds_of_model(
    architecture: str, tiny_model_dirs: dict[str, Path]
) -> None:
    hooked, plain = (load(kind, tiny_model_dirs[architecture]) for kind in KINDS)
    tokens = some_tokens()
    unedited = logits(hooked, tokens)
    for hook in (f"blocks.{i}.{name}" for i in range(n_layers(hooked)) for name in PLACES):
        _, cache = hooked.run_with_cache(tokens, prepend_bos=False, names_filter=[hook])
        held: list[torch.Tensor] = []
        handle = find_site(plain, hook).register(lambda x, held=held: (held.append(x), x)[1])
        logits(plain, tokens)
        handle.remove()
        torch.testing.assert_close(held[0], cache[hook], atol=1e-5, rtol=1e-5)

        vector = direction(cache[hook][0, 0].numel())
        with torch.no_grad():
            by_hand = hooked.run_with_hooks(
                tokens,
                prepend_bos=False,
                fwd_hooks=[(hook, lambda x, hook, v=vector: x + 2.5 * v.view(x.shape[2:]))],
            )
        assert (by_hand - unedited).abs().max() > 0.1
        for model in (hooked, plain):
            with steering(model, AddVector(vector, 2.5, hook)):
                torch.testing.assert_close(logits(model, tokens), by_hand, atol=1e-5, rtol=1e-5)


def test_a_module_path_is_a_hook_of_a_transformers_model(tiny_model_dirs: dict[str, Path]) -> None:
    model, tokens, found = load("transformers", tiny_model_dirs["llama"]), some_tokens(), []
    for hook in ("blocks.0.hook_resid_post", "model.layers.0"):
        with steering(model, AddVector(direction(), 1.0, hook)):
            found.append(logits(model, tokens))
    assert torch.equal(found[0], found[1])


def test_an_unknown_family_names_the_remedy_and_the_remedy_works() -> None:
    torch.manual_seed(0)
    model = BloomForCausalLM(
        BloomConfig(vocab_size=384, hidden_size=32, n_layer=2, n_head=4)
    ).eval()
    with pytest.raises(ModelError, match=r"'bloom' is not known.*'transformer\.h\.0'.*load_model"):
        find_site(model, "blocks.0.hook_resid_post")
    tokens = some_tokens()
    unedited = logits(model, tokens)
    with steering(model, AddVector(direction(), 5.0, "transformer.h.0")):
        assert not torch.allclose(logits(model, tokens), unedited, atol=1e-3)
    assert torch.equal(logits(model, tokens), unedited)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("hook", "words"),
    [
        ("blocks.7.hook_resid_post", "2 (blocks|layers)"),
        ("blocks.1.hook_resid_pots", "did you mean|neither"),
        ("hook_embed", "no such hook in its 2 blocks|neither"),
        ("", "no such hook|neither"),
    ],
)
def test_a_wrong_hook_is_refused(
    kind: str, hook: str, words: str, tiny_model_dirs: dict[str, Path]
) -> None:
    model = load(kind, tiny_model_dirs["gpt2"])
    with pytest.raises(ModelError, match=words), steering(model, AddVector(direction(), 1.0, hook)):
        pass


def test_what_is_no_language_model_is_refused() -> None:
    model = torch.nn.Linear(2, 2)
    edit = AddVector(direction(2), 1.0, "blocks.0.hook_resid_post")
    with pytest.raises(ModelError, match="a Linear cannot be steered"), steering(model, edit):  # type: ignore[arg-type]
        pass
