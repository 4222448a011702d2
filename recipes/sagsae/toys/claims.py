"""The verdicts on the toy protocols' claims, from their result files alone.

The bounds were set before the full run. An interval is the 95% bootstrap confidence
interval of the mean over seeds; two SAEs are compared by the difference seed by seed.
"""

from collections.abc import Mapping, Sequence

from recipes.common.claims import Claim, verdict
from recipes.common.comparisons import (
    L0_TOLERANCE,
    Interval,
    Row,
    bootstrap,
    matched_differences,
    met_targets,
    select,
)
from recipes.sagsae.toys.figures import over_seeds
from recipes.sagsae.toys.pairs_figures import thresholds_in
from recipes.sagsae.toys.polarity_dial import nearest_to_truth
from recipes.sagsae.toys.training import CONTESTANTS, GATED

MOST = 0.9  # of the pairs
FEW = 0.1
TYING = 0.0015  # |Delta R^2| in the abstract of arXiv 2605.28149
_NOT_GIVEN = "not given"

Results = Mapping[str, Sequence[Row]]  # protocol -> rows


def toy_claims(results: Results) -> list[Claim]:
    """Every claim, also of protocols that have no result file."""
    pairs, dial = results.get("pairs", ()), results.get("polarity_dial", ())
    anomalies = results.get("anomalies", ())
    return [*_on_pairs(pairs), *_on_dial(dial), *_on_anomalies(anomalies), _matched_l0(results)]


def _claim(text: str, paper: str, ours: str, rows: Sequence[Row], holds: bool | None) -> Claim:
    seeds = len({row["seed"] for row in rows})
    tokens = max((row["train_samples"] for row in rows), default=0)
    return Claim(text, paper, ours if rows else "", seeds, tokens, verdict(holds if rows else None))


def _on_pairs(rows: Sequence[Row]) -> list[Claim]:
    base = [row for row in rows if "histogram" in row]
    least = thresholds_in(rows)[0] if rows else "0.5"
    sweep = select(rows, kind="sweep", contestant="sa_gsae")
    density = "features_per_dimension"
    at_base = [row for row in sweep if base and row[density] == base[0][density]]
    return [
        _most(
            "Antipodal pairs: one SA-GSAE latent carries both signs of a pair "
            f"(consolidation rate, interval above {MOST})",
            select(base, contestant="sa_gsae"),
            "consolidation",
        ),
        _most(
            f"... and at least {least} of the magnitude of either side "
            f"(thresholded rate, interval above {MOST})",
            select(base, contestant="sa_gsae"),
            f"consolidation_{least}",
        ),
        _most(
            "... where a Gated SAE of twice the width uses two latents, each with at least "
            f"{least} of its side (share of pairs, interval above {MOST})",
            select(base, contestant="gated_2h"),
            f"two_latents_{least}",
        ),
        _most(
            f"The consolidation rate stays above {MOST} at every superposition",
            select(sweep, correlation=-1.0),
            "consolidation",
            by=density,
        ),
        _most(
            f"The thresholded consolidation rate (>= {least}) stays above {MOST} at every "
            "superposition",
            select(sweep, correlation=-1.0),
            f"consolidation_{least}",
            by=density,
        ),
        _most(
            f"The consolidation rate stays above {MOST} at every within-pair correlation",
            at_base,
            "consolidation",
            by="correlation",
        ),
    ]


def _most(text: str, rows: Sequence[Row], field: str, by: str | None = None) -> Claim:
    """Whether the interval of `field` is above `MOST`, at every value of the field `by`."""
    points = sorted({row[by] for row in rows}) if by else [None]
    groups = [select(rows, **{by: at}) if by else rows for at in points]
    found = [over_seeds(group, field) for group in groups] if rows else []
    ours = "; ".join(
        (f"{at:g}: " if by else "") + _show(interval)
        for at, interval in zip(points, found, strict=False)
    )
    return _claim(text, _NOT_GIVEN, ours, rows, all(interval.low > MOST for interval in found))


