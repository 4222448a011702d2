"""SAEBench's results as a Markdown table for the model card, both protocols side by side."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean

Key = tuple[str, str, str]  # suite, metric, budget


def saebench_markdown(rows: Iterable[Mapping[str, str]], names: Mapping[str, str]) -> str:
    """A row a metric and budget, a column an SAE, `signed / split` in a cell.

    Args:
        rows: those of `results/saebench.csv`: columns `sae`, `suite`, `protocol`, `metric`,
            `budget`, `value`; seeds are averaged.
        names: the SAEs to show, by their name in `rows`, and how to call them.

    Returns:
        The table; "" if no row belongs to one of the SAEs.
    """
    values: dict[tuple[Key, str, str], list[float]] = defaultdict(list)
    keys: dict[Key, None] = {}  # a set in order
    for row in rows:
        try:
            value = float(row["value"])
        except (KeyError, TypeError, ValueError):
            continue  # a suite that was not run has no number
        if row.get("sae") not in names or not math.isfinite(value):
            continue
        key = (row["suite"], row["metric"], row.get("budget") or "")
        keys[key] = None
        values[key, row["sae"], row["protocol"]].append(value)
    shown = [sae for sae in names if any(sae == found for _, found, _ in values)]
    if not shown:
        return ""
    lines = [["suite", "metric", "k or n", *(f"`{names[sae]}`" for sae in shown)]]
    lines.append([":---", ":---", "---:", *("---:" for _ in shown)])
    for key in keys:
        cells = []
        for sae in shown:
            found = [values.get((key, sae, protocol)) for protocol in ("signed", "split")]
            numbers = [f"{fmean(f):.4g}" if f else "–" for f in found]
            cells.append(numbers[0] if numbers[0] == numbers[1] else " / ".join(numbers))
        suite, metric, budget = key
        lines.append([suite, f"`{metric}`", budget, *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
