"""`sae-lens-bipolar publish` as a user types it."""

import subprocess
import sys
from pathlib import Path

import pytest

from sae_lens_bipolar.cli.main import main
from tests.hub.fake.clients import client_environment, clients_at
from tests.hub.fake.server import HubServer
from tests.hub.published_run import write_run

TOKEN = "hf_" + "GraceHopper1906" * 2


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("publish") / "run", ("abstopk",))


def test_a_dry_run_writes_the_folder_and_sends_nothing(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["publish", str(run_dir), "grace/tiny", "--dry-run", "--license", "mit"]) == 0
    assert str(run_dir / "publish/README.md") in capsys.readouterr().out
    assert (run_dir / "publish/abstopk-split/cfg.json").is_file()


def test_it_publishes_and_says_where(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with HubServer() as hub:
        hub.add_user("grace", TOKEN)
        with clients_at(hub, home=tmp_path, token=TOKEN):
            arguments = ["publish", str(run_dir / "checkpoints/abstopk"), "grace/tiny"]
            arguments += ["--license=mit", "--id=layer12", "--no-split", "--message=First"]
            assert main([*arguments, "--private"]) == 0
        repo = hub.repository("grace/tiny")
        assert repo.private
        assert repo.history()[0].title == "First"
        printed = capsys.readouterr()
        assert f"{hub.endpoint}/grace/tiny at {repo.at().oid}" in printed.out
        assert TOKEN not in printed.out + printed.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["grace/tiny"], "--license"),
        (["tiny", "--license=mit"], "owner/name"),
        (["grace/tiny", "--license=mitt"], "did you mean 'mit'"),
        (["grace/tiny", "--license=mit", "--id=../x"], "id='../x'"),
    ],
)
def test_bad_options_exit_with_2(
    run_dir: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["publish", str(run_dir), *arguments, "--dry-run"]) == 2
    assert words in capsys.readouterr().err


def test_a_wrong_token_ends_with_2_and_no_traceback(run_dir: Path, tmp_path: Path) -> None:
    """In a process of its own: all that reaches the terminal is looked at."""
    with HubServer() as hub:
        environment = client_environment(hub, tmp_path, token="hf_" + "wrong" * 7)
        command = [sys.executable, "-m", "sae_lens_bipolar.cli", "publish", str(run_dir)]
        done = subprocess.run(
            [*command, "grace/tiny", "--license=mit"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 2
    assert "hf auth login" in done.stderr
    assert "Traceback" not in done.stderr
    assert "wrongwrong" not in done.stdout + done.stderr
    assert "HTTP Request" not in done.stderr  # addresses can be signed
