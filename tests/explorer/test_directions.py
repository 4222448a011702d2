"""What decoder rows say: extremes as topk finds them, counterparts both ways, dial curves."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import log_softmax
from transformer_lens import HookedTransformer

from sae_lens_bipolar.explorer import dials, directions
from sae_lens_bipolar.explorer.directions import counterparts, extremes, output_tokens
from sae_lens_bipolar.polarity.counting import CensusCounter
from tests.explorer import plain


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize(("columns", "k"), [(1, 1), (63, 2), (64 * 9, 4), (64 * 40 + 5, 10)])
def test_extremes_are_those_of_topk(columns: int, k: int, largest: bool) -> None:
    values = torch.randn(7, columns, generator=torch.Generator().manual_seed(columns))
    for given in (values, values.T.contiguous().T):  # as rows and as columns of memory
        index, value = extremes(given, k, largest)
        wanted = values.topk(k, dim=1, largest=largest)
        assert torch.equal(value, wanted.values)
        assert torch.equal(index, wanted.indices)


def test_counterparts_are_the_same_seen_from_either_sae(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    decoders = [torch.randn(n, 6, generator=draw) for n in (90, 140)]
    fires = [torch.rand(len(one), generator=draw) < 0.7 for one in decoders]
    monkeypatch.setattr(directions, "_ELEMENTS", 140 * 17)  # blocks, the last one smaller
    units = [one / one.norm(dim=1, keepdim=True) for one in decoders]
    both = counterparts(*decoders, *fires)
    for found, own, other in ((both[0], 0, 1), (both[1], 1, 0)):
        cosine = units[own] @ units[other].T
        for latent in range(len(cosine)):
            said = [found.high[latent].item(), found.low[latent].item()]
            if not fires[own][latent]:
                assert said == [0, 0]
                continue
            known = torch.where(fires[other], cosine[latent], 0.0)
            assert said == [known.argmax().item(), known.argmin().item()]
            assert found.low_value[latent].item() == pytest.approx(known.min().item())


@pytest.mark.parametrize("values_at_once", [1, 4, 9])
def test_a_dial_curve_is_that_of_whole_passes(
    tiny_model: HookedTransformer, tmp_path: Path, monkeypatch, values_at_once: int
) -> None:
    source = plain.save("abstopk", tmp_path, "abstopk")
    sae, tokens = source.load(), plain.some_text(tiny_model)
    counter = CensusCounter(sae.cfg.d_sae)
    counter.add(plain.dense_latents(sae, tiny_model, tokens).flatten(0, 1))
    census = counter.result()
    outputs = output_tokens(tiny_model, sae.W_dec.detach(), 4, census.alive)
    text = dials.neutral_text(tokens, 6)
    held = values_at_once * text.numel() * tiny_model.cfg.d_vocab
    monkeypatch.setattr(dials, "_ELEMENTS", held)
    (curve,) = dials.dial_curves(sae, tiny_model, census, outputs, text, 1)
    latent = curve["latent"]

    def passed() -> torch.Tensor:
        with torch.no_grad():
            return log_softmax(tiny_model(text, prepend_bos=False).float(), dim=-1)

    plainly = passed()
    for value, shift, cost in zip(
        *(curve[key] for key in ("values", "shift", "cost")), strict=True
    ):
        with dials.steered_dial(sae, tiny_model, census, latent, [value], text.shape):
            steered = passed()
        change = (steered - plainly).mean((0, 1))
        told = change[outputs.high[latent]].mean() - change[outputs.low[latent]].mean()
        assert shift == pytest.approx(told.item(), abs=1e-3)
        entropies = [
            -one[:, :-1].gather(-1, text[:, 1:, None]).mean().item() for one in (plainly, steered)
        ]
        assert cost == pytest.approx(entropies[1] - entropies[0], abs=1e-3)
    assert max(map(abs, curve["shift"])) > 0.01
