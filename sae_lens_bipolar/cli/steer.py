"""`sae-lens-bipolar steer`: a prompt continued without and with one latent turned, side by side."""

import argparse

from sae_lens_bipolar.cli.declared import constant

EXAMPLES = (
    "sae-lens-bipolar steer runs/demo:sign_aware_gated --latent 17 --value 4 --value=-4 \\",
    "    --prompt 'The state of the union is'",
)
_SAE = "checkpoint directory, RUN:NAME for one SAE of a run, or owner/name:id on the Hub"
_MODES = constant("sae_lens_bipolar.steering.turning", "MODES")
_UNITS = constant("sae_lens_bipolar.steering.units", "UNITS")
_CHOICES = constant("sae_lens_bipolar.steering.positions", "CHOICES")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("sae", metavar="SAE", help=_SAE)
    add("--latent", type=int, required=True, help="index of the latent")
    add(
        "--value",
        dest="values",
        type=float,
        action="append",
        required=True,
        help="what it is turned to; once for each text wanted",
    )
    add("--prompt", required=True, help="text to continue")
    add("--mode", choices=_MODES, default="clamp", help="what is done to the latent")
    add("--unit", choices=_UNITS, default="own", help="own: multiples of the side's largest |z|")
    add("--error", choices=("keep", "drop"), default="keep", help="what the SAE does not explain")
    add("--positions", choices=_CHOICES, default="all", help="tokens that are steered")
    add("--max-new-tokens", type=int, default=40, help="tokens of the continuation")
    add("--model", metavar="NAME", help="by default the model the SAE was trained on")
    add("--text", default="sotu", help="text on which a latent's range is measured, if unknown")
    add("--scale-tokens", type=int, default=16_384, help="tokens of it")


def run(options: argparse.Namespace) -> None:
    """Print the continuations.

    Raises:
        BipolarError: for an SAE, model, latent, value or text that is not allowed or not there.
    """
    from sae_lens_bipolar.cli.continuations import print_continuations

    print_continuations(options)
