"""A repository card's YAML front matter, judged as the Hub judges it (a cut of its rules)."""

import re
from collections.abc import Collection
from typing import Any

import yaml

# The identifiers of the Hub's licence list that may occur here; "other" goes with license_name.
_LISTED = """
    apache-2.0 mit openrail bigscience-openrail-m bsd bsd-2-clause bsd-3-clause cc cc0-1.0 cc-by-2.0
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-4.0 cc-by-nc-sa-4.0 cc-by-nc-nd-4.0 gemma
    gpl gpl-2.0 gpl-3.0 agpl-3.0 lgpl-3.0 llama2 llama3 llama3.1 llama3.2 llama3.3 mpl-2.0 odc-by
    pddl unlicense wtfpl isc unknown other
"""
LICENCES = frozenset(_LISTED.split())
_REPO_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}|[\w.-]{1,96}")


def front_matter(text: str) -> dict[str, Any] | None:
    """The mapping between the leading `---` lines; None without one; raises yaml.YAMLError."""
    found = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    if found is None:
        return None
    content = yaml.safe_load(found.group(1))
    return content if isinstance(content, dict) else None


def metadata_problems(
    text: str, repo_type: str, licences: Collection[str] = LICENCES
) -> tuple[list[str], list[str]]:
    """Errors (the Hub refuses the card) and warnings (it takes it) in a README's metadata."""
    try:
        card = front_matter(text)
    except yaml.YAMLError as error:
        return [f"YAML: {error}"], []
    if card is None:
        return [], ["empty or missing yaml metadata in repo card"]
    errors: list[str] = []
    licence = card.get("license")
    for one in licence if isinstance(licence, list) else [licence] if licence is not None else []:
        if one not in licences:
            errors.append(f'"license" must be one of [{", ".join(sorted(licences))}]')
    for name in ("tags", "datasets", "base_model", "metrics", "language"):
        value = card.get(name)
        values = value if isinstance(value, list) else [value] if value is not None else []
        if name == "tags" and isinstance(value, str):
            errors.append('"tags" must be an array')
        if not all(isinstance(one, str) for one in values):
            errors.append(f'"{name}" must be a string or an array of strings')
        elif name in ("datasets", "base_model") and repo_type == "model":
            bad = [one for one in values if not _REPO_ID.fullmatch(one)]
            errors += [f'"{name}" with value "{one}" is not valid: not a repository' for one in bad]
    for name in ("library_name", "pipeline_tag", "license_name", "license_link"):
        if name in card and not isinstance(card[name], str):
            errors.append(f'"{name}" must be a string')
    return errors, []
