"""A Transformers model as a HookedTransformer with unprocessed weights, whatever its name or path.

HookedTransformer serves SAELens's activation store and runners, and is the only class SAEBench
accepts. TransformerLens converts by official model *name*; here the model's own config decides.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from types import SimpleNamespace
from typing import Any

import torch
from sae_lens import HookedSAETransformer
from transformer_lens import HookedTransformer
from transformer_lens import loading_from_pretrained as host
from transformer_lens.components.attention import Attention
from transformer_lens.components.grouped_query_attention import GroupedQueryAttention
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sae_lens_bipolar.errors import ModelError
from sae_lens_bipolar.inputs.patching import replaced

# A name that starts none of the host's tables and contains none of "llama", "gemma", "bert", "t5".
_NEUTRAL = "own-config"
_GEMMA_2 = "google/gemma-2-2b"  # its table is the one for Gemma 2; every size in it is replaced
_PROBE_TOKENS = 16
_LOCK = threading.Lock()


def to_hooked_transformer(
    hf_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    official_name: str | None = None,
) -> HookedSAETransformer:
    """Convert `hf_model` (on the CPU) with its own weights and sizes, and check that it agrees.

    `official_name` selects TransformerLens's own table for a model it lists; without it every size
    comes from `hf_model.config`. SmolLM3 is converted as Llama, with rotary embeddings switched
    off in its NoPE layers. Raises ModelError if TransformerLens cannot hold the architecture, or
    if (in float32) logits differ from Transformers' by more than 1% of their standard
    deviation.
    """
    config = hf_model.config
    architecture = (config.architectures or [type(hf_model).__name__])[0]
    _refuse_what_the_host_ignores(config, architecture)
    fields = _config_fields(config, architecture, official_name)
    try:
        with _host_accepts(fields), redirect_stdout(StringIO()):
            model = HookedSAETransformer.from_pretrained_no_processing(
                _NEUTRAL,
                hf_model=hf_model,
                tokenizer=tokenizer,
                device="cpu",
                dtype=hf_model.dtype,
            )
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError) as error:
        raise _cannot_hold(architecture, error) from error
    except (TypeError, ValueError) as error:
        raise _cannot_hold(architecture, error) from error
    if architecture == "SmolLM3ForCausalLM":
        _disable_rotary(model, [not use_rope for use_rope in config.no_rope_layers])
    _check_agreement(model, hf_model, architecture)
    return model


def _cannot_hold(architecture: str, error: Exception) -> ModelError:
    return ModelError(
        f"HookedTransformer cannot hold this {architecture} model: "
        f"{type(error).__name__}: {str(error)[:300]}"
    )


def _refuse_what_the_host_ignores(config: Any, architecture: str) -> None:
    """TransformerLens drops these silently (3.9.0 weight_conversions/llama.py, qwen3.py)."""
    if architecture not in ("LlamaForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM"):
        return
    for field in ("attention_bias", "mlp_bias"):
        if getattr(config, field, False):
            raise ModelError(
                f"{field}=True in this {architecture} model: HookedTransformer has no such biases"
            )
    if "sliding_attention" in (getattr(config, "layer_types", None) or []):
        raise ModelError(
            f"this {architecture} model attends through a sliding window of "
            f"{config.sliding_window} tokens, which HookedTransformer does not do for it"
        )


def _config_fields(config: Any, architecture: str, official_name: str | None) -> dict[str, Any]:
    """The HookedTransformerConfig fields for a Transformers config."""
    read = type(config).from_dict(config.to_dict())
    if architecture == "SmolLM3ForCausalLM":  # the same weights and names as Llama
        read.architectures = ["LlamaForCausalLM"]
    if architecture == "GPT2LMHeadModel":  # read at :505; Transformers 5 no longer writes it
        read.n_ctx = config.n_positions
    name = official_name or (_GEMMA_2 if architecture == "Gemma2ForCausalLM" else _NEUTRAL)
    reader = SimpleNamespace(from_pretrained=lambda *_args, **_kwargs: read)
    try:
        with _LOCK, replaced(host, AutoConfig=reader, get_official_model_name=lambda name: name):
            fields = host.convert_hf_model_config(name)
    except (AttributeError, KeyError, NotImplementedError, TypeError) as error:
        raise _cannot_hold(architecture, error) from error
    return fields if official_name else fields | _own_sizes(config, architecture)


def _own_sizes(config: Any, architecture: str) -> dict[str, Any]:
    """Sizes that TransformerLens 3.9.0 takes from a model's name, or assumes."""
    if architecture == "GPT2LMHeadModel":  # loading_from_pretrained.py:504 assumes 4 * n_embd
        return {"d_mlp": config.n_inner or 4 * config.n_embd}
    rotary_base = _rotary_base(config)
    if architecture == "GPTNeoXForCausalLM":  # :549 leaves the base at its default
        # transformer_lens 2 takes every model for a parallel one.
        return {"rotary_base": rotary_base, "parallel_attn_mlp": config.use_parallel_residual}
    if architecture not in (
        "LlamaForCausalLM",
        "SmolLM3ForCausalLM",
        "Qwen3ForCausalLM",
        "Gemma2ForCausalLM",
    ):
        return {}
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    sizes = {
        "d_head": d_head,
        "rotary_dim": d_head,
        "rotary_base": rotary_base,
        "n_ctx": config.max_position_embeddings,
    }
    if architecture != "Gemma2ForCausalLM":
        return sizes
    local = [kind == "sliding_attention" for kind in config.layer_types]
    return sizes | {
        "d_model": config.hidden_size,
        "n_heads": config.num_attention_heads,
        "n_key_value_heads": config.num_key_value_heads,
        "d_mlp": config.intermediate_size,
        "n_layers": config.num_hidden_layers,
        "d_vocab": config.vocab_size,
        "eps": config.rms_norm_eps,
        "act_fn": config.hidden_activation,
        "initializer_range": config.initializer_range,
        "attn_scale": config.query_pre_attn_scalar**0.5,
        "attn_scores_soft_cap": config.attn_logit_softcapping or -1.0,
        "output_logits_soft_cap": config.final_logit_softcapping or -1.0,
        "use_local_attn": any(local),
        "attn_types": ["local" if is_local else "global" for is_local in local],
        "window_size": config.sliding_window,
    }


