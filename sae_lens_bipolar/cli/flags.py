"""What `train` does with each of SAELens's training flags: one table, read by the command.

A decision says where the value goes: `sweep.X` is field X of the sweep's configuration, `options.X`
field X of SAELens's runner, `logger.X` of its logger; a sentence means that the command handles it.
Where only one value is possible, `only` is that value and `why` says why and what to do instead;
flags with the default as their only value are refused.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from sae_lens.config import LanguageModelSAERunnerConfig, LoggingConfig
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes.sae import TrainingSAEConfig

from sae_lens_bipolar.errors import ConfigError

ANY = object()


@dataclass(frozen=True)
class Decision:
    """What becomes of a flag."""

    to: str = ""  # where the value goes; empty if the flag is refused
    only: Any = ANY  # the one value that is allowed
    why: str = ""  # why another value is refused, and what to do


def _refused(only: Any, why: str) -> Decision:
    return Decision(only=only, why=why)


_NO_CACHE = "activations are computed while training; leave it out"
_NO_COMPILED_SAE = (
    "the step of an SAE is not compiled here, sparse steps being faster than compiled dense ones; "
    "leave it out (compile_llm is allowed)"
)
_UNUSED = "SAELens reads it nowhere; leave it out"
_RECORDED = "it is recorded by SAELens itself; leave it out"

# Every field of SAELens's runner configuration and logger.
RUNNER = {
    # what is trained, on which model
    "sae": Decision("the architecture; its options are in SAE"),
    "model_name": Decision("sweep.model"),
    "model_class_name": Decision(
        "checked",
        only="HookedTransformer",
        why="SAEs are measured on a HookedTransformer; leave it out",
    ),
    "model_kwargs": _refused(
        {}, "measuring would run the model otherwise than training did; leave it out"
    ),
    "model_from_pretrained_kwargs": Decision("load_model: dtype, revision, trust_remote_code"),
    "hook_name": Decision("the SAE's hook"),
    "hook_eval": _refused("NOT_IN_USE", _UNUSED),
    "hook_head_index": Decision("the SAE's head"),
    "from_pretrained_path": Decision("the SAE that training begins with, see finetuning"),
    # text
    "dataset_path": Decision("sweep.corpus"),
    "dataset_trust_remote_code": Decision("options.dataset_trust_remote_code"),
    "streaming": Decision("options.streaming"),
    "is_dataset_tokenized": Decision("options.is_dataset_tokenized"),
    "use_chat_formatting": Decision("options.use_chat_formatting"),
    "context_size": Decision("sweep.context_size"),
    "disable_concat_sequences": Decision("options.disable_concat_sequences"),
    "sequence_separator_token": Decision("options.sequence_separator_token"),
    "prepend_bos": Decision("options.prepend_bos"),
    # activations
    "use_cached_activations": _refused(False, _NO_CACHE),
    "cached_activations_path": _refused(None, _NO_CACHE),
    "n_batches_in_buffer": Decision("sweep.n_batches_in_buffer"),
    "store_batch_size_prompts": Decision("sweep.store_batch_size_prompts"),
    "seqpos_slice": Decision("options.seqpos_slice"),
    "activations_mixing_fraction": Decision("options.activations_mixing_fraction"),
    "exclude_special_tokens": Decision("options.exclude_special_tokens"),
    "n_batches_for_norm_estimate": Decision("options.n_batches_for_norm_estimate"),
    "prefetch_llm_batches": Decision("options.prefetch_llm_batches"),
    # devices and arithmetic
    "device": Decision("sweep.device"),
    "llm_device": Decision("options.llm_device"),
    "act_store_device": Decision("options.act_store_device"),
    "dtype": Decision("the dtype of the SAE, unless sae.dtype is given"),
    "autocast": Decision("options.autocast"),
    "autocast_lm": Decision("options.autocast_lm"),
    "compile_llm": Decision("options.compile_llm"),
    "llm_compilation_mode": Decision("options.llm_compilation_mode"),
    "compile_sae": _refused(False, _NO_COMPILED_SAE),
    "sae_compilation_mode": _refused(None, _NO_COMPILED_SAE),
    # training
    "training_tokens": Decision("sweep.training_tokens"),
    "train_batch_size_tokens": Decision("sweep.train_batch_size_tokens"),
    "adam_beta1": Decision("sweep.adam_beta1"),
    "adam_beta2": Decision("sweep.adam_beta2"),
    "lr": Decision("sweep.lr"),
    "lr_scheduler_name": Decision("options.lr_scheduler_name"),
    "lr_warm_up_steps": Decision("sweep.lr_warm_up_steps"),
    "lr_end": Decision("options.lr_end"),
    "lr_decay_steps": Decision("sweep.lr_decay_steps"),
    "n_restart_cycles": Decision("options.n_restart_cycles"),
    "dead_feature_window": Decision("sweep.dead_feature_window"),
    "feature_sampling_window": Decision("options.feature_sampling_window"),
    "dead_feature_threshold": _refused(1e-8, f"{_UNUSED}: dead_feature_window decides"),
    "seed": Decision("sweep.seed"),
    # measuring
    "n_eval_batches": Decision("the held-out sequences measured, in batches"),
    "eval_batch_size_prompts": Decision("options.eval_batch_size_prompts"),
    "logger": Decision("its options are listed below"),
    # files
    "n_checkpoints": Decision("sweep.n_checkpoints"),
    "checkpoint_path": Decision("where training checkpoints stay; without it none does"),
    "save_final_checkpoint": Decision("options.save_final_checkpoint"),
    "output_path": Decision("the run directory"),
    "resume_from_checkpoint": _refused(
        None,
        "the same command with the same output_path continues a stopped run; to train a finished "
        "SAE further, give from_pretrained_path",
    ),
    "verbose": _refused(
        True, "the lines that SAELens prints are not printed here; 2>/dev/null hides progress bars"
    ),
    "sae_lens_version": _refused(ANY, _RECORDED),
    "sae_lens_training_version": _refused(ANY, _RECORDED),
    # Weights & Biases
    "log_to_wandb": Decision("logger.log_to_wandb"),
    "log_activations_store_to_wandb": _refused(False, _UNUSED),
    "log_optimizer_state_to_wandb": _refused(False, _UNUSED),
    "log_weights_to_wandb": Decision("logger.log_weights_to_wandb"),
    "wandb_project": Decision("logger.wandb_project"),
    "wandb_id": Decision("logger.wandb_id"),
    "run_name": Decision("logger.run_name"),
    "wandb_entity": Decision("logger.wandb_entity"),
    "wandb_log_frequency": Decision("logger.wandb_log_frequency"),
    "eval_every_n_wandb_logs": Decision("logger.eval_every_n_wandb_logs"),
}

# What differs for local text, which is read and cut here.
LOCAL = {
    "dataset_trust_remote_code": _refused(False, "local text runs no code; leave it out"),
    "streaming": Decision(
        "done anyway",
        only=True,
        why="local text is read only as far as training_tokens need; leave it out",
    ),
    "use_chat_formatting": _refused(
        False, "local text is tokenised as it stands; format it before, or use a Hub data set"
    ),
    "disable_concat_sequences": Decision(
        "done anyway",
        only=True,
        why="windows of local text never cross documents; leave it out, or join the documents",
    ),
    "sequence_separator_token": Decision(
        "done anyway",
        only=None,
        why="windows of local text never cross documents, so nothing stands between them; leave "
        "it out",
    ),
}

# Every field of every architecture's training configuration. All reach the SAE, but for these.
SAE_REFUSED = {
    "sae.device": _refused(ANY, "the SAE lies on device; give device"),
    "metadata": _refused(ANY, _RECORDED),
}
# (architecture, option) that SAELens's own configuration overwrites.
SAE_FORCED = {
    ("matching_pursuit", "decoder_init_norm"): "SAELens sets it to 1 for this architecture"
}
SAE = (
    *("d_in", "d_sae", "sae.dtype", "apply_b_dec_to_input", "normalize_activations"),
    *("reshape_activations", "decoder_init_norm", "l1_coefficient", "lp_norm"),
    *("l1_warm_up_steps", "k", "use_sparse_activations", "aux_loss_coefficient"),
    *("rescale_acts_by_decoder_norm", "jumprelu_init_threshold", "jumprelu_bandwidth"),
    *("jumprelu_sparsity_loss_mode", "l0_coefficient", "l0_warm_up_steps"),
    *("pre_act_loss_coefficient", "jumprelu_tanh_scale", "jumprelu_ste_to_input", "target_l0"),
    *("topk_threshold_lr", "matryoshka_widths", "use_matryoshka_aux_loss"),
    *("residual_threshold", "max_iterations", "stop_on_duplicate_support"),
    # of this package's own architectures
    *("symmetry", "two_sided_gate", "l0_target", "l0_rate", "l0_damping", "aux_coefficient"),
    *("detach_aux_decoder", "detach_l1_decoder", "threshold_init", "threshold_init_l0"),
    *("b_dec_init", "reset_dead_thresholds", "initial_b_negative", "n_steps"),
    "initial_step_size",
)


def runner_flags() -> list[str]:
    """Every flag of the installed SAELens's runner and logger."""
    configs = (LanguageModelSAERunnerConfig, LoggingConfig)
    return [field.name for config in configs for field in fields(config)]


