"""The line over the verdicts of a run: a smoke test, or evidence with its command and its cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sae_lens_bipolar.files.atomic import read_json, write_json
from sae_lens_bipolar.files.fields import load_yaml
from sae_lens_bipolar.files.names import CONFIG_FILE, ENVIRONMENT_FILE

MEDIUM = "medium"  # scale, and the folder of its results
TRAIN_SECONDS = "results/train_seconds.json"
CELL_SECONDS = "results/cell_seconds.json"  # of recipes that train nothing
RECIPES = Path(__file__).parents[1]
SMOKE = (
    "*Smoke test (scale `small`): short runs, which show that the recipe works. Evidence is the "
    "scale `medium`.*\n\n"
)


def write_train_seconds(output: Path, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write the seconds that the training steps of each SAE took, from the rows of each cell."""
    seconds = {
        cell: {row["name"]: round(row["train_seconds"], 1) for row in rows}
        for cell, rows in found.items()
    }
    write_json(output / TRAIN_SECONDS, seconds)


def note(name: str, run: Path) -> str:
    """The line over the verdicts of the run directory that a page calls `name`; may be empty."""
    config = run / CONFIG_FILE
    # The first results do not say their scale.
    scale = load_yaml(config).get("scale", "small") if config.is_file() else None
    if scale == MEDIUM:
        return f"*{'; '.join([f'Evidence (scale `{MEDIUM}`)', *_cost(run)])}.*\n\n"
    recipe = RECIPES / f"{name}.yaml"
    has_medium = recipe.is_file() and MEDIUM in yaml.safe_load(recipe.read_text(encoding="utf-8"))
    return SMOKE if has_medium and scale == "small" else ""


def _cost(run: Path) -> list[str]:
    """The command, the machine, and the hours it took, as far as the run says."""
    said = []
    if (run / ENVIRONMENT_FILE).is_file():
        found = read_json(run / ENVIRONMENT_FILE)
        said.append(f"`{found['command']}`")
        device = found["processor"] if found["device"] == "cpu" else found["device"]
        said.append(f"{device}, {found['cores']} cores")
    if (run / TRAIN_SECONDS).is_file():
        seconds = sum(sum(cell.values()) for cell in read_json(run / TRAIN_SECONDS).values())
        said.append(f"training steps took {seconds / 3600:.1f} hours")
    if (run / CELL_SECONDS).is_file():
        seconds = sum(read_json(run / CELL_SECONDS).values())
        said.append(f"it took {seconds / 3600:.1f} hours")
    return said
