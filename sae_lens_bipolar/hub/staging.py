"""A run or a checkpoint as the folder that goes to the Hub.

README.md                      the model card
<id>/                          cfg.json, sae_weights.safetensors, sparsity, runner_cfg.json
<id>-split/                    the polarity split, as a stock SAELens SAE, where it is another SAE
config.yaml, environment.json, metrics.jsonl, results/    the run's own files, without excerpts of
                               its text; below the prefix where `id` gives one
results/saebench.csv, .md      what `bench` measured, from folders of the run that it wrote, and
results/saebench/FOLDER/       with which configuration and command
"""

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from sae_lens.constants import (
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
)
from sae_lens.saes.sae import SAE
from tqdm.auto import tqdm

from sae_lens_bipolar.architectures.registry import PREFIX, published_name
from sae_lens_bipolar.errors import CheckpointError, ConfigError, DataError, HubError
from sae_lens_bipolar.files.atomic import read_json, write_json, write_text
from sae_lens_bipolar.files.fields import load_json, read_file
from sae_lens_bipolar.files.names import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    METRICS_FILE,
)
from sae_lens_bipolar.files.redaction import find_secret, without_folders
from sae_lens_bipolar.hub.base_models import BaseModel, base_model
from sae_lens_bipolar.hub.benchmarks import gather
from sae_lens_bipolar.polarity.splitting import split
from sae_lens_bipolar.runs.checkpoints import load_sae
from sae_lens_bipolar.runs.sources import Source
from sae_lens_bipolar.saebench.results import CSV_FILE, write_rows

SPLIT = "-split"
RESULTS = "results"
BENCHES = f"{RESULTS}/saebench"  # a folder for each that `bench` wrote
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]*(/[A-Za-z0-9][A-Za-z0-9._=-]*)*")
_TEXT = (".json", ".jsonl", ".yaml", ".csv", ".md")
_PROBES = 64


@dataclass(frozen=True)
class StagedSAE:
    """One SAE of the folder."""

    id: str  # its folder
    split_id: str | None  # the folder of its polarity split; None where it has or needs none
    needs_package: bool  # whether SAELens alone cannot load the native form
    name: str  # in the run's results
    model: BaseModel  # the language model it reads
    config: dict[str, Any]  # its cfg.json, as published
    runner: dict[str, Any]  # its runner_cfg.json, empty if there was none

    @property
    def architecture(self) -> str:
        """As this package calls it, without the prefix of published weights."""
        return str(self.config["architecture"]).removeprefix(PREFIX)


def published_ids(names: Sequence[str], id: str | None) -> list[str]:
    """The folder of each SAE in the repository: `id` for one, `id/NAME` for several, else NAME.

    Raises:
        ConfigError: for an id the Hub or SAELens could not take, or two SAEs of one id.
    """
    ids = [re.sub(r"[^A-Za-z0-9._=/-]+", "-", name).strip("-./") for name in names]
    if id is not None:
        ids = [f"{id}/{readable}" if len(names) > 1 else id for readable in ids]
    for name, found in zip(names, ids, strict=True):
        if not _ID.fullmatch(found) or found.split("/")[0] in (RESULTS, "README.md"):
            raise ConfigError(
                f"id={found!r} of SAE {name!r} is not allowed: letters, digits, . _ = - and / "
                f"between parts that begin with a letter or digit, and not {RESULTS!r}; give --id"
            )
    taken = [folder for found in ids for folder in (found, found + SPLIT)]
    if twice := sorted({folder for folder in taken if taken.count(folder) > 1}):
        raise ConfigError(f"id={twice[0]!r} stands for more than one SAE: rename one of them")
    return ids


def stage(saes: Mapping[str, Source], folder: Path, with_split: bool) -> list[StagedSAE]:
    """Write the files of every SAE, and of the run, below `folder` (all but the card).

    Args:
        saes: published id -> SAE; all of one run, or one.
        folder: an empty directory.
        with_split: whether to add the polarity split of each signed SAE.

    Raises:
        CheckpointError: if a checkpoint is damaged, or holds NaN or infinite weights.
        DataError: if a file of the run is damaged, or a benchmark's is of other weights; names it.
        HubError: if a file would publish an access token, or a split is not equal.
    """
    staged = [
        _stage_sae(source, id, folder, with_split)
        for id, source in tqdm(saes.items(), desc="preparing SAEs", unit="SAE")
    ]
    first, source = next(iter(saes.items()))
    target = folder / (first.rsplit("/", 1)[0] if "/" in first and _one_prefix(saes) else "")
    if source.run_dir is not None:
        _stage_results(source.run_dir, target)
    _stage_benches(source.run_dir or _directory(source), saes, target)
    _refuse_secrets(folder)
    return staged


