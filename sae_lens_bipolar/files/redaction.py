"""What must not leave the machine: access tokens, keys, passwords, folders of its user."""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# How services write their keys; each with the name that a message gives it.
_KEYS = {
    "a Hugging Face token": r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}|\bhf_(?:oauth|jwt)_[\w.-]{16,}",
    "a GitHub token": r"\bgh[opusr]_\w{30,}|\bgithub_pat_\w{20,}",
    "a GitLab token": r"\bgl(?:pat|rt|cbt|dt|ptt|ft|soat|imt|oas)-[\w-]{20,}",
    "an AWS key": r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b",
    "a Google key": r"\bAIza[\w-]{35}|\bya29\.[\w-]{20,}|\bGOCSPX-[\w-]{20,}",
    "a Slack token": r"\bxox[a-z](?:\.xox[a-z])?-[\w-]{10,}|\bxapp-[\w-]{10,}"
    r"|hooks\.slack\.com/(?:services|workflows)/[\w/-]{20,}",
    "an API key": r"\bsk-[\w-]{20,}|\b[rs]k_(?:live|test)_\w{16,}|\bnpm_[A-Za-z0-9]{36}"
    r"|\bpypi-[\w-]{50,}|\b(?:gsk_|r8_|xai-|dop_v1_)[A-Za-z0-9]{24,}|\bnvapi-[\w-]{40,}"
    r"|\bhvs\.[\w-]{20,}",
    "an Azure key": r"\b(?:AccountKey|SharedAccessKey)=[\w+/]{20,}=*",
    "a signed token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]*",  # JSON Web Token
    "a private key": r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
    r"(?s:.*?)(?:-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|\Z)"
    r"|\bAGE-SECRET-KEY-[A-Z0-9]+",
}
_KEY = re.compile("|".join(f"(?:{form})" for form in _KEYS.values()))
_USER = re.compile(r"(?<=://)[^/\s@]+@")
_PASSWORD = re.compile(r"://[^/\s:@'\"]*:[^/\s@'\"]+@")
_SIGNATURE = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]+")  # presigned addresses grant access
_SIGNED = re.compile(r"[?&](?:[\w-]*signature|sig|[\w-]*token|api_?key)=[\w%.+/-]{16,}", re.I)
_OPTION = re.compile(
    r"(--?[\w-]*(?:token(?!s)|api[_-]?key|password|secret)[\w-]*[= ])\s*(?!-)\S+", re.I
)
# A value of its own beside a name that says what it is, as in YAML, JSON or the environment.
_NAMED = re.compile(
    r"(?:api[_-]?key|passw(?:or)?d|secret(?:[_-]?(?:access[_-]?)?key)?"
    r"|(?:access|auth|hub|hf|bearer|wandb)[_-]?token)['\"]?\s*[:=]\s*['\"]?"
    r"(?!null\b|none\b|true\b|false\b|\[removed\])[^\s'\",}]{8,}",
    re.I,
)
_SECRET_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")

# A name in a path may hold spaces; after one, an option or another path begins no name.
_NAME = r"[^\s/\\'\",:;]+(?: +(?![-/~])[^\s/\\'\",:;]+)*"
_START = r"(?:(?<=file://)|(?<![\w.:/~>-]))"
_HOME = re.compile(rf"{_START}/(?:home|Users)/(?:{_NAME}(?=/)|[^\s/'\",:;]+)")
_FOLDER = re.compile(rf"{_START}(?:~/(?:{_NAME}/)*|/(?:{_NAME}/)+)")
_WINDOWS = re.compile(rf"(?<!\w)(?:[A-Za-z]:|\\)[\\/](?:{_NAME}[\\/])+")


def without_secrets(text: str) -> str:
    """`text` with keys, passwords and signatures of addresses replaced by `[removed]`."""
    for value in _secret_values():
        text = text.replace(value, "[removed]")
    text = _SIGNATURE.sub(r"\1", _USER.sub("[removed]@", text))
    return _OPTION.sub(r"\1[removed]", _KEY.sub("[removed]", text))


def find_secret(text: str) -> str | None:
    """What kind of secret `text` holds, in words, without the secret; None if none is found.

    Found are keys in the forms of `_KEYS`, passwords and signatures in addresses, values beside
    names such as `api_key`, and the tokens this process could use. What looks like nothing, such as
    a key of hexadecimal digits alone, cannot be found.
    """
    if any(value in text for value in _secret_values()):
        return "an access token of this machine"
    for kind, form in _KEYS.items():
        if re.search(form, text):
            return kind
    if _PASSWORD.search(text):
        return "a password in an address"
    if _SIGNED.search(text):
        return "a signed address"
    return "a password or key" if _NAMED.search(text) else None


def without_folders(value: Any) -> Any:
    """`value` (JSON) with absolute paths in its strings cut to `.../` and their last component.

    Names of folders may hold spaces, so that what follows a path up to the next slash, and is no
    option, is cut with it. A user's home directory is `~` also where nothing follows it.
    """
    if isinstance(value, str):
        return _WINDOWS.sub(
            ".../", _FOLDER.sub(".../", _HOME.sub("~", _own_home().sub("~", value)))
        )
    if isinstance(value, Mapping):
        return {without_folders(key): without_folders(part) for key, part in value.items()}
    return [without_folders(part) for part in value] if isinstance(value, list) else value


def _own_home() -> re.Pattern[str]:
    home = str(Path.home()).rstrip("/\\")
    return re.compile(rf"{re.escape(home)}(?=[/\\\s'\",:;]|$)" if home else "(?!)")


def _secret_values() -> list[str]:
    from huggingface_hub import get_token  # also finds a token saved by `hf auth login`

    found = [os.environ.get(name, "") for name in _SECRET_VARIABLES] + [get_token() or ""]
    return [value for value in found if len(value) >= 8]


def command_line() -> str:
    """The command that runs now, as a user would type it, without tokens."""
    name = Path(sys.argv[0]).name
    if name == "__main__.py":
        name = "python -m sae_lens_bipolar"
    return without_secrets(" ".join([name, *sys.argv[1:]]))
