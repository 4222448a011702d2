"""The one list of architectures that `test_every_architecture.py` runs its tests over.

A new architecture joins every one of them by an entry in `ARCHITECTURE_LIST`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sae_lens.saes.abstopk_sae import AbsTopKTrainingSAEConfig
from sae_lens.saes.gated_sae import GatedSAE
from sae_lens.saes.jumprelu_sae import JumpReLUSAE
from sae_lens.saes.sae import SAE, TrainingSAEConfig
from sae_lens.saes.topk_sae import TopKSAE

from sae_lens_bipolar.architectures.batch_abstopk import (
    BatchAbsTopKTrainingSAEConfig,
    MatryoshkaBatchAbsTopKTrainingSAEConfig,
)
from sae_lens_bipolar.architectures.bi_jumprelu import BiJumpReLUTrainingSAEConfig
from sae_lens_bipolar.architectures.bi_topk import BiTopKTrainingSAEConfig
from sae_lens_bipolar.architectures.gated_l0 import GatedL0TrainingSAEConfig
from sae_lens_bipolar.architectures.sign_aware_gated import SignAwareGatedTrainingSAEConfig
from sae_lens_bipolar.architectures.sparse_topk import SparseTopKTrainingSAEConfig
from sae_lens_bipolar.architectures.unrolled_abstopk import UnrolledAbsTopKTrainingSAEConfig


@dataclass(frozen=True)
class Entry:
    """One architecture, or a variant of it that differs in what is declared here."""

    name: str  # registered
    config: Callable[..., TrainingSAEConfig]  # of d_in, d_sae and further fields, by keyword
    saved_as: str  # the architecture of the saved inference SAE
    splits_into: type[SAE] | None  # class of its polarity split, if its own: itself; None: refused
    variant: str = ""
    signed: bool = True  # latents may be negative
    both_sides_at_once: bool = False  # one latent may count for two in the split
    per_batch: bool = False  # selects over the batch; saved with a threshold instead
    folds_norms: bool = True  # else fold_W_dec_norm refuses, in the training SAE
    saved_folds_norms: bool = True  # and in the inference SAE
    moving_buffers: tuple[str, ...] = ()  # change at each step, and must survive a resume

    def __str__(self) -> str:
        return f"{self.name} {self.variant}".strip()


_GATED = {"l0_target": 4.0, "threshold_init_l0": 4.0, "b_dec_init": "mean"}
_CONTROLLER = ("l0_controller.multiplier", "l0_controller.mean_l0")


def _nested(d_sae: int, **fields) -> TrainingSAEConfig:
    return MatryoshkaBatchAbsTopKTrainingSAEConfig(
        k=4, topk_threshold_lr=0.2, matryoshka_widths=[d_sae // 4, d_sae], d_sae=d_sae, **fields
    )


def _sign_aware_gated(variant: str, **options) -> Entry:
    config = partial(SignAwareGatedTrainingSAEConfig, **_GATED, **options)
    return Entry(
        *("sign_aware_gated", config, "sign_aware_gated", JumpReLUSAE, variant),
        signed=options.get("two_sided_gate", True),
        moving_buffers=_CONTROLLER,
    )


ARCHITECTURE_LIST = [
    Entry("abstopk", partial(AbsTopKTrainingSAEConfig, k=4), "abstopk", TopKSAE),
    Entry(
        "abstopk",
        partial(AbsTopKTrainingSAEConfig, k=4, rescale_acts_by_decoder_norm=False),
        *("abstopk", TopKSAE, "unscaled"),
        folds_norms=False,
        saved_folds_norms=False,
    ),
    Entry("sparse_topk", partial(SparseTopKTrainingSAEConfig, k=4), "topk", TopKSAE, signed=False),
    Entry(
        *("bi_topk", partial(BiTopKTrainingSAEConfig, k=4), "bi_topk", TopKSAE),
        both_sides_at_once=True,
    ),
    Entry(
        "unrolled_abstopk",
        partial(UnrolledAbsTopKTrainingSAEConfig, k=4, n_steps=3, initial_step_size=0.3),
        *("unrolled_abstopk", None),
    ),
    Entry(
        "unrolled_abstopk",
        partial(UnrolledAbsTopKTrainingSAEConfig, k=4, n_steps=1),
        *("unrolled_abstopk", TopKSAE, "of one step"),
    ),
    Entry(
        "batch_abstopk",
        partial(BatchAbsTopKTrainingSAEConfig, k=4, topk_threshold_lr=0.2),
        *("bi_jumprelu", JumpReLUSAE),
        per_batch=True,
        moving_buffers=("topk_threshold",),
    ),
    Entry(
        *("matryoshka_batch_abstopk", _nested, "bi_jumprelu", JumpReLUSAE),
        per_batch=True,
        moving_buffers=("topk_threshold",),
    ),
    Entry(
        "bi_jumprelu",
        partial(
            BiJumpReLUTrainingSAEConfig,
            jumprelu_init_threshold=0.4,
            jumprelu_bandwidth=0.2,
            decoder_init_norm=0.5,
            l0_coefficient=0.3,
        ),
        *("bi_jumprelu", JumpReLUSAE),
    ),
    _sign_aware_gated("full", symmetry="full"),
    _sign_aware_gated("gain", symmetry="gain"),
    _sign_aware_gated("none", symmetry="none"),
    _sign_aware_gated("one-sided", two_sided_gate=False),
    Entry(
        "gated_l0",
        partial(GatedL0TrainingSAEConfig, **_GATED),
        *("gated", GatedSAE),
        signed=False,
        moving_buffers=_CONTROLLER,
    ),
]
