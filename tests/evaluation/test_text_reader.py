"""Text that several passes need is read once, and what they find is what each would have found."""

import json
from pathlib import Path

import pytest
import torch
from transformer_lens import HookedTransformer

from sae_lens_bipolar.evaluation.describe import describe_latents
from sae_lens_bipolar.evaluation.reconstruction import measure
from sae_lens_bipolar.evaluation.text_reader import TextReader
from sae_lens_bipolar.explorer.build import ExplorerConfig, build
from sae_lens_bipolar.runs.sources import find_saes
from tests.explorer import plain
from tests.steering.saes import EVERY, HOOK


@pytest.fixture
def passes(tiny_model: HookedTransformer, monkeypatch) -> list[int]:
    """The rows of every forward pass of the model that ends at a hook."""
    seen: list[int] = []
    forward = tiny_model.forward

    def counted(*args, **kwargs):
        if kwargs.get("stop_at_layer") is not None:
            seen.append(len(args[0]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(tiny_model, "forward", counted)
    return seen


def tokens_of(model: HookedTransformer, rows: int = 5) -> torch.Tensor:
    draw = torch.Generator().manual_seed(rows)
    return torch.randint(3, model.cfg.d_vocab, (rows, 12), generator=draw)


def test_kept_rows_are_read_once_in_any_order(tiny_model, passes) -> None:
    tokens = tokens_of(tiny_model)
    reader = TextReader(tiny_model, keeps=True)
    found = reader.activations(tokens, HOOK)
    assert passes == [5]
    assert torch.equal(reader.activations(tokens.flip(0), HOOK), found.flip(0))
    assert torch.equal(reader.activations(tokens[2:4].int(), HOOK), found[2:4])
    assert passes == [5]
    reader.activations(tokens, "blocks.0.hook_resid_post")
    reader.activations(tokens + 1, HOOK)
    assert passes == [5, 5, 5], "another hook and another text are read"


@pytest.mark.parametrize("options", [{}, {"keeps": True, "most_bytes": 64}])
def test_without_memory_it_reads_anew(tiny_model, passes, options) -> None:
    tokens = tokens_of(tiny_model)
    reader = TextReader(tiny_model, **options)
    assert torch.equal(reader.activations(tokens, HOOK), reader.activations(tokens, HOOK))
    assert passes == [5, 5]


def test_what_is_kept_is_no_view_of_what_was_given_out(tiny_model) -> None:
    reader, tokens = TextReader(tiny_model, keeps=True), tokens_of(tiny_model)
    found = reader.activations(tokens, HOOK)
    before = found.clone()
    found.zero_()
    reader.activations(tokens, HOOK).zero_()
    assert torch.equal(reader.activations(tokens, HOOK), before)


@pytest.mark.parametrize("architecture", EVERY)
def test_kept_latents_are_those_of_the_encoder(tiny_model, tmp_path, architecture) -> None:
    sae, tokens = plain.save("sae", tmp_path, architecture).load(), tokens_of(tiny_model)
    reader = TextReader(tiny_model, keeps=True)
    with torch.no_grad():
        x = reader.activations(tokens, HOOK)
        z = sae.encode(x)
        reader.keep_latents("a", tokens, z)
        # Given other activations, only what is kept can be what was.
        assert torch.equal(reader.latents("a", sae, tokens, 0 * x), z)
        assert torch.equal(reader.latents("b", sae, tokens, x), z), "another SAE's are not kept"


def test_measuring_describing_and_exploring_share_their_passes(
    tiny_model: HookedTransformer, tmp_path: Path, passes: list[int]
) -> None:
    source = plain.save("abstopk", tmp_path, "abstopk")
    saes = {source.name: source.load()}
    tokens = plain.some_text(tiny_model)
    sizes = ExplorerConfig(tokens=tokens.numel(), context_size=tokens.shape[1], dials=0)

    def found(reader: TextReader | None, output: Path) -> list[str]:
        measured = measure(saes, tiny_model, tokens, n_loss_sequences=1, reader=reader)
        census = {name: one.census for name, one in measured.items()}
        latents = {source.name: [0, 1, 2]}
        described = describe_latents(saes, tiny_model, tokens, latents, census, reader=reader)
        build(find_saes([str(source.path)]), tiny_model, sizes, output, tokens, reader)
        files = sorted((output / "data").rglob("*.js*"))
        census_of = [json.dumps(one.to_dict()) for one in census.values()]
        return [*census_of, json.dumps(described), *(file.read_text() for file in files)]

    apart = found(None, tmp_path / "apart")
    read_apart = sum(passes)
    passes.clear()
    assert found(TextReader(tiny_model, keeps=True), tmp_path / "together") == apart
    assert len(apart) > 3
    assert read_apart == 3 * len(tokens)
    assert sum(passes) == len(tokens)
