"""The sign-aware gated SAE (SA-GSAE) with its Bi-Jump-ReLU.

The equations are our reading of arXiv 2605.28149, whose public text gives the parts but not the
formulas; where it is silent they follow the Gated SAE of arXiv 2404.16014. With one projection
`u = (x - b_dec) W_enc`, thresholds `theta+, theta- > 0`, log-gains `r+, r-` and biases `b+, b-`:

    g+ = 1[u > theta+]                g- = 1[u < -theta-]              the gate, with its dead zone
    m+ = relu(exp(r+) u + b+)         m- = relu(-exp(r-) u + b-)       magnitudes, free of shrinkage
    z  = g+ m+ - g- m-                                                 Bi-Jump-ReLU
    xhat = z W_dec + b_dec

    pi = relu(u - theta+) - relu(-u - theta-)                      the gate path's own signed code
    L  = |x - xhat|^2 + lambda sum_i |pi_i| |sg(W_dec_i)| + c |x - (pi sg(W_dec) + sg(b_dec))|^2

`sg` stops the gradient: the gate path's two terms train gate and encoder, never the decoder.
`gated_step` has the step, and says why the sparsity term needs it as much as the auxiliary one.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from sae_lens.saes.gated_sae import GatedTrainingSAE, GatedTrainingSAEConfig
from sae_lens.saes.sae import (
    SAE,
    SAEConfig,
    TrainCoefficientConfig,
    TrainStepInput,
    TrainStepOutput,
)
from torch import nn
from typing_extensions import override

from sae_lens_bipolar.architectures.citations import GATED, SAGSAE
from sae_lens_bipolar.architectures.record import DECODE, Architecture, Config, Sides
from sae_lens_bipolar.architectures.training.checks import check_fields
from sae_lens_bipolar.architectures.training.gate import Polarities, bi_jump_relu
from sae_lens_bipolar.architectures.training.gated_step import DenseGated, GatedOnPairs
from sae_lens_bipolar.architectures.training.l0_control import L0TargetConfig
from sae_lens_bipolar.architectures.training.precision import kept_in_float32
from sae_lens_bipolar.errors import ConfigError, require_choice, require_number

Symmetry = Literal["full", "gain", "none"]
# How many of (log_threshold, log_gain, b_mag) are shared by the two polarities.
_SIDES: dict[str, tuple[int, int, int]] = {"full": (1, 1, 1), "gain": (2, 1, 2), "none": (2, 2, 2)}


def _check_gate_options(symmetry: str, two_sided_gate: bool) -> None:
    require_choice(symmetry, tuple(_SIDES), "symmetry")
    if not two_sided_gate and symmetry != "full":
        raise ConfigError(
            f"two_sided_gate=False leaves one side, so there is nothing for symmetry={symmetry!r} "
            "to tie; use symmetry='full'"
        )


@dataclass
class SignAwareGatedSAEConfig(SAEConfig):
    """Configuration of `SignAwareGatedSAE`.

    Args:
        symmetry: what the polarities share: "full" (all), "gain" (r), "none".
        two_sided_gate: False keeps the positive side only.
    """

    symmetry: Symmetry = "full"
    two_sided_gate: bool = True

    @override
    @classmethod
    def architecture(cls) -> str:
        return "sign_aware_gated"

    def __post_init__(self) -> None:
        check_fields(self)
        super().__post_init__()
        _check_gate_options(self.symmetry, self.two_sided_gate)


class _SignAwareGate(SAE[Any]):
    """What the inference and the training class share: parameters, encoder, folding.

    `log_threshold`, `log_gain` and `b_mag` have shape `[sides, d_sae]`: one row where the
    polarities are tied, else the positive side's row before the negative side's.
    """

    log_threshold: nn.Parameter
    log_gain: nn.Parameter
    b_mag: nn.Parameter

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        for name, sides in zip(
            ("log_threshold", "log_gain", "b_mag"), _SIDES[self.cfg.symmetry], strict=True
        ):
            zeros = torch.zeros(sides, self.cfg.d_sae, dtype=self.dtype, device=self.device)
            setattr(self, name, nn.Parameter(zeros))

    def polarities(self, latents: torch.Tensor | None = None) -> Polarities:
        """Both sides' parameters, `[d_sae]` each, or gathered at the indices `latents`."""
        parameters = self.log_threshold, self.log_gain, self.b_mag
        if latents is not None:
            parameters = (p.index_select(1, latents) for p in parameters)
        log_theta, log_gain, bias = parameters
        theta, gain = log_theta.exp().to(self.dtype), log_gain.exp().to(self.dtype)
        return Polarities(theta[0], theta[-1], gain[0], gain[-1], bias[0], bias[-1])

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """`u = (x - b_dec) W_enc`, `[..., d_sae]` from `[..., d_in]`."""
        return self.hook_sae_acts_pre(self.process_sae_in(x) @ self.W_enc)

    @override
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Signed latents `z`, `[..., d_sae]`, of activations `x`, `[..., d_in]`."""
        u = self.project(x)
        return self.hook_sae_acts_post(bi_jump_relu(u, self.polarities(), self.cfg.two_sided_gate))

    @override
    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        """Reconstruction `z W_dec + b_dec`, `[..., d_in]`."""
        recons = self.hook_sae_recons(feature_acts @ self.W_dec + self.b_dec)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(recons), self.d_head)

    @override
    @torch.no_grad()
    def fold_W_dec_norm(self) -> None:
        """Move the decoder norms into the encoder: `u`, thresholds and biases scale with them."""
        norms = self.fold_and_get_W_dec_norm()
        self.log_threshold.data.add_(norms.log())
        self.b_mag.data.mul_(norms)


class SignAwareGatedSAE(_SignAwareGate):
    """Inference-only SA-GSAE: `z = BiJumpReLU((x - b_dec) W_enc)`, `xhat = z W_dec + b_dec`."""

    cfg: SignAwareGatedSAEConfig


@dataclass
class SignAwareGatedTrainingSAEConfig(L0TargetConfig):
    """Configuration of `SignAwareGatedTrainingSAE`; the other fields are those of `L0TargetConfig`.

    Args:
        symmetry: what the polarities share: "full" (all, the paper's default), "gain" (r), "none".
        detach_aux_decoder: stop the auxiliary gradient at W_dec and b_dec.
        detach_l1_decoder: stop the gradient of the sparsity term at the norms of W_dec.
        threshold_init: initial thresholds, in units of u (small: the paper's recommendation);
            with an L0 to start from, each latent's is a quantile of its |u| instead.
        reset_dead_thresholds: a latent that is dead for the trainer's `dead_feature_window`
            gets its initial thresholds back.
    """

    symmetry: Symmetry = "full"  # what the two sides share: full (all), gain, none
    two_sided_gate: bool = True  # False keeps the positive side only
    aux_coefficient: float = 1.0  # weight of the auxiliary reconstruction; 0 removes it
    detach_aux_decoder: bool = True  # the auxiliary term does not train the decoder
    detach_l1_decoder: bool = True  # the sparsity term does not train the decoder's norms
    threshold_init: float = 0.01  # thresholds at the start, in units of u, where no L0 sets them
    reset_dead_thresholds: bool = True  # dead latents get their first thresholds back

    @override
    @classmethod
    def architecture(cls) -> str:
        return "sign_aware_gated"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_gate_options(self.symmetry, self.two_sided_gate)
        require_number(self.threshold_init, "threshold_init", 0, exclusive=True)
        require_number(self.aux_coefficient, "aux_coefficient", 0)
        if self.normalize_activations == "covariance_whitening" and not self.apply_b_dec_to_input:
            raise ConfigError(
                "covariance_whitening (normalize_activations) needs apply_b_dec_to_input=True: u "
                "has no bias of its own that could take up the mean when the whitening is folded"
            )


class SignAwareGatedTrainingSAE(GatedOnPairs, _SignAwareGate, DenseGated):
    """Training SA-GSAE: the loss of the module's docstring, an L0 controller, threshold resets.

    Thresholds are learned as logarithms, so they stay positive and move on their own scale.
    Source: arXiv 2605.28149 (our reading), arXiv 2404.16014 eq. 8 for the gated loss.
    """

    cfg: SignAwareGatedTrainingSAEConfig
    initial_log_threshold: torch.Tensor

    def __init__(self, cfg: SignAwareGatedTrainingSAEConfig, use_error_term: bool = False):
        super().__init__(cfg, use_error_term)
        self.is_two_sided, self.aux_weight = cfg.two_sided_gate, cfg.aux_coefficient
        self.detaches_l1_decoder = cfg.detach_l1_decoder
        self.detaches_aux_decoder = cfg.detach_aux_decoder

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        # float32 whatever the SAE's dtype: Adam's small steps would round away in bfloat16.
        dtype = torch.promote_types(self.dtype, torch.float32)
        start = math.log(self.cfg.threshold_init)
        initial = torch.full_like(self.log_threshold, start, dtype=dtype)
        self.log_threshold = nn.Parameter(initial)
        self.register_buffer("initial_log_threshold", initial.clone())

    @override
    def _apply(self, *args: Any, **kwargs: Any) -> "SignAwareGatedTrainingSAE":
        with kept_in_float32(self, "log_threshold", "initial_log_threshold", or_wider=True):
            super()._apply(*args, **kwargs)
        return self

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """One forward pass with all losses, after dead latents got their thresholds back."""
        dead = step_input.dead_neuron_mask
        if self.cfg.reset_dead_thresholds and dead is not None:
            with torch.no_grad():
                reset = torch.where(dead, self.initial_log_threshold, self.log_threshold)
                self.log_threshold.copy_(reset)
        return super().training_forward_pass(step_input)

    @override
    def gate_scores(self, x: torch.Tensor) -> torch.Tensor:
        u = self.process_sae_in(x) @ self.W_enc
        return u.abs() if self.cfg.two_sided_gate else u

    @override
    def set_thresholds(self, thresholds: torch.Tensor) -> None:
        self.log_threshold.copy_(thresholds.clamp(min=1e-6).log().expand_as(self.log_threshold))
        self.initial_log_threshold.copy_(self.log_threshold)

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        return {"l1": TrainCoefficientConfig(self.cfg.l1_coefficient, self.cfg.l1_warm_up_steps)}

    @override
    @torch.no_grad()
    def fold_W_dec_norm(self) -> None:
        self.initial_log_threshold.add_(self.get_W_dec_norm().log())
        super().fold_W_dec_norm()

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        state_dict.pop("initial_log_threshold")
        state_dict["log_threshold"] = state_dict["log_threshold"].to(self.dtype)

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        if "log_threshold" in state_dict:  # saved for inference: its thresholds are the start
            state_dict.setdefault("initial_log_threshold", state_dict["log_threshold"].clone())


def _sides(sae: SignAwareGatedSAE) -> Sides:
    p = sae.polarities()
    # Where the magnitude's relu opens only after the gate, the relu decides: threshold 0.
    positive = (p.gain_positive * p.threshold_positive + p.bias_positive).clamp(min=0)
    negative = (p.gain_negative * p.threshold_negative + p.bias_negative).clamp(min=0)
    if not sae.cfg.two_sided_gate:
        negative = torch.full_like(negative, torch.inf)
    return Sides(
        bias=(p.bias_positive, p.bias_negative),
        gain=(p.gain_positive, p.gain_negative),
        threshold=(positive, negative),
    )


_LATENTS = "z    = g+ m+ - g- m-"


def _options(config: Config) -> dict[str, Any]:
    if config.get("two_sided_gate", True):
        return {}
    return {"signed": False, "formula": RECORD.formula.replace(_LATENTS, "z    = g+ m+")}


RECORD = Architecture(
    name="sign_aware_gated",
    title="SA-GSAE: a gate with a dead zone between two thresholds, and magnitudes per side",
    formula="v    = (x - b_dec) W_enc\n"
    "g+   = 1[v > exp(t+)]              g- = 1[v < -exp(t-)]\n"
    "m+   = relu(exp(r+) v + b+)        m- = relu(-exp(r-) v + b-)\n"
    f"{_LATENTS}\n{DECODE}\n"
    "with t, r, b = log_threshold, log_gain, b_mag: a row per side, or one that both share",
    source="our reading of arXiv 2605.28149",
    cites=(SAGSAE, GATED),
    signed=True,
    when="Where dead latents are the trouble, or L0 should vary from token to token.",
    training=(SignAwareGatedTrainingSAE, SignAwareGatedTrainingSAEConfig),
    inference=(SignAwareGatedSAE, SignAwareGatedSAEConfig),
    sides=_sides,
    at_l0=lambda d_sae, l0: {"l0_target": l0},
    timed_beside=(GatedTrainingSAE, GatedTrainingSAEConfig),
    options=_options,
    caveat="The equations of sign_aware_gated are a reading of the paper's public text, which "
    "gives the parts but not the formulas.",
)
