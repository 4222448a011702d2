"""What a card shows of the latents themselves: a picture of their sides, and a few in words.

Both come from what the run measured on the published weights, and hold nothing of its text: how
often a latent fires with each sign, and the tokens that each side makes likelier.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_lens_bipolar.files.atomic import atomic_path
from sae_lens_bipolar.files.digests import DIGEST
from sae_lens_bipolar.files.fields import an_object, load_json
from sae_lens_bipolar.files.names import CENSUS, LATENTS, RESULTS
from sae_lens_bipolar.files.paths import inside
from sae_lens_bipolar.hub.measurements import Row
from sae_lens_bipolar.reports import drawing, figures
from sae_lens_bipolar.reports.run_files import read_census, read_latents
from sae_lens_bipolar.reports.rundir import Run

PICTURE = f"{RESULTS}/polarity.png"
_PANELS = 8  # SAEs in the picture at most
_LATENTS = 12  # lines of the table at most, evenly over the SAEs
_TOKENS = 5  # of each side
_DIGITS = 6  # after the point of a percentage at most


@dataclass(frozen=True)
class ShownLatent:
    """One line of the card's table of latents."""

    id: str  # of its SAE
    index: int
    positive_rate: float  # share of tokens on which it is above 0
    negative_rate: float  # and below
    raises: list[str]  # tokens that its positive side makes likelier, strongest first
    lowers: list[str]  # and its negative side; empty where that never fires


def shown_latents(run_dir: Path, rows: Mapping[str, Row]) -> list[ShownLatent]:
    """Some of the latents that the run described, in the order of its files.

    Args:
        run_dir: the run.
        rows: published id -> row of the summary; descriptions of other weights are passed over.

    Raises:
        DataError: if a file of descriptions is damaged.
        UnsafePathError: if one is a link that leaves the run.
    """
    found: list[ShownLatent] = []
    each = max(1, _LATENTS // max(len(rows), 1))
    for id, row in rows.items():
        file = inside(run_dir, f"{LATENTS}/{row['name']}.json")
        if file.is_file() and an_object(load_json(file), str(file)).get(DIGEST) == row[DIGEST]:
            found += [_shown(id, latent) for latent in read_latents(file)["latents"][:each]]
    return found[:_LATENTS]


def _shown(id: str, latent: Mapping[str, Any]) -> ShownLatent:
    index, positive, negative = (latent[k] for k in ("index", "positive_rate", "negative_rate"))
    raises, lowers = (
        [token for token, _ in latent[key][:_TOKENS]] if rate > 0 else []
        for key, rate in (("raises", positive), ("lowers", negative))
    )
    return ShownLatent(id, index, positive, negative, raises, lowers)


def draw_polarity(folder: Path, prefix: str, ids: list[str]) -> str | None:
    """Draw the sides of all latents from the staged censuses; the picture's path in `folder`.

    None where no census was staged, or matplotlib is not installed.
    """
    census = {}
    for id in ids[:_PANELS]:
        short = id.removeprefix(prefix).lstrip("/")
        file = folder / prefix / CENSUS / f"{short}.json"
        if file.is_file():
            census[id] = read_census(file)
    run = Run(folder, {}, {}, [], [], census, {}, (), ())
    try:
        plot = figures.polarity(run)
    except ImportError:
        return None
    if plot is None:
        return None
    target = folder / prefix / PICTURE
    with atomic_path(target) as scratch, drawing.style():
        plot.figure.savefig(scratch, dpi=figures.DPI, format="png")
    return target.relative_to(folder).as_posix()


def percent(rate: float) -> str:
    """A firing rate as a card shows it, to two digits."""
    if not rate:
        return "never"
    digits = 1 - math.floor(math.log10(100 * rate))
    return f"{100 * rate:.{min(max(digits, 0), _DIGITS)}f} %"
