"""Whether the AbsTopK paper's ranking holds in a run, in plain words from its verdicts."""

from collections.abc import Mapping, Sequence
from typing import Any

from recipes.common.claims import DOES_NOT_HOLD, HOLDS, NOT_RUN, UNDECIDED, Claim


def ranking_sentence(claims: Sequence[Claim], trained: Sequence[Mapping[str, Any]]) -> str:
    """What holds, what does not, what is undecided or not run, on which models and tokens.

    Args:
        claims: all of one run, each that AbsTopK is the best of the three in something.
        trained: rows of its sweeps.
    """
    models = ", ".join(dict.fromkeys(row["model"] for row in trained))
    tokens = min(row["n_train_tokens"] for row in trained)
    where = f"{models}, {tokens:,} training tokens per SAE"
    named = {
        wanted: [_with_count(claim) for claim in claims if claim.verdict == wanted]
        for wanted in (HOLDS, DOES_NOT_HOLD, UNDECIDED, NOT_RUN)
    }
    tested = len(claims) - len(named[NOT_RUN])
    if not tested:
        return f"Nothing was run that says whether the paper's ranking holds ({where})."
    if len(named[UNDECIDED]) == tested:
        word = "is undecided"
    else:
        decided = tested - len(named[UNDECIDED])
        word = {0: "does not hold", decided: "holds"}.get(len(named[HOLDS]), "holds in part")
        word += " where it is decided" if len(named[UNDECIDED]) else ""
    parts = [f"{kind.capitalize()}: {'; '.join(names)}" for kind, names in named.items() if names]
    return f"The paper's ranking {word} here ({where}). {'. '.join(parts)}."


def _with_count(claim: Claim) -> str:
    return f"{claim.claim} ({claim.ours.split('. ')[0]})" if claim.ours else claim.claim