def _on_dial(rows: Sequence[Row]) -> list[Claim]:
    best = nearest_to_truth(rows) if rows else []
    tied = _difference(best, "r2", "sa_gsae", "sa_gsae_untied")
    made = [
        _lower("mse", "SA-GSAE at H has the lower MSE on asymmetric signed axes", rows, other)
        for other in ("gated", "gated_2h", "abstopk")
    ]
    made += [
        _lower("calibration_error", "SA-GSAE at H is better calibrated on both sides", best, other)
        for other in ("gated", "gated_2h", "abstopk")
    ]
    text = f"Tying the polarities costs no more than {TYING} of R², gains being asymmetric"
    ours = f"R² tied minus untied {_show(tied, 4)}" if tied else ""
    holds = tied.low >= -TYING if tied else None
    involved = best if tied else []
    return [*made, _claim(text, f"|ΔR²| = {TYING}, on language models", ours, involved, holds)]


def _lower(field: str, text: str, rows: Sequence[Row], other: str) -> Claim:
    """Whether SA-GSAE's `field` is below that of `other` at every L0 target."""
    targets = sorted({row["target"] for row in rows})
    found = [_difference(select(rows, target=t), field, "sa_gsae", other) for t in targets]
    known = [interval for interval in found if interval]
    ours = "; ".join(
        f"L0 {t:g}: {_show(interval, 4)}"
        for t, interval in zip(targets, found, strict=True)
        if interval
    )
    where = "every L0 target" if field == "mse" else "the L0 target nearest to the truth"
    label = CONTESTANTS[other].label
    return _claim(
        f"{text} than {label} at {where} (difference, interval below 0)",
        _NOT_GIVEN,
        ours,
        rows if known else [],
        all(interval.high < 0 for interval in known),
    )


def _on_anomalies(rows: Sequence[Row]) -> list[Claim]:
    made = []
    shares = sorted({row["negative_share"] for row in rows}) or [0.0]
    for share in shares:
        strict = select(rows, negative_share=share, budget=1.0)
        seen = f"{share:.0%} of training firings" if share else "unseen in training"
        for other in ("gated", "gated_2h", "abstopk"):
            found = _difference(strict, "roc_area_latents", "sa_gsae", other)
            means = [
                over_seeds(select(strict, contestant=name), "roc_area_latents")
                for name in ("sa_gsae", other)
                if found
            ]
            label = CONTESTANTS[other].label
            made.append(
                _claim(
                    "SA-GSAE's latents detect directional anomalies better than those of "
                    f"{label} where H is the number of axes, anomalous sides {seen} (ROC area, "
                    "difference above 0)",
                    _NOT_GIVEN,
                    " against ".join(map(_show, means)),
                    strict if found else [],
                    found.low > 0 if found else None,
                )
            )
    return made


def _matched_l0(results: Results) -> Claim:
    rows = [
        row
        for protocol in results.values()
        for row in protocol
        if CONTESTANTS[row["contestant"]].architecture in GATED
    ]
    found = met_targets(rows)
    return _claim(
        f"Comparisons are at matched L0: every gated SAE within {L0_TOLERANCE:.0%} of its target",
        "matched L0",
        f"{found.met} of {found.n} SAEs; furthest {found.furthest:.0%}",
        rows,
        found.met == found.n,
    )


def _difference(rows: Sequence[Row], field: str, one: str, other: str) -> Interval | None:
    """`field` of `one` minus that of `other`, seed by seed; None where no seed has both."""
    mine, theirs = (select(rows, contestant=name) for name in (one, other))
    found = matched_differences(mine, theirs, field)
    return bootstrap(list(found.values())) if found else None


def _show(interval: Interval, digits: int = 2) -> str:
    mean, low, high = (f"{value:.{digits}f}" for value in interval)
    return f"{mean} [{low}, {high}]"
