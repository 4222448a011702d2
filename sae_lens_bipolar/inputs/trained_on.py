"""The language model that an SAE's metadata name: who else can load it, and whether it can be true.

SAELens records the model's name from its runner's configuration, where it is "gelu-2l" unless it is
given, also for a run whose model came by `override_model`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import try_to_load_from_cache
from transformer_lens.loading_from_pretrained import make_model_alias_map

from sae_lens_bipolar.errors import ModelError
from sae_lens_bipolar.inputs.models import BUNDLED

BUNDLED_MODEL = "bundled_model"  # in the metadata: which of `BUNDLED` the weights came from
_LAYER = re.compile(r"blocks\.(\d+)\.")
# Hooks that are as wide as the residual stream.
_AS_WIDE = re.compile(
    r"blocks\.\d+\.(hook_resid_(pre|mid|post)|hook_mlp_(in|out)|hook_attn_(in|out)|ln[12]\..*)"
    r"|hook_embed|ln_final\..*"
)
_TOY = re.compile(r"(\d+)L(\d+)W")  # layers and width, in the names of TransformerLens's toy models


class Sizes(NamedTuple):
    """What is known of a model without loading it."""

    n_layers: int
    d_model: int


def recorded_name(name: str) -> str:
    """The model's name for the metadata: of a bundled model the Hub's, which others can load."""
    return BUNDLED[name].hub_name if name in BUNDLED else name


def loadable_name(metadata: Any) -> str | None:
    """What `load_model` takes for the model that an SAE's metadata name; None if they name none."""
    found = metadata.get(BUNDLED_MODEL) or metadata.get("model_name")
    return None if not found else str(found)


def sizes_of(name: str) -> Sizes | None:
    """Layers and width of a model, from what is on this machine; None where that is not known."""
    bundled = {model.hub_name: key for key, model in BUNDLED.items()}
    if (key := name if name in BUNDLED else bundled.get(name)) is not None:
        return Sizes(BUNDLED[key].n_layers, BUNDLED[key].d_model)
    official = make_model_alias_map().get(name.lower(), name)
    if (toy := _TOY.search(official)) is not None:
        return Sizes(int(toy[1]), int(toy[2]))
    try:
        file: Any = Path(name).expanduser() / "config.json"
        if not file.is_file():
            file = try_to_load_from_cache(official, "config.json")
    except (OSError, RuntimeError, ValueError):  # no path, nor the form of a name on the Hub
        return None
    if not isinstance(file, str | Path):
        return None
    try:
        config = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    width = config.get("hidden_size", config.get("n_embd"))
    known = isinstance(layers, int) and isinstance(width, int)
    return Sizes(layers, width) if known else None


def require_fits(metadata: Mapping[str, Any] | Any, d_in: int, sae: str) -> None:
    """Check that an SAE can belong to the model that its metadata name, as far as is known here.

    Args:
        metadata: of the SAE's configuration, with `model_name`, `hook_name`, `hook_head_index`.
        d_in: of the SAE.
        sae: the SAE's name, for the message.

    Raises:
        ModelError: if the model has no such layer, or the hook another width.
    """
    name, hook = loadable_name(metadata), str(metadata.get("hook_name") or "")
    sizes = sizes_of(name) if name else None
    if sizes is None:
        return
    layer = _LAYER.match(hook)
    wrong_layer = layer is not None and int(layer[1]) >= sizes.n_layers
    wrong_width = (
        _AS_WIDE.fullmatch(hook) is not None
        and metadata.get("hook_head_index") is None
        and d_in != sizes.d_model
    )
    if wrong_layer or wrong_width:
        raise ModelError(
            f"{sae} says that it reads {hook} of {name} (cfg.json, metadata), with d_in={d_in}; "
            f"{name} has {sizes.n_layers} layers of width {sizes.d_model}, so one of these is not "
            "true. Give model_name and hook_name in SAELens's runner, whose own default is "
            "'gelu-2l', or set sae.cfg.metadata.model_name and save the SAE again"
        )
