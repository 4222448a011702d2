"""What this package itself calculates in absorption, SCR, TPP and unlearning, piece by piece.

Whole suites are run elsewhere; there an answer given to the wrong question, a token of padding
ablated or a word of two tokens often moves a number by too little to be seen.
"""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sae_lens_bipolar.errors import BenchError
from sae_lens_bipolar.saebench import BenchConfig
from sae_lens_bipolar.saebench.host.ablated_means import SilentAtPadding, ablated_means
from sae_lens_bipolar.saebench.protocols import benchmarked
from sae_lens_bipolar.saebench.suites import ablation, absorption, unlearning
from sae_lens_bipolar.saebench.suites.ablation import latents_ablated
from tests.saebench.bench_models import bench_sae, bench_tokenizer, bench_words

pytest.importorskip("sae_bench")
from sae_bench.evals.absorption import vocab
from sae_bench.evals.scr_and_tpp import main
from sae_bench.evals.unlearning.utils import metrics

ARCHITECTURES = ("abstopk", "sign_aware_gated", "unrolled_abstopk", "topk", "jumprelu")
TEMPLATE = "{word} has the first letter:"  # absorption's

# --- SCR and TPP ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("d_sae", "doubled", "expected"),
    [
        (20, False, [2, 5, 20]),  # as many latents as there are may be ablated
        (19, False, [2, 5]),
        (40, True, [2, 4, 5, 10, 20, 40]),
        (39, True, [2, 4, 5, 10, 20]),
        (1, True, []),
    ],
)
def test_no_more_latents_are_ablated_than_there_are(
    d_sae: int, doubled: bool, expected: list[int]
) -> None:
    options = BenchConfig(ablation_n=(20, 2, 5))
    assert latents_ablated(options, d_sae, doubled) == expected


def test_latents_are_silent_where_every_input_is_zero_and_nowhere_else() -> None:
    sae = SimpleNamespace(
        encode=lambda x: torch.ones(*x.shape[:-1], 3) * torch.tensor([1.0, -2.0, 0.5]),
        decode=lambda z: z.sum(dim=-1, keepdim=True),
    )
    x = torch.zeros(2, 3, 4)
    x[0, 0, 2] = -1.0  # one coordinate, and negative: a token all the same
    x[1, 1] = torch.tensor([1.0, -1.0, 0.0, 0.0])  # that they add up to 0 does not matter
    found = SilentAtPadding(sae).encode(x)
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(found, rows[..., None] * torch.tensor([1.0, -2.0, 0.5]))
    torch.testing.assert_close(SilentAtPadding(sae).decode(found), found.sum(-1, keepdim=True))


