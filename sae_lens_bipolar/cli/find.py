"""`sae-lens-bipolar find`: the latents that separate two files of texts, against chance."""

import argparse
from pathlib import Path

from sae_lens_bipolar.cli.declared import constant
from sae_lens_bipolar.errors import DataError

EXAMPLES = (
    "sae-lens-bipolar find runs/demo:abstopk --positive war.txt --negative peace.txt --paired",
)
_SAE = "checkpoint directory, RUN:NAME for one SAE of a run, or owner/name:id on the Hub"
_POOLS = constant("sae_lens_bipolar.steering.directions", "POOLS")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("sae", metavar="SAE", help=_SAE)
    add("--positive", type=Path, required=True, help="texts with the concept, one per line")
    add("--negative", type=Path, required=True, help="texts without it, or with its opposite")
    add("--paired", action="store_true", help="line i of one file belongs to line i of the other")
    add("--tokens", choices=_POOLS, default="mean", help="tokens of a text that count")
    add("--top", type=int, default=20, help="latents shown")
    add("--draws", type=int, default=999, help="random labellings that show what chance gives")
    add("--alpha", type=float, default=0.05, help="share of searches of noise that find something")
    add("--seed", type=int, default=0, help="of the random labellings")
    add("--model", metavar="NAME", help="by default the model the SAE was trained on")


def run(options: argparse.Namespace) -> None:
    """Print the ranking.

    Raises:
        BipolarError: for an SAE, model or file that is not allowed or not there.
    """
    from sae_lens_bipolar.cli.saes import model_of, one_sae
    from sae_lens_bipolar.steering import find_latents

    texts = [_lines(path) for path in (options.positive, options.negative)]
    sae = one_sae(options.sae).load()
    found = find_latents(
        sae,
        model_of(sae, options.model),
        *texts,
        tokens=options.tokens,
        paired=options.paired,
        n=options.top,
        n_draws=options.draws,
        alpha=options.alpha,
        seed=options.seed,
    )
    print(found.table())


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
