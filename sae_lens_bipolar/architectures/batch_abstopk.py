"""BatchTopK and Matryoshka BatchTopK by magnitude: k signed latents per token on average.

    u    = (x - b_dec) W_enc + b_enc                        [batch, d_sae]
    z    = u on the k batch entries of the batch with the largest |u|, else 0
    xhat = z W_dec + b_dec                                  [batch, d_in]

The training code is SAELens's: `BatchTopKTrainingSAE` (arXiv 2412.06410) with the selection and
the auxiliary loss of its `AbsTopKTrainingSAE` (arXiv 2510.00404, eq. 11), and
`MatryoshkaBatchTopKTrainingSAE` (arXiv 2503.17547). A running mean of the smallest |z| kept in
each batch becomes the one threshold, on both sides, of the `bi_jumprelu` SAE that is saved for
inference. With the weights doubled to `[W_enc, -W_enc]`, ... SAELens's own class selects the same
entries, so losses are equal, and gradients by the chain rule through the signs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens.saes.abstopk_sae import AbsTopKTrainingSAE, calculate_abstopk_aux_acts
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import (
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from sae_lens.saes.sae import SAEConfig
from sae_lens.saes.topk_sae import act_times_W_dec
from torch import nn
from typing_extensions import override

from sae_lens_bipolar.architectures.bi_jumprelu import BiJumpReLUSAEConfig
from sae_lens_bipolar.architectures.citations import ABSTOPK, BATCHTOPK, MATRYOSHKA_SAE
from sae_lens_bipolar.architectures.record import DECODE, LINEAR, Architecture
from sae_lens_bipolar.architectures.training.checks import (
    check_fields,
    require_k,
)
from sae_lens_bipolar.architectures.training.start import (
    SHARED_ROW_NORM,
    DataStartConfig,
    StartsFromData,
)
from sae_lens_bipolar.errors import ConfigError, require_number


class BatchAbsTopK(nn.Module):
    """Keeps the `int(k * samples)` entries of largest magnitude of a whole batch, signs kept.

    Args:
        k: entries kept per sample, on average over the batch; may be fractional.
    """

    def __init__(self, k: float):
        super().__init__()
        self.k = k

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., d_sae]` to a tensor of that shape with zeros outside the selection."""
        flat = x.flatten()
        kept = flat.abs().topk(int(self.k * x.shape[:-1].numel()), sorted=False).indices
        return torch.zeros_like(flat).scatter(-1, kept, flat[kept]).reshape(x.shape)


