"""The HTML page of a run: index.html with its figures and tables, from the run's files alone."""

import importlib.metadata
import shlex
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import yaml

from sae_lens_bipolar.errors import shown
from sae_lens_bipolar.files.atomic import (
    atomic_path,
    explaining_write_errors,
    remove_scratch_of,
)
from sae_lens_bipolar.files.locks import locked
from sae_lens_bipolar.files.names import EXPLORER, REPORT
from sae_lens_bipolar.files.outputs import require_replaceable
from sae_lens_bipolar.reports import drawing, excerpts, figures, tables
from sae_lens_bipolar.reports.rundir import Run, find_setting, read_run

WANTED = 10  # two-sided latents wanted per SAE; the page says so if there are fewer
CONTEXTS = 5  # shown at once per side; the rest is folded


def render(run_dir: str | Path) -> Path:
    """Write `<run_dir>/report/` (index.html, figures/, tables/) and return the path of the page.

    Reads only the run's files: no model, no network. The folder is replaced as a whole, so it is
    never half old and half new. The same files give the same bytes.

    Raises:
        DataError: for a directory without results or a malformed file; names file and key.
        UnsafePathError: if a file of the run is a link that leaves it, or `report` is not ours.
        ConfigError: if the directory cannot be written to.
        DiskFullError: if the disk is full; the previous report stays.
        ImportError: if matplotlib is not installed.
    """
    drawing.require_matplotlib()
    run = read_run(run_dir)
    plots = [plot for draw in figures.DRAWINGS if (plot := draw(run)) is not None]
    html = page_html(run, plots)
    report = Path(run_dir) / REPORT
    with explaining_write_errors(report), locked(Path(run_dir) / f".{REPORT}.lock"):
        if not is_report(report):
            require_replaceable(report)
        remove_scratch_of(report)
        with atomic_path(report) as scratch:
            for plot in plots:
                figures.save(plot, scratch / "figures")
            (scratch / "tables").mkdir(parents=True)
            if run.summary:
                for write in (tables.csv, tables.markdown, tables.latex):
                    suffix = {"csv": "csv", "markdown": "md", "latex": "tex"}[write.__name__]
                    file = scratch / "tables" / f"summary.{suffix}"
                    file.write_text(write(run.summary), encoding="utf-8")
            (scratch / "index.html").write_bytes(html.encode("utf-8", errors="replace"))
    return report / "index.html"


