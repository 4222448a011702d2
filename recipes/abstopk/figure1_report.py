"""Rates, verdicts and the figure of Figure 1, from the files of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.abstopk.figure1_claims import Row, claims, dial_shares, opposition_rates
from recipes.abstopk.steering_statistics import bootstrap
from recipes.common.claims import claims_table, write_claims
from sae_lens_bipolar.files.atomic import read_json, write_text
from sae_lens_bipolar.files.fields import load_yaml
from sae_lens_bipolar.files.names import CONFIG_FILE
from sae_lens_bipolar.reports import drawing
from sae_lens_bipolar.reports.figures import Plot, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OPPOSITION, DIAL = "results/opposition.json", "results/dial.json"
NAMING, EXAMPLE = "results/naming.json", "results/example.json"
TABLE = "results/figure1.md"


def report(output: Path) -> str:
    """Write table, figure and verdicts from `results/`; return the table."""
    settings = load_yaml(output / CONFIG_FILE)
    opposition, dials = read_json(output / OPPOSITION), read_json(output / DIAL)
    naming, example = read_json(output / NAMING), read_json(output / EXAMPLE)
    rates = {
        label: opposition_rates(groups, settings["flip_threshold"])
        for label, groups in opposition["saes"].items()
    }
    shares = {label: dial_shares(one) for label, one in dials.items()}
    found = claims(rates, shares, dials, naming, settings)
    text = "\n\n".join(
        [
            heading(settings, opposition, rates, example),
            rates_table(rates),
            dial_table(shares),
            naming_table(naming),
        ]
    )
    write_text(output / TABLE, text + "\n")
    write_claims(output, found)
    save(figure(rates, dials, shares, example), output / "report")
    return f"{text}\n\n{claims_table(found)}"


def heading(
    settings: Mapping[str, Any], opposition: Row, rates: Mapping[str, Row], example: Row
) -> str:
    """What was read, and whether a pair like the paper's was found."""
    run = settings["run"]
    saes = ", ".join(f"{label} (L0 {l0:.1f})" for label, l0 in run["l0"].items())
    lines = [
        f"{run['model']}, {run['hook_name']}, {run['n_train_tokens']:,} training tokens per SAE: "
        f"{saes}. {len(opposition['pairs'])} antonym pairs and {len(opposition['controls'])} "
        f"controls in {settings['templates']} templates."
    ]
    if example:
        axis, a, b = example["pair"]
        opposed = example["flip"] >= settings["flip_threshold"] and example["p_adjusted"] <= 0.05
        what = "The best pair" if opposed else "No pair like the paper's was found. The best pair"
        lines.append(
            f"{what}: {a}/{b} ({axis}), latent {example['latent']} of {example['sae']}, of "
            f"opposite signs in {example['flip']:.0%} of held-out templates (adjusted p = "
            f"{example['p_adjusted']:.3f})."
        )
    bounds = ", ".join(
        f"{label} {one['upper']:.1%}"
        for label, one in rates.items()
        if one["flip"]["antonyms"].mean
    )
    if bounds:
        lines.append(f"Upper bounds (95%) of the share of opposed antonym pairs: {bounds}.")
    return " ".join(lines)


