"""Publishing with the real client to the tests' Hub: what arrives, who loads it, faults."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load, load_file, save_file

from sae_lens_bipolar.errors import BipolarError, CheckpointError, ConfigError, HubError, LockError
from sae_lens_bipolar.hub.publishing import PublishConfig, Published, publish
from tests.files.test_locks import hold_in_child
from tests.hub.fake.clients import client_environment, clients_at
from tests.hub.fake.server import HubServer
from tests.hub.published_run import D_IN, NAMES, SIGNED, write_run

TOKEN = "hf_" + "AdaLovelace1815" * 2
REPO = "ada/signed"
CONFIG = PublishConfig(REPO, license="mit")
SPLITS = [f"{name}-split" for name in SIGNED if name != "unrolled_abstopk"]
STOCK = [name for name in NAMES if name in ("abstopk", "gated", "topk")]
NATIVE = [name for name in NAMES if name not in STOCK]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("publish") / "run")


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two SAEs, for the tests of faults."""
    return write_run(tmp_path_factory.mktemp("publish") / "small", ("sign_aware_gated", "topk"))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        server.add_user("ada", TOKEN)
        with clients_at(server, home=tmp_path / "home", token=TOKEN, timeout_seconds=1):
            yield server


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were slept, by the client's own retries and ours; nobody waits."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


@pytest.fixture(scope="module")
def published(
    run_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[HubServer, Published, Path]]:
    """The whole run on a Hub, and the home of a client that never saw it."""
    home = tmp_path_factory.mktemp("home")
    with HubServer() as server:
        server.add_user("ada", TOKEN)
        with clients_at(server, home=home / "publisher", token=TOKEN):
            done = publish(run_dir, CONFIG)
        yield server, done, home / "reader"


def test_one_commit_holds_card_and_files_of_every_sae(published, run_dir: Path) -> None:
    server, done, _ = published
    repo = server.repository(REPO)
    assert [commit.title for commit in repo.history()][1:] == ["initial commit"]
    assert repo.at().oid == done.commit
    assert set(done.ids) == {*NAMES, *SPLITS}
    files = repo.at().files
    for name in NAMES:
        for file in ("cfg.json", "sae_weights.safetensors", "sparsity.safetensors"):
            assert f"{name}/{file}" in files
        weights = run_dir / "checkpoints" / name / "sae_weights.safetensors"
        assert files[f"{name}/sae_weights.safetensors"].data == weights.read_bytes()
        runner = json.loads(files[f"{name}/runner_cfg.json"].data)
        assert list(runner["saes"]) == [name]
        assert runner["output_path"] == ".../checkpoints"
    for name in ("README.md", "config.yaml", "environment.json", "metrics.jsonl"):
        assert name in files
    assert "results/summary.json" in files
    assert not [name for name in files if "latents" in name]  # excerpts of the corpus
    text = b"".join(blob.data for blob in files.values() if not blob.large).decode()
    assert "/home/ada" not in text
    assert not (run_dir / "publish").exists()


# What a stranger runs: SAELens and nothing of this package.
STRANGER = """
import json, sys, torch
from safetensors.torch import save_file
from sae_lens import SAE
repo, out, ids, missing = sys.argv[1], sys.argv[2], sys.argv[3].split(","), sys.argv[4].split(",")
torch.manual_seed(1)
x = torch.randn(32, int(sys.argv[5]))
found = {}
for id in ids:
    sae = SAE.from_pretrained(repo, id)
    found[id + "/z"], found[id + "/x"] = sae.encode(x), sae(x)
save_file({name: tensor.detach().contiguous() for name, tensor in found.items()}, out)
errors = {}
for id in missing:
    try:
        SAE.from_pretrained(repo, id)
    except Exception as error:
        errors[id] = f"{type(error).__name__}: {error}"
print(json.dumps(errors))
assert not [name for name in sys.modules if name.startswith("sae_lens_bipolar")]
"""


