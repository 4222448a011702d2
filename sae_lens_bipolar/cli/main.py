"""The command `sae-lens-bipolar`: which commands there are, and how each of them ends.

A command is a module of this folder with `add_options(parser)` and `run(options)`, and examples for
its help. These modules import torch and the hosts in `run` alone, so that help is instant.
"""

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence

from sae_lens_bipolar.cli.declared import constant
from sae_lens_bipolar.cli.parsing import CommandParser
from sae_lens_bipolar.errors import BipolarError
from sae_lens_bipolar.files.atomic import explaining_full_disk
from sae_lens_bipolar.runs.interrupts import Stopped, stoppable

EXIT_BAD_INPUT = 2
COMMANDS = {
    "demo": "train TopK, AbsTopK, Gated and SA-GSAE side by side, measure them, make a page",
    "train": "train one SAE with SAELens's own flags; --architecture takes this package's names",
    "cache": "write a language model's activations to disk, to train many SAEs on",
    "report": "redraw tables, figures and page of a run",
    "bench": "run SAEBench's suites on SAEs, signed and as their polarity split",
    "steer": "continue a prompt with a latent turned, beside the unsteered text",
    "find": "rank the latents that separate two files of texts, against chance",
    "explore": "search, read and compare latents of one SAE or several in a browser",
    "publish": "upload the SAEs of a run, or one, to the Hugging Face Hub, with a card",
    "tune": "measure which arithmetic trains fastest on this device, and keep that",
    "plan": "say what a run on several devices needs: memory, traffic, bounds of speed",
    "doctor": "say which versions, devices and optional parts are here, and what they are for",
}
# What a command that is stopped has kept, and how to go on.
_GOES_ON = "what was finished is kept in {output}; the same command goes on from there"
_KEPT = {
    "demo": _GOES_ON,
    "train": _GOES_ON,
    "cache": _GOES_ON,
    "bench": _GOES_ON,
    "explore": _GOES_ON,
    "report": "the run is as it was; run the command again",
    "publish": "the Hub holds all of the commit or nothing; the same command completes it",
}


def main(argv: Sequence[str] | None = None, prepare: Callable[[], None] = lambda: None) -> int:
    """Run the command line; returns its exit code.

    0 done, 2 bad input, 3 in part (bench), 130 or 143 stopped by Ctrl-C or SIGTERM.

    Args:
        argv: the words after the command's name; None: the process's.
        prepare: called once the words are understood, before the command runs.
    """
    # Hosts warn on every run about what this package sets on purpose; errors still come through.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", module=r"(sae_lens|transformer_lens|transformers)\.")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # httpx2 (huggingface_hub >= 2) would print signed addresses; `fetch.say` prints what it logs.
    quiet = (
        "httpx",
        "httpx2",
        "sae_lens",
        "sae_lens_bipolar.inputs.fetch",
        "transformers",
        "datasets",
    )
    for noisy in quiet:
        logging.getLogger(noisy).setLevel(logging.ERROR)
    options = argparse.Namespace(command=None)
    try:
        with stoppable():
            options = _parse(argv)
            prepare()
            # Commands name the folder themselves where they write; this is for all the rest.
            with explaining_full_disk(getattr(options, "output", None) or "the output directory"):
                code = options.run(options)
    except Stopped as stop:
        kept = _KEPT.get(options.command, "run the command again")
        output = getattr(options, "output", None) or "its output directory"
        print(f"\nsae-lens-bipolar: {stop}: {kept.format(output=output)}", file=sys.stderr)
        return stop.exit_code
    except BipolarError as error:
        from tqdm import tqdm

        tqdm.write(f"sae-lens-bipolar: {error}", file=sys.stderr)  # not behind a bar
        return EXIT_BAD_INPUT
    return code or 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    options, rest = _parser().parse_known_args(argv)
    options.rest = rest
    if options.command != "train":
        options.parser.refuse_unknown(rest)
    elif page := options.help_of(options):
        print(page, end="")
        raise SystemExit(0)
    return options


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="sae-lens-bipolar",
        description="Signed sparse autoencoders for SAELens.",
        examples=[
            "sae-lens-bipolar demo",
            "sae-lens-bipolar train --help",
            "sae-lens-bipolar doctor",
        ],
    )
    parser.add_argument(
        "--version",
        action="version",
        version=constant("sae_lens_bipolar", "__version__"),
        help="say it",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in COMMANDS.items():
        command = importlib.import_module(f"sae_lens_bipolar.cli.{name}")
        one = commands.add_parser(
            name,
            help=text,
            description=(command.__doc__ or "").split("\n\n", 1)[0].partition(": ")[2].rstrip("."),
            examples=command.EXAMPLES,
            add_help=name != "train",  # which has several pages of it
        )
        command.add_options(one)
        one.set_defaults(run=command.run, parser=one)
        if name == "train":
            one.set_defaults(help_of=command.help_of)
    return parser


if __name__ == "__main__":
    sys.exit(main())
