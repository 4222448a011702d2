"""A planted latent is found, ranked and turned rightly; on noise the search finds nothing."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig

from sae_lens_bipolar import find_latents
from sae_lens_bipolar.errors import ConfigError, DataError, ModelError
from sae_lens_bipolar.steering import (
    AddVector,
    EditLatents,
    Ranking,
    difference_in_means,
    find_latents_by_direction,
    find_latents_by_token,
    measure_scale,
    steering,
)
from sae_lens_bipolar.steering.find import rank_contrast, rank_tokens
from tests.steering.models import logits
from tests.steering.planted import (
    COLD,
    CONCEPT,
    D_SAE,
    HOOK,
    HOT,
    LATENT,
    OTHER,
    WIDTH,
    planted_hooked,
    planted_model,
    planted_sae,
    texts,
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    plain, tokenizer = planted_model()
    return {
        "hooked": (planted_hooked(tmp_path_factory.mktemp("planted")), {}),
        "transformers": (plain, {"tokenizer": tokenizer}),
    }


@pytest.mark.parametrize("kind", ["hooked", "transformers"])
@pytest.mark.parametrize("paired", [False, True])
def test_the_planted_latent_is_first_with_its_sign(
    kind: str, paired: bool, models: dict[str, Any]
) -> None:
    model, options = models[kind]
    hot, cold = texts(HOT, 30, seed=0), texts(COLD, 30, seed=1)
    found = find_latents(planted_sae(), model, hot, cold, paired=paired, **options)
    first = found.latents[0]
    assert (first.latent, first.sign) == (LATENT, -1)
    assert first.score < -0.9
    assert first.p == 1 / 1000
    assert first.positive is not None
    assert first.negative is not None
    assert first.positive < -0.2 < 0.2 < first.negative
    assert [one.latent for one in found.found] == [LATENT]
    assert found.verdict.startswith("found 1: ")
    swapped = find_latents(planted_sae(), model, cold, hot, paired=paired, **options)
    assert (swapped.latents[0].latent, swapped.latents[0].sign) == (LATENT, 1)


def test_texts_of_one_kind_say_nothing_found(models: dict[str, Any]) -> None:
    model, _ = models["hooked"]
    found = find_latents(planted_sae(), model, texts(OTHER, 20, 0), texts(OTHER, 20, 1))
    assert found.found == ()
    assert found.verdict.startswith("nothing found: the best of 48 latents scores")
    assert found.table().endswith(found.verdict)
    assert len(found.latents) == 20


def test_last_tokens_and_word_pairs(models: dict[str, Any]) -> None:
    model, _ = models["hooked"]
    sae = planted_sae()
    found = find_latents(sae, model, HOT, COLD, tokens="last", paired=True)
    assert (found.latents[0].latent, found.latents[0].sign) == (LATENT, -1)
    assert found.latents[0].positive == pytest.approx(-2.0, abs=1e-5)
    # The texts end on other words: there the concept is not read.
    ends = [[f"{word} {OTHER[i % 10]}" for i, word in enumerate(kind)] for kind in (HOT, COLD)]
    assert find_latents(sae, model, *ends, tokens="last").found == ()


@pytest.mark.parametrize("kind", ["hooked", "transformers"])
def test_a_token_finds_its_latents(kind: str, models: dict[str, Any]) -> None:
    model, options = models[kind]
    corpus = [*texts(("snow",), 12, 0), *texts(("fire",), 5, 1)]
    found = find_latents_by_token(planted_sae(), model, "snow", corpus, **options)
    own = 10 + (*HOT, *COLD, *OTHER).index("snow")
    assert {(one.latent, one.sign) for one in found.found} == {(own, 1), (LATENT, 1)}
    with pytest.raises(DataError, match="'snow fire' is 2 tokens"):
        find_latents_by_token(planted_sae(), model, "snow fire", corpus, **options)
    with pytest.raises(DataError, match="0 texts hold 'hail'"):
        find_latents_by_token(planted_sae(), model, "hail", corpus, **options)


def test_a_direction_finds_its_latent_and_a_random_one_nothing(models: dict[str, Any]) -> None:
    model, _ = models["hooked"]
    dim = difference_in_means(model, texts(HOT, 30, 0), texts(COLD, 30, 1), HOOK)
    assert torch.cosine_similarity(dim, CONCEPT, dim=0) > 0.97
    first = find_latents_by_direction(planted_sae(), dim).latents[0]
    assert (first.latent, first.sign, first.p) == (LATENT, -1, 1 / 1000)
    drawn = torch.randn(WIDTH, generator=torch.Generator().manual_seed(9))
    assert find_latents_by_direction(planted_sae(), drawn).found == ()
    for wrong in (torch.ones(3), torch.zeros(WIDTH), torch.full((WIDTH,), torch.nan)):
        with pytest.raises(ConfigError, match="direction must be 64 finite numbers"):
            find_latents_by_direction(planted_sae(), wrong)


def test_both_kinds_of_model_give_one_difference_in_means(models: dict[str, Any]) -> None:
    sides = [*texts(HOT, 9, 0, length=4), "fire"], texts(COLD, 5, 1, length=9)
    for tokens in ("mean", "last"):
        found = [
            difference_in_means(model, *sides, HOOK, tokens, batch_size=size, **options)  # type: ignore[arg-type]
            for model, options in models.values()
            for size in (1, 4)
        ]
        for one in found[1:]:
            torch.testing.assert_close(one, found[0], atol=1e-5, rtol=1e-5)


def planted_logit(model: Any, edit: Any) -> float:
    """Mean logit of hot words minus that of cold ones, after texts without either."""
    vocabulary = model.tokenizer.get_vocab()
    hot, cold = ([vocabulary[word] for word in words] for words in (HOT, COLD))
    tokens = torch.cat([model.to_tokens(text) for text in texts(OTHER, 16, seed=5)])
    with steering(model, edit):
        found = logits(model, tokens)[:, 1:]
    return (found[..., hot].mean() - found[..., cold].mean()).item()


def test_the_dial_moves_the_planted_logit_monotonically_and_antisymmetrically(
    models: dict[str, Any],
) -> None:
    model, _ = models["hooked"]
    sae = planted_sae()
    scale = measure_scale(sae, model, texts(HOT, 20, 0) + texts(COLD, 20, 1))
    assert scale.reach(LATENT, 1) == (pytest.approx(2.0, abs=1e-4), False)
    dial = [
        planted_logit(model, EditLatents(sae, {LATENT: t / 4}, mode="dial", scale=scale))
        for t in range(-4, 5)
    ]
    assert all(a > b + 0.5 for a, b in pairwise(dial))  # + is cold
    assert dial == pytest.approx([-one for one in reversed(dial)], abs=1e-3)
    reach = abs(dial[0])
    # Random directions of the same length move it by what their cosine with the concept gives.
    generator = torch.Generator().manual_seed(11)
    moved = []
    for _ in range(20):
        d = torch.nn.functional.normalize(torch.randn(WIDTH, generator=generator), dim=0)
        moved.append(abs(planted_logit(model, AddVector(d, 2.0, HOOK))))
    assert max(moved) < 0.5 * reach
    assert sorted(moved)[10] < 0.2 * reach


def false_positives(search: Any, runs: int = 1000) -> float:
    return sum(bool(search(seed).found) for seed in range(runs)) / runs


def sparse_noise(*shape: int, seed: int) -> torch.Tensor:
    """Signed latents that fire on a fifth of the rows, of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator) ** 3
    return values * (torch.rand(*shape, generator=generator) < 0.2)


