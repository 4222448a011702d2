"""Training one SAE on synthetic activations with SAELens's trainer."""

from dataclasses import dataclass
from typing import Any

import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import SAE, TrainingSAEConfig
from sae_lens.synthetic.training import SyntheticActivationIterator
from sae_lens.training.sae_trainer import SAETrainer

import sae_lens_bipolar  # noqa: F401  (registers the architectures)
from recipes.sagsae.toys.world import GroundTruth
from sae_lens_bipolar.architectures.training.l0_control import (
    L0_DAMPING,
    L0_RATE,
    require_l0_control,
)
from sae_lens_bipolar.errors import require_choice, require_number
from sae_lens_bipolar.polarity.splitting import inference_form

GATED = ("sign_aware_gated", "gated_l0")
TOP_K = ("abstopk", "sparse_topk")


@dataclass(frozen=True)
class Contestant:
    """An SAE that takes part: its name in the figures, its architecture, its width."""

    label: str
    architecture: str
    width: float  # multiple of H, the protocol's budget of latents
    symmetry: str = "full"  # of sign_aware_gated

    def d_sae(self, budget: float) -> int:
        """Latents at a budget of `budget`, at least one."""
        return max(1, round(self.width * budget))


CONTESTANTS = {
    "sa_gsae": Contestant("SA-GSAE (H)", "sign_aware_gated", 1),
    "gated": Contestant("Gated (H)", "gated_l0", 1),
    "gated_2h": Contestant("Gated (2H)", "gated_l0", 2),
    "abstopk": Contestant("AbsTopK (H)", "abstopk", 1),
    "topk": Contestant("TopK (H)", "sparse_topk", 1),
    "sa_gsae_untied": Contestant("SA-GSAE untied (H)", "sign_aware_gated", 1, symmetry="none"),
    "sa_gsae_2h": Contestant("SA-GSAE (2H)", "sign_aware_gated", 2),
}


@dataclass(frozen=True)
class Training:
    """How every SAE is trained; the same for all, so that only the architecture differs."""

    steps: int = 800
    batch_size: int = 256
    lr: float = 1e-2  # Adam's; rises over warm_up_steps, falls to 0 over the last decay_share
    warm_up_steps: int = 20
    decay_share: float = 0.3
    l1_coefficient: float = 1.0  # where the L0 controller starts
    l0_rate: float = L0_RATE  # of the L0 controller
    l0_damping: float = L0_DAMPING  # likewise
    start_l0: float = 2.0  # first thresholds of gated SAEs, as a multiple of the target L0
    dead_feature_window: int = 100  # steps without firing after which a latent counts as dead

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            require_number(getattr(self, name), name, 1)
        for name in ("lr", "l1_coefficient", "start_l0"):
            require_number(getattr(self, name), name, 0, exclusive=True)
        require_number(self.decay_share, "decay_share", 0, maximum=1)
        require_l0_control(self.l0_rate, self.l0_damping)


def sae_config(
    contestant: Contestant, d_in: int, d_sae: int, l0: float, training: Training
) -> TrainingSAEConfig:
    """Training configuration of an SAE that is to have `l0` active latents on average."""
    require_choice(contestant.architecture, GATED + TOP_K, "architecture")
    options: dict[str, Any] = {"k": max(1, round(l0)), "b_dec_init": "zeros"}
    if contestant.architecture in GATED:
        options = {
            "l0_target": l0,
            "threshold_init_l0": min(training.start_l0 * l0, d_sae / 2),
            "b_dec_init": "mean",
            "l1_coefficient": training.l1_coefficient,
            "l0_rate": training.l0_rate,
            "l0_damping": training.l0_damping,
        }
    if contestant.architecture == "sign_aware_gated":
        options["symmetry"] = contestant.symmetry
    _, config_class = get_sae_training_class(contestant.architecture)
    return config_class(d_in=d_in, d_sae=d_sae, **options)


def train(config: TrainingSAEConfig, truth: GroundTruth, training: Training) -> SAE[Any]:
    """Train an SAE on `truth`, from torch's global random state; returned as saved for inference.

    `SAETrainer.step` is called as `fit` does, which would draw a progress bar for every cell.
    """
    sae_class, _ = get_sae_training_class(config.architecture())
    batches = SyntheticActivationIterator(truth.dictionary, truth.generator, training.batch_size)
    trainer = SAETrainer(_trainer_config(training), sae_class(config), batches)
    for _ in range(training.steps):
        trainer.step(next(batches))
        trainer.n_training_steps += 1
    return inference_form(trainer.sae).eval()


def _trainer_config(training: Training) -> SAETrainerConfig:
    return SAETrainerConfig(
        total_training_samples=training.steps * training.batch_size,
        train_batch_size_samples=training.batch_size,
        device="cpu",
        autocast=False,
        lr=training.lr,
        lr_end=training.lr,
        lr_scheduler_name="constant",
        lr_warm_up_steps=min(training.warm_up_steps, training.steps // 4),
        lr_decay_steps=int(training.decay_share * training.steps),
        n_restart_cycles=1,
        adam_beta1=0.9,
        adam_beta2=0.999,
        dead_feature_window=training.dead_feature_window,
        feature_sampling_window=training.steps + 1,
        n_batches_for_norm_estimate=1,
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        logger=LoggingConfig(log_to_wandb=False),
    )


@torch.no_grad()
def encode(sae: SAE[Any], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents `[batch, d_sae]` and reconstruction `[batch, d_in]` of `x`, dense."""
    latents = sae.encode(x)
    latents = latents.to_dense() if latents.is_sparse else latents
    return latents, sae.decode(latents)