def test_stock_saelens_loads_the_stock_forms_and_is_told_what_the_others_need(
    published, run_dir: Path, tmp_path: Path
) -> None:
    server, _, home = published
    plain = [*STOCK, *SPLITS]
    arguments = [REPO, str(tmp_path / "z"), ",".join(plain), ",".join(NATIVE), str(D_IN)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STRANGER, *arguments],
        env=client_environment(server, home),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = load_file(tmp_path / "z")
    torch.manual_seed(1)
    x = torch.randn(32, D_IN)
    for id in plain:
        original = SAE.load_from_disk(run_dir / "checkpoints" / id.removesuffix("-split"))
        z = found[f"{id}/z"]
        if id.endswith("-split"):
            positive, negative = z.chunk(2, dim=-1)
            assert (z >= 0).all()
            z = positive - negative
        torch.testing.assert_close(z, original.encode(x).detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[f"{id}/x"], original(x).detach(), rtol=1e-5, atol=1e-5)
    errors = json.loads(done.stdout.splitlines()[-1])
    assert errors == {name: f"KeyError: 'sae_lens_bipolar.{name}'" for name in NATIVE}


def test_with_this_package_every_native_form_loads_and_is_equal(published, run_dir: Path) -> None:
    server, _, home = published
    torch.manual_seed(1)
    x = torch.randn(32, D_IN)
    with clients_at(server, home=home):
        for name in NAMES:
            original = SAE.load_from_disk(run_dir / "checkpoints" / name)
            sae = SAE.from_pretrained(REPO, name)
            assert type(sae) is type(original)
            assert sae.cfg.architecture() == name
            assert torch.equal(sae.encode(x), original.encode(x))
            assert torch.equal(sae(x), original(x))


def test_the_cards_own_code_loads(published) -> None:
    server, _, home = published
    card = server.repository(REPO).at().files["README.md"].data.decode()
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    loading = [block for block in blocks if "from_pretrained" in block]
    assert len(loading) == 2
    with clients_at(server, home=home):
        for block in loading:
            scope: dict[str, object] = {}
            exec(block, scope)
            assert isinstance(scope["sae"], SAE)


def test_publishing_again_uploads_and_commits_nothing(published, run_dir: Path) -> None:
    server, done, home = published
    before = len(server.requests)
    with clients_at(server, home=home, token=TOKEN):
        again = publish(run_dir, CONFIG)
    assert again.commit == done.commit
    assert len(server.repository(REPO).history()) == 2
    assert not [call for call in server.requests[before:] if call.method == "PUT"]


def test_a_checkpoint_of_a_run_takes_its_figures_along_and_a_branch_starts_empty(
    hub: HubServer, small_run: Path
) -> None:
    publish(small_run, CONFIG)
    config = PublishConfig(
        REPO, license="mit", id="layer12/gated", revision="v2", with_split=False, message="Second"
    )
    done = publish(small_run / "checkpoints/sign_aware_gated", config)
    assert done.ids == ("layer12/gated",)
    files = hub.repository(REPO).at("v2").files
    assert "layer12/gated/cfg.json" in files
    assert "layer12/environment.json" in files
    assert not [name for name in files if name.startswith("topk") or "split" in name]
    card = files["README.md"].data.decode()
    assert "| layer12/gated | sign_aware_gated | 24 |" in card
    assert "153,600" in card
    assert 'snapshot_download("ada/signed", revision="v2")' in card
    assert hub.repository(REPO).history("v2")[0].title == "Second"


def test_what_a_dry_run_of_a_checkpoint_wrote_is_no_sae_of_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ("abstopk", "topk"))
    publish(run / "checkpoints/abstopk", CONFIG, dry_run=True)
    assert publish(run, CONFIG, dry_run=True).ids == ("abstopk", "abstopk-split", "topk")


def test_a_run_with_a_prefix(hub: HubServer, small_run: Path) -> None:
    done = publish(small_run, PublishConfig(REPO, license="mit", id="layer12", private=True))
    assert done.ids == (
        "layer12/sign_aware_gated",
        "layer12/sign_aware_gated-split",
        "layer12/topk",
    )
    assert hub.repository(REPO).private
    with pytest.raises(HubError, match=r"already holds layer12/sign_aware_gated, "):
        publish(small_run, CONFIG)


