"""The one list of architectures that the tests run over: family, fuzzing, card, speed benchmark.

A new architecture joins every one of them by an entry in `ARCHITECTURE_LIST`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sae_lens.saes.gated_sae import GatedSAE
from sae_lens.saes.jumprelu_sae import JumpReLUSAE
from sae_lens.saes.sae import SAE, TrainingSAEConfig
from sae_lens.saes.topk_sae import TopKSAE

from sae_lens_bipolar.architectures.abstopk import AbsTopKTrainingSAEConfig
from sae_lens_bipolar.architectures.batch_abstopk import (
    BatchAbsTopKTrainingSAEConfig,
    MatryoshkaBatchAbsTopKTrainingSAEConfig,
)
from sae_lens_bipolar.architectures.bi_jumprelu import BiJumpReLUTrainingSAEConfig
from sae_lens_bipolar.architectures.bi_topk import BiTopKTrainingSAEConfig
from sae_lens_bipolar.architectures.gated_l0 import GatedL0TrainingSAEConfig
from sae_lens_bipolar.architectures.record import Architecture
from sae_lens_bipolar.architectures.registry import record_of
from sae_lens_bipolar.architectures.sign_aware_gated import SignAwareGatedTrainingSAEConfig
from sae_lens_bipolar.architectures.sparse_topk import SparseTopKTrainingSAEConfig
from sae_lens_bipolar.architectures.unrolled_abstopk import UnrolledAbsTopKTrainingSAEConfig


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One architecture, or a variant of it that differs in what is declared here.

    What its record says (whether it is signed, its formula) is not repeated: the tests hold the
    record against the SAE.
    """

    name: str  # registered
    config: Callable[..., TrainingSAEConfig]  # of d_in, d_sae and further fields, by keyword
    saved_as: str  # the architecture of the saved inference SAE
    splits_into: type[SAE] | None  # class of its polarity split, if its own: itself; None: refused
    variant: str = ""
    both_sides_at_once: bool = False  # one latent may count for two in the split
    per_batch: bool = False  # selects over the batch; saved with a threshold instead
    folds_norms: bool = True  # else fold_W_dec_norm refuses, in the training SAE
    saved_folds_norms: bool = True  # and in the inference SAE
    moving_buffers: tuple[str, ...] = ()  # change at each step, and must survive a resume

    def __str__(self) -> str:
        return f"{self.name} {self.variant}".strip()

    @property
    def record(self) -> Architecture:
        """The record of the saved inference SAE."""
        return record_of(self.config(d_in=4, d_sae=16).get_inference_sae_cfg_dict())


_GATED = {"l0_target": 4.0, "threshold_init_l0": 4.0, "b_dec_init": "mean"}
_CONTROLLER = ("l0_controller.multiplier", "l0_controller.mean_l0")


def _nested(d_sae: int, **fields) -> TrainingSAEConfig:
    return MatryoshkaBatchAbsTopKTrainingSAEConfig(
        k=4, topk_threshold_lr=0.2, matryoshka_widths=[d_sae // 4, d_sae], d_sae=d_sae, **fields
    )


def _sign_aware_gated(variant: str, **options) -> Entry:
    return Entry(
        name="sign_aware_gated",
        config=partial(SignAwareGatedTrainingSAEConfig, **_GATED, **options),
        saved_as="sign_aware_gated",
        splits_into=JumpReLUSAE,
        variant=variant,
        moving_buffers=_CONTROLLER,
    )


ARCHITECTURE_LIST = [
    Entry(
        name="abstopk",
        config=partial(AbsTopKTrainingSAEConfig, k=4),
        saved_as="abstopk",
        splits_into=TopKSAE,
    ),
    Entry(
        name="abstopk",
        config=partial(AbsTopKTrainingSAEConfig, k=4, rescale_acts_by_decoder_norm=False),
        saved_as="abstopk",
        splits_into=TopKSAE,
        variant="unscaled",
        folds_norms=False,
        saved_folds_norms=False,
    ),
    Entry(
        name="sparse_topk",
        config=partial(SparseTopKTrainingSAEConfig, k=4),
        saved_as="topk",
        splits_into=TopKSAE,
    ),
    Entry(
        name="bi_topk",
        config=partial(BiTopKTrainingSAEConfig, k=4),
        saved_as="bi_topk",
        splits_into=TopKSAE,
        both_sides_at_once=True,
    ),
    Entry(
        name="unrolled_abstopk",
        config=partial(UnrolledAbsTopKTrainingSAEConfig, k=4, n_steps=3, initial_step_size=0.3),
        saved_as="unrolled_abstopk",
        splits_into=None,
    ),
    Entry(
        name="unrolled_abstopk",
        config=partial(UnrolledAbsTopKTrainingSAEConfig, k=4, n_steps=1),
        saved_as="unrolled_abstopk",
        splits_into=TopKSAE,
        variant="of one step",
    ),
    Entry(
        name="batch_abstopk",
        config=partial(BatchAbsTopKTrainingSAEConfig, k=4, topk_threshold_lr=0.2),
        saved_as="bi_jumprelu",
        splits_into=JumpReLUSAE,
        per_batch=True,
        moving_buffers=("topk_threshold",),
    ),
    Entry(
        name="matryoshka_batch_abstopk",
        config=_nested,
        saved_as="bi_jumprelu",
        splits_into=JumpReLUSAE,
        per_batch=True,
        moving_buffers=("topk_threshold",),
    ),
    Entry(
        name="bi_jumprelu",
        config=partial(
            BiJumpReLUTrainingSAEConfig,
            jumprelu_init_threshold=0.4,
            jumprelu_bandwidth=0.2,
            decoder_init_norm=0.5,
            l0_coefficient=0.3,
        ),
        saved_as="bi_jumprelu",
        splits_into=JumpReLUSAE,
    ),
    _sign_aware_gated("full", symmetry="full"),
    _sign_aware_gated("gain", symmetry="gain"),
    _sign_aware_gated("none", symmetry="none"),
    _sign_aware_gated("one-sided", two_sided_gate=False),
    Entry(
        name="gated_l0",
        config=partial(GatedL0TrainingSAEConfig, **_GATED),
        saved_as="gated",
        splits_into=GatedSAE,
        moving_buffers=_CONTROLLER,
    ),
]
