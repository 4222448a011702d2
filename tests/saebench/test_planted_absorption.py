"""Absorption where letters, or what absorbs them, are carried on the negative side of latents.

sae_bench 0.6.0 (evals/absorption/): k-sparse probes keep the latents of largest weight, not of
largest magnitude (k_sparse_probing.py:160), so a letter on the negative side is never found; a
main latent below 1e-8 counts as silent (feature_absorption_calculator.py:104), and what absorbs
needs a positive cosine with the probe (:107-109, :181).

Two kinds of letters, each with 24 words of one token, six of which have a latent of their own. `u`
is a letter's direction, `v` a word's; in units of SCALE:

- plain words: x = u, and the letter's latent (decoder u) fires at 1.
- own words of shared letters (a to f): x = u + 1.25 d, d = 0.96 u + 0.28 v. The letter's latent
  fires at 1 and the word's (decoder d) at 1.25. Never absorbed in full: of the projection on the
  probe, 2.2, the letter's latent has 1 and the word's 1.2 (0.545).
- own words of absorbing letters (g to z): x = u + v / 4, and only the word's latent fires (decoder
  along x): absorbed in full.

SCALE is small, so that an L1-penalised probe finds a letter's latent (many words) worth its
weight, and a word's (one word) not.

In the flipped SAE the latents of shared letters and the absorbers fire negatively.
"""

import csv
from typing import Any

import pytest
import torch

from sae_lens_bipolar.files.atomic import read_json
from sae_lens_bipolar.saebench import BenchConfig, bench
from tests.saebench.planted_model import flipped, planted_model, planted_sae, save_planted

pytestmark = pytest.mark.slow  # four runs of about eight seconds
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHARED = LETTERS[:6]
SCALE = 0.125
PROMPT = ("has", "the", "first", "letter", *LETTERS.upper())  # candidates too: x = u


def words_of(letter: str) -> list[str]:
    ends = [a + b + c for a in "ao" for b in "bdkl" for c in "enu"]
    return [letter + end for end in ends]


def is_own(word: str) -> bool:
    return word not in PROMPT and words_of(word[0]).index(word) % 4 == 1


def is_absorbed(word: str) -> bool:
    return is_own(word) and word[0] not in SHARED


def is_shared(word: str) -> bool:
    return is_own(word) and word[0] in SHARED


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """(sae, protocol) -> letter -> SAEBench's details; ("", "words") -> letter -> test words."""
    folder = tmp_path_factory.mktemp("absorption")
    own = [word for x in LETTERS for word in words_of(x) if is_own(word)]
    basis = torch.eye(26 + len(own))
    letter = dict(zip(LETTERS, basis[:26], strict=True))
    embeddings = {word: letter[word[0].lower()] for word in PROMPT}
    embeddings |= {word: letter[x] for x in LETTERS for word in words_of(x)}
    encoder, decoder = basis.clone(), basis.clone()  # a latent per row
    for i, word in enumerate(own, start=26):
        u, v, j = letter[word[0]], basis[i], LETTERS.index(word[0])
        if is_shared(word):
            decoder[i] = 0.96 * u + 0.28 * v
            embeddings[word] = u + 1.25 * decoder[i]
            encoder[i] = v / 0.28
            encoder[j] -= 0.96 / 0.28 * v  # the letter's latent reads 1, not 2.2
        else:
            length = 1.0625**0.5
            decoder[i] = (u + v / 4) / length
            embeddings[word] = u + v / 4
            encoder[i] = 4 * length * v
            encoder[j] -= 4 * v  # and 0 here
    embeddings = {word: SCALE * vector for word, vector in embeddings.items()}
    model, tokenizer = planted_model(embeddings)
    model_dir = save_planted(folder / "model", model, tokenizer)
    sae = planted_sae(model_dir, encoder.T, decoder, k=2)
    turned = [LETTERS.index(x) for x in SHARED]
    turned += [26 + j for j, word in enumerate(own) if is_absorbed(word)]
    for name, one in (("upright", sae), ("flipped", flipped(sae, turned))):
        one.save_model(folder / name)
    config = BenchConfig(suites=("absorption",), absorption_max_k=2, llm_batch_size=32)
    outcome = bench([folder / "upright", folder / "flipped"], folder / "bench", config)
    assert outcome.not_run == []
    details: dict[tuple[str, str], dict[str, Any]] = {}
    for name in ("upright", "flipped"):
        for protocol in ("signed", "split"):
            pattern = f"saebench/absorption/{protocol}/{name}/*_eval_results.json"
            (file,) = (folder / "bench").glob(pattern)
            rows_ = read_json(file)["eval_result_details"]
            details[name, protocol] = {row["first_letter"]: row for row in rows_}
    (tested,) = (folder / "bench").glob("**/test_df.csv")
    with tested.open() as lines:
        words = [row["token"] for row in csv.DictReader(lines)]
    details["", "words"] = {x: [w for w in words if w[0].lower() == x] for x in LETTERS}
    return details


RIGHT = [("upright", "signed"), ("upright", "split"), ("flipped", "split")]
Found = dict[tuple[str, str], dict[str, Any]]


@pytest.mark.parametrize("run", RIGHT)
def test_split_finds_what_is_absorbed_and_what_is_not(found: Found, run: tuple[str, str]) -> None:
    for x, words in found["", "words"].items():
        row = found[run][x]
        assert row["num_probe_true_positives"] == len(words), "the probe knows every test word"
        assert row["num_full_absorption"] == sum(is_absorbed(word) for word in words), x
        if x in SHARED:
            share = sum(is_shared(word) for word in words) / len(words)
            assert row["mean_absorption_fraction"] == pytest.approx(share * 1.2 / 2.2, rel=0.15)


def test_signed_finds_absorption_where_the_letter_fires_negatively(found: Found) -> None:
    false = 0
    for x in SHARED:
        words = found["", "words"][x]
        row = found["flipped", "signed"][x]
        assert row["num_full_absorption"] == sum(is_shared(word) for word in words)
        false += row["num_full_absorption"]
    assert false > 0


def test_signed_misses_what_absorbs_negatively(found: Found) -> None:
    absorbing = [x for x in LETTERS if x not in SHARED]
    assert sum(is_absorbed(word) for x in absorbing for word in found["", "words"][x]) > 10
    for x in absorbing:
        row = found["flipped", "signed"][x]
        assert row["num_full_absorption"] == row["mean_absorption_fraction"] == 0
