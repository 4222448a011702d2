"""What is taken out of text that leaves the machine, and what is found before it does."""

from pathlib import Path

import pytest

from sae_lens_bipolar.files import redaction
from sae_lens_bipolar.files.redaction import find_secret, without_folders, without_secrets

A, N = "AbCdEfGhIj" * 5, "A1B2C3D4E5" * 5
SECRETS = {
    "a Hugging Face token": (
        *("hf_" + A[:34], "api_org_" + A[:34], "hf_oauth_" + A[:20], "hf_jwt_eyJ0.eyJ1." + A),
    ),
    "a GitHub token": ("ghp_" + A[:36], "ghs_" + A[:36], "github_pat_11" + A + "_" + A),
    "a GitLab token": ("glpat-" + A[:20],),
    "an AWS key": ("AKIA" + N[:16], "ASIA" + N[:16]),
    "a Google key": ("AIza" + A[:35], "ya29." + A, "GOCSPX-" + A[:28]),
    "a Slack token": (
        *("xoxb-123456789012-" + A[:24], "xapp-1-A012-" + A, "xoxe.xoxp-1-" + A),
        "https://hooks.slack.com/services/T0123/B0123/" + A[:24],
    ),
    "an API key": ("sk-proj-" + A[:30], "sk_live_" + A[:24], "npm_" + A[:36], "gsk_" + A),
    "an Azure key": ("AccountName=x;AccountKey=" + A + "==",),
    "a signed token": (f"eyJ{A}.eyJ{A}.{A}",),
    "a private key": (
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{A}\n-----END OPENSSH PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\\n{A}",
        f"-----BEGIN PGP PRIVATE KEY BLOCK-----\n{A}\n-----END PGP PRIVATE KEY BLOCK-----",
    ),
    "a password in an address": ("https://me:s3cret@hub.example/x", "postgres://u:p@db/x"),
    "a signed address": ("https://s3.example/x?X-Amz-Signature=" + N, "http://h/x?sig=" + N),
    "a password or key": (
        *('{"api_key": "' + N + '"}', "aws_secret_access_key = " + A, "password: hunter2hunter2"),
        'hub_token: "' + A + '"',
    ),
}


@pytest.mark.parametrize(
    ("kind", "secret"), [(kind, one) for kind, several in SECRETS.items() for one in several]
)
def test_secrets_are_found_and_their_kind_is_named(kind: str, secret: str) -> None:
    assert find_secret(f"before {secret} after") == kind
    if kind not in ("a signed address", "a password or key"):
        clean = without_secrets(f"before {secret} after")
        assert clean.startswith("before ")
        assert find_secret(clean) is None
        assert A[:10] not in clean


@pytest.mark.parametrize(
    "text",
    [
        '{"n_tokens": 153600, "sequence_separator_token": "<|endoftext|>", "hub_token": null}',
        "https://hub.example:8080/a/b git@github.com:o/r https://user@host/x",
        "0123456789abcdef0123456789abcdef01234567",  # a commit
        "hf_model_name_and_other_long_words_of_a_setting glove-embeddings-of-a-long-name",
        "sk-learn xai-interpretability-of-sparse-codes --training_tokens 5",
        "https://host/x?revision=main&download=true",
        "-----BEGIN CERTIFICATE-----",
    ],
)
def test_ordinary_text_holds_no_secret(text: str) -> None:
    assert find_secret(text) is None


def test_tokens_of_this_machine_are_known_by_their_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123")
    assert find_secret("x 0123456789abcdef0123") == "an access token of this machine"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("/home/ada/runs/x", ".../x"),
        ("/home/Ada Lovelace/runs/x", ".../x"),
        ("/Users/Ada Maria Lovelace/my runs/a b", ".../a b"),
        ("C:\\Users\\Ada Lovelace\\runs\\x", ".../x"),
        ("\\\\server\\Ada Lovelace\\x", ".../x"),
        ("file:///home/Ada Lovelace/text.jsonl", "file://.../text.jsonl"),
        ("/home/ada", "~"),
        ("--output /Users/ada --seed 3", "--output ~ --seed 3"),
        ("demo --output /home/Ada L/x --corpus /data/y/z", "demo --output .../x --corpus .../z"),
        ("--out=/home/me/runs/x", "--out=.../x"),
        ("~/y/z", ".../z"),
        ("blocks.0/mlp", "blocks.0/mlp"),
        ("https://h.co/a/b", "https://h.co/a/b"),
    ],
)
def test_folders_are_cut_to_their_last_part(text: str, clean: str) -> None:
    assert without_folders({"a": [text], text: 1}) == {"a": [clean], clean: 1}


def test_a_home_directory_in_an_unusual_place_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/people/Ada, the Countess"))
    assert without_folders("read /people/Ada, the Countess/x") == "read .../x"
    assert without_folders("/people/Ada, the Countessa") != "~a"


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("/here/bin/sae-lens-bipolar", "sae-lens-bipolar demo --l0 4"),
        ("/here/sae_lens_bipolar/__main__.py", "python -m sae_lens_bipolar demo --l0 4"),
    ],
)
def test_a_command_is_said_as_it_can_be_typed(monkeypatch, program: str, said: str) -> None:
    monkeypatch.setattr(redaction.sys, "argv", [program, "demo", "--l0", "4"])
    assert redaction.command_line() == said
