"""AbsTopK with several proximal gradient steps: the multi-step encoder the AbsTopK paper proposes.

Sparse coding asks for the k-sparse z with the least `1/2 |x - b - D z|^2`. Proximal gradient steps
(arXiv 2510.00404, eq. 4), with the learned `W` for `D` and `b_e` for `-D^T b` as eq. 6 has them:

    v_1     = W^T (x - b) + b_e                                  z_1 = AbsTopK_k(v_1)
    v_{t+1} = z_t + mu_t (W^T (x - b - D z_t) + b_e)             z_{t+1} = AbsTopK_k(v_{t+1})
    xhat    = D z_T + b

Here `W = W_enc [d_in, d_sae]`, `D = W_dec^T`, `b = b_dec [d_in]`, `b_e = b_enc [d_sae]`, and the
learned step sizes `mu_t = exp(log_step_size_t) > 0`. The first step has none: it would only scale
`W` and `b_e`. One step is `abstopk`, with the same parameters. With `W = D`, `b_e = 0` and
`mu <= 1 / |D|_2^2` a step never increases the objective (iterative hard thresholding).

With `rescale_acts_by_decoder_norm` the steps are those of the dictionary with unit rows: `v_t` is
multiplied by `|W_dec_i|` before AbsTopK and the latents divided by it after, as in `abstopk`.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens.saes.abstopk_sae import (
    AbsTopKSAE,
    AbsTopKSAEConfig,
    AbsTopKTrainingSAE,
    AbsTopKTrainingSAEConfig,
)
from sae_lens.saes.sae import SAE, SAEConfig
from sae_lens.saes.topk_sae import act_times_W_dec
from torch import nn
from typing_extensions import override

from sae_lens_bipolar.architectures.citations import ABSTOPK
from sae_lens_bipolar.architectures.record import DECODE, Architecture, Sides
from sae_lens_bipolar.architectures.training.checks import (
    check_fields,
    require_k,
)
from sae_lens_bipolar.architectures.training.precision import kept_in_float32
from sae_lens_bipolar.architectures.training.start import DataStartConfig, StartsFromData
from sae_lens_bipolar.errors import ConfigError, require_number

_MOST_STEPS = 1000  # each is two products of the size of the encoder's; more is a mistake


def _require_steps(n_steps: Any) -> None:
    is_integer = isinstance(n_steps, int) and not isinstance(n_steps, bool)
    if not is_integer or not 1 <= n_steps <= _MOST_STEPS:
        raise ConfigError(
            f"n_steps={n_steps!r} is not allowed: it must be an integer >= 1 and <= {_MOST_STEPS}."
        )


@dataclass
class UnrolledAbsTopKSAEConfig(AbsTopKSAEConfig):
    """Configuration of `UnrolledAbsTopKSAE`: the fields of SAELens's `abstopk`, and the steps.

    Args:
        n_steps: proximal gradient steps T of the encoder; 1 is `abstopk`.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    n_steps: int = 2

    @override
    @classmethod
    def architecture(cls) -> str:
        return "unrolled_abstopk"

    def __post_init__(self) -> None:
        check_fields(self)
        super().__post_init__()
        require_k(self.k, self.d_sae)
        _require_steps(self.n_steps)


class _Unrolled(SAE[Any]):
    """What the inference and the training class share: step sizes and encoder."""

    b_enc: nn.Parameter
    log_step_size: nn.Parameter  # [n_steps - 1], float32; absent with one step

    def _add_step_sizes(self, initial: float) -> None:
        if self.cfg.n_steps > 1:
            steps = torch.full((self.cfg.n_steps - 1,), math.log(initial), device=self.device)
            self.log_step_size = nn.Parameter(steps)

    @override
    def _apply(self, *args: Any, **kwargs: Any) -> "_Unrolled":
        with kept_in_float32(self, "log_step_size"):
            super()._apply(*args, **kwargs)
        return self

    def pre_activations(self, x: torch.Tensor) -> torch.Tensor:
        """`v_T`, `[..., d_sae]` from `[..., d_in]`, before any rescaling; the hook sees it."""
        sae_in = self.process_sae_in(x)
        v = sae_in @ self.W_enc + self.b_enc
        for step in range(self.cfg.n_steps - 1):
            z = self.activation_fn(self._rescale(v))
            recons = self.recons_of(z)
            if self.cfg.rescale_acts_by_decoder_norm:
                z = z / self.W_dec.norm(dim=-1)
            gradient = (sae_in - recons) @ self.W_enc + self.b_enc
            v = z + self.log_step_size[step].exp().to(gradient.dtype) * gradient
        return self.hook_sae_acts_pre(v)

    def recons_of(self, z: torch.Tensor) -> torch.Tensor:
        """`D z`, `[..., d_in]`, of the (rescaled) latents `[..., d_sae]` of a step."""
        return act_times_W_dec(z, self.W_dec, self.cfg.rescale_acts_by_decoder_norm)

    def _rescale(self, v: torch.Tensor) -> torch.Tensor:
        return v * self.W_dec.norm(dim=-1) if self.cfg.rescale_acts_by_decoder_norm else v