@pytest.mark.parametrize("masked", [True, False])
@torch.no_grad()
def test_ablation_leaves_padding_alone_only_if_it_is_masked(masked: bool, tmp_path: Path) -> None:
    """The mean over a text's tokens changes by what is ablated at its tokens, or at padding too."""
    sae = bench_sae("topk", tmp_path)
    acts = torch.zeros(2, 4, sae.cfg.d_in)
    generator = torch.Generator().manual_seed(0)
    acts[0, :2] = torch.randn(2, sae.cfg.d_in, generator=generator)
    acts[1, :3] = torch.randn(3, sae.cfg.d_in, generator=generator)
    to_ablate = sae.encode(torch.zeros(sae.cfg.d_in)) != 0
    assert to_ablate.any(), "at padding something fires"
    latents = sae.encode(acts)
    if masked:
        latents = latents * torch.tensor([[1.0, 1, 0, 0], [1, 1, 1, 0]])[..., None]
    removed = (latents * to_ablate) @ sae.W_dec
    expected = (acts - removed).sum(dim=1) / torch.tensor([[2.0], [3.0]])
    config = BenchConfig(ablation_mask_padding=masked)
    with ablation.worked_around(config):
        found = main.ablated_precomputed_activations(acts, sae, to_ablate, 1)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("protocol", ["signed", "split"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_means_after_ablation_are_saebenchs(
    architecture: str, protocol: str, masked: bool, tmp_path: Path
) -> None:
    """Of several masks on two sets of texts: sums are kept by texts, and not changed by a mask."""
    sae = benchmarked(bench_sae(architecture, tmp_path), protocol)
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randn(n, 6, sae.cfg.d_in, generator=generator) for n in (5, 3)]
    for acts in texts:
        acts[0, 4:] = 0.0
        acts[2, 1:] = 0.0
    encoded: list[int] = []
    counting = counted(sae, encoded)
    means = ablated_means(main.ablated_precomputed_activations, masked)  # type: ignore[arg-type]
    for mask in torch.rand(4, sae.cfg.d_sae, generator=generator) < 0.3:
        for acts in texts:
            plain = SilentAtPadding(sae) if masked else sae
            expected = main.ablated_precomputed_activations(acts, plain, mask, 2)  # type: ignore[arg-type]
            found = means(acts, counting, mask, 2)
            torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
            changed = (found - acts.sum(1) / (acts != 0).any(-1).sum(1, keepdim=True)).abs().max()
            assert changed > 1e-3, "something was ablated"
    assert len(encoded) == 3 + 2  # batches of two texts


@pytest.mark.parametrize("normalization", ["layer_norm", "constant_norm_rescale"])
def test_where_decoding_needs_the_inputs_norm_saebench_does_it(normalization: str) -> None:
    sae = SimpleNamespace(cfg=SimpleNamespace(normalize_activations=normalization))
    given = (torch.ones(2, 3, 4), sae, torch.ones(5, dtype=torch.bool), 7)
    assert ablated_means(lambda *called: called, False)(*given) == given  # type: ignore[arg-type]


def counted(sae: Any, calls: list[int]) -> Any:
    """The SAE, with the number of texts of every `encode` put into `calls`."""

    def encode(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return sae.encode(x)

    return SimpleNamespace(encode=encode, decode=sae.decode, cfg=sae.cfg)


def scr_accuracies(first: float, second: float) -> tuple[dict[str, Any], dict[str, float]]:
    """Accuracies after ablation, and clean ones, where the spurious probe starts as given."""
    eval_probe = "male_professor / female_nurse"
    one, two = "professor / nurse", "male / female"
    clean = {one: 0.9, two: 0.9}
    clean |= {f"{eval_probe} probe on {one} data": first}
    clean |= {f"{eval_probe} probe on {two} data": second}
    after = {
        two: {20: {f"{eval_probe} probe on {one} data": 0.8}, 2: clean},  # of direction 1
        one: {20: {f"{eval_probe} probe on {two} data": 0.75}, 2: clean},  # of direction 2
    }
    return after, clean


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (0.5, 0.7, 0.3 / 0.4),  # direction 1, which starts lower
        (0.7, 0.5, 0.25 / 0.4),  # direction 2
        (0.7, 0.7, 0.05 / 0.2),  # a tie, where SAEBench drops the metric: direction 2
    ],
)
def test_the_scr_metric_takes_the_lower_start_and_direction_2_of_a_tie(
    first: float, second: float, expected: float
) -> None:
    with ablation.worked_around(BenchConfig()):
        found = main.get_scr_plotting_dict(*scr_accuracies(first, second))
    assert found["scr_metric_threshold_20"] == pytest.approx(expected)
    assert found["scr_metric_threshold_2"] == pytest.approx(0)
    assert {name.rpartition("_threshold_")[0] for name in found} == {
        *("scr_dir1", "scr_dir2", "scr_metric")
    }