def _rotary_base(config: Any) -> float:
    rope = getattr(config, "rope_parameters", None)  # Transformers 5
    return rope.get("rope_theta", 10000.0) if rope else getattr(config, "rope_theta", 10000.0)


@contextmanager
def _host_accepts(fields: dict[str, Any]) -> Iterator[None]:
    """Let HookedTransformer.from_pretrained build from `fields` instead of from a listed name.

    Works around transformer_lens 3.9.0: HookedTransformer.py:1402 resolves the name before anything
    else and raises for a local directory, and loading_from_pretrained.py:1772 reads the config by
    name. test_host_still_rejects_local_directories fails once upstream accepts a path.
    """
    with (
        _LOCK,  # one thread at a time
        replaced(
            host,
            get_official_model_name=lambda name: name,
            convert_hf_model_config=lambda _name, **_kwargs: dict(fields),
        ),
    ):
        yield


class NoPEAttention(Attention):
    """Multi-head attention without rotary embeddings (a NoPE layer of SmolLM3)."""

    def apply_rotary(
        self,
        x: torch.Tensor,
        past_kv_pos_offset: int = 0,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return x


class NoPEGroupedQueryAttention(GroupedQueryAttention):
    """Grouped-query attention without rotary embeddings (a NoPE layer of SmolLM3)."""

    def apply_rotary(
        self,
        x: torch.Tensor,
        past_kv_pos_offset: int = 0,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return x


def _disable_rotary(model: HookedTransformer, nope_layers: list[bool]) -> None:
    for block, is_nope in zip(model.blocks, nope_layers, strict=False):
        if is_nope:
            grouped = isinstance(block.attn, GroupedQueryAttention)
            kind = NoPEGroupedQueryAttention if grouped else NoPEAttention
            block.attn.__class__ = kind  # pyright: ignore[reportAttributeAccessIssue]


@torch.no_grad()
def _check_agreement(
    model: HookedTransformer, hf_model: PreTrainedModel, architecture: str
) -> None:
    """Compare the logits of one short sequence; in half precision only gross error is visible."""
    length = min(_PROBE_TOKENS, model.cfg.n_ctx)
    tokens = (torch.arange(length) * 7919 % model.cfg.d_vocab).unsqueeze(0)
    expected = hf_model(tokens).logits.float()
    difference = model(tokens, prepend_bos=False).float() - expected
    relative = (difference.abs().max() / expected.std()).item()
    allowed = 1e-2 if hf_model.dtype in (torch.float32, torch.float64) else 1.0
    if not relative <= allowed:  # also refuses NaN
        raise ModelError(
            f"HookedTransformer does not compute what this {architecture} model computes: logits "
            f"differ by {relative:.1e} of their standard deviation (at most {allowed} expected)"
        )