def _one_prefix(ids: Iterable[str]) -> bool:
    return len({id.split("/")[0] for id in ids}) == 1


def _directory(source: Source) -> Path:
    if source.path is None:
        raise CheckpointError(f"{source.origin} is published already, as one of SAELens's releases")
    return source.path


def _stage_sae(source: Source, id: str, folder: Path, with_split: bool) -> StagedSAE:
    name, path = source.run_name, _directory(source)
    sae = load_sae(path, dtype=None)
    for tensor_name, tensor in sae.state_dict().items():
        # An infinite threshold is a side that is switched off; nothing else is ever infinite.
        finite = not tensor.isnan().any() if "threshold" in tensor_name else tensor.isfinite().all()
        if not finite:
            raise CheckpointError(f"{tensor_name} of {path} holds NaN or infinite values")
    target = folder / id
    target.mkdir(parents=True)
    local = read_json(path / SAE_CFG_FILENAME)
    config: dict[str, Any] = without_folders(local)
    config["architecture"] = published_name(config["architecture"])
    config["device"] = "cpu"
    write_json(target / SAE_CFG_FILENAME, config)
    for file in (SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME):
        if (path / file).is_file():
            shutil.copyfile(path / file, target / file)
    runner = _runner_config(name, path)
    if runner:
        write_json(target / RUNNER_CFG_FILENAME, runner)
    split_id = id + SPLIT if with_split and _stage_split(sae, folder / (id + SPLIT)) else None
    architecture = sae.cfg.architecture()
    needs_package = published_name(architecture) != architecture
    return StagedSAE(id, split_id, needs_package, name, _model_of(local), config, runner)


def _model_of(config: dict[str, Any]) -> BaseModel:
    metadata = config.get("metadata") or {}
    options = metadata.get("model_from_pretrained_kwargs") or {}
    return base_model(metadata.get("model_name") or "unknown", options.get("revision"))


def _runner_config(name: str, path: Path) -> dict[str, Any]:
    """SAELens's runner configuration, of this SAE alone and without this machine's folders."""
    for file in (path / RUNNER_CFG_FILENAME, path.parent / RUNNER_CFG_FILENAME):
        if file.is_file():
            runner: dict[str, Any] = without_folders(load_json(file))
            for key in ("saes", "hook_names"):
                if isinstance(runner.get(key), dict):
                    runner[key] = {sae: v for sae, v in runner[key].items() if sae == name}
            return runner
    return {}


def _stage_split(sae: SAE[Any], target: Path) -> bool:
    """Save the polarity split of `sae`; False where it has none, or is its own."""
    try:
        twin = split(sae)
    except ConfigError:  # no affine encoder, so no stock twin; the card says so
        return False
    if twin is sae:
        return False
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
    return True


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


def _stage_results(run_dir: Path, folder: Path) -> None:
    for name in (ENVIRONMENT_FILE, CONFIG_FILE, METRICS_FILE):
        if (run_dir / name).is_file():
            _copy_text(run_dir / name, folder / name)
    for file in sorted((run_dir / RESULTS).rglob("*")):
        inside = file.relative_to(run_dir)
        # Latents come with excerpts of the corpus, which is not ours to pass on. Benchmarks are
        # gathered from what `bench` wrote, which says of which weights they are.
        is_ours = "latents" not in inside.parts and inside != CSV_FILE
        if file.suffix in (".json", ".csv") and is_ours:
            _copy_text(file, folder / inside)


def _stage_benches(run_dir: Path, saes: Mapping[str, Source], folder: Path) -> None:
    found = gather(run_dir, saes)
    for name in found:
        for file in (CONFIG_FILE, ENVIRONMENT_FILE):
            _copy_text(run_dir / name / file, folder / BENCHES / name / file)
    if found:
        write_rows(folder, [row for rows in found.values() for row in rows])


def _copy_text(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".json":
        write_json(target, without_folders(load_json(file)))
    elif file.suffix == ".yaml":
        try:
            value = yaml.safe_load(read_file(file))
        except yaml.YAMLError as error:
            raise DataError(f"{file}: not YAML: {error}") from error
        write_text(target, yaml.safe_dump(without_folders(value), sort_keys=False))
    else:
        shutil.copyfile(file, target)


def _refuse_secrets(folder: Path) -> None:
    for file in sorted(folder.rglob("*")):
        found = file.suffix in _TEXT and find_secret(file.read_text(encoding="utf-8"))
        if found:
            raise HubError(
                f"{file.relative_to(folder)} would publish {found}; remove it from the run's own "
                "file, revoke it, and publish again"
            )


def read_optional(file: Path) -> Any:
    """A JSON or YAML file of the folder; an empty mapping if it is not there."""
    if not file.is_file():
        return {}
    text = file.read_text(encoding="utf-8")
    return (json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)) or {}
