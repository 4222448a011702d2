"""What `metrics.jsonl` keeps of a training step."""

from typing import Any

import torch
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_bipolar.evaluation.averages import mean_nmse


@torch.no_grad()
def logged_row(
    name: str, trainer: SAETrainer[Any, Any], output: TrainStepOutput, seconds: float
) -> dict[str, Any]:
    """The line of one step of one SAE.

    Args:
        name: of the SAE in its run.
        trainer: the SAE's own, before it counts the step.
        output: what the step gave.
        seconds: what the SAE's steps took so far.
    """
    row = {
        "step": trainer.n_training_steps + 1,
        "n_tokens": trainer.n_training_samples,
        "sae": name,
        "loss": output.loss.item(),
        "mse_loss": output.losses["mse_loss"].item(),
        "nmse": mean_nmse(output.sae_in, output.sae_out),
        "l0": output.feature_acts.bool().float().sum(-1).mean().item(),
        "dead": int(trainer.dead_neurons.sum()),
        "lr": trainer.optimizer.param_groups[0]["lr"],
        "seconds": round(seconds, 3),
    }
    row |= {f"losses/{key}": float(value) for key, value in output.losses.items()}
    row |= {f"coefficients/{key}": value for key, value in trainer.get_coefficients().items()}
    row |= {f"metrics/{key}": _number(value) for key, value in output.metrics.items()}
    return row


def _number(value: Any) -> float:
    """A metric of SAELens's steps: a number, a tensor, or a function that gives one."""
    found: Any = value() if callable(value) else value
    return float(found)