def contrast(seed: int) -> Ranking:
    x = sparse_noise(24, 60, seed=seed)
    return rank_contrast(x[:10], x[10:], n_draws=99, seed=seed)


def pairs(seed: int) -> Ranking:
    # Differences of latents that fire often: with few that are not 0, swaps tie and p is too large.
    x = sparse_noise(48, 60, seed=seed) + sparse_noise(48, 60, seed=10_000 + seed)
    return rank_contrast(x[:24], x[24:], paired=True, n_draws=99, seed=seed)


def token(seed: int) -> Ranking:
    rows = sparse_noise(8, 12, 60, seed=seed).unbind()
    marks = [torch.zeros(12).index_fill(0, torch.tensor([i]), 1.0) for i in range(8)]
    return rank_tokens(rows, marks, n_draws=99, seed=seed)


SAE = StandardSAE(StandardSAEConfig(d_in=16, d_sae=60))
SAE.W_dec.data = torch.randn(60, 16, generator=torch.Generator().manual_seed(3))


def along(seed: int) -> Ranking:
    v = torch.randn(16, generator=torch.Generator().manual_seed(10_000 + seed))
    return find_latents_by_direction(SAE, v, n_draws=99, seed=seed)


@pytest.mark.parametrize("search", [contrast, pairs, token, along])
def test_of_a_thousand_searches_of_noise_a_twentieth_finds_something(search: Any) -> None:
    assert false_positives(search) == pytest.approx(0.05, abs=0.015)


