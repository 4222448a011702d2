"""What must not leave the machine: access tokens, passwords in addresses, folders of its user."""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Hub tokens, the keys of the services researchers use beside it, and passwords inside URLs.
_TOKEN = re.compile(
    r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bgh[pousr]_\w{30,}"
)
_PASSWORD = re.compile(r"(?<=://)[^/\s@]+@")
_SIGNATURE = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]+")  # presigned addresses grant access
_OPTION = re.compile(
    r"(--?[\w-]*(?:token(?!s)|api[_-]?key|password|secret)[\w-]*[= ])\s*(?!-)\S+", re.I
)
_FOLDER = re.compile(r"(?<![\w.:/~>-])~?/(?:[^\s/'\",:;]+/)+")
_SECRET_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")


def without_secrets(text: str) -> str:
    """`text` with tokens, passwords and signatures of addresses replaced by `[removed]`."""
    for value in _secret_values():
        text = text.replace(value, "[removed]")
    text = _SIGNATURE.sub(r"\1", _PASSWORD.sub("[removed]@", text))
    return _OPTION.sub(r"\1[removed]", _TOKEN.sub("[removed]", text))


def holds_secret(text: str) -> bool:
    """Whether `text` holds a token: one of the usual form, or one this process could use."""
    return bool(_TOKEN.search(text)) or any(value in text for value in _secret_values())


def without_folders(value: Any) -> Any:
    """`value` (JSON) with absolute paths in its strings cut to `.../` and their last component."""
    if isinstance(value, str):
        return _FOLDER.sub(".../", value)
    if isinstance(value, Mapping):
        return {key: without_folders(part) for key, part in value.items()}
    return [without_folders(part) for part in value] if isinstance(value, list) else value


def _secret_values() -> list[str]:
    from huggingface_hub import get_token  # also finds a token saved by `hf auth login`

    found = [os.environ.get(name, "") for name in _SECRET_VARIABLES] + [get_token() or ""]
    return [value for value in found if len(value) >= 8]


def command_line() -> str:
    """The command that runs now, as a user would type it, without tokens."""
    return without_secrets(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]))