def test_a_later_publish_replaces_stale_files_of_the_same_saes(
    hub: HubServer, small_run: Path
) -> None:
    publish(small_run, CONFIG)
    publish(small_run, PublishConfig(REPO, license="mit", with_split=False))
    files = hub.repository(REPO).at().files
    assert not [name for name in files if "-split/" in name]
    assert "sign_aware_gated-split" not in files["README.md"].data.decode()


def test_private_is_never_quietly_public(hub: HubServer, small_run: Path) -> None:
    hub.add_repository(REPO, {})
    with pytest.raises(HubError, match=r"private=True.*is public"):
        publish(small_run, PublishConfig(REPO, license="mit", private=True))
    assert len(hub.repository(REPO).history()) == 1


# kind, which requests, further fields, what the message must name
LASTING = [
    ("status", "POST /api/repos/create", {"status": 401}, "hf auth login"),
    ("status", "POST /api/repos/create", {"status": 403}, "write access"),
    ("status", "POST .*/commit/", {"status": 404}, "does not exist"),
    ("status", "POST .*/commit/", {"status": 412}, "somebody else committed"),
    ("status", "POST .*/commit/", {"status": 429}, "limits your rate"),
    ("status", "POST .*/preupload/", {"status": 500}, "status.huggingface.co"),
    ("status", "GET .*/resolve/", {"status": 503}, "status.huggingface.co"),
    ("status", "PUT /large", {"status": 403, "storage": True}, "write access"),
    ("hangup", "POST .*/commit/", {}, "cannot be reached"),
    ("reset", "PUT /large", {"storage": True}, "cannot be reached"),
    ("timeout", "POST /api/repos/create", {"seconds": 2}, "cannot be reached"),
    ("flip", "GET .*sae_weights", {"storage": True}, "differ from what was uploaded"),
]


@pytest.mark.parametrize(("kind", "pattern", "more", "words"), LASTING)
def test_a_lasting_fault_says_what_to_do_and_a_second_try_completes(
    hub: HubServer,
    small_run: Path,
    no_waiting: list[float],
    capsys: pytest.CaptureFixture[str],
    kind,
    pattern: str,
    more,
    words: str,
) -> None:
    hub.inject(kind, pattern, times=None, **more)
    with pytest.raises(HubError) as caught:
        publish(small_run, CONFIG)
    assert words in str(caught.value)
    printed = capsys.readouterr()
    assert TOKEN not in f"{caught.value!r} {printed.out} {printed.err}"
    assert caught.value.__cause__ is None
    repositories = hub.repositories.values()
    if "GET" not in pattern:  # nothing is promised before everything is there
        assert all("README.md" not in repo.at().files for repo in repositories)
    hub.faults.clear()
    kept = set(hub.storage)
    before = len(hub.requests)
    publish(small_run, CONFIG)
    again = {re.split(r"[/?]", c.target)[2] for c in hub.requests[before:] if c.method == "PUT"}
    assert not again & kept
    assert len(hub.repository(REPO).history()) == 2


@pytest.mark.parametrize(
    ("kind", "pattern", "more"),
    [
        ("status", "POST /api/repos/create", {"status": 429, "retry_after": 7}),
        ("status", "POST .*/commit/", {"status": 503}),
        ("hangup", "POST .*/commit/", {}),
        ("lost", "POST .*/commit/", {}),  # it was made, and only the answer is lost
        ("reset", "GET .*/resolve/", {}),
        ("truncate", "GET /large", {"storage": True}),
    ],
)
def test_a_passing_fault_is_tried_again(
    hub: HubServer, small_run: Path, no_waiting: list[float], kind, pattern: str, more
) -> None:
    fault = hub.inject(kind, pattern, times=2 if kind == "status" else 1, **more)
    publish(small_run, CONFIG)
    assert fault.shown
    assert len(hub.repository(REPO).history()) == 2
    if more.get("retry_after"):
        assert no_waiting.count(7) == 2