def test_each_stage_of_scr_and_tpp_starts_from_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (
        *("get_dataset_activations", "get_all_node_effects_for_one_sae"),
        "get_probe_test_accuracy",
    )
    for name in names:
        monkeypatch.setattr(main, name, lambda *_, **__: (torch.rand(()), np.random.rand()))
    with ablation.worked_around(BenchConfig(seed=3)):
        drawn = {str(getattr(main, name)()) for name in names for _ in range(2)}
    with ablation.worked_around(BenchConfig(seed=4)):
        other = str(main.get_dataset_activations())  # type: ignore[call-arg]
    assert len(drawn) == 1
    assert other not in drawn


# --- absorption ----------------------------------------------------------------------------------


def test_only_words_of_one_token_are_taken_and_found_where_they_stand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = bench_tokenizer()
    words = bench_words()
    long = ["a" + word for word in words[:20]] + ["xylophonist", " xylophonist"]
    monkeypatch.setattr(vocab, "get_alpha_tokens", lambda _: [*reversed(words), *long, *long])
    found, position = absorption.one_token_words(tokenizer, BenchConfig())
    assert found == sorted(words)
    for word in found:
        prompt = "\n" + TEMPLATE.format(word=word)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert str(tokenizer.decode([ids[position]])).strip() == word
    newline = len(tokenizer("\n", add_special_tokens=False)["input_ids"])
    for word in long:
        length = len(tokenizer(f"\n{word}", add_special_tokens=False)["input_ids"])
        assert length > newline + 1, "that of several tokens were among the candidates"


def test_tokens_that_a_tokenizer_adds_are_no_part_of_a_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inner, words = bench_tokenizer(), sorted(bench_words())

    def with_bos(texts: list[str], add_special_tokens: bool = True, **options: Any) -> Any:
        ids = inner(texts, add_special_tokens=False, **options)["input_ids"]
        return {"input_ids": [[0] * (3 * add_special_tokens) + row for row in ids]}

    monkeypatch.setattr(vocab, "get_alpha_tokens", lambda _: words)
    expected = absorption.one_token_words(inner, BenchConfig())
    assert absorption.one_token_words(with_bos, BenchConfig()) == expected
    assert expected[0] == words


def test_the_template_is_saebenchs_own() -> None:
    from sae_bench.evals.absorption.eval_config import AbsorptionEvalConfig

    assert AbsorptionEvalConfig().prompt_template == TEMPLATE


def test_too_few_words_of_one_token_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, words = bench_tokenizer(), sorted(bench_words())
    monkeypatch.setattr(vocab, "get_alpha_tokens", lambda _: words[:260])
    assert len(absorption.one_token_words(tokenizer, BenchConfig())[0]) == 260
    monkeypatch.setattr(vocab, "get_alpha_tokens", lambda _: [*words[:259], "xylophonist"])
    with pytest.raises(BenchError, match=r"at least 260 words of one token.* has 259"):
        absorption.one_token_words(tokenizer, BenchConfig())


def test_a_limit_of_words_is_balanced_by_letter_and_drawn_by_the_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = bench_tokenizer()
    words = [word for word in bench_words() if word[0] not in "qz"]  # 24 letters, 16 words each
    words += [word for word in bench_words() if word[0] == "q"][:1]
    monkeypatch.setattr(vocab, "get_alpha_tokens", lambda _: words)

    def chosen(limit: int | None, seed: int = 1) -> list[str]:
        options = BenchConfig(absorption_words=limit, seed=seed)
        return absorption.one_token_words(tokenizer, options)[0]

    found = chosen(100)
    assert len(found) == 100
    assert found == sorted(found) == chosen(100)
    assert set(found) <= set(words)
    assert set(chosen(100, seed=2)) != set(found)
    counts = Counter(word[0] for word in found)
    assert counts.pop("q") == 1, "all there are"
    assert set(counts.values()) == {4, 5}
    assert len(counts) == 24
    assert chosen(None) == chosen(len(words)) == chosen(10_000) == sorted(words)
    assert len(chosen(len(words) - 1)) == len(words) - 1


# --- unlearning ----------------------------------------------------------------------------------


