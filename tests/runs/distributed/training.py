"""One SAE trained on activations from a seed, by SAELens's trainer: in one process, or sharded."""

from typing import Any

import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_bipolar import sparse
from sae_lens_bipolar.runs.distributed.ranks import Ranks
from sae_lens_bipolar.runs.distributed.sharding import shard, whole

D_IN, D_SAE, BATCH = 12, 101, 25  # 51 and 50 latents on two ranks, 34, 34 and 33 on three


def make_trainer(cfg: TrainingSAEConfig, steps: int, window: int = 2) -> SAETrainer[Any, Any]:
    torch.manual_seed(3)
    options = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=steps * BATCH,
        device="cpu",
        autocast=False,
        lr=3e-3,
        lr_end=3e-4,
        lr_scheduler_name="constant",
        lr_warm_up_steps=2,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=5,
        n_restart_cycles=1,
        train_batch_size_samples=BATCH,
        dead_feature_window=window,
        feature_sampling_window=20,
        logger=LoggingConfig(log_to_wandb=False),
    )
    sae = get_sae_training_class(cfg.architecture())[0](cfg)
    return SAETrainer(cfg=options, sae=sae, data_provider=iter(()))


def batches(steps: int, batch: int = BATCH) -> list[torch.Tensor]:
    """Sparse sums of directions, around a mean, from a seed."""
    generator = torch.Generator().manual_seed(11)
    directions = torch.randn(30, D_IN, generator=generator)
    found = []
    for _ in range(steps):
        codes = torch.randn(batch, 30, generator=generator)
        codes *= torch.rand(batch, 30, generator=generator) < 0.15
        noise = 0.05 * torch.randn(batch, D_IN, generator=generator)
        found.append(codes @ directions + noise + 2)
    return found


def train(trainer: SAETrainer[Any, Any], steps: int, ranks: Ranks | None = None) -> dict[str, Any]:
    """Losses by step, dead latents by step, and the weights and Adam's state in the end; in one
    process also the least distance of a pre-activation from a jump of its latent."""
    losses, dead, margin = [], [], float("inf")
    if ranks is not None:
        shard(trainer, ranks)
    for batch in batches(steps):
        trainer.maybe_reset_sparsity()
        before = thresholds(trainer) if ranks is None else []
        output = trainer.step(batch)
        trainer.n_training_steps += 1
        for threshold in before:
            margin = min(margin, (output.hidden_pre - threshold).abs().min().item())
        losses.append({name: float(loss) for name, loss in output.losses.items()})
        n_dead = trainer.dead_neurons.sum()
        dead.append(int(n_dead if ranks is None else ranks.total(n_dead)))
    result: dict[str, Any] = {"losses": losses, "dead": dead, "margin": margin}
    if ranks is None:
        return {**result, **held(trainer)}
    with whole(trainer, ranks):
        return {**result, **held(trainer)} if ranks.is_first else result


def thresholds(trainer: SAETrainer[Any, Any]) -> list[torch.Tensor]:
    """The values of u where latents jump, of an SAE with a threshold on either side."""
    signs = {"threshold_positive": 1, "threshold_negative": -1}
    found = {sign: getattr(trainer.sae, name, None) for name, sign in signs.items()}
    return [sign * t.detach().clamp(min=0) for sign, t in found.items() if t is not None]


def held(trainer: SAETrainer[Any, Any]) -> dict[str, Any]:
    adam = trainer.optimizer.state_dict()["state"]
    return {
        "weights": {name: t.clone() for name, t in trainer.sae.state_dict().items()},
        "adam": {f"{i}.{k}": v.clone() for i, state in adam.items() for k, v in state.items()},
        "fired": trainer.n_forward_passes_since_fired.clone(),
        "frequencies": trainer.act_freq_scores.clone(),
    }


def train_all(ranks: Ranks, cases: dict[str, tuple[TrainingSAEConfig, str]], steps: int) -> Any:
    """The result of every case (its configuration, and the arithmetic), by name."""
    found = {}
    for name, (cfg, arithmetic) in cases.items():
        with sparse.mode(arithmetic):  # type: ignore[arg-type]
            found[name] = train(make_trainer(cfg, steps), steps, ranks)
    return found
