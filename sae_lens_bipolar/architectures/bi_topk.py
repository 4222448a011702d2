"""Top-k over both sides of every latent, with one bias per side.

    u    = (x - b_dec) W_enc                                [batch, d_sae]
    pre+ = u + b+        pre- = -u + b-
    z    = relu(pre+) [pre+ kept] - relu(pre-) [pre- kept]   kept: the k largest of all 2 d_sae
    xhat = z W_dec + b_dec                                  [batch, d_in]

It contains TopK (`b- -> -inf`) and AbsTopK (`b- = -b+`, `u + b+` being AbsTopK's pre-activation),
and the initial `b-` is a dial between them: a latent pays for its negative side only where that
side earns its place among the k. Its polarity split is exactly SAELens's `TopKSAE(2 d_sae, k)`
with weights `[W_enc, -W_enc]`, `[b+, b-]`, `[W_dec; -W_dec]`.

Both sides of a latent can be kept at once, as `pre+ + pre- = b+ + b-`, where that sum is above 0.
Then `z` is the difference of the two, which is what the split adds to the reconstruction too, and
one entry of `z` stands for two of the k. So `L0(z) <= k`, the support of `z` is the split's folded
onto d_sae latents, and the one exception is a latent whose two kept values are equal: it is 0.

With `rescale_acts_by_decoder_norm` both pre-activations are multiplied by `|W_dec_i|` before the
selection and the latents divided by it when decoding, as in SAELens's TopK.
Sources: arXiv 2406.04093 (TopK and its auxiliary loss), arXiv 2510.00404 (AbsTopK).
"""

from dataclasses import dataclass
from typing import Any

import torch
from sae_lens.saes.sae import SAE, SAEConfig, TrainingSAE
from sae_lens.saes.topk_sae import (
    TopK,
    TopKSAE,
    TopKSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
    act_times_W_dec,
    calculate_topk_aux_acts,
)
from torch import nn
from typing_extensions import override

from sae_lens_bipolar.architectures.citations import ABSTOPK, TOPK
from sae_lens_bipolar.architectures.record import DECODE, Architecture, Sides
from sae_lens_bipolar.architectures.training.checks import (
    check_fields,
    require_k,
)
from sae_lens_bipolar.architectures.training.start import DataStartConfig, StartsFromData
from sae_lens_bipolar.errors import ConfigError, require_number


@dataclass
class BiTopKSAEConfig(TopKSAEConfig):
    """Configuration of `BiTopKSAE`: the fields of SAELens's `topk`.

    Args:
        k: sides kept per token, of all 2 d_sae; from 1 to d_sae.
        rescale_acts_by_decoder_norm: select as if the decoder rows had norm 1.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    @override
    @classmethod
    def architecture(cls) -> str:
        return "bi_topk"

    def __post_init__(self) -> None:
        check_fields(self)
        super().__post_init__()
        require_k(self.k, self.d_sae)


class _TwoSidedTopK(SAE[Any]):
    """What the inference and the training class share: parameters, selection, folding."""

    b_positive: nn.Parameter  # [d_sae], in units of u
    b_negative: nn.Parameter  # [d_sae], in units of u

    def _replace_b_enc(self, initial_b_negative: float) -> None:
        del self.b_enc  # SAELens's TopK has made it; the two biases stand in its place
        for name, value in (("b_positive", 0.0), ("b_negative", initial_b_negative)):
            bias = torch.full((self.cfg.d_sae,), value, dtype=self.dtype, device=self.device)
            setattr(self, name, nn.Parameter(bias))

    def pre_activations(self, x: torch.Tensor) -> torch.Tensor:
        """`u = (x - b_dec) W_enc`, `[..., d_sae]` from `[..., d_in]`."""
        return self.hook_sae_acts_pre(self.process_sae_in(x) @ self.W_enc)

    def both_sides(self, u: torch.Tensor) -> torch.Tensor:
        """`[pre+, pre-]`, `[..., 2 d_sae]`, rescaled by the decoder norms where the config says."""
        both = torch.cat([u + self.b_positive, self.b_negative - u], dim=-1)
        if self.cfg.rescale_acts_by_decoder_norm:
            both = both * self.W_dec.norm(dim=-1).repeat(2)
        return both

    @override
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Signed latents `z`, `[..., d_sae]`, of activations `x`, `[..., d_in]`."""
        both = self.activation_fn(self.both_sides(self.pre_activations(x)))
        return self.hook_sae_acts_post(fold_sides(both))

    @override
    @torch.no_grad()
    def fold_and_get_W_dec_norm(self) -> torch.Tensor:
        norms = super().fold_and_get_W_dec_norm()
        self.b_positive.data.mul_(norms)
        self.b_negative.data.mul_(norms)
        return norms

    @override
    @torch.no_grad()
    def fold_activation_whitening(
        self,
        mean: torch.Tensor,
        whitening_matrix: torch.Tensor,
        unwhitening_matrix: torch.Tensor,
    ) -> None:
        """Fold `(x - mean) M` into the weights, and into the biases where `u` has no `b_dec`."""
        super().fold_activation_whitening(mean, whitening_matrix, unwhitening_matrix)
        if not self.cfg.apply_b_dec_to_input:
            dtype = torch.promote_types(self.W_enc.dtype, mean.dtype)
            shift = mean.to(self.device, dtype) @ self.W_enc.data.to(dtype)
            self.b_positive.data.sub_(shift)
            self.b_negative.data.add_(shift)


