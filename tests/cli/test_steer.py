"""`sae-lens-bipolar steer` and `find` as a user types them."""

from pathlib import Path

import pytest

from sae_lens_bipolar.cli.continuations import side_by_side
from sae_lens_bipolar.cli.main import main
from sae_lens_bipolar.files.atomic import write_json
from sae_lens_bipolar.files.digests import DIGEST
from sae_lens_bipolar.files.names import CENSUS, CHECKPOINTS
from sae_lens_bipolar.polarity.counting import census
from sae_lens_bipolar.runs.sources import find_saes
from tests.hub.fake.clients import clients_at
from tests.hub.fake.server import HubServer
from tests.steering.planted import COLD, HOT, LATENT, planted_model, planted_sae, texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two SAEs, the planted model, and texts."""
    root = tmp_path_factory.mktemp("steer")
    for part in planted_model():
        part.save_pretrained(root / "model")
    sae = planted_sae()
    sae.cfg.metadata.model_name = str(root / "model")
    for name in ("abstopk", "other"):
        sae.save_model(root / "run" / CHECKPOINTS / name)
    (root / "hot.txt").write_text("\n\n".join(texts(HOT, 20, 0)) + "\n")
    (root / "cold.txt").write_text("\n".join(texts(COLD, 20, 1)))
    corpus = "\n".join("\n".join(texts(HOT + COLD, 40, seed)) for seed in range(30))
    (root / "corpus").mkdir()
    for i in range(20):
        (root / "corpus" / f"{i}.txt").write_text(corpus + f"\n{HOT[i % 6]} {COLD[i % 5]}\n")
    return root


def steer(folder: Path, *more: str) -> int:
    return main(
        [
            *("steer", str(folder / "run" / CHECKPOINTS / "abstopk"), "--latent", str(LATENT)),
            *("--prompt", "book chair", "--max-new-tokens", "4"),
            *("--text", str(folder / "corpus"), "--scale-tokens", "2048", *more),
        ]
    )


def test_the_texts_stand_side_by_side(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert steer(folder, "--value", "-3", "--value", "3") == 0
    title, _, texts_found = capsys.readouterr().out.splitlines()[:3]
    assert [part.strip() for part in title.split("|")] == [
        "unsteered",
        f"latent {LATENT}: -3",
        f"latent {LATENT}: +3",
    ]
    unsteered, hot, cold = (part.split() for part in texts_found.split("|"))
    assert unsteered[0] == "chair"  # the planted model repeats what it read
    assert set(hot) & set(HOT)
    assert set(cold) & set(COLD)
    assert not set(hot) & set(COLD)


def test_a_side_that_never_showed_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only_hot = folder / "only_hot"
    only_hot.mkdir(exist_ok=True)
    for i in range(20):
        (only_hot / f"{i}.txt").write_text("\n".join(texts(HOT, 400, i)))
    assert steer(folder, "--value", "1", "--text", str(only_hot)) == 0
    assert f"extrapolated: latent {LATENT} never showed the sign of +1" in capsys.readouterr().out


def test_the_census_of_a_run_is_used_while_it_is_the_saes_own(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = folder / "run"
    source = find_saes([run])[0]
    sae = planted_sae()
    values = census(sae, [sae.W_dec.detach() * 2]).to_dict()
    command = [
        *("steer", f"{run}:abstopk", "--latent", str(LATENT), "--prompt", "book chair"),
        *("--max-new-tokens", "2", "--value", "2", "--text", str(tmp_path / "nowhere")),
    ]
    write_json(run / CENSUS / "abstopk.json", {**values, DIGEST: source.digest})
    assert main(command) == 0
    capsys.readouterr()
    write_json(run / CENSUS / "abstopk.json", {**values, DIGEST: "of another SAE"})
    assert main(command) == 2
    assert "nowhere" in capsys.readouterr().err


def test_an_sae_on_the_hub(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with HubServer() as hub:
        hub.add_user("grace", "hf_" + "GraceHopper1906" * 2)
        with clients_at(hub, home=tmp_path, token="hf_" + "GraceHopper1906" * 2):
            assert (
                main(
                    [
                        *("publish", str(folder / "run" / CHECKPOINTS / "abstopk"), "grace/tiny"),
                        *("--license=mit", "--id=layer0", "--no-split"),
                    ]
                )
                == 0
            )
            command = ["steer", "grace/tiny:layer0", "--latent", str(LATENT), "--value", "4"]
            command += ["--unit", "raw", "--prompt", "book", "--max-new-tokens", "3"]
            assert main([*command, "--model", str(folder / "model")]) == 0
    assert set(capsys.readouterr().out.split()) & set(COLD)


def test_find_prints_the_planted_latent_first(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--positive", str(folder / "hot.txt"), "--negative", str(folder / "cold.txt")]
    assert main(["find", f"{folder / 'run'}:other", *files, "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == [str(LATENT), "-"]
    assert lines[-1].startswith("found 1: ")
    same = ["--positive", str(folder / "hot.txt"), "--negative", str(folder / "hot.txt")]
    assert main(["find", f"{folder / 'run'}:other", *same]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("nothing found: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--latent", "48", "--value", "1"], "latent 48 does not exist: this SAE has latents 0 to"),
        (["--latent", "-1", "--value", "1"], "latent -1 does not exist"),
        (["--value", "nan"], "--value=nan is not allowed"),
        (["--value", "2", "--mode", "dial"], "the value of latent 7=2.0 is not allowed"),
        (["--value", "1", "--model", "/nowhere/model"], "there is no directory /nowhere/model"),
        (["--value", "1", "--max-new-tokens", "0"], "--max-new-tokens=0 is not allowed"),
    ],
)
def test_bad_options_exit_with_2(
    folder: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert steer(folder, *arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sae", "words"),
    [
        ("run", r"holds 2 SAEs: give one, as"),
        ("run:abstopc", "holds no SAE 'abstopc', but abstopk, other; did you mean 'abstopk'?"),
        ("nowhere", "is neither a checkpoint"),
        ("model", "holds no SAE"),
    ],
)
def test_an_sae_that_is_not_there_or_not_one(
    folder: Path, sae: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["steer", str(folder / sae), "--latent", "1", "--value", "1", "--prompt", "book"]
    assert main(command) == 2
    assert words in capsys.readouterr().err


def test_find_names_a_file_that_cannot_be_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--positive", str(folder / "hot.txt"), "--negative", str(folder / "none.txt")]
    assert main(["find", f"{folder / 'run'}:other", *files]) == 2
    assert "none.txt cannot be read as text" in capsys.readouterr().err


def test_long_texts_wrap_in_their_columns() -> None:
    found = side_by_side({"a": "one two three four five\n\nsix", "b": "seven"}, width=31)
    assert found.splitlines() == [
        "a              | b",
        "-------------- | --------------",
        "one two three  | seven",
        "four five      |",
        "               |",
        "six            |",
    ]
