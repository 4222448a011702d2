"""Which latents of trained SAEs carry two signs, and how well calibrated each side is.

It reads any SAEs: those of run directories (`--run`, with `--names` to choose by name; give it once
per seed), of a checkpoint directory, or on the Hub (`--sae NAME=WHERE`). All SAEs of one hook are
one cell.

    results/census.json       one row per SAE: bipolar share, its concentration, calibration slopes
    results/parameters.json   parameters by width and kind, and the rate of pairs that breaks even
    results/claims.json       the paper's claims and their verdicts, from the two files above
    report/                   concentration curves, slope distributions, break-even, with their data

    python -m recipes.sagsae.census --run RUN_DIRECTORY --names '*SA-GSAE_H*' --output runs/census
    python -m recipes.sagsae.census --sae mine=RELEASE:SAE_ID --output runs/census_hub
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
import yaml
from sae_lens import SAE

from recipes.common.arguments import parse, recipe_command
from recipes.common.cells import Cell, run_recipe, seconds_of
from recipes.common.evidence import CELL_SECONDS
from recipes.common.scales import Resources, build, read_scale
from recipes.common.time_limit import limited
from recipes.sagsae import parameters
from recipes.sagsae.census_verdicts import CENSUS, PARAMETERS, report, summarise
from sae_lens_bipolar.errors import ConfigError, require_number
from sae_lens_bipolar.evaluation.placement import activations
from sae_lens_bipolar.evaluation.reconstruction import sink_threshold
from sae_lens_bipolar.files.atomic import read_json, write_json
from sae_lens_bipolar.files.names import CHECKPOINTS, CONFIG_FILE
from sae_lens_bipolar.inputs.activations import CachedActivations
from sae_lens_bipolar.inputs.corpora import load_documents, split_tokens
from sae_lens_bipolar.inputs.models import load_model, tokenizer_of
from sae_lens_bipolar.polarity.counting import CensusCounter
from sae_lens_bipolar.reports import drawing
from sae_lens_bipolar.runs.checkpoints import load_sae

CONFIG = Path(__file__).parent / "census.yaml"
RESULT = "result.json"


@dataclass(frozen=True, kw_only=True)
class CensusConfig(Resources):
    """One scale of `recipes/sagsae/census.yaml`; with `--run`, text and split are the run's.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    model: str  # bundled model, local directory or Hub name
    corpus: str  # text, of which the held-out documents are read
    context_size: int  # tokens in a sequence
    sequences: int  # held-out sequences
    seed: int  # of the held-out split
    min_count: int  # tokens that a side of a latent must fire on to get a slope
    d_ins: tuple[int, ...]  # widths of the activations in the parameter accounting
    widths: tuple[int, ...]  # d_sae in the parameter accounting
    device: str = "cpu"  # of the language model and the SAEs

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("context_size", "sequences", "min_count"):
            require_number(getattr(self, name), name, 1)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = recipe_command("sagsae.census", __doc__, CONFIG)
    parser.add_argument(
        "--run", type=Path, action="append", default=[], help="run whose checkpoints are counted"
    )
    parser.add_argument("--names", default="*", help="names of the run's SAEs, as a shell pattern")
    parser.add_argument(
        "--sae", action="append", default=[], help="NAME=checkpoint directory or RELEASE:SAE_ID"
    )
    options = parse(parser, arguments)
    drawing.require_matplotlib()  # now rather than after the counting
    settings = read_scale(options.config, options.scale)
    sources = sources_of(options.sae)
    several = len(options.run) > 1
    for run_dir in options.run:
        found = saes_of_run(run_dir, options.names)
        text = text_of_run(run_dir)
        of_seed = f"@seed{text['seed']}" if several else ""
        sources |= {name + of_seed: path for name, path in found.items()}
        settings |= text | {"seed": text["split_seed"]}
    settings.pop("split_seed", None)
    if not sources:
        raise ConfigError("there are no SAEs to count: give --run with fitting --names, or --sae")
    config = build(CensusConfig, settings, "a scale")
    cells = make_cells(config, sources)
    with limited(options.minutes):
        done = run_recipe(
            options, {**asdict(config), "saes": sources}, cells, count_hook, config, RESULT
        )
    if done:
        files = [options.output / "cells" / cell.name / RESULT for cell in cells]
        rows = [summarise(row) for file in files for row in read_json(file)]
        write_json(options.output / CENSUS, rows)
        write_json(options.output / CELL_SECONDS, seconds_of(options.output, cells))
        write_json(options.output / PARAMETERS, parameters.table(config.d_ins, config.widths))
        print(report(options.output))


def sources_of(given: Sequence[str]) -> dict[str, str]:
    """Where each SAE of `--sae NAME=WHERE` is, by name.

    Raises:
        ConfigError: if one has another form.
    """
    sources = {}
    for one in given:
        name, equals, where = one.partition("=")
        if not (name and equals and where):
            raise ConfigError(f"--sae {one!r} is not allowed: give NAME=WHERE")
        sources[name] = where
    return sources


def saes_of_run(run_dir: Path, names: str) -> dict[str, str]:
    """Checkpoint directory of each SAE of a run whose name matches a shell pattern.

    Raises:
        ConfigError: if the run has no checkpoints.
    """
    if not (run_dir / CHECKPOINTS).is_dir():
        raise ConfigError(f"--run {run_dir} is not a finished run: it has no {CHECKPOINTS}/")
    folders = sorted(path for path in (run_dir / CHECKPOINTS).iterdir() if path.is_dir())
    return {path.name: str(path) for path in folders if fnmatch(path.name, names)}