def fold_sides(both: torch.Tensor) -> torch.Tensor:
    """`[positive, negative]`, `[..., 2 d_sae]`, to signed `positive - negative`, `[..., d_sae]`."""
    positive, negative = both.chunk(2, dim=-1)
    return positive - negative


class BiTopKSAE(_TwoSidedTopK, TopKSAE):
    """Inference-only Bi-TopK: see the module's docstring. `W_enc [d_in, d_sae]`, `b_positive`,
    `b_negative` `[d_sae]`, `W_dec [d_sae, d_in]`, `b_dec [d_in]`.
    """

    cfg: BiTopKSAEConfig  # type: ignore[assignment]

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self._replace_b_enc(initial_b_negative=0.0)


@dataclass
class BiTopKTrainingSAEConfig(DataStartConfig, TopKTrainingSAEConfig):
    """Configuration of `BiTopKTrainingSAE`: the fields of SAELens's `topk`, and the dial.

    Args:
        k: sides kept per token, of all 2 d_sae; from 1 to d_sae.
        initial_b_negative: initial `b-`, in units of u; 0 starts as AbsTopK, a large negative
            number as TopK. `b+` starts at 0.
        aux_loss_coefficient: weight of the auxiliary loss on dead latents.
        rescale_acts_by_decoder_norm: select as if the decoder rows had norm 1.
        use_sparse_activations: ignored, as SAELens's own `abstopk` does.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    initial_b_negative: float = 0.0  # b- at the start; 0: AbsTopK, far below 0: TopK

    @override
    @classmethod
    def architecture(cls) -> str:
        return "bi_topk"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return BiTopKSAEConfig

    def __post_init__(self) -> None:
        check_fields(self)
        super().__post_init__()
        require_k(self.k, self.d_sae)
        require_number(self.initial_b_negative, "initial_b_negative")
        require_number(self.aux_loss_coefficient, "aux_loss_coefficient", 0)


class BiTopKTrainingSAE(StartsFromData, _TwoSidedTopK, TopKTrainingSAE):
    """Training Bi-TopK: squared error plus SAELens's TopK auxiliary loss over both sides.

    With `n` dead latents, the `min(d_in / 2, n)` largest of their 2 n pre-activations reconstruct
    the residual, weighted by `min(n / (d_in / 2), 1)`. So it is TopK's auxiliary loss as
    `b- -> -inf` and AbsTopK's at `b- = -b+`; it is that of the split, whose dead latents come in
    pairs, wherever `n >= d_in / 2`. (Fewer dead latents count once here, twice in the split.)
    """

    cfg: BiTopKTrainingSAEConfig  # type: ignore[assignment]

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self._replace_b_enc(self.cfg.initial_b_negative)

    @override
    def get_activation_fn(self) -> TopK:
        return TopK(self.cfg.k)

    @override
    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents `z` and projections `u`, `[batch, d_sae]` each."""
        u = self.pre_activations(x)
        return self.hook_sae_acts_post(fold_sides(self.activation_fn(self.both_sides(u)))), u

    @override
    def calculate_topk_aux_loss(
        self,
        sae_in: torch.Tensor,
        sae_out: torch.Tensor,
        hidden_pre: torch.Tensor,
        dead_neuron_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """SAELens's loss of that name over both sides of the dead latents (see the class).

        Args:
            sae_in, sae_out: inputs and reconstructions, `[batch, d_in]`.
            hidden_pre: projections `u`, `[batch, d_sae]`.
            dead_neuron_mask: `[d_sae]`.

        Raises:
            ConfigError: where the normalisation puts residual and latents in different spaces.
        """
        if dead_neuron_mask is None or (num_dead := int(dead_neuron_mask.sum())) == 0:
            return sae_out.new_tensor(0.0)
        if self.cfg.normalize_activations in ("constant_norm_rescale", "layer_norm"):
            raise ConfigError(
                f"normalize_activations={self.cfg.normalize_activations!r} has no auxiliary loss "
                f"for the {num_dead} dead latents; use 'none', 'expected_average_only_in' or "
                "'covariance_whitening'."
            )
        k_aux = sae_in.shape[-1] // 2
        acts = calculate_topk_aux_acts(
            k_aux=min(k_aux, num_dead),
            hidden_pre=self.both_sides(hidden_pre),
            dead_neuron_mask=dead_neuron_mask.repeat(2),
        )
        recons = act_times_W_dec(
            fold_sides(acts), self.W_dec, self.cfg.rescale_acts_by_decoder_norm
        )
        recons = self.reshape_fn_out(recons, self.d_head)  # as decode() does
        error = (recons - (sae_in - sae_out).detach()).pow(2).sum(dim=-1).mean()
        return self.cfg.aux_loss_coefficient * min(num_dead / k_aux, 1.0) * error

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        # Past SAELens's TopK, which folds the norms into a b_enc that is not here.
        TrainingSAE.process_state_dict_for_saving_inference(self, state_dict)
        if self.cfg.rescale_acts_by_decoder_norm:
            norms = self.get_W_dec_norm()
            for name in ("W_enc", "b_positive", "b_negative"):
                state_dict[name] = state_dict[name] * norms
            state_dict["W_dec"] = state_dict["W_dec"] / norms[:, None]


def _sides(sae: BiTopKSAE) -> Sides:
    return Sides(bias=(sae.b_positive, sae.b_negative))


RECORD = Architecture(
    name="bi_topk",
    title="Bi-TopK: top-k over both sides of every latent, with a bias per side",
    formula="v    = (x - b_dec) W_enc\n"
    "p+   = v + b+        p- = -v + b-\n"
    "z    = relu(p+) [p+ kept] - relu(p-) [p- kept]    kept: the k largest of all 2 d_sae\n"
    f"{DECODE}\n"
    "with b+, b- = b_positive, b_negative",
    source="after arXiv 2406.04093 and 2510.00404",
    cites=(TOPK, ABSTOPK),
    signed=True,
    when="Where some latents should be two-sided and others not: training decides, side by side.",
    training=(BiTopKTrainingSAE, BiTopKTrainingSAEConfig),
    inference=(BiTopKSAE, BiTopKSAEConfig),
    sides=_sides,
    at_l0=lambda d_sae, l0: {"k": l0},
)
