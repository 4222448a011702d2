"""Numbers that the papers print, with the table and row each stands in.

AbsTopK: "AbsTopK: Rethinking Sparse Autoencoders For Bidirectional Features", arXiv 2510.00404,
3 October 2025. Its Figures 2 to 4 show curves and bars without numbers, so only Table 2 is here.
"""

from collections.abc import Iterable
from statistics import fmean
from typing import NamedTuple

# Columns of Table 2 in its order, by the names the suites have here. "For all tasks, higher scores
# indicate better performance; the Unlearning and Absorption scores have been transformed as
# 1 - original score."
TASKS = ("unlearning", "absorption", "scr", "tpp", "ravel", "sparse_probing")
METHODS = ("abstopk", "topk", "jumprelu")

# AbsTopK, Table 2 (appendix E), row by row. Its Gemma rows are of layers 12 and 14; Table 1 and
# appendix B name 12 and 16.
_TABLE_2 = """
Gemma2-2B   12 abstopk  0.93 0.73 0.27 0.34 0.73 0.76
Gemma2-2B   12 topk     0.88 0.76 0.20 0.29 0.70 0.71
Gemma2-2B   12 jumprelu 0.90 0.75 0.22 0.30 0.71 0.73
Gemma2-2B   14 abstopk  0.91 0.70 0.27 0.42 0.71 0.70
Gemma2-2B   14 topk     0.89 0.68 0.21 0.36 0.74 0.67
Gemma2-2B   14 jumprelu 0.94 0.69 0.23 0.39 0.72 0.69
Pythia-70M   3 abstopk  0.75 0.54 0.20 0.22 0.64 0.66
Pythia-70M   3 topk     0.71 0.47 0.15 0.14 0.62 0.60
Pythia-70M   3 jumprelu 0.73 0.50 0.17 0.21 0.63 0.61
Pythia-70M   4 abstopk  0.79 0.53 0.21 0.23 0.68 0.57
Pythia-70M   4 topk     0.72 0.50 0.16 0.21 0.69 0.61
Pythia-70M   4 jumprelu 0.77 0.51 0.17 0.20 0.61 0.62
GPT2-small   6 abstopk  0.74 0.66 0.18 0.22 0.60 0.54
GPT2-small   6 topk     0.80 0.63 0.14 0.19 0.57 0.50
GPT2-small   6 jumprelu 0.77 0.65 0.15 0.20 0.58 0.52
GPT2-small   8 abstopk  0.75 0.67 0.23 0.28 0.51 0.59
GPT2-small   8 topk     0.71 0.67 0.15 0.20 0.48 0.55
GPT2-small   8 jumprelu 0.73 0.67 0.18 0.23 0.49 0.57
Qwen3-4B    18 abstopk  0.95 0.79 0.35 0.36 0.81 0.83
Qwen3-4B    18 topk     0.91 0.77 0.26 0.31 0.79 0.82
Qwen3-4B    18 jumprelu 0.93 0.78 0.28 0.30 0.80 0.78
Qwen3-4B    20 abstopk  0.95 0.80 0.32 0.45 0.85 0.81
Qwen3-4B    20 topk     0.92 0.77 0.27 0.36 0.76 0.84
Qwen3-4B    20 jumprelu 0.93 0.78 0.29 0.39 0.81 0.83
"""


class PaperRow(NamedTuple):
    """One row of Table 2: scores by task, higher is better."""

    model: str  # as the paper writes it
    layer: int
    method: str
    scores: dict[str, float]


def _rows(text: str) -> Iterable[PaperRow]:
    for line in text.strip().splitlines():
        model, layer, method, *numbers = line.split()
        yield PaperRow(
            model, int(layer), method, dict(zip(TASKS, map(float, numbers), strict=True))
        )


TABLE_2 = tuple(_rows(_TABLE_2))
TABLE_2_MODELS = tuple(dict.fromkeys(row.model for row in TABLE_2))


def table_2(model: str, layer: int, method: str, task: str) -> float | None:
    """Score of one cell of Table 2; None if the table has no such row."""
    for row in TABLE_2:
        if (row.model, row.layer, row.method) == (model, layer, method):
            return row.scores[task]
    return None


def table_2_mean(method: str, task: str) -> float:
    """Mean score over the table's eight models and layers: for a model the paper has not run."""
    return fmean(row.scores[task] for row in TABLE_2 if row.method == method)