def is_report(folder: Path) -> bool:
    """Whether `folder` holds what `render` writes and nothing else: one of ours."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return {"index.html", "tables"} <= names <= {"index.html", "tables", "figures"}


def page_html(run: Run, plots: Sequence[figures.Plot]) -> str:
    """The page as text; the figures are referred to as `figures/<name>.png`."""
    html = (
        _templates()
        .get_template("index.html.j2")
        .render(
            run=run,
            facts=_facts(run),
            findings=_findings(run.summary),
            headline=_table(run.summary, tables.headline(run.summary)),
            with_sinks=_table([r for r in run.summary if r.get("with_sinks")], tables.WITH_SINKS),
            plots={plot.name: plot for plot in plots},
            error_name=_error_name(plots),
            targets=[f"{target:g}" for target in figures.l0_target(run)],
            saes=[_sae(run, name) for name in run.sae_names()],
            census_tokens=list(dict.fromkeys(census["n_tokens"] for census in run.census.values())),
            has_explorer=(run.path / EXPLORER / "index.html").is_file(),
            wanted=WANTED,
            shown_contexts=CONTEXTS,
            config_text=shown(
                yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True), 100_000
            ),
            version=_version(),
        )
    )
    return html.strip() + "\n"


@lru_cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        shown=shown,
        grouped=lambda value: f"{value:,.0f}",
        duration=duration,
        percent=percent,
        words=join_words,
        in_words=in_words,
        signed=excerpts.signed,
        tokens=excerpts.tokens_html,
        histogram=excerpts.histogram_svg,
        context=excerpts.context_html,
    )
    return environment


def _facts(run: Run) -> dict[str, Any]:
    """What was run, gathered from the summary, the configuration and the environment."""

    def from_summary(key: str) -> list[Any]:
        found = [row[key] for row in run.summary if row.get(key) is not None]
        return [value for i, value in enumerate(found) if value not in found[:i]]

    def either(key: str, *settings: str) -> list[Any]:
        return from_summary(key) or find_setting(run.config, *settings)

    data = find_setting(run.config, "corpus", "dataset", "dataset_path", "dataset_name", "data")
    command = run.environment.get("command")
    if isinstance(command, list):
        command = shlex.join(map(str, command))
    seeds = from_summary("seed")
    if not seeds and run.environment.get("seed") is not None:
        seeds = [run.environment["seed"]]
    models = [_describe(value) for value in either("model", "model_name", "model")]
    return {
        "title": f"Run {run.path.resolve().name}",
        "model": models,
        "hook": [shown(value) for value in either("hook_name", "hook_name")],
        "data": [_describe(value) for value in data],
        "d_in": from_summary("d_in"),
        "d_sae": from_summary("d_sae"),
        "train_tokens": from_summary("n_train_tokens"),
        "eval_tokens": from_summary("n_eval_tokens"),
        "sink_tokens": from_summary("n_sink_tokens"),
        "seconds": from_summary("train_seconds"),
        "seeds": seeds,
        "command": command and shown(command, 2_000),
        "device": run.environment.get("device") and shown(run.environment["device"]),
    }


def _describe(value: Any) -> str:
    if isinstance(value, dict):
        for key in ("title", "name", "path"):
            if value.get(key):
                return shown(value[key])
        return shown(", ".join(f"{key}: {part}" for key, part in value.items() if part is not None))
    return shown(", ".join(map(str, value)) if isinstance(value, list) else value)


def _findings(summary: Sequence[dict[str, Any]]) -> list[str]:
    """What the table says, one sentence per score: the best and the worst SAE, with their L0."""
    columns = (
        tables.NAME,
        *(c for c in tables.HEADLINE if c.key in ("l0", "nmse", "loss_recovered")),
    )
    cells = tables.formatted(summary, columns)
    sentences = []
    for j, column in enumerate(columns):
        scored = [i for i, row in enumerate(summary) if tables.is_number(row[column.key])]
        if column.better is None or len(scored) < 2:
            continue
        scored.sort(key=lambda i: summary[i][column.key], reverse=column.better == "higher")
        first, last = cells[scored[0]], cells[scored[-1]]
        if first[j] == last[j]:
            sentences.append(f"{column.label} is {first[j]} for every SAE.")
        else:
            sentences.append(
                f"{column.label[0].upper() if column.label[0] == 'l' else column.label[0]}"
                f"{column.label[1:]} is best for {first[0]} ({first[j]} at L0 {first[1]}) and "
                f"worst for {last[0]} ({last[j]} at L0 {last[1]})."
            )
    return sentences


def _table(rows: Sequence[dict[str, Any]], columns: Sequence[tables.Column]) -> dict[str, Any]:
    return {
        "columns": columns,
        "rows": tables.formatted(rows, columns) if rows else [],
        "best": tables.best_cells(rows, columns),
    }


def _sae(run: Run, name: str) -> dict[str, Any]:
    """One SAE's latents, those that fire on both sides apart, and its counts from the census."""
    latents = [
        {**latent, "scale": excerpts.strongest(latent)} for latent in run.latents.get(name, [])
    ]
    both = [x for x in latents if x["positive_rate"] > 0 and x["negative_rate"] > 0]
    counts = None
    if census := run.census.get(name):
        pairs = list(zip(census["positive_rate"], census["negative_rate"], strict=True))
        counts = {
            "tokens": census["n_tokens"],
            "d_sae": len(pairs),
            "live": sum(p > 0 or n > 0 for p, n in pairs),
            "both": sum(p > 0 and n > 0 for p, n in pairs),
        }
    return {
        "name": name,
        "listed": name in run.latents,
        "two_sided": both,
        "one_sided": [latent for latent in latents if latent not in both],
        "counts": counts,
    }


def _error_name(plots: Sequence[figures.Plot]) -> str:
    key = next((plot.header[3] for plot in plots if plot.name == "training"), "nmse")
    return {"nmse": "nMSE", "mse_loss": "MSE loss"}.get(key, key)


def _version() -> str:
    try:
        return importlib.metadata.version("sae-lens-bipolar")
    except importlib.metadata.PackageNotFoundError:  # used from a checkout that is not installed
        return ""


def duration(seconds: float) -> str:
    """`48 s`, `4 min 12 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def percent(rate: float) -> str:
    """A rate as a percentage with two significant digits."""
    return f"{100 * rate:.2g}%" if rate < 0.1 else f"{100 * rate:.0f}%"


def in_words(n: int) -> str:
    """A count that opens a sentence: `Four`, from 11 on `11`."""
    small = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")
    return small[n] if n < len(small) else str(n)


def join_words(words: Sequence[Any]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    parts = [str(word) for word in words]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
