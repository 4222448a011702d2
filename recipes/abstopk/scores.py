"""Table 2 of the AbsTopK paper from benchmark rows: ours beside the paper's.

The paper does not say which n (SCR, TPP) and k (sparse probing) its table uses: every one that was
run is a row here, and SAEBench's defaults (n = 20, k = 5) are marked. The paper says that its
unlearning score is "1 - original", and SAEBench's own is already higher-is-better: both are rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from recipes.abstopk.paper_numbers import METHODS, TASKS, table_2, table_2_mean
from sae_lens_bipolar.files.atomic import read_json
from sae_lens_bipolar.files.fields import load_yaml
from sae_lens_bipolar.files.names import CONFIG_FILE, SUMMARY
from sae_lens_bipolar.saebench import read_rows
from sae_lens_bipolar.saebench.suites.registry import SUITES

LABELS = {"abstopk": "AbsTopK", "topk": "TopK", "jumprelu": "JumpReLU"}


class Reading(NamedTuple):
    """One way to read a suite's result as a score of the table, higher is better."""

    task: str  # as in `paper_numbers.TASKS`, and the suite's name
    label: str
    metric: str  # as in the benchmark's rows
    default: int | None = None  # the n or k that is SAEBench's default
    flipped: bool = False  # the score is 1 - metric

    def score(self, value: float) -> float:
        return 1 - value if self.flipped else value


READINGS = (
    Reading("unlearning", "unlearning", "unlearning_score"),
    Reading("unlearning", "unlearning, 1 - score", "unlearning_score", flipped=True),
    Reading("absorption", "absorption", "mean_absorption_fraction_score", flipped=True),
    Reading("absorption", "absorption, full", "mean_full_absorption_score", flipped=True),
    Reading("scr", "SCR", "scr_metric", 20),
    Reading("tpp", "TPP", "tpp_total_metric", 20),
    Reading("ravel", "RAVEL", "disentanglement_score"),
    Reading("sparse_probing", "sparse probing", "sae_top_k_test_accuracy", 5),
)
# The reading that stands for a task where one has to be chosen.
MAIN = {task: next(r for r in READINGS if r.task == task) for task in TASKS}


class Score(NamedTuple):
    """One number of ours, and the paper's."""

    model: str
    layer: int
    method: str
    protocol: str
    task: str
    reading: str
    budget: int | None  # n or k
    is_default: bool  # whether that n or k is SAEBench's default; True for scores without one
    ours: float
    paper: float
    difference: float  # ours - paper
    paper_source: str  # "Table 2", or "mean of Table 2" where it has no such model and layer
    sae: str
    seed: int


def of_run(output: Path) -> list[Score]:
    """Every score of a run of `recipes.abstopk.table2`, from its `config.yaml` and `results/`."""
    settings = load_yaml(output / CONFIG_FILE)
    papers = {model["model"]: model.get("paper") for model in settings.get("models", {}).values()}
    return scores(read_rows(output), read_json(output / SUMMARY), papers)


def scores(
    rows: Iterable[Mapping[str, Any]],
    trained: Sequence[Mapping[str, Any]],
    paper_models: Mapping[str, str | None],
) -> list[Score]:
    """Every benchmark number that Table 2 has a column for.

    Args:
        rows: of `saebench.csv`.
        trained: rows of the sweeps, which say method and layer of each SAE, with the model's name
            in `saebench.csv` as `alias`.
        paper_models: a language model's name in Table 2, by its own; None if it is not there.
    """
    saes = {(row["alias"], row["name"]): row for row in trained}
    found = []
    for row in rows:
        sae = saes[row["model"], row["sae"]]
        for reading in READINGS:
            if (reading.task, reading.metric) == (row["suite"], row["metric"]):
                found.append(_score(row, sae, reading, paper_models.get(sae["model"])))
    order = {reading.label: i for i, reading in enumerate(READINGS)}
    return sorted(
        found,
        key=lambda s: (
            *(s.model, s.layer, s.protocol, order[s.reading], s.budget or 0),
            METHODS.index(s.method),
        ),
    )


