"""What the tests of the signed architectures share: random weights, doubling, folding, files."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import (
    SAE,
    SAEConfig,
    TrainingSAE,
    TrainingSAEConfig,
    TrainStepInput,
    TrainStepOutput,
)
from sae_lens.training.sae_trainer import SAETrainer

D_IN, D_SAE, BATCH = 8, 24, 32
# Those that SAELens's trainer folds into the weights when training ends.
FOLDED_NORMALISATIONS = ["none", "expected_average_only_in", "covariance_whitening"]


def inputs(batch: int = BATCH, seed: int = 7, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Activations `[batch, D_IN]` with a mean that is not 0."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, D_IN, generator=generator, dtype=dtype) + 0.3


S = TypeVar("S", bound=SAE[Any])


def randomise(sae: S, seed: int = 0) -> S:
    """Give every parameter a random value; decoder norms differ, thresholds are positive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if name.startswith("threshold"):
                noise = 0.5 + noise.abs()
            elif name.startswith(("b_", "log_step")):
                noise = 0.3 * noise
            parameter.copy_(noise / 2)
    return sae


def step_input(
    x: torch.Tensor, dead: torch.Tensor | None = None, step: int = 0, **coefficients: float
) -> TrainStepInput:
    return TrainStepInput(
        sae_in=x,
        coefficients=coefficients,
        dead_neuron_mask=dead,
        n_training_steps=step,
        is_logging_step=False,
    )


def run_step(sae: TrainingSAE[Any], *args: Any, **kwargs: Any) -> TrainStepOutput:
    """One forward and backward pass from fresh gradients."""
    sae.zero_grad()
    output = sae.training_forward_pass(step_input(*args, **kwargs))
    output.loss.backward()
    return output


def gradients(sae: SAE[Any]) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in sae.named_parameters() if p.grad is not None}