class Asker:
    """A language model of `len(prompt)` tokens whose answer to a prompt is its last letter."""

    def __init__(self) -> None:
        self.cfg = SimpleNamespace(model_name="tiny")
        self.batches: list[list[str]] = []
        self.names: list[str] = []

    def to_tokens(self, text: str, prepend_bos: bool) -> torch.Tensor:
        assert prepend_bos is False, "the prompt brings its own"
        return torch.zeros(1, len(text))

    def ask(
        self, llm: Any, prompts: list[str], batch_size: int, n_batches: int, verbose: bool
    ) -> torch.Tensor:
        """As SAEBench: batch by batch, and no more than `n_batches` of them."""
        assert llm is self
        self.names.append(self.cfg.model_name)
        rows = []
        for i in range(n_batches):
            batch = prompts[i * batch_size : (i + 1) * batch_size]
            assert len({len(prompt) for prompt in batch}) == 1, "questions of one length"
            self.batches.append(batch)
            rows += [torch.eye(4)["ABCD".index(prompt[-1])] for prompt in batch]
        return torch.stack(rows)


class Words:
    """A tokenizer in which " A" is one token, or two, and so is " D"."""

    bos_token = "<s>"

    def __init__(self, spaced: int, spaced_d: int | None = None):
        self.spaced = {"D": spaced_d or spaced}, spaced

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        special, others = self.spaced
        return [0] * (special.get(text[1:], others) if text.startswith(" ") else 1)


def unlearning_job(asker: Any, spaced: int = 1, **options: Any) -> Any:
    sizes = SimpleNamespace(llm_batch_size_at=lambda length: {1024: 2}.get(length, 1))
    config = BenchConfig(**options)
    model = SimpleNamespace(hooked=asker, tokenizer=Words(spaced), alias="tiny")
    return SimpleNamespace(model=model, config=config, sizes=sizes)


def test_each_question_gets_its_own_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    asker = Asker()
    monkeypatch.setattr(metrics, "get_output_probs_abcd", asker.ask)
    prompts = ["12A", "1234B", "12C", "1234A", "12D", "1B", "12B", "1234D", "12A", "12D"]
    with unlearning._host(unlearning_job(asker)):
        found = metrics.get_output_probs_abcd(asker, prompts, batch_size=2, n_batches=5)
    assert ["ABCD"[i] for i in found.argmax(dim=1)] == [prompt[-1] for prompt in prompts]
    assert found.shape == (10, 4)
    assert sorted(prompt for batch in asker.batches for prompt in batch) == sorted(prompts)
    assert max(map(len, asker.batches)) == 2, "no larger than the batch"
    assert len(asker.batches) == 3 + 2 + 1, "and no more of them than needed"
    assert asker.cfg.model_name == "tiny"
    assert set(asker.names) == {"gemma-2-2b-it"}, "whose answers are read as A or ' A'"


def test_bare_letters_are_read_where_a_space_is_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    asker = Asker()
    monkeypatch.setattr(metrics, "get_output_probs_abcd", asker.ask)
    with unlearning._host(unlearning_job(asker, spaced=2)):
        batch: Any = np.int64(1)  # as SAEBench gives it
        metrics.get_output_probs_abcd(asker, ["1A", "2B"], batch_size=batch, n_batches=2)
    assert set(asker.names) == {"Mistral-7B-v0.1"}
    assert metrics.get_output_probs_abcd == asker.ask


def test_one_letter_of_two_tokens_is_enough_for_bare_letters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asker = Asker()
    monkeypatch.setattr(metrics, "get_output_probs_abcd", asker.ask)
    job = unlearning_job(asker)
    job.model.tokenizer = Words(1, spaced_d=2)
    with unlearning._host(job):
        metrics.get_output_probs_abcd(asker, ["1A"], batch_size=1, n_batches=1)
    assert set(asker.names) == {"Mistral-7B-v0.1"}