def _score(
    row: Mapping[str, Any], sae: Mapping[str, Any], reading: Reading, paper_model: str | None
) -> Score:
    method, layer = sae["method"], sae["layer"]
    ours = reading.score(row["value"])
    paper = table_2(paper_model, layer, method, reading.task) if paper_model else None
    source = "Table 2" if paper is not None else "mean of Table 2"
    paper = table_2_mean(method, reading.task) if paper is None else paper
    return Score(
        model=sae["model"],
        layer=layer,
        method=method,
        protocol=row["protocol"],
        task=reading.task,
        reading=reading.label,
        budget=row["budget"],
        is_default=row["budget"] == reading.default,
        ours=ours,
        paper=paper,
        difference=ours - paper,
        paper_source=source,
        sae=row["sae"],
        seed=row["seed"],
    )


def markdown(found: Sequence[Score], not_run: Sequence[Mapping[str, str]]) -> str:
    """Three tables: SAEBench's defaults beside the paper, every n and k, and what was not run."""
    sources = {score.paper_source for score in found}
    parts = [
        "## At SAEBench's default n and k\n",
        "Each cell: ours, the paper's, the difference. Higher is better everywhere; `*` marks the",
        "protocol that is right for signed latents. A non-negative SAE is its own split.",
    ]
    if "mean of Table 2" in sources:
        parts.append(
            "Where the paper has no such model and layer, its number is the mean of its eight rows."
        )
    parts += ["", default_table(found), "", "## Every n and k\n", budget_table(found)]
    if not_run:
        parts += ["", "## Not run\n", _table(["suite", "why"], _reasons(not_run))]
    return "\n".join(parts) + "\n"


def default_table(found: Sequence[Score]) -> str:
    """One line per model, layer, protocol and method; one column per reading."""
    chosen = [score for score in found if score.is_default]
    readings = [r for r in READINGS if any(score.reading == r.label for score in chosen)]
    heads = [
        r.label + (f" ({'k' if r.task == 'sparse_probing' else 'n'}={r.default})" * bool(r.default))
        for r in readings
    ]
    lines: dict[tuple[Any, ...], dict[str, str]] = {}
    for score in chosen:
        key = (score.model, score.layer, score.protocol, LABELS[score.method])
        star = "*" if SUITES[score.task].headline.protocol == score.protocol else ""
        cell = f"{score.ours:.3f}{star}, {score.paper:.2f}, {score.difference:+.3f}"
        lines.setdefault(key, {})[score.reading] = cell
    body = [
        [*map(str, key), *(cells.get(r.label, "") for r in readings)]
        for key, cells in lines.items()
    ]
    return _table(["model", "layer", "protocol", "method", *heads], body)


def budget_table(found: Sequence[Score]) -> str:
    """One line per model, layer, protocol, task and method; one column per n or k."""
    chosen = [score for score in found if score.budget is not None]
    budgets = sorted({score.budget for score in chosen if score.budget is not None})
    lines: dict[tuple[str, ...], dict[int | None, str]] = {}
    for score in chosen:
        key = (score.model, str(score.layer), score.protocol, score.reading)
        key = (*key, LABELS[score.method], f"{score.paper:.2f}")
        shown = f"**{score.ours:.3f}**" if score.is_default else f"{score.ours:.3f}"
        lines.setdefault(key, {})[score.budget] = shown
    body = [
        [*named, *(cells.get(budget, "") for budget in budgets), paper]
        for (*named, paper), cells in lines.items()
    ]
    heads = ["model", "layer", "protocol", "task", "method", *map(str, budgets), "paper"]
    return _table(heads, body) + "\n\nBold: SAEBench's default."


def _reasons(not_run: Sequence[Mapping[str, str]]) -> list[list[str]]:
    pairs = dict.fromkeys((one["suite"], one["reason"]) for one in not_run)
    return [[suite, reason.replace("|", r"\|").replace("\n", " ")] for suite, reason in pairs]


def _table(heads: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in body)])


def averaged(found: Sequence[Score]) -> list[Score]:
    """The scores as means over seeds, for tables and figures; `sae` is then that of one seed."""
    groups: dict[tuple[Any, ...], list[Score]] = {}
    for one in found:
        key = (one.model, one.layer, one.protocol, one.reading, one.budget, one.method)
        groups.setdefault(key, []).append(one)
    return [
        group[0]._replace(ours=ours, difference=ours - group[0].paper)
        for group in groups.values()
        for ours in [fmean(one.ours for one in group)]
    ]
