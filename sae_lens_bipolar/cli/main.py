"""The command `sae-lens-bipolar`: demo, train, bench, report, publish."""

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from sae_lens_bipolar import __version__
from sae_lens_bipolar.errors import BipolarError
from sae_lens_bipolar.files.atomic import explaining_full_disk
from sae_lens_bipolar.files.names import EXPLORER
from sae_lens_bipolar.runs.interrupts import Stopped, stoppable

EXIT_BAD_INPUT = 2
# Each is a module of this folder with `add_options` and `run`.
_ON_SAES = {
    "steer": "continue a prompt with a latent turned, beside the unsteered text",
    "find": "rank the latents that separate two files of texts, against chance",
    "explore": "search, read and compare latents of one SAE or several in a browser",
}
# What a command that is stopped has kept, and how to go on.
_GOES_ON = "what was finished is kept in {output}; the same command goes on from there"
_KEPT = {
    "demo": _GOES_ON,
    "train": _GOES_ON,
    "bench": _GOES_ON,
    "explore": _GOES_ON,
    "report": "the run is as it was; run the command again",
    "publish": "the Hub holds all of the commit or nothing; the same command completes it",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code.

    0 done, 2 bad input, 3 in part (bench), 130 or 143 stopped by Ctrl-C or SIGTERM.
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
            parser = _parser()
            options, rest = parser.parse_known_args(argv)
            if rest and options.command != "train":
                parser.error(f"unrecognised arguments: {' '.join(rest)}")
            # Commands name the folder themselves where they write; this is for all the rest.
            with explaining_full_disk(getattr(options, "output", None) or "the output directory"):
                code = options.run(options, rest)
    except Stopped as stop:
        kept = _KEPT.get(options.command, "run the command again")
        output = getattr(options, "output", None) or "its output directory"
        print(f"\nsae-lens-bipolar: {stop}: {kept.format(output=output)}", file=sys.stderr)
        return stop.exit_code
    except BipolarError as error:
        print(f"sae-lens-bipolar: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return code or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sae-lens-bipolar", description="Signed sparse autoencoders for SAELens."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser(
        "demo",
        help="train TopK, AbsTopK, Gated and SA-GSAE side by side, measure them, make a page",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--output", type=Path, default=Path("runs/demo"), help="run directory")
    _add_demo_options(demo)
    demo.set_defaults(run=_demo)

    train = commands.add_parser(
        "train",
        help="train one SAE with SAELens's own flags; --architecture takes this package's names",
        add_help=False,
    )
    train.add_argument("--config", type=Path, help="YAML file of the same options")
    train.set_defaults(run=_train)

    report = commands.add_parser("report", help="redraw tables, figures and page of a run")
    report.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    report.set_defaults(run=_report)

    bench = commands.add_parser(
        "bench", help="run SAEBench's suites on SAEs, signed and as their polarity split"
    )
    _add_bench_options(bench)
    bench.set_defaults(run=_bench)

    for name, text in _ON_SAES.items():
        command = importlib.import_module(f"sae_lens_bipolar.cli.{name}")
        one = commands.add_parser(
            name, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        command.add_options(one)
        one.set_defaults(run=lambda options, _, command=command: command.run(options))

    publish = commands.add_parser(
        "publish",
        help="upload the SAEs of a run, or one, to the Hugging Face Hub, with a card",
        description="SAEBench's numbers go along where `bench` wrote them into a folder of the "
        "same directory: sae-lens-bipolar bench RUN --output RUN/bench",
    )
    _add_publish_options(publish)
    publish.set_defaults(run=_publish)
    return parser


def _add_demo_options(parser: argparse.ArgumentParser) -> None:
    from sae_lens_bipolar.cli.demo import DemoConfig

    for field in fields(DemoConfig):
        flag = "--" + field.name.replace("_", "-")
        kind: Any = type(field.default)
        parser.add_argument(flag, type=kind, default=field.default, metavar=kind.__name__)


def _add_publish_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("path", type=Path, metavar="RUN_OR_CHECKPOINT", help="directory of a run or of one SAE")
    add("repo_id", metavar="REPO_ID", help="owner/name on the Hub, created if it does not exist")
    add("--dry-run", action="store_true", help="only write the folder and card, to look at")
    add("--private", action="store_true", help="create the repository as a private one")
    add("--revision", default="main", help="branch, created if it does not exist (default: main)")
    add("--id", help="folder of the SAE in the repository; for a run, the prefix of its names")
    add("--license", help="Hub identifier of the weights' licence; asked for if not given")
    add("--no-split", dest="with_split", action="store_false", help="leave the splits out")
    add("--with-explorer", action="store_true", help="add RUN/explorer; it holds excerpts of text")
    add("--message", help="first line of the commit")


def _demo(options: argparse.Namespace, _: Sequence[str]) -> None:
    from sae_lens_bipolar.cli.demo import DemoConfig, run_demo

    config = DemoConfig(
        **{field.name: getattr(options, field.name) for field in fields(DemoConfig)}
    )
    page = run_demo(config, options.output)
    print(f"page: {page}")
    explorer = options.output / EXPLORER / "index.html"
    if explorer.is_file():
        print(f"explorer: {explorer}")


def _add_bench_options(parser: argparse.ArgumentParser) -> None:
    from sae_lens_bipolar.cli import bench as command

    command.add_options(parser)


def _bench(options: argparse.Namespace, _: Sequence[str]) -> int:
    from sae_lens_bipolar.cli import bench as command

    return command.run(options)


def _train(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from sae_lens_bipolar.cli.train import train

    train(rest, options.config)


def _report(options: argparse.Namespace, _: Sequence[str]) -> None:
    from sae_lens_bipolar import reports
    from sae_lens_bipolar.reports import tables

    page = reports.render(options.run_dir)
    print(tables.text(reports.read_run(options.run_dir).summary))
    print(f"page: {page}")


def _publish(options: argparse.Namespace, _: Sequence[str]) -> None:
    from sae_lens_bipolar.hub.publishing import PublishConfig, publish

    names = [field.name for field in fields(PublishConfig)]
    config = PublishConfig(**{name: getattr(options, name) for name in names})
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


if __name__ == "__main__":
    sys.exit(main())
