"""`sae-lens-bipolar plan`: memory, traffic and bounds of speed of a run on several devices.

Nothing is loaded: sizes of a language model come from its configuration.
"""

import argparse

from sae_lens_bipolar.cli.parsing import add_declared

EXAMPLES = (
    "sae-lens-bipolar plan --model gemma-2-2b --layer 12 --d-sae 131072 --devices 8",
    "sae-lens-bipolar plan --d-in 3584 --llm-parameters 1e10 --d-sae 1048576 --devices 16",
)
_PLAN = ("sae_lens_bipolar.runs.distributed.plan", "Plan")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--model", metavar="NAME", help="language model; says d_in and parameters")
    parser.add_argument("--layer", type=int, help="of the hook; later layers are not run")
    add_declared(parser, *_PLAN)


def run(options: argparse.Namespace) -> None:
    """Print the layouts, and the cheapest that fits.

    Raises:
        BipolarError: naming an option that is missing or not allowed.
    """
    from dataclasses import fields

    from sae_lens_bipolar.errors import ConfigError
    from sae_lens_bipolar.inputs.sizes import parameters_of
    from sae_lens_bipolar.runs.distributed.plan import Plan, table

    given = {field.name: getattr(options, field.name) for field in fields(Plan)}
    given = {name: value for name, value in given.items() if value is not None}
    run_share = 1.0
    if options.model is not None:
        sizes = parameters_of(options.model)
        given.setdefault("d_in", sizes.d_model)
        given.setdefault("llm_parameters", float(sizes.parameters))
        if options.layer is not None:
            run_share = sizes.share_until(options.layer)
    for name in ("d_in", "d_sae"):
        if name not in given:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{name} is missing: give {flag}" + (", or --model" * (name == "d_in"))
            )
    print(table(Plan(**{"llm_share": run_share, **given})))