def sae_flags() -> dict[str, str]:
    """Every flag of the registered architectures -> the field it sets.

    `dtype` and `device` are spelt with a prefix, because the runner has fields of these names.
    """
    names = [f.name for _, config in SAE_TRAINING_CLASS_REGISTRY.values() for f in fields(config)]
    return {f"sae.{name}" if name in ("dtype", "device") else name: name for name in names}


def named(flags: Iterable[str]) -> set[str]:
    """The flags that stand in `flags`, in whichever of the spellings the parser takes."""
    known = {*runner_flags(), *sae_flags()}
    found = set()
    for text in flags:
        dashes = len(text) - len(text.lstrip("-"))
        if not dashes or text.lstrip("-")[:1].isdigit():
            continue
        name = text.lstrip("-").partition("=")[0].replace("-", "_")
        if dashes == 1:  # -k, as `-k 4` or `-k4`
            found.add(name[0])
            continue
        name = "sae" if name == "architecture" else name.removeprefix("cfg.")
        for spelling in (name, name.removeprefix("no"), name.removeprefix("sae.")):
            if matches := {spelling} & known or {n for n in known if n.startswith(spelling)}:
                found |= matches
                break
    return found


def refuse(given: Iterable[str], cfg: LanguageModelSAERunnerConfig[Any], local: bool) -> None:
    """Refuse flags that the run cannot honour.

    Args:
        given: the flags that were given, from `named`.
        cfg: their values.
        local: whether the text is local.

    Raises:
        ConfigError: naming the flag, its value, why it is refused and what to do.
    """
    for name in sorted(given):
        decision = decide(name, local)
        value = _value(name, cfg)
        if forced := SAE_FORCED.get((cfg.sae.architecture(), name)):
            raise ConfigError(f"{name}={value!r} is not allowed in train: {forced}; leave it out")
        if decision.to and decision.only is ANY:
            continue
        if decision.only is ANY or value != decision.only:
            raise ConfigError(f"{name}={value!r} is not allowed in train: {decision.why}")


