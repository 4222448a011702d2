"""What an SAE's metadata say of its model: a name others can load, and nothing impossible."""

import json
from pathlib import Path

import pytest
from sae_lens.saes.sae import SAEMetadata

import sae_lens_bipolar  # noqa: F401
from sae_lens_bipolar.errors import ModelError
from sae_lens_bipolar.inputs.models import BUNDLED, DEFAULT_MODEL
from sae_lens_bipolar.inputs.trained_on import (
    BUNDLED_MODEL,
    Sizes,
    loadable_name,
    recorded_name,
    require_fits,
    sizes_of,
)

HUB_NAME = BUNDLED[DEFAULT_MODEL].hub_name


def test_a_bundled_model_is_recorded_by_its_name_on_the_hub() -> None:
    assert recorded_name(DEFAULT_MODEL) == HUB_NAME == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert recorded_name("gpt2") == "gpt2"
    assert loadable_name(SAEMetadata(model_name=HUB_NAME)) == HUB_NAME
    both = {"model_name": HUB_NAME, BUNDLED_MODEL: DEFAULT_MODEL}
    assert loadable_name(both) == loadable_name(SAEMetadata(**both)) == DEFAULT_MODEL
    assert loadable_name({}) is None


def test_sizes_that_are_known_without_loading(tmp_path: Path) -> None:
    assert sizes_of(DEFAULT_MODEL) == sizes_of(HUB_NAME) == Sizes(30, 576)
    assert sizes_of("gelu-2l") == Sizes(2, 512)
    config = {"n_layer": 3, "n_embd": 24}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert sizes_of(str(tmp_path)) == Sizes(3, 24)
    (tmp_path / "config.json").write_text("{")
    assert sizes_of(str(tmp_path)) is None
    assert sizes_of("no/such-model") is None
    assert sizes_of("a b c") is None


@pytest.mark.parametrize(
    ("model", "hook", "d_in"),
    [
        ("gelu-2l", "blocks.12.hook_mlp_out", 576),  # SAELens's default, left as it is
        ("gelu-2l", "blocks.1.hook_mlp_out", 576),
        (DEFAULT_MODEL, "blocks.30.hook_resid_post", 576),
        (HUB_NAME, "blocks.3.hook_resid_post", 577),
    ],
)
def test_an_sae_that_cannot_belong_to_its_model_is_refused(
    model: str, hook: str, d_in: int
) -> None:
    metadata = SAEMetadata(model_name=model, hook_name=hook)
    with pytest.raises(ModelError, match=rf"my-sae says that it reads {hook} of {model}.*not true"):
        require_fits(metadata, d_in, "my-sae")


@pytest.mark.parametrize(
    ("model", "hook", "d_in", "head"),
    [
        (HUB_NAME, "blocks.29.hook_resid_post", 576, None),
        (HUB_NAME, "blocks.3.attn.hook_z", 576, None),
        (HUB_NAME, "blocks.3.hook_mlp_in", 576, None),
        (HUB_NAME, "blocks.3.mlp.hook_post", 1536, None),
        (HUB_NAME, "blocks.3.hook_attn_in", 64, 2),  # one head
        ("unknown-model", "blocks.99.hook_resid_post", 1, None),
    ],
)
def test_what_may_be_true_passes(model: str, hook: str, d_in: int, head: int | None) -> None:
    require_fits({"model_name": model, "hook_name": hook, "hook_head_index": head}, d_in, "x")
