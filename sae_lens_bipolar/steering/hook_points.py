"""Where an edit reaches into a model: TransformerLens hook names in both kinds of model.

A hook name such as `blocks.12.hook_resid_post` names a HookPoint of a HookedTransformer, and the
input or output of a module of a Transformers model:

    blocks.L.hook_resid_pre    input of block L
    blocks.L.hook_resid_post   output of block L
    blocks.L.hook_attn_out     what attention adds to the residual stream
    blocks.L.hook_mlp_out      what the MLP adds to the residual stream
    blocks.L.attn.hook_z       input of the attention's output projection, by head
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils.hooks import RemovableHandle
from transformer_lens import HookedTransformer
from transformers import PreTrainedModel

from sae_lens_bipolar.errors import ModelError, did_you_mean

Model = HookedTransformer | PreTrainedModel
Change = Callable[[torch.Tensor], torch.Tensor]

_NAME = re.compile(
    r"blocks\.(\d+)\.(hook_resid_pre|hook_resid_post|hook_attn_out|hook_mlp_out|attn\.hook_z)"
)


@dataclass(frozen=True)
class _Family:
    """Module paths of one Transformers family; those of a block's parts start at the block."""

    blocks: str  # the list of blocks, below `model.base_model`
    attn_out: str  # its output is added to the residual stream
    mlp_out: str
    projection: str  # its input is hook_z, heads side by side


_LLAMA = _Family("layers", "self_attn", "mlp", "self_attn.o_proj")
# `config.model_type` -> family.
_FAMILIES = {
    "gpt2": _Family("h", "attn", "mlp", "attn.c_proj"),
    "gpt_neox": _Family("layers", "attention", "mlp", "attention.dense"),
    # Gemma 2 normalises what attention and MLP give before it is added.
    "gemma2": _Family(
        "layers", "post_attention_layernorm", "post_feedforward_layernorm", "self_attn.o_proj"
    ),
    "llama": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _LLAMA,
}


@dataclass(frozen=True)
class Site:
    """One place in a model: the input or the output of a module, `[batch, position, ...]`."""

    hook: str  # as the edit names it
    module: torch.nn.Module
    side: Literal["input", "output"]
    layer: int | None  # index of the block, None for a module named by its path
    d_head: int | None = None  # the tensor holds heads side by side; changes see them apart

    def register(self, change: Change) -> RemovableHandle:
        """Replace the tensor by `change(tensor)` in every pass until the handle is removed."""
        if self.side == "output":
            return self.module.register_forward_hook(
                lambda _module, _args, output: _with_first(output, self._changed(change, output))
            )

        def on_input(_module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            if args:
                return (self._changed(change, args), *args[1:]), kwargs
            x = self._changed(change, kwargs["hidden_states"])
            return args, {**kwargs, "hidden_states": x}

        return self.module.register_forward_pre_hook(on_input, with_kwargs=True)

    def _changed(self, change: Change, holder: Any) -> torch.Tensor:
        x = holder[0] if isinstance(holder, tuple) else holder
        if not isinstance(x, torch.Tensor):
            raise ModelError(
                f"hook={self.hook!r}: the module gives {type(x).__name__}, not a tensor; "
                "name a module whose output is a tensor or a tuple that starts with one"
            )
        if self.d_head is None:
            return change(x)
        return change(x.unflatten(-1, (-1, self.d_head))).flatten(-2)


def _with_first(output: Any, x: torch.Tensor) -> Any:
    return (x, *output[1:]) if isinstance(output, tuple) else x


def find_site(model: Model, hook: str) -> Site:
    """The place `hook` names in `model`.

    Args:
        model: a HookedTransformer, or a Transformers model.
        hook: a TransformerLens hook name inside a block; in a Transformers model also the path of
            any module, whose output is meant.

    Raises:
        ModelError: if the model has no such place, or its family is not mapped.
    """
    if isinstance(model, HookedTransformer):
        return _in_hooked(model, hook)
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"a {type(model).__name__} cannot be steered: give a HookedTransformer (load_model) or "
            "a Transformers model (AutoModelForCausalLM)"
        )
    match = _NAME.fullmatch(hook)
    if match is None:
        return _by_path(model, hook)
    family = _FAMILIES.get(str(model.config.model_type))
    if family is None:
        raise ModelError(
            f"hook={hook!r}: where this lies in a Transformers model of type "
            f"{model.config.model_type!r} is not known (known: {', '.join(_FAMILIES)}). Give the "
            "path of the module whose output is meant as the edit's hook, such as "
            f"{_example(model)!r}, or load the model with sae_lens_bipolar.load_model"
        )
    blocks = list(model.base_model.get_submodule(family.blocks).children())
    layer = int(match[1])
    if layer >= len(blocks):
        raise ModelError(
            f"hook={hook!r}: {model.config.model_type} of {len(blocks)} layers has blocks 0 to "
            f"{len(blocks) - 1}"
        )
    return _in_block(hook, match[2], blocks[layer], family, layer, model.config)


def _in_block(
    hook: str, name: str, block: torch.nn.Module, family: _Family, layer: int, config: Any
) -> Site:
    if name == "hook_resid_pre":
        return Site(hook, block, "input", layer)
    if name == "hook_resid_post":
        return Site(hook, block, "output", layer)
    if name == "attn.hook_z":
        heads = config.num_attention_heads
        d_head = getattr(config, "head_dim", None) or config.hidden_size // heads
        return Site(hook, block.get_submodule(family.projection), "input", layer, d_head)
    path = family.attn_out if name == "hook_attn_out" else family.mlp_out
    return Site(hook, block.get_submodule(path), "output", layer)


def _in_hooked(model: HookedTransformer, hook: str) -> Site:
    layer = re.match(r"blocks\.(\d+)\.", hook)
    if hook not in model.hook_dict or layer is None:
        inside = [name for name in model.hook_dict if name.startswith("blocks.")]
        raise ModelError(
            f"hook={hook!r}: {model.cfg.model_name} has no such hook in its "
            f"{model.cfg.n_layers} blocks{did_you_mean(hook, inside)}"
        )
    return Site(hook, model.hook_dict[hook], "output", int(layer[1]))


def _by_path(model: PreTrainedModel, path: str) -> Site:
    modules = dict(model.named_modules())
    if path not in modules or not path:
        raise ModelError(
            f"hook={path!r} is neither blocks.L.hook_resid_pre, hook_resid_post, hook_attn_out, "
            f"hook_mlp_out or attn.hook_z, nor the path of a module{did_you_mean(path, modules)}"
        )
    return Site(path, modules[path], "output", None)


def _example(model: PreTrainedModel) -> str:
    """The path of the model's first block, as far as one can tell: the first in a list."""
    paths = (
        f"{name}.0"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module)
    )
    return next(paths, "model.layers.0")


def n_layers(model: Model) -> int:
    """How many blocks the model has."""
    if isinstance(model, HookedTransformer):
        return model.cfg.n_layers
    return int(model.config.num_hidden_layers)
