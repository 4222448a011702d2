"""The tests' Hub under the real clients: what they download, upload, are refused, and survive."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import datasets
import datasets.config
import huggingface_hub
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.hub.fake.clients import NetworkError, Timeout, client_environment, clients_at
from tests.hub.fake.repositories import make_blob
from tests.hub.fake.server import HubServer

ADA, BOB, READER = "hf_ada", "hf_bob", "hf_reader"
WEIGHTS = bytes(range(256)) * 400  # 102,400 bytes


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(page_size=2) as server:
        server.add_user("ada", token=ADA, organizations=("lab",))
        server.add_user("bob", token=BOB)
        server.add_user("ada", token=READER, role="read")
        files = {"config.json": "{}", "sub/a.txt": "a", "sub/deep/model.safetensors": WEIGHTS}
        server.add_repository("ada/tiny", files)
        yield server


@pytest.fixture
def api(hub: HubServer, tmp_path: Path) -> Iterator[HfApi]:
    """This process's clients at the Hub, as ada, waiting one second at most."""
    with clients_at(hub, tmp_path / "home", token=ADA, timeout_seconds=1):
        yield HfApi()


def test_one_file_is_fetched_once_and_its_token_stays_on_the_hub(
    hub: HubServer, api: HfApi
) -> None:
    for _ in range(2):
        path = Path(hf_hub_download("ada/tiny", "sub/deep/model.safetensors"))
        assert path.read_bytes() == WEIGHTS
        assert hub.repository("ada/tiny").at().oid in str(path)
    gets = hub.calls("GET .*model.safetensors")
    assert [(call.storage, call.token) for call in gets] == [(True, None)]
    assert {call.token for call in hub.requests if not call.storage} == {ADA}


def test_snapshot_listings_and_infos(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    folder = Path(snapshot_download("ada/tiny", local_dir=tmp_path / "x"))
    assert (folder / "sub/deep/model.safetensors").read_bytes() == WEIGHTS
    listed = api.list_repo_files("ada/tiny")
    assert listed == ["config.json", "sub/a.txt", "sub/deep/model.safetensors"]
    assert len(hub.calls(r"tree/main\?.*cursor")) >= 1, "five entries are three pages of two"
    weights = api.get_paths_info("ada/tiny", ["sub/deep/model.safetensors", "absent"])
    assert [entry.path for entry in weights] == ["sub/deep/model.safetensors"]
    assert isinstance(weights[0], RepoFile)
    lfs = weights[0].lfs
    assert lfs is not None
    assert lfs.sha256 == make_blob("w.safetensors", WEIGHTS).sha256
    info = api.model_info("ada/tiny", files_metadata=True)
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or []}
    assert sizes == {
        "config.json": 2,
        "sub/a.txt": 1,
        "sub/deep/model.safetensors": len(WEIGHTS),
    }
    assert info.sha == hub.repository("ada/tiny").at().oid
    assert [entry.path for entry in api.list_repo_tree("ada/tiny", "sub")] == [
        "sub/a.txt",
        "sub/deep",
    ]