class UnrolledAbsTopKSAE(_Unrolled, AbsTopKSAE):
    """Inference-only unrolled AbsTopK: see the module's docstring for formula and shapes.

    The polarity split does not apply: the encoder is not one affine map (unless `n_steps` is 1).
    """

    cfg: UnrolledAbsTopKSAEConfig  # type: ignore[assignment]

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self._add_step_sizes(1.0)

    @override
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Signed latents `z_T`, `[..., d_sae]`, of activations `x`, `[..., d_in]`."""
        return self.hook_sae_acts_post(self.activation_fn(self._rescale(self.pre_activations(x))))


@dataclass
class UnrolledAbsTopKTrainingSAEConfig(DataStartConfig, AbsTopKTrainingSAEConfig):
    """Configuration of `UnrolledAbsTopKTrainingSAE`: SAELens's `abstopk`, and the steps.

    Args:
        k: latents kept per token, by magnitude; from 1 to d_sae.
        n_steps: proximal gradient steps T of the encoder; 1 is `abstopk`.
        initial_step_size: initial mu of every step after the first; above 0 (1: as eq. 5 has it).
        use_sparse_activations: ignored, as SAELens's own `abstopk` does.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    n_steps: int = 2  # proximal gradient steps of the encoder; 1 is abstopk
    initial_step_size: float = 1.0  # mu of every step after the first, at the start

    @override
    @classmethod
    def architecture(cls) -> str:
        return "unrolled_abstopk"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return UnrolledAbsTopKSAEConfig

    def __post_init__(self) -> None:
        check_fields(self)
        super().__post_init__()
        require_k(self.k, self.d_sae)
        _require_steps(self.n_steps)
        require_number(self.initial_step_size, "initial_step_size", 0, exclusive=True)
        require_number(self.aux_loss_coefficient, "aux_loss_coefficient", 0)


class UnrolledAbsTopKTrainingSAE(StartsFromData, _Unrolled, AbsTopKTrainingSAE):
    """Training unrolled AbsTopK: SAELens's `abstopk` losses, gradients through every step.

    The auxiliary loss takes the dead latents' entries of the last `v_T`.
    """

    cfg: UnrolledAbsTopKTrainingSAEConfig  # type: ignore[assignment]

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self._add_step_sizes(self.cfg.initial_step_size)

    @override
    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents `z_T` and the (rescaled) `v_T` they are chosen from, `[batch, d_sae]` each."""
        hidden_pre = self._rescale(self.pre_activations(x))
        return self.hook_sae_acts_post(self.activation_fn(hidden_pre)), hidden_pre

    @override
    @torch.no_grad()
    def log_histograms(self) -> dict[str, Any]:
        logged = super().log_histograms()
        if self.cfg.n_steps > 1:
            logged["weights/step_sizes"] = self.log_step_size.detach().float().exp().cpu().numpy()
        return logged


def _sides(sae: UnrolledAbsTopKSAE) -> Sides:
    if sae.cfg.n_steps == 1:  # that is abstopk
        return Sides(bias=(sae.b_enc, -sae.b_enc))
    raise ConfigError(
        f"unrolled_abstopk with n_steps={sae.cfg.n_steps} has no polarity split: every step feeds "
        "the signed latents of the one before back through the decoder, and SAELens's TopKSAE and "
        "JumpReLUSAE encode with one affine map; use its signed latents, or n_steps=1"
    )


RECORD = Architecture(
    name="unrolled_abstopk",
    title="Unrolled AbsTopK: T proximal gradient steps with learned step sizes",
    formula="v_1     = (x - b_dec) W_enc + b_enc\n"
    "v_{t+1} = z_t + μ_t ((x - b_dec - z_t W_dec) W_enc + b_enc)\n"
    "z_t     = v_t on the k largest of |v_t|, else 0        z = z_T\n"
    f"{DECODE}\n"
    "with μ = exp(log_step_size)",
    source="arXiv 2510.00404, equations 4 to 6",
    cites=(ABSTOPK,),
    signed=True,
    when="Where encoding should come nearer to sparse coding, at T times the price per step.",
    training=(UnrolledAbsTopKTrainingSAE, UnrolledAbsTopKTrainingSAEConfig),
    inference=(UnrolledAbsTopKSAE, UnrolledAbsTopKSAEConfig),
    sides=_sides,
    at_l0=lambda d_sae, l0: {"k": l0},
)