def test_prompts_are_plain_and_begin_with_one_bos(monkeypatch: pytest.MonkeyPatch) -> None:
    asker = Asker()
    args = ("Why?", ["w", "x", "y", "z"])
    plain = metrics.convert_wmdp_data_to_prompt(*args, prompt_format=None)
    with unlearning._host(unlearning_job(asker)):
        found = metrics.convert_wmdp_data_to_prompt(*args, prompt_format="GEMMA_INST_FORMAT")
    assert found == "<s>" + plain


RIGHT = {
    "wmdp-bio": [0, 1, 1, 0, 1],
    "human_aging": [1, 0, 0],
    "high_school_geography": [0, 0],
}
SUBJECTS = ("high_school_geography", "human_aging")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Stands for SAEBench's questions: which are answered right is told by `RIGHT`."""
    calls: list[tuple[Any, ...]] = []

    def calculate(model: Any, batch: int, folder: str, name: str) -> dict[str, Any]:
        calls.append((batch, name))
        return {"is_correct": np.array(RIGHT[name], dtype=np.float32)}

    monkeypatch.setattr(metrics, "calculate_MCQ_metrics", calculate)
    monkeypatch.setattr(metrics, "save_target_question_ids", lambda *args: calls.append(args[1:]))
    return calls


def known(folder: Path, **options: Any) -> list[str]:
    chosen = {"unlearning_known": "given_order", "unlearning_datasets": SUBJECTS, **options}
    return unlearning._known_datasets(unlearning_job(Asker(), **chosen), folder)


def test_questions_answered_right_are_known_and_no_others(tmp_path: Path, asked: list[Any]) -> None:
    assert known(tmp_path) == ["wmdp-bio", "human_aging"]
    for kind in ("correct", "correct-iff-question", "correct-no-tricks"):
        for part in ("train", "test", "all"):
            folder = tmp_path / "data/question_ids" / part
            bio = np.loadtxt(folder / f"wmdp-bio_{kind}.csv", dtype=int)
            assert bio.tolist() == [1, 2, 4]
            aging = np.loadtxt(folder / f"mmlu-human-aging_{kind}.csv", dtype=int, ndmin=1)
            assert aging.tolist() == [0]
            assert (folder / f"mmlu-high-school-geography_{kind}.csv").read_text() == ""
    # Twice the batch of a long text: questions are short. SAEBench asks what is not there yet.
    names = ("wmdp-bio", *SUBJECTS)
    assert [call for call in asked if len(call) == 2] == [(4, name) for name in names]
    assert [call for call in asked if len(call) == 3] == [(4, str(tmp_path), x) for x in names]


def test_what_was_found_before_is_not_asked_again(tmp_path: Path, asked: list[Any]) -> None:
    known(tmp_path)
    del asked[:]
    assert known(tmp_path) == ["wmdp-bio", "human_aging"]
    assert [call for call in asked if len(call) == 2] == []


def test_all_orders_are_saebenchs_own_way(tmp_path: Path, asked: list[Any]) -> None:
    folder = tmp_path / "data/question_ids/all"
    folder.mkdir(parents=True)
    (folder / "wmdp-bio_correct.csv").write_text("3\n")
    (folder / "mmlu-human-aging_correct.csv").write_text("0\n7\n")
    (folder / "mmlu-high-school-geography_correct.csv").write_text("\n")
    assert known(tmp_path, unlearning_known="all_orders") == ["wmdp-bio", "human_aging"]
    assert [call for call in asked if len(call) == 2] == []


def test_a_model_that_knows_nothing_is_not_scored(
    tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BenchError, match="no question of high_school_geography right"):
        known(tmp_path / "a", unlearning_datasets=SUBJECTS[:1])
    monkeypatch.setitem(RIGHT, "wmdp-bio", [0, 0])
    with pytest.raises(BenchError, match="tiny answers no wmdp-bio question right"):
        known(tmp_path / "b")