def test_no_login_offline_and_a_bad_card_are_said_before_anything_is_sent(
    hub: HubServer, small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.licences = frozenset({"apache-2.0"})
    with pytest.raises(HubError, match='"license" must be one of'):
        publish(small_run, CONFIG)
    assert not hub.storage
    monkeypatch.setattr("sae_lens_bipolar.hub.publishing.get_token", lambda: None)
    with pytest.raises(HubError, match="hf auth login"):
        publish(small_run, CONFIG)


def test_what_cannot_be_published_is_refused_before_the_hub_is_asked(
    hub: HubServer, small_run: Path, tmp_path: Path
) -> None:
    def refused(change, words: str, error: type[BipolarError] = CheckpointError) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(small_run, copy)
        change(copy)
        with pytest.raises(error, match=words):
            publish(copy, CONFIG)
        assert not hub.requests
        shutil.rmtree(copy)

    weights = Path("checkpoints/topk/sae_weights.safetensors")

    def with_nan(run: Path) -> None:
        tensors = load((run / weights).read_bytes())  # not mapped: the file is written below
        tensors["W_dec"][3, 2] = torch.nan
        save_file(tensors, run / weights)

    def with_pickle(run: Path) -> None:
        torch.save(load((run / weights).read_bytes()), run / weights)

    def truncated(run: Path) -> None:
        (run / weights).write_bytes((run / weights).read_bytes()[:-1])

    def with_token(run: Path) -> None:
        (run / "environment.json").write_text(json.dumps({"command": f"x {TOKEN}"}))

    def unfinished(run: Path) -> None:
        (run / "checkpoints").rename(run / "progress")

    refused(with_nan, "W_dec of .* holds NaN")
    refused(with_pickle, "no safetensors file")
    refused(truncated, "damaged or no safetensors file")
    refused(lambda run: (run / weights).unlink(), "safetensors only")
    refused(unfinished, "has not finished training")
    refused(
        lambda run: (run / "results/summary.json").write_text("{"), "summary.json", BipolarError
    )
    refused(with_token, "environment.json would publish ", HubError)


def test_a_run_somebody_else_works_in_is_left_alone(small_run: Path) -> None:
    other = hold_in_child(small_run)
    try:
        with pytest.raises(LockError, match=rf"process {other} on "):
            publish(small_run, CONFIG, dry_run=True)
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    assert publish(small_run, CONFIG, dry_run=True).folder  # free again, nothing to clean up


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("repo_id", "signed", "owner/name"),
        ("repo_id", "a/b/c", "not allowed"),
        ("repo_id", "ada/sig ned", "not allowed"),
        ("revision", "", "branch"),
        ("revision", "refs/pr/1", "branch"),
        ("license", "apache", "did you mean 'apache-2.0'"),
        ("message", " ", "empty"),
    ],
)
def test_options_are_checked(field: str, value: str, words: str) -> None:
    options: dict[str, Any] = {"repo_id": REPO, field: value}
    with pytest.raises(ConfigError, match=words):
        PublishConfig(**options)


@pytest.mark.parametrize("id", ["../up", "/abs", "a//b", "results", ".hidden", "a b"])
def test_ids_stay_inside_the_repository(small_run: Path, id: str) -> None:
    with pytest.raises(ConfigError, match="id="):
        publish(
            small_run / "checkpoints/topk", PublishConfig(REPO, license="mit", id=id), dry_run=True
        )


def test_a_missing_licence_is_asked_for_with_the_base_models_terms(small_run: Path) -> None:
    config = PublishConfig(REPO)
    with pytest.raises(ConfigError, match=r"smollm2-135m-instruct is under apache-2.0.*--license"):
        publish(small_run, config, dry_run=True)
    asked: list[str] = []
    done = publish(
        small_run, config, dry_run=True, ask_license=lambda said: asked.append(said) or "MIT"
    )
    assert "apache-2.0" in asked[0]
    assert done.folder is not None
    assert "license: mit" in (done.folder / "README.md").read_text()
