"""A run or a checkpoint as the folder that goes to the Hub.

README.md                      the model card
<id>/                          cfg.json, sae_weights.safetensors, sparsity, runner_cfg.json
<id>-split/                    the polarity split, as a stock SAELens SAE, where it is another SAE
config.yaml, environment.json  the run's own; below the prefix where `id` gives one
metrics.jsonl, results/        of the SAEs that are published, and only what names their weights:
                               the log of their training, their rows of summary.json, their censuses
                               and a picture of these
results/saebench.csv, .md      what `bench` measured, from folders of the run that it wrote, and
results/saebench/FOLDER/       with which configuration and command
explorer/                      if asked for: the run's explorer, with excerpts of its text

Nothing else of a run leaves the machine: no other excerpts of its text, and no file of the user's.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
)
from sae_lens.saes.sae import SAE
from tqdm.auto import tqdm

from sae_lens_bipolar.architectures.registry import PREFIX, published_name
from sae_lens_bipolar.errors import CheckpointError, ConfigError, HubError
from sae_lens_bipolar.files.atomic import read_json, write_json
from sae_lens_bipolar.files.fields import an_object, load_json
from sae_lens_bipolar.files.names import (
    CHECKPOINTS,
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    RESULTS,
)
from sae_lens_bipolar.files.paths import refuse_links
from sae_lens_bipolar.files.redaction import without_folders
from sae_lens_bipolar.hub.base_models import BaseModel, base_model
from sae_lens_bipolar.hub.benchmarks import Bench, gather
from sae_lens_bipolar.hub.copies import (
    copy_mapping,
    copy_sparsity,
    copy_weights,
    refuse_secrets,
    write_mapping,
)
from sae_lens_bipolar.hub.illustrations import ShownLatent, draw_polarity, shown_latents
from sae_lens_bipolar.hub.measurements import Figures, figures_of, stage_figures
from sae_lens_bipolar.inputs.trained_on import loadable_name, require_fits
from sae_lens_bipolar.polarity.splitting import split
from sae_lens_bipolar.runs.checkpoints import load_sae
from sae_lens_bipolar.runs.sources import Source
from sae_lens_bipolar.saebench.results import write_rows

SPLIT = "-split"
BENCHES = f"{RESULTS}/saebench"  # a folder for each that `bench` wrote
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]*(/[A-Za-z0-9][A-Za-z0-9._=-]*)*")
_LONGEST_ID = 200  # characters
_PROBES = 64
# With these, training scales or whitens activations until it ends and folds that into the weights.
_UNFOLDED = ("expected_average_only_in", "covariance_whitening")


@dataclass(frozen=True)
class StagedSAE:
    """One SAE of the folder."""

    id: str  # its folder
    split_id: str | None  # the folder of its polarity split; None where it has or needs none
    split_architecture: str | None  # of SAELens
    needs_package: bool  # whether SAELens alone cannot load the native form
    defined_in: str  # the package that holds its class
    has_sparsity: bool  # whether its firing frequencies are there
    model: BaseModel  # the language model it reads
    config: dict[str, Any]  # its cfg.json, as published
    metadata: dict[str, Any]  # of that
    runner: dict[str, Any]  # its runner_cfg.json, empty if there was none

    @property
    def architecture(self) -> str:
        """As this package calls it, without the prefix of published weights."""
        return str(self.config["architecture"]).removeprefix(PREFIX)


@dataclass(frozen=True)
class Staged:
    """What was staged: all that the card tells."""

    folder: Path
    prefix: str  # folder of the run's own files within it; "" for the top
    saes: list[StagedSAE]
    config: dict[str, Any]  # config.yaml of the run, as published; empty without a run
    environment: dict[str, Any]  # its environment.json
    rows: list[dict[str, Any]]  # its figures of these weights, as in summary.json, `name` the id
    unrecorded: list[str]  # ids whose figures are left out: of which weights is not recorded
    benches: list[Bench]  # SAEBench's numbers
    latents: list[ShownLatent]  # a few that the run described
    picture: str | None  # path of a PNG of the sides of all latents
    explorer: str | None = None  # its page below the folder, where it goes along


def published_ids(names: Sequence[str], id: str | None) -> list[str]:
    """The folder of each SAE in the repository: `id` for one, `id/NAME` for several, else NAME.

    Raises:
        ConfigError: for an id the Hub or SAELens could not take, or two SAEs of one id.
    """
    ids = [re.sub(r"[^A-Za-z0-9._=/-]+", "-", name).strip("-./") for name in names]
    if id is not None:
        ids = [f"{id}/{readable}" if len(names) > 1 else id for readable in ids]
    for name, found in zip(names, ids, strict=True):
        if (
            not _ID.fullmatch(found)
            or len(found) > _LONGEST_ID
            or found.split("/")[0] in (RESULTS, "README.md")
        ):
            raise ConfigError(
                f"id={found!r} of SAE {name!r} is not allowed: letters, digits, . _ = - and / "
                f"between parts that begin with a letter or digit, at most {_LONGEST_ID} "
                f"characters, and not {RESULTS!r}; give --id"
            )
    taken = [folder for found in ids for folder in (found, found + SPLIT)]
    if twice := sorted({folder for folder in taken if taken.count(folder) > 1}):
        raise ConfigError(f"id={twice[0]!r} stands for more than one SAE: rename one of them")
    return ids


def stage(saes: Mapping[str, Source], folder: Path, with_split: bool) -> Staged:
    """Write the files of every SAE, and of the run, below `folder` (all but the card).

    Args:
        saes: published id -> SAE; all of one run, or one.
        folder: an empty directory.
        with_split: whether to add the polarity split of each signed SAE.

    Raises:
        CheckpointError: if a checkpoint is damaged, holds NaN or infinite weights, or was saved in
            the middle of a training that scales activations.
        DataError: if a file of the run is damaged, or a measurement is of other weights; names it.
        ModelError: if an SAE cannot belong to the model that its metadata name.
        UnsafePathError: if the run holds a link that leaves it, a pipe, a socket or a device.
        HubError: if a file would publish an access token, or a split is not equal.
    """
    first, source = next(iter(saes.items()))
    run_dir = source.run_dir
    root = run_dir or _directory(source)
    refuse_links(root)
    staged = [
        _stage_sae(source, id, folder, with_split)
        for id, source in tqdm(saes.items(), desc="preparing SAEs", unit="SAE")
    ]
    prefix = first.rpartition("/")[0] if _one_prefix(saes) else ""
    target = folder / prefix
    config, environment, figures, rows = {}, {}, Figures({}, []), []
    latents: list[ShownLatent] = []
    if run_dir is not None:
        config = copy_mapping(run_dir / CONFIG_FILE, target / CONFIG_FILE)
        environment = copy_mapping(run_dir / ENVIRONMENT_FILE, target / ENVIRONMENT_FILE)
        figures = figures_of(run_dir, saes)
        rows = stage_figures(run_dir, figures, folder, prefix)
        latents = shown_latents(run_dir, figures.rows)
    benches = gather(root, saes)
    for bench in benches:
        for file in (CONFIG_FILE, ENVIRONMENT_FILE):
            copy_mapping(root / bench.folder / file, target / BENCHES / bench.folder / file)
    if benches:
        write_rows(target, [row for bench in benches for row in bench.rows])
    refuse_secrets(folder)
    picture = draw_polarity(folder, prefix, list(figures.rows))
    measured = rows, figures.unrecorded, benches, latents, picture
    return Staged(folder, prefix, staged, config, environment, *measured)


def _one_prefix(ids: Iterable[str]) -> bool:
    return len({id.split("/")[0] for id in ids}) == 1


def _directory(source: Source) -> Path:
    if source.path is None:
        raise CheckpointError(f"{source.origin} is published already, as one of SAELens's releases")
    return source.path


def _stage_sae(source: Source, id: str, folder: Path, with_split: bool) -> StagedSAE:
    path, target = _directory(source), folder / id
    local = an_object(load_json(path / SAE_CFG_FILENAME), str(path / SAE_CFG_FILENAME))
    _require_finished(path, local)
    sae = load_sae(path, dtype=None)
    target.mkdir(parents=True)
    config = {**local, "architecture": published_name(local["architecture"]), "device": "cpu"}
    config = write_mapping(target / SAE_CFG_FILENAME, config, path / SAE_CFG_FILENAME)
    copy_weights(path / SAE_WEIGHTS_FILENAME, target / SAE_WEIGHTS_FILENAME)
    sparsity = path / SPARSITY_FILENAME
    has_sparsity = copy_sparsity(sparsity, target / SPARSITY_FILENAME, sae.cfg.d_sae)
    runner = _runner_config(source)
    if runner:
        write_mapping(target / RUNNER_CFG_FILENAME, runner, path)
    twin = _stage_split(sae, folder / (id + SPLIT)) if with_split else None
    architecture = sae.cfg.architecture()
    metadata = local.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    require_fits(metadata, sae.cfg.d_in, id)
    return StagedSAE(
        id=id,
        split_id=None if twin is None else id + SPLIT,
        split_architecture=twin,
        needs_package=published_name(architecture) != architecture,
        defined_in=type(sae).__module__.partition(".")[0],
        has_sparsity=has_sparsity,
        model=_model_of(metadata),
        config=config,
        metadata=metadata,
        runner=runner,
    )


def _require_finished(path: Path, config: Mapping[str, Any]) -> None:
    setting, scaler = config.get("normalize_activations"), path / ACTIVATION_SCALER_CFG_FILENAME
    if scaler.exists() or setting in _UNFOLDED:
        sign = (
            f"{scaler.name} beside it" if scaler.exists() else f"normalize_activations={setting!r}"
        )
        raise CheckpointError(
            f"{path} was saved in the middle of a training ({sign}): its weights may be right only "
            "together with a scaling of activations, which the files on the Hub have no place for. "
            "Finish the training and publish its result, or save a finished form: "
            "load_sae(PATH).save_model(OTHER) folds the scaling in"
        )


def _model_of(metadata: Mapping[str, Any]) -> BaseModel:
    options = metadata.get("model_from_pretrained_kwargs")
    revision = options.get("revision") if isinstance(options, dict) else None
    return base_model(loadable_name(metadata) or "unknown", revision and str(revision))


def _runner_config(source: Source) -> dict[str, Any]:
    """SAELens's runner configuration of this SAE alone; of a run it lies beside the SAEs."""
    path, run_dir = _directory(source), source.run_dir
    folder = path if run_dir in (None, path) else run_dir / CHECKPOINTS
    file = folder / RUNNER_CFG_FILENAME
    if not file.is_file():
        return {}
    runner = an_object(load_json(file), str(file))
    for key in ("saes", "hook_names"):
        if isinstance(runner.get(key), dict):
            runner[key] = {name: v for name, v in runner[key].items() if name == source.run_name}
    return without_folders(runner)


