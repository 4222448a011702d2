"""Training that begins with an SAE on disk: which of its settings may change, and its weights."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple

from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, get_sae_training_class
from sae_lens.saes.sae import SAE, TrainingSAE, TrainingSAEConfig

from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.files.digests import checkpoint_digest
from sae_lens_bipolar.runs.checkpoints import load_sae, sae_folder

# Settings that the weights were made for: with another value they would compute another function.
_FIXED = (
    *("d_in", "d_sae", "apply_b_dec_to_input", "normalize_activations", "reshape_activations"),
    *("rescale_acts_by_decoder_norm", "symmetry", "two_sided_gate", "n_steps"),
)
# Settings of the first weights, which are on disk already.
_INITIAL = (
    *("decoder_init_norm", "jumprelu_init_threshold", "threshold_init", "threshold_init_l0"),
    *("b_dec_init", "initial_b_negative", "initial_step_size"),
)


class Start(NamedTuple):
    """The SAE on disk that training begins with."""

    path: str
    digest: str  # of its weights and configuration, so that another SAE there is noticed


def start_of(path: str | Path) -> Start:
    """The SAE in directory `path`, as `config.yaml` records it."""
    folder = sae_folder(path)
    return Start(str(folder), checkpoint_digest(folder))


def training_architecture(path: str | Path) -> str:
    """The architecture that continues the SAE in `path`: the one it was trained as, if known."""
    cfg = load_sae(path).cfg
    trained_as = cfg.metadata.training_architecture
    if trained_as in SAE_TRAINING_CLASS_REGISTRY and _saved_as(trained_as) == cfg.architecture():
        return str(trained_as)
    return cfg.architecture()


def finetuning_config(
    path: str | Path, architecture: str, given: Mapping[str, Any]
) -> TrainingSAEConfig:
    """The configuration for training the SAE in `path` further.

    It begins with the SAE's own settings and, where the SAE records them, those it was trained
    with. Of `given`, coefficients, targets and k are applied; settings that the weights were made
    for must equal those on disk; settings of the first weights are refused.

    Raises:
        CheckpointError: if there is no whole SAE in `path`.
        ConfigError: naming the setting that cannot be applied.
    """
    saved = load_sae(path).cfg
    if architecture not in SAE_TRAINING_CLASS_REGISTRY:
        raise ConfigError(f"architecture={architecture!r} of {path} has no class that trains it")
    if _saved_as(architecture) != saved.architecture():
        raise ConfigError(
            f"architecture={architecture!r} cannot begin with {path}, which holds a "
            f"{saved.architecture()!r} SAE; leave architecture out"
        )
    _, config_class = SAE_TRAINING_CLASS_REGISTRY[architecture]
    own = {f.name for f in fields(config_class)} - {"metadata", "device"}
    values = {name: value for name, value in vars(saved).items() if name in own}
    details = saved.metadata.training_architecture_details or {}
    if saved.metadata.training_architecture == architecture:
        values |= {name: v for name, v in details.items() if name in own and name not in _INITIAL}
    for name, value in given.items():
        if name in _INITIAL:
            raise ConfigError(
                f"{name}={value!r} is not allowed with from_pretrained_path: it is a setting "
                f"of the first weights, and these come from {path}; leave it out"
            )
        if name in _FIXED and value != (there := values.get(name, _default(config_class, name))):
            raise ConfigError(
                f"{name}={value!r} is not allowed with from_pretrained_path: the SAE in {path} has "
                f"{name}={there!r} and its weights were made for that; leave it out"
            )
        values[name] = value
    return config_class(**values)


def begin(start: Start, cfg: TrainingSAEConfig) -> TrainingSAE[Any]:
    """A training SAE of `cfg` with the weights of `start`.

    Raises:
        ConfigError: if another SAE lies there than when the run was configured.
        CheckpointError: if it is damaged.
    """
    if checkpoint_digest(start.path) != start.digest:
        raise ConfigError(f"from_pretrained_path={start.path} has changed since the run began")
    saved: SAE[Any] = load_sae(start.path, device=cfg.device, dtype=cfg.dtype)
    sae_class, _ = get_sae_training_class(cfg.architecture())
    sae = sae_class(cfg)
    state = {name: tensor.detach().clone() for name, tensor in saved.state_dict().items()}
    saved.process_state_dict_for_saving(state)
    sae.process_state_dict_for_loading(state)
    sae.load_state_dict(state)
    return sae


def _saved_as(architecture: str) -> str:
    """The architecture under which a training architecture saves its SAE."""
    _, config_class = SAE_TRAINING_CLASS_REGISTRY[architecture]
    return config_class(d_in=1, d_sae=2).get_inference_config_class().architecture()


def _default(config_class: type[TrainingSAEConfig], name: str) -> Any:
    found = next((f for f in fields(config_class) if f.name == name), None)
    return None if found is None or found.default is MISSING else found.default
