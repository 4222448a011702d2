"""What is missing is told before anything runs; what can run, runs; nothing becomes a zero."""

from pathlib import Path

import pytest

from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.saebench import assets, bench
from sae_lens_bipolar.saebench.suites.registry import SUITES
from sae_lens_bipolar.saebench.suites.unlearning import FORGET_FILE
from tests.hub.fake.clients import clients_at
from tests.hub.fake.server import HubServer
from tests.saebench.bench_models import bench_sae, save_bench_model, save_bench_sae, tiny_config
from tests.saebench.suite_data import write_forget_corpus
from tests.tiny_models import write_text


@pytest.fixture(scope="module")
def sae_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("assets")
    return save_bench_sae(root / "topk", bench_sae("topk", save_bench_model(root / "gpt2", "gpt2")))


def test_on_an_empty_hub_only_what_needs_none_runs(
    sae_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = write_text(tmp_path / "text.jsonl")
    config = tiny_config(core_dataset=str(text))
    with HubServer() as empty, clients_at(empty, tmp_path / "caches"):
        outcome = bench([sae_path], tmp_path / "out", config)
    assert {row["suite"] for row in outcome.rows} == {"absorption", "core"}
    assert {one.suite for one in outcome.not_run} == {*SUITES} - {"absorption", "core"}
    assert {one.protocol for one in outcome.not_run} == {"signed", "split"}
    assert all("does not exist on the Hugging Face Hub" in one.reason for one in outcome.not_run)
    table = capsys.readouterr().out
    for name in (
        "LabHC/bias_in_bios",
        "adamkarvonen/ravel_prompts",
        "cais/wmdp",
        "fancyzhx/ag_news",
    ):
        assert f"data set {name} |" in table
    assert (tmp_path / "out" / "results" / "not_run.json").is_file()


def test_the_gated_corpus_says_where_to_ask(suite_hub: HubServer, tmp_path: Path) -> None:
    with clients_at(suite_hub, tmp_path, token=None):
        found = assets.check_assets(tiny_config(suites=("unlearning",)), [])
    problems = {asset.name: asset.problem for asset in found}
    gated = problems.pop("cais/wmdp-bio-forget-corpus")
    assert gated is not None
    assert "huggingface.co/datasets/cais/wmdp-bio-forget-corpus" in gated
    assert "--forget-corpus" in gated
    assert set(problems.values()) == {None}


def test_a_forget_corpus_of_ones_own_replaces_the_gated_one(
    suite_hub: HubServer, tmp_path: Path
) -> None:
    corpus = write_forget_corpus(tmp_path / "bio.jsonl")
    config = tiny_config(suites=("unlearning",), forget_corpus=str(corpus))
    names = [asset.name for asset in assets.check_assets(config, [])]
    assert str(corpus) in names
    assert "cais/wmdp-bio-forget-corpus" not in names


def test_the_corpus_where_saebench_looks_for_it_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    FORGET_FILE.parent.mkdir(parents=True)
    write_forget_corpus(FORGET_FILE)
    found = assets.resolve_paths(tiny_config()).forget_corpus
    assert found == str(tmp_path / FORGET_FILE)


def test_code_from_a_data_repository_runs_only_if_allowed(suite_hub: HubServer) -> None:
    def problem(trust: bool) -> str | None:
        config = tiny_config(suites=("sparse_probing",), trust_remote_code=trust)
        return assets.missing_for("sparse_probing", assets.check_assets(config, []))

    assert problem(True) is None
    assert "--trust-remote-code" in (problem(False) or "")


def test_an_sae_at_another_hook_is_refused_by_suites_that_read_the_layer(tmp_path: Path) -> None:
    sae = bench_sae("topk", save_bench_model(tmp_path / "gpt2", "gpt2"))
    sae.cfg.metadata.hook_name = "blocks.0.hook_mlp_out"
    path = save_bench_sae(tmp_path / "mlp", sae)
    outcome = bench([path], tmp_path / "out", tiny_config(suites=("absorption",)))
    assert outcome.rows == []
    assert {one.reason for one in outcome.not_run} == {
        "absorption reads blocks.N.hook_resid_post, and this SAE reads blocks.0.hook_mlp_out"
    }


def test_a_path_that_does_not_exist_is_refused_first(sae_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="forget_corpus"):
        bench([sae_path], tmp_path / "out", tiny_config(forget_corpus="no/such/file.jsonl"))
    assert not (tmp_path / "out").exists()


def test_a_model_that_knows_no_letters_is_reported_not_scored(
    sae_path: Path, tmp_path: Path
) -> None:
    config = tiny_config(suites=("absorption",), absorption_min_f1=0.999, absorption_min_letters=26)
    outcome = bench([sae_path], tmp_path / "out", config)
    assert outcome.rows == []
    assert "26 are needed" in outcome.not_run[0].reason