def text_of_run(run_dir: Path) -> dict[str, Any]:
    """Model, text and seed of a run, and the seed of its split: its held-out documents are read."""
    resolved = yaml.safe_load((run_dir / CONFIG_FILE).read_text(encoding="utf-8"))
    found = {key: resolved[key] for key in ("model", "corpus", "context_size", "seed")}
    cache = resolved.get("activations")
    split = resolved["seed"] if cache is None else CachedActivations(cache).manifest.seed
    return found | {"split_seed": split}


def make_cells(config: CensusConfig, sources: Mapping[str, str]) -> list[Cell]:
    """One cell per hook."""
    hooks: dict[str, dict[str, str]] = {}
    for name, where in sources.items():
        hooks.setdefault(str(load(where).cfg.metadata.hook_name), {})[name] = where
    text = {key: getattr(config, key) for key in ("model", "corpus", "context_size", "seed")}
    text |= {key: getattr(config, key) for key in ("sequences", "min_count", "device")}
    return [Cell(hook, {"hook_name": hook, "saes": saes, **text}) for hook, saes in hooks.items()]


def load(where: str, device: str = "cpu") -> SAE[Any]:
    """An SAE from a checkpoint directory, or `RELEASE:SAE_ID` from the Hub."""
    if Path(where).is_dir() or ":" not in where:
        return load_sae(where, device=device)
    release, sae_id = where.rsplit(":", 1)
    return SAE.from_pretrained(release, sae_id, device=device)


@torch.no_grad()
def count_hook(params: Mapping[str, Any], directory: Path) -> None:
    """Census and calibration of all SAEs of one hook, over held-out tokens without sinks."""
    model = load_model(params["model"], device=params["device"])
    limit = params["sequences"] * params["context_size"]
    tokens = split_tokens(
        load_documents(params["corpus"]),
        tokenizer_of(model),
        context_size=params["context_size"],
        max_train_tokens=params["context_size"],  # only the other side is read
        max_held_out_tokens=limit,
        seed=params["seed"],
    )
    rows = torch.as_tensor(tokens.held_out[: params["sequences"]]["input_ids"])
    saes = {name: load(where, params["device"]) for name, where in params["saes"].items()}
    counters = {name: CensusCounter(sae.cfg.d_sae) for name, sae in saes.items()}
    slopes = {name: Calibration(sae) for name, sae in saes.items()}
    threshold = None
    for batch in rows.split(8):
        x = activations(model, batch, params["hook_name"]).flatten(2).flatten(0, 1)
        threshold = sink_threshold(x) if threshold is None else threshold
        x = x[x.norm(dim=-1) <= threshold].float()
        for name, sae in saes.items():
            z = sae.encode(x)
            counters[name].add(z)
            slopes[name].add(x, z)
    write_json(
        directory / RESULT,
        [
            {
                "name": name,
                "architecture": sae.cfg.architecture(),
                "hook_name": params["hook_name"],
                "model": Path(params["model"]).name,
                "d_in": sae.cfg.d_in,
                "d_sae": sae.cfg.d_sae,
                "seed": seed_of(name, params["seed"]),
                "census": counters[name].result().to_dict(),
                "slopes": slopes[name].result(params["min_count"]),
            }
            for name, sae in saes.items()
        ],
    )


def seed_of(name: str, default: int) -> int:
    """The seed of an SAE, which is in its name where several runs are counted."""
    _, at, seed = name.partition("@seed")
    return int(seed) if at else default


class Calibration:
    """Slope of the best coefficient of a latent's direction on the latent, per side.

    With the other latents as they are, the coefficient of `d_i = W_dec_i` that fits a token best is
    `a_i = z_i + <x - xhat, d_i> / |d_i|^2`. The slope of `a_i` on `z_i` through the origin,

        slope = sum z_i a_i / sum z_i^2     over the tokens on which that side fires,

    is 1 for a calibrated side and above 1 for a shrunk one (as after an L1 penalty).

    Raises:
        ConfigError: if the SAE normalises activations at run time: `z` and `d_i` would not be in
            the space of `x`.
    """

    def __init__(self, sae: SAE[Any]) -> None:
        if sae.cfg.normalize_activations not in ("none", "expected_average_only_in"):
            raise ConfigError(
                f"normalize_activations={sae.cfg.normalize_activations!r} is not allowed in a "
                "calibration: fold it into the weights first"
            )
        self.sae = sae
        self.directions = sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True).square()
        shape = (2, sae.cfg.d_sae)
        self.counts = torch.zeros(shape, dtype=torch.float64)
        self.squares, self.products = self.counts.clone(), self.counts.clone()

    def add(self, x: torch.Tensor, z: torch.Tensor) -> None:
        """Take in activations `[n, d_in]` and their latents `[n, d_sae]`."""
        z = z.to_dense() if z.is_sparse else z
        best = z + (x - self.sae.decode(z)) @ self.directions.T
        for side, fires in enumerate((z > 0, z < 0)):
            self.counts[side] += fires.sum(0).cpu()
            self.squares[side] += (z.square() * fires).sum(0).double().cpu()
            self.products[side] += (z * best * fires).sum(0).double().cpu()

    def result(self, min_count: int) -> dict[str, list[float]]:
        """Slopes of the sides that fired often enough, by side, in ascending order."""
        enough = self.counts >= min_count
        slopes = self.products / self.squares
        return {
            side: slopes[i][enough[i]].sort().values.tolist()
            for i, side in enumerate(("positive", "negative"))
        }


if __name__ == "__main__":
    main()
