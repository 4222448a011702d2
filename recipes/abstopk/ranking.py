"""Whether the AbsTopK paper's ranking holds in a run, in plain words from its verdicts."""

from collections.abc import Mapping, Sequence
from typing import Any

from recipes.common.claims import DOES_NOT_HOLD, HOLDS, NOT_RUN, Claim


def ranking_sentence(claims: Sequence[Claim], trained: Sequence[Mapping[str, Any]]) -> str:
    """What holds, what does not and what was not run, and on which models and tokens.

    Args:
        claims: all of one run, each that AbsTopK is the best of the three in something.
        trained: rows of its sweeps.
    """
    models = ", ".join(dict.fromkeys(row["model"] for row in trained))
    tokens = min(row["n_train_tokens"] for row in trained)
    where = f"{models}, {tokens:,} training tokens per SAE"
    named = {
        wanted: [_with_count(claim) for claim in claims if claim.verdict == wanted]
        for wanted in (HOLDS, DOES_NOT_HOLD, NOT_RUN)
    }
    tested = len(named[HOLDS]) + len(named[DOES_NOT_HOLD])
    if not tested:
        return f"Nothing was run that says whether the paper's ranking holds ({where})."
    word = {0: "does not hold", tested: "holds"}.get(len(named[HOLDS]), "holds in part")
    parts = [f"{kind.capitalize()}: {'; '.join(names)}" for kind, names in named.items() if names]
    return f"The paper's ranking {word} here ({where}). {'. '.join(parts)}."


def _with_count(claim: Claim) -> str:
    return f"{claim.claim} ({claim.ours.split('. ')[0]})" if claim.ours else claim.claim