def _stage_split(sae: SAE[Any], target: Path) -> str | None:
    """Save the polarity split of `sae` and return its architecture; None where it has none, or is
    its own.
    """
    try:
        twin = split(sae)
    except ConfigError:  # no affine encoder, so no stock twin; the card says so
        return None
    if twin is sae:
        return None
    ours, theirs = reconstruct(sae), reconstruct(twin)
    # Rounding may decide between two latents that compete for a last place, in a row or two.
    error = (ours - theirs).norm(dim=-1) / ours.norm(dim=-1).clamp(min=1e-9)
    if not error.median() <= 1e-4:
        raise HubError(
            f"the polarity split of {sae.cfg.architecture()} reconstructs other activations "
            f"(median relative difference {error.median():.1e}); please report this, and publish "
            "with --no-split"
        )
    twin.save_model(target)
    config = without_folders(read_json(target / SAE_CFG_FILENAME))
    write_json(target / SAE_CFG_FILENAME, {**config, "device": "cpu"})
    return twin.cfg.architecture()


@torch.no_grad()
def reconstruct(sae: SAE[Any]) -> torch.Tensor:
    """Reconstruction `[64, d_in]` of one fixed batch of standard normal activations."""
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(_PROBES, sae.cfg.d_in, generator=generator)
    was_reshaping = sae.hook_z_reshaping_mode
    if was_reshaping:
        sae.turn_off_forward_pass_hook_z_reshaping()
    found = sae(batch.to(sae.W_dec)).float()
    if was_reshaping:
        sae.turn_on_forward_pass_hook_z_reshaping()
    return found
