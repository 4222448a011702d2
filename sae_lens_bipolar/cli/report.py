"""`sae-lens-bipolar report`: tables, figures and page of a run, drawn again from its files."""

import argparse
from pathlib import Path

EXAMPLES = ("sae-lens-bipolar report runs/demo",)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="directory of a finished run")


def run(options: argparse.Namespace) -> None:
    """Write `RUN_DIR/report` and print the table.

    Raises:
        BipolarError: if the run is not finished, or a file of it is damaged.
    """
    from sae_lens_bipolar import reports
    from sae_lens_bipolar.reports import tables

    page = reports.render(options.run_dir)
    print(tables.text(reports.read_run(options.run_dir).summary))
    print(f"page: {page}")