def test_silent_latents_score_nothing() -> None:
    x = sparse_noise(24, 60, seed=0)
    x[:, 3] = 0
    found = rank_contrast(x[:12], x[12:], n=60)
    silent = next(one for one in found.latents if one.latent == 3)
    assert (silent.score, silent.p) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("sides", "options", "words"),
    [
        ((["fire"], []), {}, "each side needs texts: got 1 positive, 0 negative"),
        ((["fire"] * 3, ["ice"] * 3), {}, "3 and 3 texts allow 10 labellings"),
        ((["fire"] * 5, ["ice"] * 5), {"paired": True}, "5 pairs allow 16 labellings"),
        ((["fire"] * 9, ["ice"] * 8), {"paired": True}, "as many positive as negative"),
        ((["fire"] * 9, ["ice"] * 8 + [""]), {}, "text 8 holds no token"),
        ((["fire"] * 9, ["ice"] * 9), {"tokens": "first"}, "tokens='first' is not allowed"),
        ((["fire"] * 9, ["ice"] * 9), {"n_draws": 3}, "n_draws=3 is not allowed"),
        ((["fire"] * 9, ["ice"] * 9), {"alpha": 0.0}, "alpha=0.0 is not allowed"),
        ((["fire"] * 9, ["ice"] * 9), {"hook": "blocks.0.hook_resid_pots"}, "did you mean"),
    ],
)
def test_bad_input_is_refused(
    sides: Any, options: dict[str, Any], words: str, models: dict[str, Any]
) -> None:
    model, _ = models["hooked"]
    with pytest.raises((ConfigError, DataError, ModelError), match=words):
        find_latents(planted_sae(), model, *sides, **options)


def test_a_transformers_model_needs_its_tokenizer(models: dict[str, Any]) -> None:
    model, _ = models["transformers"]
    with pytest.raises(ModelError, match="does not hold its tokenizer"):
        find_latents(planted_sae(), model, list(HOT), list(COLD))


def test_sinks_and_the_first_token_are_left_out(models: dict[str, Any]) -> None:
    # An embedding 20 times as large: a sink by its norm, as the BOS of real models is.
    model, tokenizer = planted_model()
    model.transformer.wte.weight[tokenizer.convert_tokens_to_ids("fire")] *= 20
    ids: Any = tokenizer
    model.transformer.wte.weight[ids.bos_token_id] = 5.0
    scale = measure_scale(planted_sae(), model, texts(HOT, 30, 0), tokenizer=tokenizer)
    assert scale.reach(LATENT, -1)[0] == pytest.approx(2.0, abs=1e-4)
    assert int(scale.census.n_tokens) < 30 * 6
    assert scale.typical is not None
    assert scale.typical.norm() < 3
    assert len(scale.census.positive_max) == D_SAE
