"""What Figure 1 and the sign-aware gated paper's abstract claim, tested on the results of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recipes.abstopk.steering_statistics import Test, bootstrap, verdict_of_interval
from recipes.common.claims import DOES_NOT_HOLD, HOLDS, Claim

NULLS = ("another latent's readout", "random directions")
Row = Mapping[str, Any]


def opposition_rates(groups: Mapping[str, Sequence[Row]], threshold: float) -> dict[str, Any]:
    """Shares of antonym pairs and of controls, and their difference pair by pair.

    A pair is opposed if one latent flips on it in `threshold` of the held-out templates or more,
    and chance does not explain it (adjusted p of 0.05 or less).
    """
    signs: dict[str, dict[str, np.ndarray]] = {}
    for group, rows in groups.items():
        opposed = [r["flip"] >= threshold and r["p_adjusted"] <= 0.05 for r in rows]
        cosines = [np.nan if r["cosine"] is None else r["cosine"] for r in rows]
        signs[group] = {
            "opposed": np.array(opposed, dtype=float),
            "flip": np.array([r["flip"] for r in rows], dtype=float),
            "two latents": np.array([r["cosine"] is not None for r in rows], dtype=float),
            "fragmented": np.array([c < 0 for c in cosines], dtype=float),
            "one word only": np.array([r["one_only"] for r in rows], dtype=float),
        }
    found: dict[str, Any] = {"pairs": len(groups["antonyms"])}
    for name, ours in signs["antonyms"].items():
        theirs = signs["controls"][name]
        n = min(len(ours), len(theirs))
        found[name] = {
            "antonyms": bootstrap(ours[None]),
            "controls": bootstrap(theirs[None]),
            "difference": bootstrap((ours[:n] - theirs[:n])[None]),
        }
    found["upper"] = upper_bound(int(signs["antonyms"]["opposed"].sum()), found["pairs"])
    return found


def upper_bound(hits: int, n: int) -> float:
    """The rate above which so few hits would be seen in fewer than 5% of samples (3/n for none)."""
    from scipy.stats import beta

    return 1.0 if hits == n else float(beta.ppf(0.95, hits + 1, n - hits))


def dial_shares(one: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Per kind of turning, each latent's 0 or 1: monotone, right sign, a dial; and antisymmetry.

    A dial is monotone and has the right sign on both sides.
    """
    found = {}
    for name, measures in one["measures"].items():
        monotone = np.array(measures["spearman"]) >= 0.9
        right = np.array(measures["right_sign"]) > 0
        found[name] = {
            "monotone": monotone.astype(float),
            "right sign": right.astype(float),
            "dial": (monotone & right).astype(float),
            "antisymmetry": np.array(measures["antisymmetry"]),
        }
    return found


def claims(
    rates: Mapping[str, Row],
    shares: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]],
    dials: Mapping[str, Row],
    naming: Mapping[str, Row],
    settings: Mapping[str, Any],
) -> list[Claim]:
    """The papers' claims; each verdict from an interval and a margin fixed in the settings."""
    tokens = settings["run"]["n_train_tokens"]
    signed = [label for label, one in dials.items() if one["signed"]]
    found = []

    def add(text: str, paper: str, ours: str, verdict: str) -> None:
        found.append(Claim(text, paper, ours, 1, tokens, verdict))

    for label in signed:
        one = rates[label]
        difference = one["opposed"]["difference"]
        add(
            f"one latent of {label} carries two antonyms on its two sides: more often than two "
            f"words that are no opposites, by more than {settings['margin']:g}",
            "shown for man and woman (Figure 1); no rate given",
            f"{rate(one['opposed']['antonyms'])} of {one['pairs']} antonym pairs (at most "
            f"{one['upper']:.1%} in truth), {rate(one['opposed']['controls'])} of controls; "
            f"difference {difference}",
            verdict_of_interval(difference.low, difference.high, settings["margin"]),
        )
    for label in [label for label in dials if label not in signed]:
        difference = rates[label]["fragmented"]["difference"]
        add(
            f"{label} fragments such axes: an a-only and a b-only latent with opposed decoder "
            f"rows, more often than for controls, by more than {settings['margin']:g}",
            "separate, redundant features",
            f"{rate(rates[label]['fragmented']['antonyms'])} of antonym pairs, "
            f"{rate(rates[label]['fragmented']['controls'])} of controls; difference {difference}",
            verdict_of_interval(difference.low, difference.high, settings["margin"]),
        )
    for label, one in naming.items():
        excess = bootstrap(np.subtract(one["own"], one["expected"])[None])
        add(
            f"nameable opposition is rare: the sides of at most {settings['rare']:.0%} of the "
            f"two-sided latents of {label} hold antonyms beyond chance",
            "rare (abstract of arXiv 2605.28149)",
            f"{one['share']:.1%} of {one['latents']} latents, {one['chance']:.1%} by chance "
            f"(p = {one['p']:.3f}); excess {excess}",
            _turned(verdict_of_interval(excess.low, excess.high, settings["rare"])),
        )
    for label in signed:
        for null in NULLS:
            difference = _difference(shares[label], null)
            add(
                f"a latent of {label} is a causal dial: monotone and right on both sides, more "
                f"often than {null} by more than {settings['dial_margin']:g}",
                "a causal dial (abstract of arXiv 2605.28149)",
                f"{_share(shares[label]['latents'])} of {len(shares[label]['latents']['dial'])} "
                f"latents, {_share(shares[label][null])} of the others; difference {difference}",
                verdict_of_interval(difference.low, difference.high, settings["dial_margin"]),
            )
        for other in [one for one in dials if one not in signed]:
            test = unpaired(shares[label]["latents"]["dial"], shares[other]["latents"]["dial"])
            add(
                f"a latent of {label} is a causal dial more often than one of {other} clamped "
                f"below 0, by more than {settings['dial_margin']:g}",
                "non-negative SAEs have no negative side",
                f"{_share(shares[label]['latents'])}, {_share(shares[other]['latents'])}; "
                f"difference {test}",
                verdict_of_interval(test.low, test.high, settings["dial_margin"]),
            )
    return found


def unpaired(ours: np.ndarray, theirs: np.ndarray, draws: int = 4000) -> Test:
    """The difference of two means, each drawn anew by itself."""
    generator = np.random.default_rng(0)
    drawn = [generator.choice(one, (draws, len(one))).mean(1) for one in (ours, theirs)]
    low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
    return Test(float(ours.mean() - theirs.mean()), float(low), float(high), 1.0, 1.0)


def rate(test: Test) -> str:
    """A share with its interval."""
    return f"{test.mean:.1%} [{test.low:.1%}, {test.high:.1%}]"


def _share(one: Mapping[str, np.ndarray]) -> str:
    return f"{one['dial'].mean():.1%}"


def _difference(kinds: Mapping[str, Mapping[str, np.ndarray]], null: str) -> Test:
    return bootstrap((kinds["latents"]["dial"] - kinds[null]["dial"])[None])


def _turned(verdict: str) -> str:
    """The verdict on "at most", from that on "more than"."""
    return {HOLDS: DOES_NOT_HOLD, DOES_NOT_HOLD: HOLDS}.get(verdict, verdict)
