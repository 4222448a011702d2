"""`sae-lens-bipolar cache`: activations of a language model on disk, to train many SAEs on."""

import argparse
from pathlib import Path

from sae_lens_bipolar.cli.declared import options_of
from sae_lens_bipolar.cli.parsing import add_declared

EXAMPLES = (
    "sae-lens-bipolar cache blocks.12.hook_resid_post --output runs/cache",
    "sae-lens-bipolar cache blocks.12.hook_mlp_out blocks.12.hook_attn_out --corpus my_texts/ "
    "--tokens 4000000 --dtype bfloat16 --output runs/cache",
)
_CONFIG = ("sae_lens_bipolar.inputs.caching", "CacheConfig")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("hooks", metavar="HOOK", nargs="+", help="TransformerLens name of a hook")
    parser.add_argument("--output", type=Path, required=True, help="folder of the cache")
    add_declared(parser, *_CONFIG, skip=("hooks",))


def run(options: argparse.Namespace) -> None:
    """Write the cache, or what is missing of it, and say what it holds.

    Raises:
        BipolarError: naming an option that is not allowed, or what is not there.
    """
    from sae_lens_bipolar.inputs.caching import CacheConfig, cache_activations

    given = {name: getattr(options, name) for name in options_of(*_CONFIG)}
    given = {name: value for name, value in given.items() if value is not None}
    config = CacheConfig(**{**given, "hooks": tuple(options.hooks)})
    cache = cache_activations(config, options.output)
    for hook in cache.manifest.hooks:
        norms = ", ".join(f"{name} {value:.4g}" for name, value in cache.norms(hook).items())
        print(f"{hook}: {cache.n_tokens:,} tokens; |x|: {norms}")
    print(f"cache: {options.output}")
