"""Figure 1: its statistics on planted latents, its passes against plain ones, the recipe itself."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipes.abstopk import figure1, figure1_dial, figure1_naming, steering_saes
from recipes.abstopk.figure1_claims import NULLS, claims, dial_shares, opposition_rates, upper_bound
from recipes.abstopk.figure1_opposition import fragmentation, of_pairs
from recipes.abstopk.figure1_passes import Contexts, read_words
from recipes.abstopk.figure1_words import AXES, TEMPLATES, Pair, antonyms, controls, count_words
from recipes.common.scales import build
from sae_lens_bipolar.errors import ConfigError, DataError
from sae_lens_bipolar.evaluation.placement import activations
from sae_lens_bipolar.files.atomic import read_json
from sae_lens_bipolar.inputs.models import load_model, tokenizer_of
from tests.recipes.abstopk.settings import write_config
from tests.recipes.abstopk.steering_settings import tiny_saes

N_LATENTS = 50


class Words:
    """A tokenizer of whole words."""

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        return {"input_ids": [hash(word) for word in text.split()]}


def test_words_and_their_controls() -> None:
    pairs = antonyms(Words(), 150)
    words = [word for pair in pairs for word in pair[1:]]
    assert len(pairs) == 150
    assert len(set(words)) == 300
    assert {pair.axis for pair in pairs} == set(AXES)
    assert min(Counter(pair.axis for pair in pairs).values()) >= 12
    draw = random.Random(0)
    counts = Counter({word: int(10 ** draw.uniform(0, 5)) for word in words})
    others = controls(pairs, counts)
    assert len(others) == 150
    assert sorted(pair.b for pair in others) == sorted(pair.b for pair in pairs)
    axis_of = {pair.b: pair.axis for pair in pairs}
    for pair, other in zip(pairs, others, strict=True):
        assert other.a == pair.a
        assert axis_of[other.b] != pair.axis  # of another axis, so no antonym
        assert AXES[axis_of[other.b]][0] == AXES[pair.axis][0]  # of the same part of speech
    off = [
        abs(np.log10(counts[pair.b]) - np.log10(counts[other.b]))
        for pair, other in zip(pairs, others, strict=True)
    ]
    assert np.mean(off) < 0.5  # of words drawn over five powers of ten
    assert len(TEMPLATES) >= 24
    with pytest.raises(DataError, match="antonym pairs are of one token each, 900 are asked for"):
        antonyms(Words(), 900)


def test_words_are_counted_without_punctuation() -> None:
    assert count_words(['He said: "up, up!"', "up"])["up"] == 3


def planted(seed: int, share: float) -> torch.Tensor:
    """Signs `[26 templates, 2 words, 2 reads, latents]`: noise, and one latent that flips."""
    generator = torch.Generator().manual_seed(seed)
    shape = (26, 2, 2, N_LATENTS)
    signs = torch.randint(-1, 2, shape, generator=generator)
    signs *= torch.rand(shape, generator=generator) < 0.15
    flips = torch.rand(26, generator=generator) < share
    signs[flips, 0, 0, 7], signs[flips, 1, 0, 7] = -1, 1
    return signs.to(torch.int8)


def one_pair(signs: torch.Tensor, seed: int = 0) -> dict[str, Any]:
    return of_pairs(signs, [(0, 1)], torch.eye(N_LATENTS), draws=199, seed=seed)[0]


def test_a_planted_flip_is_found_with_its_side() -> None:
    found = one_pair(planted(0, 0.9))
    assert (found["latent"], found["read"], found["side"]) == (7, 0, -1)
    assert found["flip"] > 0.75
    assert found["p"] <= 0.01


def test_on_noise_a_flip_is_found_in_a_twentieth_of_pairs() -> None:
    """1,000 pairs without a planted latent; in fewer where draws tie, as they do for rare flips."""
    p = [one_pair(planted(seed, 0.0), seed)["p"] for seed in range(1000)]
    assert np.mean(np.array(p) <= 0.05) < 0.065
    scores = [one_pair(planted(seed, 0.0), seed)["flip"] for seed in range(50)]
    assert np.mean(scores) < 0.1  # scored where it was not chosen


def test_two_latents_of_one_axis_are_told_from_two_of_two() -> None:
    signs = torch.zeros(26, 2, 1, N_LATENTS, dtype=torch.int8)
    signs[:, 0, 0, 3], signs[:, 1, 0, 4] = 1, 1
    directions = torch.eye(N_LATENTS)
    assert fragmentation(signs[:, 0, 0], signs[:, 1, 0], directions) == 0.0
    directions[4] = -directions[3]
    assert fragmentation(signs[:, 0, 0], signs[:, 1, 0], directions) == -1.0
    signs[:, 1, 0, 3] = 1  # fires on both words: no a-only latent is left
    assert fragmentation(signs[:, 0, 0], signs[:, 1, 0], directions) is None


def test_upper_bounds() -> None:
    assert upper_bound(0, 150) == pytest.approx(0.01977, abs=1e-4)  # 3/n, or so
    assert upper_bound(5, 5) == 1.0


def groups(flips: float, others: float, n: int = 150) -> dict[str, list[dict[str, Any]]]:
    """Pairs of which a share is opposed, of antonyms and of controls."""
    row = {"cosine": None, "one_only": True}
    opposed, not_so = {"flip": 0.9, "p_adjusted": 0.01}, {"flip": 0.1, "p_adjusted": 0.9}
    return {
        group: [{**row, **(opposed if i < share * n else not_so)} for i in range(n)]
        for group, share in (("antonyms", flips), ("controls", others))
    }


@pytest.mark.parametrize(
    ("flips", "others", "verdict"),
    [(0.3, 0.0, "holds"), (0.0, 0.0, "does not hold"), (0.07, 0.02, "undecided")],
)
def test_the_verdict_on_opposition(flips: float, others: float, verdict: str) -> None:
    rates = {"AbsTopK": opposition_rates(groups(flips, others), threshold=0.5)}
    measures = {
        name: {"spearman": [1.0] * 100, "antisymmetry": [1.0] * 100, "right_sign": right}
        for name, right in (
            ("latents", [1.0] * 80 + [0.0] * 20),
            ("random directions", [1.0, 0.0] * 50),
            ("another latent's readout", [0.0] * 100),
        )
    }
    dials = {"AbsTopK": {"signed": True, "measures": measures}}
    shares = {"AbsTopK": dial_shares(dials["AbsTopK"])}
    settings = {"margin": 0.05, "dial_margin": 0.1, "rare": 0.05, "run": {"n_train_tokens": 9}}
    naming = {
        "AbsTopK": {
            "share": 0.02,
            "chance": 0.02,
            "p": 0.5,
            "latents": 400,
            "own": [1] * 8 + [0] * 392,
            "expected": [0.02] * 400,
        }
    }
    found = claims(rates, shares, dials, naming, settings)
    assert found[0].verdict == verdict
    assert "at most" in found[0].ours
    rare = next(one for one in found if "nameable" in one.claim)
    assert rare.verdict == "holds"
    dial = [one.verdict for one in found if "causal dial" in one.claim]
    assert dial == ["holds", "holds"]


def test_measures_of_a_dial() -> None:
    t = [-1.0, -0.5, 0.0, 0.5, 1.0]
    d = torch.tensor([[-2.0, -1, 0, 1, 2], [2.0, 1, 0, -1, -2], [2.1, 1.1, 0, 1, 2], [0.0] * 5])
    found = figure1_dial.measures(d, t)
    assert found["spearman"] == pytest.approx([1, -1, -0.3, 0])
    assert found["antisymmetry"] == pytest.approx([1, 1, 0, 0])
    assert found["right_sign"] == [1, 0, 0, 0]


def test_readouts_are_what_follows_the_sides() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2000, 3, generator=generator) * (torch.rand(2000, 3, generator=generator) < 0.4)
    following = torch.randint(20, 60, (2000,), generator=generator)
    following[z[:, 1] > 0], following[z[:, 1] < 0] = 5, 6
    ((plus, minus),) = figure1_dial.readouts(z, following, [1], 3)
    assert (plus[0], minus[0]) == (5, 6)
    one_sided = z.clamp_min(0)
    ((plus, _),) = figure1_dial.readouts(one_sided, following, [1], 3)
    assert plus[0] == 5


def test_names_in_contexts_against_permuted_sides() -> None:
    word_ids, pairs = torch.arange(100, 140), [(2 * i, 2 * i + 1) for i in range(20)]
    z, tokens = torch.zeros(400, 10), torch.zeros(400, dtype=torch.long)
    for latent in range(10):  # latent i fires + on word 2i and - on word 2i + 1
        for side in (0, 1):
            at = 40 * latent + 20 * side + 10
            z[at, latent], tokens[at - 1] = 1.0 - 2 * side, 100 + 2 * latent + side
    positive, negative = (
        torch.stack(
            [figure1_naming.contexts_hold(z, tokens, word_ids, i, side, 5) for i in range(10)]
        )
        for side in (1, -1)
    )
    hits = figure1_naming.opposition(positive, negative, pairs)
    found = figure1_naming.against_chance(hits, 199, 0)
    assert found["share"] == 1.0
    assert found["chance"] == pytest.approx(0.1, abs=0.05)
    assert found["p"] == 1 / 200


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_shared_passes_are_plain_ones(family: str, tiny_model_dirs: dict[str, Path]) -> None:
    model = load_model(str(tiny_model_dirs[family]))
    tokenizer = tokenizer_of(model)
    bare = ["river", "song", "engine"]
    assert all(len(tokenizer(f" {w}", add_special_tokens=False)["input_ids"]) == 1 for w in bare)
    x = torch.stack([read_words(model, tokenizer, 0, bare, template) for template in range(3)])
    for j, (before, after) in enumerate(TEMPLATES[:3]):
        for i, word in enumerate(bare):
            ids = [tokenizer.bos_token_id]
            for part in (before, f" {word}"):
                ids += tokenizer(part, add_special_tokens=False)["input_ids"]
            at = len(ids) - 1
            ids += tokenizer(after, add_special_tokens=False)["input_ids"][:2]
            plain = activations(model, torch.tensor([ids]), "blocks.0.hook_resid_post")[0]
            torch.testing.assert_close(x[j, i, 0], plain[at], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(x[j, i, 1], plain[-1], atol=1e-5, rtol=1e-5)
    tokens = torch.randint(3, 384, (5, 8), generator=torch.Generator().manual_seed(0))
    contexts = Contexts(model, 0, tokens)
    moved = torch.stack([contexts.x, contexts.x + 0.5])
    for copies in (moved, moved[:1]):
        final = contexts.final(copies)
        found = contexts.mean_logit(final, torch.tensor([4, 9]))
        for copy, value in zip(copies, found, strict=True):

            def put(x: torch.Tensor, hook: Any, copy: torch.Tensor = copy) -> torch.Tensor:
                return torch.cat([x[:, :-1], copy[:, None]], 1)

            logits = model.run_with_hooks(
                tokens, prepend_bos=False, fwd_hooks=[("blocks.0.hook_resid_post", put)]
            )
            plain = logits[:, -1][:, [4, 9]].mean()
            torch.testing.assert_close(value, plain, atol=1e-5, rtol=1e-5)


def test_end_to_end_on_a_tiny_run(
    tiny_model_dirs: dict[str, Path],
    tiny_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Words that the tiny tokenizer, which was trained on a few sentences, holds as one token each.
    few = [Pair("gender", "river", "song"), Pair("motion", "bread", "winter")]
    few += [Pair("exchange", "engine", "shadow"), Pair("society", "teacher", "letters")]
    monkeypatch.setattr("recipes.abstopk.figure1_parts.antonyms", lambda tokenizer, n: few[:n])
    kinds = ["abstopk", "topk"]
    saes = tiny_saes(tiny_model_dirs["llama"], tiny_text, kinds=kinds, seeds=[0], repeated=kinds)
    run, output = tmp_path / "sweep", tmp_path / "run"
    steering_saes.train(build(steering_saes.SAEPlan, saes, "saes"), run)
    scale = {
        "saes": {"AbsTopK": "abstopk_seed0", "TopK": "topk_seed0"},
        "pairs": 4,
        "templates": 6,
        "text_sequences": 12,
        "dial_latents": 3,
        "draws": 19,
        "dial_values": [-1, -0.5, 0, 0.5, 1],
        "dial_contexts": 4,
        "context_length": 6,
        "readout_tokens": 2,
        "naming_latents": 5,
    }
    config = write_config(tmp_path, tiny=scale)
    arguments = ["--scale", "tiny", "--config", str(config), "--output", str(output)]
    figure1.main([*arguments, "--run", str(run)])
    opposition = read_json(output / "results/opposition.json")
    assert [len(opposition["saes"]["AbsTopK"][g]) for g in ("antonyms", "controls")] == [4, 4]
    assert all(row["flip"] == 0 for row in opposition["saes"]["TopK"]["antonyms"])
    dial = read_json(output / "results/dial.json")
    assert len(dial["AbsTopK"]["latents"]) <= 3
    assert set(dial["TopK"]["measures"]) == {"latents", *NULLS}
    assert (output / "report/figure1.png").read_bytes()[:4] == b"\x89PNG"
    text = (output / "results/figure1.md").read_text()
    assert "The best pair" in text
    assert {one["verdict"] for one in read_json(output / "results/claims.json")} <= {
        *("holds", "does not hold", "undecided")
    }
    kept = list(output.glob("cells/*/result.json"))
    before = {path: path.read_bytes() for path in kept}
    chunks = {path: path.stat().st_mtime_ns for path in output.glob("cells/**/*.safetensors")}
    for path in kept:  # as a stop after the passes leaves it: what was read is not read again
        path.unlink()
    figure1.main([*arguments, "--run", str(run)])
    assert {path: path.read_bytes() for path in kept} == before
    assert len(kept) == 4
    assert {path: path.stat().st_mtime_ns for path in chunks} == chunks
    with pytest.raises(ConfigError, match="is not a finished run"):
        figure1.main([*arguments, "--run", str(tmp_path)])