def decide(name: str, local: bool) -> Decision:
    """The decision about a flag.

    Raises:
        ConfigError: if the installed SAELens has a flag that nothing here decides about.
    """
    if local and name in LOCAL:
        return LOCAL[name]
    if name in RUNNER:
        return RUNNER[name]
    if name in SAE_REFUSED:
        return SAE_REFUSED[name]
    if name in SAE or _is_of_another_package(name):
        return Decision(f"sae.{name}")
    raise ConfigError(
        f"{name} is an option of the installed SAELens that this version does not know; leave it "
        "out, or train with SAELens's own runner"
    )


def settings(cfg: LanguageModelSAERunnerConfig[Any], to: str, local: bool) -> dict[str, Any]:
    """The values that go to `sweep`, `options` or `logger`, by the names they have there."""
    found = {}
    for name in RUNNER:
        room, _, field = decide(name, local).to.partition(".")
        if room == to:
            found[field] = _value(name, cfg)
    return found


def _value(name: str, cfg: LanguageModelSAERunnerConfig[Any]) -> Any:
    holders: tuple[Any, ...] = (cfg, cfg.logger)
    if name not in runner_flags():
        name, holders = name.removeprefix("sae."), (cfg.sae,)
    return next((getattr(holder, name) for holder in holders if hasattr(holder, name)), None)


def _is_of_another_package(name: str) -> bool:
    """Whether a flag belongs only to an architecture registered outside SAELens and this one."""
    own = [
        config
        for _, config in SAE_TRAINING_CLASS_REGISTRY.values()
        if config.__module__.split(".")[0] in ("sae_lens", "sae_lens_bipolar")
    ]
    known: Mapping[str, type[TrainingSAEConfig]] = {f.name: c for c in own for f in fields(c)}
    return name.removeprefix("sae.") not in known