@dataclass
class BatchAbsTopKTrainingSAEConfig(DataStartConfig, BatchTopKTrainingSAEConfig):
    """Configuration of `BatchAbsTopKTrainingSAE`: the fields of SAELens's `batchtopk`.

    Args:
        k: latents per token on average over the batch, by magnitude; from 1 to d_sae.
        topk_threshold_lr: weight of the newest batch in the running mean threshold; 0 to 1.
        use_sparse_activations: ignored, as SAELens's own `batchtopk` and `abstopk` do.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    # SAELens's 0.01 lags a hundred batches behind; after 200 steps, inference kept a quarter more.
    topk_threshold_lr: float = 0.05
    decoder_init_norm: float | None = SHARED_ROW_NORM

    @override
    @classmethod
    def architecture(cls) -> str:
        return "batch_abstopk"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return BiJumpReLUSAEConfig

    def __post_init__(self) -> None:
        check_fields(self)
        super().__post_init__()
        require_k(self.k, self.d_sae, integer=False)
        require_number(self.topk_threshold_lr, "topk_threshold_lr", 0, maximum=1)
        require_number(self.aux_loss_coefficient, "aux_loss_coefficient", 0)


# SAELens's classes call each other through super(), so the order of the bases is the mixture:
# encoder, threshold and files of BatchTopK, auxiliary loss of AbsTopK, the rest of TopK.
class BatchAbsTopKTrainingSAE(StartsFromData, BatchTopKTrainingSAE, AbsTopKTrainingSAE):
    """BatchTopK by magnitude, signs kept; saved for inference as `bi_jumprelu`.

    Trained with squared error plus the AbsTopK auxiliary loss on dead latents.
    """

    cfg: BatchAbsTopKTrainingSAEConfig  # type: ignore[assignment]

    @override
    def get_activation_fn(self) -> Callable[[torch.Tensor], torch.Tensor]:
        return BatchAbsTopK(self.cfg.k)

    @override
    @torch.no_grad()
    def update_topk_threshold(self, acts_topk: torch.Tensor) -> None:
        """`threshold <- (1 - lr) threshold + lr min |z| over nonzero z` of latents `acts_topk`."""
        super().update_topk_threshold(acts_topk.abs())

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """SAELens's fold, also of the threshold where it is in units of the decoder's norms."""
        # sae_lens before 6.54.9 leaves the threshold as it is (its issue 763).
        threshold = self.topk_threshold.clone()
        super().fold_activation_norm_scaling_factor(scaling_factor)
        if self.cfg.rescale_acts_by_decoder_norm:
            self.topk_threshold.copy_(threshold / scaling_factor)

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        threshold = state_dict.pop("threshold")
        state_dict["threshold_positive"] = threshold
        state_dict["threshold_negative"] = threshold.clone()


@dataclass
class MatryoshkaBatchAbsTopKTrainingSAEConfig(
    MatryoshkaBatchTopKTrainingSAEConfig, BatchAbsTopKTrainingSAEConfig
):
    """Configuration of `MatryoshkaBatchAbsTopKTrainingSAE`: SAELens's `matryoshka_batchtopk`.

    Args:
        matryoshka_widths: widths of the nested prefixes, rising; d_sae is added where missing.
            Empty: a sixteenth and a quarter of d_sae, and d_sae.
        use_matryoshka_aux_loss: dead latents reconstruct the error of their own level.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    # SAELens's class, which comes first, has 0.1 and 0.01.
    decoder_init_norm: float | None = SHARED_ROW_NORM
    topk_threshold_lr: float = 0.05

    @override
    @classmethod
    def architecture(cls) -> str:
        return "matryoshka_batch_abstopk"

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.matryoshka_widths:
            widths = {self.d_sae // 16, self.d_sae // 4, self.d_sae} - {0}
            self.matryoshka_widths = sorted(widths)
        super().__post_init__()
        widths = self.matryoshka_widths
        rising = all(a < b for a, b in zip([0, *widths], [*widths, self.d_sae + 1], strict=True))
        if not rising or not all(isinstance(width, int) for width in widths):
            raise ConfigError(
                f"matryoshka_widths={widths!r} is not allowed: it must be a rising list of widths "
                f"from 1 to d_sae ({self.d_sae})."
            )
        if self.reshape_activations != "none":
            raise ConfigError(
                f"reshape_activations={self.reshape_activations!r} is not allowed with nested "
                "prefixes: the inner levels decode without it; use 'none' and flat activations"
            )
        if self.normalize_activations in ("layer_norm", "constant_norm_rescale"):
            # These keep each token's norm for one decoding, and the inner levels decode again.
            raise ConfigError(
                f"normalize_activations={self.normalize_activations!r} is not allowed with nested "
                "prefixes; use 'none', 'expected_average_only_in' or 'covariance_whitening'."
            )


class MatryoshkaBatchAbsTopKTrainingSAE(MatryoshkaBatchTopKTrainingSAE, BatchAbsTopKTrainingSAE):
    """`BatchAbsTopKTrainingSAE` whose prefixes of latents each reconstruct the input too.

    `loss = sum over widths w of |x - (z_{:w} W_dec_{:w} + b_dec)|^2 + auxiliary loss`.
    """

    cfg: MatryoshkaBatchAbsTopKTrainingSAEConfig  # type: ignore[assignment]

    @override
    def calculate_topk_aux_loss(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.calculate_abstopk_aux_loss(*args, **kwargs)

    @override
    def calculate_matryoshka_aux_loss(
        self,
        sae_in: torch.Tensor,
        sae_out: torch.Tensor,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        dead_neuron_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """SAELens's loss of that name with dead latents chosen by magnitude, signs kept.

        Sum over levels with dead latents of `scale |x - xhat_{:w} - a W_dec|^2`, where `a` holds
        the `d_in / 2` largest |u| of the level's dead latents; all tensors `[batch, ...]`.
        """
        if dead_neuron_mask is None or not dead_neuron_mask.any():
            return sae_out.new_tensor(0.0)
        loss = sae_out.new_tensor(0.0)
        start = 0
        for width, level_out in self._iterable_decode(feature_acts, include_outer_loss=True):
            level = slice(start, width)
            start = width
            if num_dead := int(dead_neuron_mask[level].sum()):
                k_aux = sae_in.shape[-1] // 2
                acts = calculate_abstopk_aux_acts(
                    k_aux=min(k_aux, num_dead),
                    hidden_pre=hidden_pre[:, level],
                    dead_neuron_mask=dead_neuron_mask[level],
                )
                recons = act_times_W_dec(
                    acts, self.W_dec[level], self.cfg.rescale_acts_by_decoder_norm
                )
                error = (recons - (sae_in - level_out).detach()).pow(2).sum(dim=-1).mean()
                loss = loss + min(num_dead / k_aux, 1.0) * error
        return self.cfg.aux_loss_coefficient * loss


_FORMULA = f"{LINEAR}z    = u on the k n largest |u| of a batch of n tokens, else 0\n{DECODE}"
_SAVED = "\nsaved as bi_jumprelu, with the running mean of the smallest |z| kept as both thresholds"

RECORD = Architecture(
    name="batch_abstopk",
    title="Batch AbsTopK: k signed latents per token, on average over a batch",
    formula=_FORMULA + _SAVED,
    source="after arXiv 2412.06410 and 2510.00404",
    cites=(BATCHTOPK, ABSTOPK),
    signed=True,
    when="AbsTopK where tokens differ in how many latents they need: k is an average per batch.",
    training=(BatchAbsTopKTrainingSAE, BatchAbsTopKTrainingSAEConfig),
    at_l0=lambda d_sae, l0: {"k": l0},
)
MATRYOSHKA = Architecture(
    name="matryoshka_batch_abstopk",
    title="Matryoshka Batch AbsTopK: nested prefixes of signed latents, each reconstructing x",
    formula=f"{_FORMULA}, and from the first w latents alone, for each width w{_SAVED}",
    source="after arXiv 2503.17547 and 2510.00404",
    cites=(MATRYOSHKA_SAE, ABSTOPK),
    signed=True,
    when="Where the first latents should be the coarse ones: each nested prefix reconstructs.",
    training=(MatryoshkaBatchAbsTopKTrainingSAE, MatryoshkaBatchAbsTopKTrainingSAEConfig),
    at_l0=lambda d_sae, l0: {"k": l0},
)
