"""Verdicts on Table 2 of the AbsTopK paper: in each task, whether AbsTopK scores highest."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from recipes.abstopk.paper_numbers import METHODS, TABLE_2, TASKS, table_2_mean
from recipes.abstopk.scores import LABELS, MAIN, Score
from recipes.common.claims import NOT_RUN, Claim
from recipes.common.verdicts import Tested, decide_all, examples_error, judged, over_seeds
from sae_lens_bipolar.saebench.suites.registry import SUITES


def claims(
    found: Sequence[Score],
    trained: Sequence[Mapping[str, Any]],
    examples: Mapping[str, int] | None = None,
    margins: Mapping[str, float] | None = None,
) -> list[Claim]:
    """One claim per task: AbsTopK scores highest of the three, on the task's own protocol.

    Args:
        found: every score.
        trained: rows of the sweeps.
        examples: test examples of a task; without, seeds alone make the interval.
        margins: of a task, what the difference from either rival must exceed; 0 if there is none.
    """
    return [
        _claim(task, found, trained, (examples or {}).get(task), (margins or {}).get(task, 0.0))
        for task in TASKS
    ]


def _claim(
    task: str,
    found: Sequence[Score],
    trained: Sequence[Mapping[str, Any]],
    examples: int | None,
    margin: float,
) -> Claim:
    reading, protocol = MAIN[task], SUITES[task].headline.protocol
    mine = [s for s in found if s.reading == reading.label and s.is_default]
    best, compared = _best(s for s in mine if s.protocol == protocol)
    ours = "; ".join(
        f"{name}: {_means([s for s in mine if s.protocol == name])}"
        for name in ("signed", "split")
        if any(s.protocol == name for s in mine)
    )
    paper_best, paper_rows = best_in_paper(task)
    described = ", ".join(f"{LABELS[m]} {table_2_mean(m, task):.3f}" for m in METHODS)
    seeds = {row["name"]: row["seed"] for row in trained}
    of_protocol = [s for s in mine if s.protocol == protocol]
    tested: list[Tested] = []
    for rival in METHODS:
        values = _gains(of_protocol, rival, seeds) if rival != "abstopk" else []
        if values:
            tested.append((over_seeds(values, examples_error(examples) if examples else 0), margin))
    claim = judged(
        f"AbsTopK scores highest in {reading.label}",
        f"highest in {paper_best} of {paper_rows} rows; means {described}",
        f"highest in {best} of {compared} ({protocol}). {ours}" if compared else "",
        tested if compared else [],
        decide_all(tested) if compared else NOT_RUN,
        seeds=len({row["seed"] for row in trained}) if compared else 0,
        tokens=min(row["n_train_tokens"] for row in trained) if compared else 0,
    )
    return replace(claim, examples=examples) if compared else claim


def _gains(scores: Sequence[Score], rival: str, seeds: Mapping[str, int]) -> list[float]:
    """AbsTopK's score less a rival's, as means over models and layers, one per seed of both."""
    values: dict[str, dict[int, list[float]]] = {"abstopk": {}, rival: {}}
    for score in scores:
        if score.method in values:
            values[score.method].setdefault(seeds[score.sae], []).append(score.ours)
    both = values["abstopk"].keys() & values[rival].keys()
    return [fmean(values["abstopk"][seed]) - fmean(values[rival][seed]) for seed in sorted(both)]


def _best(found: Iterable[Score]) -> tuple[int, int]:
    """In how many (model, layer) AbsTopK is strictly highest, and of how many with all three."""
    lists: dict[tuple[str, int], dict[str, list[float]]] = {}
    for score in found:
        here = lists.setdefault((score.model, score.layer), {})
        here.setdefault(score.method, []).append(score.ours)
    groups = [{m: fmean(values) for m, values in group.items()} for group in lists.values()]
    whole = [group for group in groups if len(group) == len(METHODS)]
    best = [g for g in whole if g["abstopk"] > max(v for m, v in g.items() if m != "abstopk")]
    return len(best), len(whole)


def best_in_paper(task: str) -> tuple[int, int]:
    """In how many rows of Table 2 AbsTopK is strictly highest, and of how many."""
    groups: dict[tuple[str, int], dict[str, float]] = {}
    for row in TABLE_2:
        groups.setdefault((row.model, row.layer), {})[row.method] = row.scores[task]
    best = [g for g in groups.values() if g["abstopk"] > max(g["topk"], g["jumprelu"])]
    return len(best), len(groups)


def _means(found: Sequence[Score]) -> str:
    means = {m: [s.ours for s in found if s.method == m] for m in METHODS}
    return ", ".join(f"{LABELS[m]} {fmean(values):.3f}" for m, values in means.items() if values)