def double(signed: SAE[Any], twin: SAE[Any], **per_side: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Load `twin`, of twice the width, with `[W_enc, -W_enc]`, `[W_dec; -W_dec]` and `per_side`."""
    with torch.no_grad():
        twin.W_enc.copy_(torch.cat([signed.W_enc, -signed.W_enc], dim=1))
        twin.W_dec.copy_(torch.cat([signed.W_dec, -signed.W_dec], dim=0))
        twin.b_dec.copy_(signed.b_dec)
        for name, pair in per_side.items():
            getattr(twin, name).copy_(torch.cat(pair))


def fold(doubled: torch.Tensor, dim: int = -1) -> torch.Tensor:
    positive, negative = doubled.chunk(2, dim=dim)
    return positive - negative


def assert_weight_gradients_are_folded(signed: SAE[Any], twin: SAE[Any]) -> None:
    """Chain rule through the signs: gradients of ours are the twin's positive minus negative."""
    ours, theirs = gradients(signed), gradients(twin)
    close(ours["W_enc"], fold(theirs["W_enc"], dim=1))
    close(ours["W_dec"], fold(theirs["W_dec"], dim=0))
    close(ours["b_dec"], theirs["b_dec"])


def assert_losses_equal(ours: TrainStepOutput, theirs: TrainStepOutput) -> None:
    assert ours.losses.keys() == theirs.losses.keys()
    for name, value in theirs.losses.items():
        close(ours.losses[name], value)
    close(ours.loss, theirs.loss)
    close(ours.sae_out, theirs.sae_out)


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def close_as_float32(actual: torch.Tensor, expected: torch.Tensor) -> None:
    close(actual, expected, tolerance=1e-5)


def assert_round_trips(sae: TrainingSAE[Any], folder: Path) -> SAE[Any]:
    """Config and weights survive dictionaries and files, both ways; returns the inference SAE."""
    cfg = sae.cfg
    as_read = json.loads(json.dumps(cfg.to_dict()))
    assert TrainingSAEConfig.from_dict(as_read) == cfg
    assert cfg.metadata.training_architecture == cfg.architecture()

    sae.save_model(folder / "training")
    again = TrainingSAE.load_from_disk(folder / "training")
    assert type(again) is type(sae)
    assert again.cfg == cfg
    assert again.state_dict().keys() == sae.state_dict().keys()
    for name, value in sae.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name

    sae.save_inference_model(folder / "inference")
    inference = SAE.load_from_disk(folder / "inference")
    assert type(inference.cfg) is cfg.get_inference_config_class()
    assert inference.cfg.metadata.training_architecture == cfg.architecture()
    details = inference.cfg.metadata.training_architecture_details
    assert details == cfg.get_training_architecture_details()
    inference.save_model(folder / "again")
    same = SAE.load_from_disk(folder / "again")
    assert SAEConfig.from_dict(json.loads(json.dumps(inference.cfg.to_dict()))) == inference.cfg
    x = inputs(dtype=inference.dtype)
    assert torch.equal(same.encode(x), inference.encode(x))
    return inference


def assert_normalisation_folds(sae: SAE[Any]) -> None:
    """A folded SAE does on raw activations what the SAE did on scaled or whitened ones."""
    x = inputs()
    factor = 1.7
    folded = copy.deepcopy(sae)
    folded.fold_activation_norm_scaling_factor(factor)
    close(folded(x) * factor, sae(x * factor))
    assert torch.equal(folded.encode(x) != 0, sae.encode(x * factor) != 0)

    generator = torch.Generator().manual_seed(3)
    mean = torch.randn(D_IN, generator=generator, dtype=torch.float64)
    noise = torch.randn(D_IN, D_IN, generator=generator, dtype=torch.float64)
    matrix = torch.eye(D_IN, dtype=torch.float64) + 0.2 * noise
    folded = copy.deepcopy(sae)
    folded.fold_activation_whitening(mean, matrix, matrix.inverse())
    white = (x - mean) @ matrix
    close(folded(x), sae(white) @ matrix.inverse() + mean)
    close(folded.encode(x), sae.encode(white))


def assert_decoder_norms_fold(sae: SAE[Any]) -> None:
    """Folding leaves decoder rows of norm 1, the support and the reconstruction."""
    x = inputs()
    folded = copy.deepcopy(sae)
    folded.fold_W_dec_norm()
    close(folded.W_dec.norm(dim=-1), torch.ones(D_SAE, dtype=torch.float64))
    assert not torch.allclose(sae.W_dec.norm(dim=-1), folded.W_dec.norm(dim=-1))
    close(folded(x), sae(x))
    assert torch.equal(folded.encode(x) != 0, sae.encode(x) != 0)


def train(sae: TrainingSAE[Any], steps: int) -> SAETrainer[Any, Any]:
    """SAELens's own trainer on sparse combinations of signed axes; latents may die early."""
    generator = torch.Generator().manual_seed(1)
    axes = torch.randn(D_IN, D_IN, generator=generator)

    def batches() -> Iterator[torch.Tensor]:
        while True:
            keep = torch.rand(64, D_IN, generator=generator) < 0.3
            yield (torch.randn(64, D_IN, generator=generator) * keep) @ axes

    cfg = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=64 * steps,
        device="cpu",
        autocast=False,
        lr=3e-3,
        lr_end=3e-4,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=64,
        dead_feature_window=5,
        feature_sampling_window=10,
        n_batches_for_norm_estimate=4,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(cfg=cfg, sae=sae, data_provider=batches())
    trainer.fit()
    return trainer


def assert_reconstructs(sae: SAE[Any], trainer: SAETrainer[Any, Any], share: float) -> torch.Tensor:
    """Error of fresh raw activations below `share` of their variance; returns signed latents."""
    x = next(trainer.data_provider)
    z = sae.encode(x)
    assert sae.cfg.normalize_activations == "none"
    error, variance = (sae(x) - x).pow(2).sum(), (x - x.mean(0)).pow(2).sum()
    assert error < share * variance
    assert (z > 0).any()
    assert (z < 0).any()
    return z
