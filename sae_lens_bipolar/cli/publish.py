"""`sae-lens-bipolar publish`: the SAEs of a run, or one, on the Hugging Face Hub, with a card.

SAEBench's numbers go along where `bench` wrote them into a folder of the same directory.
"""

import argparse
import sys
from pathlib import Path

from sae_lens_bipolar.cli.declared import options_of

EXAMPLES = (
    "sae-lens-bipolar publish runs/demo owner/name --license apache-2.0 --dry-run",
    "sae-lens-bipolar bench runs/demo --output runs/demo/bench   # its numbers then go along",
)
_CONFIG = ("sae_lens_bipolar.hub.publishing", "PublishConfig")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    said = {name: option.sentence for name, option in options_of(*_CONFIG).items()}
    add = parser.add_argument
    add("path", type=Path, metavar="RUN_OR_CHECKPOINT", help="directory of a run or of one SAE")
    add("repo_id", metavar="REPO_ID", help=f"{said['repo_id']}, created if it does not exist")
    add("--dry-run", action="store_true", help="only write the folder and card, to look at")
    add("--private", action="store_true", help="create the repository as a private one")
    add("--revision", metavar="BRANCH", default="main", help=said["revision"])
    add("--id", metavar="NAME", help=said["id"])
    add("--license", metavar="ID", help=said["license"])
    add("--no-split", dest="with_split", action="store_false", help="leave the polarity splits out")
    add("--with-explorer", action="store_true", help="add RUN/explorer; it holds excerpts of text")
    add("--message", metavar="TEXT", help=said["message"])


def run(options: argparse.Namespace) -> None:
    """Publish, or with `--dry-run` write what would be.

    Raises:
        BipolarError: as `hub.publishing.publish`.
    """
    from sae_lens_bipolar.hub.publishing import PublishConfig, publish

    config = PublishConfig(**{name: getattr(options, name) for name in options_of(*_CONFIG)})
    done = publish(
        options.path,
        config,
        dry_run=options.dry_run,
        ask_license=_ask_license if sys.stdin.isatty() else None,
    )
    if done.folder is not None:
        print(f"written, not sent: {done.folder} (card: {done.folder / 'README.md'})")
    else:
        print(f"published and checked: {', '.join(done.ids)}\n{done.url} at {done.commit}")


def _ask_license(sentence: str) -> str:
    return input(f"Licence of the weights, as the Hub names it ({sentence}): ")
