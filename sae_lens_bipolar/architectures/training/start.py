"""Where training starts: the decoder's bias at the centre of the data, its rows near length 1.

From zeros the first steps of every latent go into the mean, which is large next to what varies
around it: a signed latent that starts on one side of it stays there, and many die on the way.

W_enc starts as the transpose of W_dec, so that with rows of length r the first reconstruction is
about r^2 of what it should be. With SAELens's r of 0.1 the latents that fire first grow a hundred
times before the sum is right, and win the places in the top k meanwhile. At 1 it is of the right
size, though too large where many latents of a token overlap: most where tokens share a threshold,
which therefore start at `SHARED_ROW_NORM`.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

import torch
from sae_lens.saes.sae import TrainingSAEConfig, TrainStepInput, TrainStepOutput
from typing_extensions import override

from sae_lens_bipolar.architectures.training.checks import RefusesBadActivations, require_finite
from sae_lens_bipolar.errors import did_you_mean

logger = logging.getLogger(__name__)

SINK_RATIO = 10.0  # times the median norm: tokens beyond it are attention sinks
# Rows where tokens of different norms share a threshold or a top k: the long ones take most of the
# latents, and rows of 1 overshoot. 0.36 to 0.47 of what they give fits best, hence its root.
SHARED_ROW_NORM = 0.6
Config = TypeVar("Config", bound="DataStartConfig")


@dataclass
class DataStartConfig(TrainingSAEConfig):
    """What `StartsFromData` reads, of every training configuration of this package.

    Args:
        b_dec_init: "mean": the mean of the first batch, attention sinks left out; or "zeros".
        decoder_init_norm: norm of the decoder rows at the start; W_enc starts as the transpose.
    """

    b_dec_init: Literal["mean", "zeros"] = "mean"  # where b_dec starts: the data's mean, or zeros
    decoder_init_norm: float | None = 1.0  # norm of the decoder's rows at the start

    @override
    @classmethod
    def from_dict(cls: type[Config], config_dict: dict[str, Any]) -> Config:
        """SAELens's, which passes over what is no field of the architecture; here a line says so.

        Raises:
            ConfigError: naming the field, its value and what is allowed.
        """
        _say_what_is_unknown(cls, config_dict)
        return super().from_dict(config_dict)


def _say_what_is_unknown(cls: type[DataStartConfig], config_dict: Mapping[str, Any]) -> None:
    known = {field.name for field in fields(cls)}
    for name in sorted(set(config_dict) - known - {"architecture"}):
        logger.warning(
            "%s has no option %s, which is passed over%s",
            *(cls.architecture(), name, did_you_mean(name, known)),
        )


class StartsFromData(RefusesBadActivations):
    """Mixin for a training SAE: `b_dec` starts at the mean of the first batch.

    That is where the configuration has `b_dec_init="mean"`; SAELens's own configurations have no
    such field, and start at zeros as its classes do. A `b_dec` that is not all 0 was trained or
    set before, and stays.
    """

    def is_fresh(self, step_input: TrainStepInput) -> bool:
        """Whether the step about to be done is the first of a new SAE."""
        return step_input.n_training_steps == 0

    @torch.no_grad()
    def start_from(self, sae_in: torch.Tensor) -> None:
        """Set what starts from data by the first batch, shaped like the SAE's input."""
        if getattr(self.cfg, "b_dec_init", "zeros") == "mean" and not self.b_dec.any():
            x = self.run_time_activation_norm_fn_in(self.reshape_fn_in(sae_in))
            self.b_dec.copy_(mean_without_sinks(x.flatten(0, -2)))

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """One forward pass with all losses, the first one after the start from data."""
        if self.is_fresh(step_input):
            hook_name, step = self.cfg.metadata.hook_name, step_input.n_training_steps
            require_finite(step_input.sae_in, hook_name, step)
            self.start_from(step_input.sae_in)
        return super().training_forward_pass(step_input)


def mean_without_sinks(x: torch.Tensor) -> torch.Tensor:
    """Mean `[d_in]` of activations `[batch, d_in]` whose norm is at most ten times the median.

    One attention sink weighs as much in a mean as hundreds of other tokens.
    """
    norms = x.norm(dim=-1)
    return x[norms <= SINK_RATIO * norms.median()].mean(dim=0)


def thresholds_for_l0(scores: torch.Tensor, l0: float, d_sae: int | None = None) -> torch.Tensor:
    """Per-latent thresholds `[d_sae]` above which `l0` latents fire on average.

    Each latent gets the quantile `1 - l0 / d_sae` of its own scores, so all fire equally often: in
    `round(batch l0 / d_sae)` samples of the batch, at least one.

    One sample has no quantiles, so there the latents share one threshold: the `round(l0)` latents
    with the highest scores fire, at least one and at most all but one.

    Args:
        scores: `[batch, d_sae]`; a latent fires where its score is above its threshold.
        l0: latents per token wanted, `0 < l0 <= d_sae`.
        d_sae: of the whole SAE, where `scores` are those of some of its latents.
    """
    batch, d_sae = len(scores), d_sae or scores.shape[1]
    if batch == 1 and d_sae > 1:
        return thresholds_for_l0(scores.t(), l0 / d_sae).expand(d_sae)
    fire = min(max(round(batch * l0 / d_sae), 1), batch - 1)
    # Half way between the last score that fires and the first that does not: on a score itself,
    # rounding would decide which side of its threshold that sample is.
    return scores.topk(fire + 1, dim=0).values[-2:].mean(dim=0)