def test_revisions(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    first = hub.repository("ada/tiny").at().oid
    api.create_tag("ada/tiny", tag="v1")
    api.create_branch("ada/tiny", branch="dev/next")
    api.upload_file(
        path_or_fileobj=b"new", path_in_repo="n.txt", repo_id="ada/tiny", revision="dev/next"
    )
    assert "n.txt" in api.list_repo_files("ada/tiny", revision="dev/next")
    assert "n.txt" not in api.list_repo_files("ada/tiny", revision="v1")
    assert api.model_info("ada/tiny", revision=first[:8]).sha == first
    assert [c.title for c in api.list_repo_commits("ada/tiny", revision="dev/next")] == [
        "Upload n.txt with huggingface_hub",
        "commit",
        "initial commit",
    ]
    assert {branch.name for branch in api.list_repo_refs("ada/tiny").branches} == {
        "main",
        "dev/next",
    }
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("ada/tiny", "config.json", revision="absent")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("ada/tiny", "absent.json")
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("ada/absent", "config.json")


def test_private_gated_and_read_only(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repository("ada/secret", {"a.txt": "s"}, private=True)
    hub.add_repository("lab/gated", {"a.txt": "g"}, gated=True, granted={"bob"})
    for name, token in (("ada", ADA), ("bob", BOB), ("nobody", None), ("stranger", "hf_what")):
        with clients_at(hub, tmp_path / name, token=token):
            if name == "ada":
                assert Path(hf_hub_download("ada/secret", "a.txt")).read_text() == "s"
            else:
                with pytest.raises((RepositoryNotFoundError, HfHubHTTPError)) as refused:
                    HfApi().model_info("ada/secret")
                assert refused.value.response.status_code == (404 if name == "bob" else 401)
            if name == "bob":
                assert Path(hf_hub_download("lab/gated", "a.txt")).read_text() == "g"
            elif name in ("ada", "nobody"):
                assert HfApi().model_info("lab/gated").gated == "manual"
                with pytest.raises(GatedRepoError):
                    hf_hub_download("lab/gated", "a.txt")
    with clients_at(hub, tmp_path / "reader", token=READER):
        assert HfApi().whoami()["auth"]["accessToken"]["role"] == "read"
        with pytest.raises(HfHubHTTPError, match="403"):
            HfApi().create_repo("ada/new")
    assert "ada/new" not in {repo_id for _, repo_id in hub.repositories}


def test_upload_folder_is_one_commit_and_sends_only_what_changed(
    hub: HubServer, api: HfApi, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    (folder / "sae").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [sae]\n---\n# SAE\n")
    (folder / "sae/cfg.json").write_text("{}")
    (folder / "sae/sae_weights.safetensors").write_bytes(WEIGHTS[::-1])
    url = api.create_repo("ada/saes", private=True)
    assert url.repo_id == "ada/saes"
    assert api.create_repo("ada/saes", exist_ok=True).repo_id == "ada/saes"
    done = api.upload_folder(folder_path=folder, repo_id="ada/saes", commit_message="first")
    repo = hub.repository("ada/saes")
    assert repo.private
    assert [commit.title for commit in repo.history()] == ["first", "initial commit"]
    assert done.oid == repo.at().oid
    assert repo.at().files["sae/sae_weights.safetensors"].data == WEIGHTS[::-1]
    assert repo.at().files["sae/sae_weights.safetensors"].large
    assert [(call.storage, call.token) for call in hub.calls("^PUT")] == [(True, None)]
    api.upload_folder(folder_path=folder, repo_id="ada/saes")
    assert len(repo.commits) == 2, "nothing changed: no commit"
    (folder / "sae/cfg.json").write_text('{"k": 1}')
    api.upload_folder(folder_path=folder, repo_id="ada/saes")
    assert len(hub.calls("^PUT")) == 1, "the weights are there already"
    assert repo.at().files["sae/cfg.json"].data == b'{"k": 1}'
    info = api.model_info("ada/saes")
    assert "license:mit" in (info.tags or [])


def test_commits_are_all_or_nothing(hub: HubServer, api: HfApi) -> None:
    repo = hub.repository("ada/tiny")
    before = repo.at().oid
    add = CommitOperationAdd("new.txt", b"x")
    with pytest.raises(EntryNotFoundError):
        api.create_commit(
            "ada/tiny", [add, CommitOperationDelete("absent.txt")], commit_message="both"
        )
    assert repo.at().oid == before
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit("ada/tiny", [add], commit_message="late", parent_commit="0" * 40)
    drop = CommitOperationDelete("sub/")
    api.create_commit("ada/tiny", [add, drop], commit_message="both", parent_commit=before)
    assert sorted(repo.at().files) == ["config.json", "new.txt"]
    hub.add_repository("bob/other", {})
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_commit("bob/other", [CommitOperationAdd("a", b"")], commit_message="no")
    api.delete_repo("ada/tiny")
    assert not api.repo_exists("ada/tiny")


@pytest.mark.skipif(
    huggingface_hub.__version__.startswith("0."), reason="its validate() asks the real Hub only"
)
def test_cards_are_judged(api: HfApi) -> None:
    ModelCard("---\nlicense: apache-2.0\nbase_model: openai/gpt2\ntags: [sae]\n---\nx").validate()
    with pytest.raises(ValueError, match='"license" must be one of'):
        ModelCard("---\nlicense: my-own\n---\nx").validate()
    with pytest.raises(ValueError, match="base_model"):
        ModelCard("---\nbase_model: not/a/repo\n---\nx").validate()


def test_an_uploaded_card_is_judged(api: HfApi) -> None:
    with pytest.raises(ValueError, match="license"):
        api.upload_file(
            path_or_fileobj=b"---\nlicense: my-own\n---\n",
            path_in_repo="README.md",
            repo_id="ada/tiny",
        )


def test_transformers_and_datasets(
    hub: HubServer, api: HfApi, tiny_model_dirs: dict[str, Path]
) -> None:
    files = {path.name: path for path in tiny_model_dirs["llama"].iterdir()}
    hub.add_repository("ada/llama", files)
    model = AutoModelForCausalLM.from_pretrained("ada/llama")
    assert model.config.model_type == "llama"
    assert AutoTokenizer.from_pretrained("ada/llama").bos_token == "<|bos|>"
    hub.add_repository("ada/text", {"data.jsonl": '{"text": "one"}\n'}, repo_type="dataset")
    rows = datasets.load_dataset("ada/text", split="train")
    assert isinstance(rows, datasets.Dataset)
    assert rows[:] == {"text": ["one"]}
    streamed = datasets.load_dataset("ada/text", split="train", streaming=True)
    assert [*streamed] == [{"text": "one"}]


@pytest.mark.parametrize(
    ("kind", "pattern", "more"),
    [
        ("status", "HEAD .*model", {"status": 503}),
        ("status", "GET .*model", {"status": 429, "retry_after": 1}),
        ("hangup", "HEAD .*model", {}),
        ("reset", "GET .*model", {}),
        ("cut", "GET .*model", {}),
        ("timeout", "GET .*model", {"seconds": 3.0}),
        ("truncate", "GET .*model", {}),
    ],
)
def test_a_fault_shows_once_and_a_second_try_completes(
    hub: HubServer, api: HfApi, kind: str, pattern: str, more: dict[str, float]
) -> None:
    fault = hub.inject(kind, pattern, **more)  # pyright: ignore[reportArgumentType]
    # Some faults the client itself tries again.
    with suppress(OSError, HfHubHTTPError, NetworkError):
        hf_hub_download("ada/tiny", "sub/deep/model.safetensors")
    path = hf_hub_download("ada/tiny", "sub/deep/model.safetensors")
    assert Path(path).read_bytes() == WEIGHTS
    assert fault.shown == 1
    assert [call.fault for call in hub.requests].count(fault.kind) == 1


def test_ranges(hub: HubServer, api: HfApi) -> None:
    url = f"{hub.endpoint}/ada/tiny/resolve/main/sub/deep/model.safetensors"
    for asked, status, body in (
        ("bytes=10-19", 206, WEIGHTS[10:20]),
        ("bytes=102390-", 206, WEIGHTS[102390:]),
        ("bytes=-5", 206, WEIGHTS[-5:]),
        ("bytes=102400-", 416, b""),
    ):
        answer = huggingface_hub.get_session().get(url, headers={"Range": asked})
        assert (answer.status_code, answer.content) == (status, body), asked


def test_a_flipped_bit_passes_the_clients(hub: HubServer, api: HfApi) -> None:
    """huggingface_hub 2.4 compares sizes only: who needs the bytes must compare them."""
    hub.inject("flip", "GET .*model")
    data = Path(hf_hub_download("ada/tiny", "sub/deep/model.safetensors")).read_bytes()
    assert len(data) == len(WEIGHTS)
    assert [a ^ b for a, b in zip(data, WEIGHTS, strict=True) if a != b] == [1]


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_an_injected_refusal_ends_an_upload_without_a_trace(
    hub: HubServer, api: HfApi, status: int
) -> None:
    hub.inject("status", "POST .*/commit/", status=status)
    before = hub.repository("ada/tiny").at().oid
    operation = CommitOperationAdd("w.safetensors", WEIGHTS[:999])
    with pytest.raises(HfHubHTTPError, match=str(status)):
        api.create_commit("ada/tiny", [operation], commit_message="weights")
    assert hub.repository("ada/tiny").at().oid == before
    again = CommitOperationAdd("w.safetensors", WEIGHTS[:999])
    api.create_commit("ada/tiny", [again], commit_message="weights")
    assert hub.repository("ada/tiny").at().files["w.safetensors"].data == WEIGHTS[:999]
    assert len(hub.calls("^PUT")) == 1, "what arrived before is not sent again"


def test_a_lost_answer_leaves_its_commit(hub: HubServer, api: HfApi) -> None:
    hub.inject("lost", "POST .*/commit/")
    operation = CommitOperationAdd("new.txt", b"x")
    with pytest.raises(NetworkError, match=r"(?i)disconnected|reset|closed"):
        api.create_commit("ada/tiny", [operation], commit_message="lost")
    assert hub.repository("ada/tiny").at().files["new.txt"].data == b"x"


def test_an_upload_cut_half_way_stores_nothing(hub: HubServer, api: HfApi) -> None:
    hub.inject("reset", "PUT ", storage=True)
    operation = CommitOperationAdd("w.safetensors", WEIGHTS * 20)
    api.create_commit("ada/tiny", [operation], commit_message="retried by the client")
    sizes = [call.size for call in hub.calls("^PUT")]
    assert sizes == [len(WEIGHTS) * 10, len(WEIGHTS) * 20]
    assert hub.repository("ada/tiny").at().files["w.safetensors"].data == WEIGHTS * 20


def test_faults_count_and_wait(hub: HubServer, api: HfApi) -> None:
    fault = hub.inject("status", "whoami", status=500, times=2, after=1)
    outcomes = []
    for _ in range(4):
        try:
            outcomes.append(api.whoami()["name"])
        except HfHubHTTPError as error:
            outcomes.append(error.response.status_code)
    assert outcomes == ["ada", 500, 500, "ada"]
    assert fault.shown == 2


def test_everything_is_as_before_afterwards(hub: HubServer, tmp_path: Path) -> None:
    constants, config = huggingface_hub.constants, datasets.config

    def state() -> tuple[object, ...]:
        plain = {k: v for k, v in vars(constants).items() if isinstance(v, str | bool | int)}
        more = {k: v for k, v in vars(config).items() if isinstance(v, str | bool | Path)}
        return plain, more, huggingface_hub.hf_api.api.endpoint, dict(os.environ)

    before = state()
    with pytest.raises(ZeroDivisionError), clients_at(hub, tmp_path, token=ADA):  # noqa: PT012
        assert constants.ENDPOINT == config.HF_ENDPOINT == hub.endpoint
        assert huggingface_hub.whoami()["name"] == "ada"
        _ = 1 // 0
    assert state() == before
    with pytest.raises((OfflineModeIsEnabled, LocalEntryNotFoundError)):
        hf_hub_download("ada/tiny", "config.json", cache_dir=tmp_path / "other")


def test_another_process(hub: HubServer, tmp_path: Path) -> None:
    code = "from huggingface_hub import *; print(whoami()['name'], list_repo_files('ada/tiny')[0])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=client_environment(hub, tmp_path, token=ADA),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.split() == ["ada", "config.json"]


def test_closing_does_not_wait_for_a_timeout(tmp_path: Path) -> None:
    with HubServer() as server:
        server.add_user("ada", token=ADA)
        server.inject("timeout", "whoami", seconds=60.0)
        with (
            clients_at(server, tmp_path, token=ADA, timeout_seconds=1),
            pytest.raises(Timeout),
        ):
            huggingface_hub.get_session().get(f"{server.endpoint}/api/whoami-v2", timeout=0.5)
        began = time.monotonic()
    assert time.monotonic() - began < 5