def rates_table(rates: Mapping[str, Row]) -> str:
    """One line per SAE and measure."""
    names = {
        "opposed": "pairs that one latent holds on its two sides",
        "flip": "mean held-out flip",
        "two latents": "pairs with an a-only and a b-only latent",
        "fragmented": "... with opposed decoder rows",
        "one word only": "pairs with a latent that fires on one of the words only",
    }
    lines = ["| SAE | measure | antonyms | controls | difference |", "|" + "---|" * 5]
    for label, one in rates.items():
        for key, name in names.items():
            cells = [str(one[key][group]) for group in ("antonyms", "controls", "difference")]
            lines.append(f"| {label} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def dial_table(shares: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]) -> str:
    """One line per SAE and kind of turning."""
    keys = ("monotone", "right sign", "dial", "antisymmetry")
    heads = ["SAE", "turned", "monotone", "right on both sides", "both", "antisymmetry"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for label, kinds in shares.items():
        for kind, one in kinds.items():
            cells = [str(bootstrap(one[key][None])) for key in keys]
            lines.append(f"| {label} | {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def naming_table(naming: Mapping[str, Row]) -> str:
    """One line per signed SAE."""
    lines = ["| SAE | latents | sides hold antonyms | by chance | p |", "|" + "---|" * 5]
    for label, one in naming.items():
        lines.append(
            f"| {label} | {one['latents']} | {one['share']:.1%} | {one['chance']:.1%} | "
            f"{one['p']:.3f} |"
        )
    return "\n".join(lines)


def figure(
    rates: Mapping[str, Row],
    dials: Mapping[str, Row],
    shares: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]],
    example: Row,
) -> Plot:
    """The best pair's latent in every template; rates; the dial and its nulls."""
    with drawing.style():
        plot, axes = drawing.panels(1, 3, 12.0, 4.0)
        rows = [*_example(axes[0], example), *_rates(axes[1], rates), *_dial(axes[2], shares)]
    header = ("panel", "SAE", "what", "mean", "low", "high")
    alt = "The best pair's latent, rates of opposed pairs, and how often a latent is a dial."
    return Plot("figure1", alt, plot, header, rows)


def _example(axes: "Axes", example: Row) -> list[tuple[Any, ...]]:
    if not example:
        axes.set_title("no SAE here is signed")
        return []
    _, a, b = example["pair"]
    z = np.array(example["z"])
    for i, word in enumerate((a, b)):
        axes.bar(np.arange(len(z)) + 0.4 * i, z[:, i], 0.4, label=word, color=drawing.COLOURS[i])
    axes.axhline(0, color=drawing.GREY, lw=0.8)
    axes.set_title(f"best pair: latent {example['latent']} of {example['sae']}")
    axes.set_xlabel("template")
    axes.set_ylabel("z")
    axes.legend()
    return [
        ("example", example["sae"], f"template {t}, {word}", float(z[t, i]), None, None)
        for t in range(len(z))
        for i, word in enumerate((a, b))
    ]


def _rates(axes: "Axes", rates: Mapping[str, Row]) -> list[tuple[Any, ...]]:
    rows = []
    for i, (label, one) in enumerate(rates.items()):
        for j, group in enumerate(("antonyms", "controls")):
            for k, (measure, hue) in enumerate((("opposed", 0), ("fragmented", 1))):
                test = one[measure][group]
                axes.errorbar(
                    test.mean,
                    len(rates) - i + 0.24 - 0.16 * (2 * k + j),
                    xerr=[[test.mean - test.low], [test.high - test.mean]],
                    color=drawing.COLOURS[hue],
                    marker=drawing.MARKERS[hue],
                    mfc="white" if j else None,
                    capsize=2,
                    label=f"{measure}, {group}" if i == 0 else None,
                )
                rows.append(("rates", label, f"{measure}, {group}", *test[:3]))
    axes.set_yticks(range(len(rates), 0, -1), list(rates))
    axes.set_xlabel("share of pairs")
    axes.set_title("one latent for both words; two opposed latents")
    axes.legend(fontsize=7.5)
    return rows


def _dial(
    axes: "Axes", shares: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]
) -> list[tuple[Any, ...]]:
    rows = []
    for i, (label, kinds) in enumerate(shares.items()):
        for j, (kind, one) in enumerate(kinds.items()):
            test = bootstrap(one["dial"][None])
            axes.errorbar(
                test.mean,
                len(shares) - i + 0.2 - 0.2 * j,
                xerr=[[test.mean - test.low], [test.high - test.mean]],
                color=drawing.COLOURS[j],
                marker=drawing.MARKERS[j],
                capsize=2,
                label=kind if i == 0 else None,
            )
            rows.append(("dial", label, kind, *test[:3]))
    axes.set_yticks(range(len(shares), 0, -1), list(shares))
    axes.set_xlabel("share that is monotone and right on both sides")
    axes.set_title("turned, read out from disjoint text")
    axes.legend(fontsize=7.5)
    return rows
