"""How a training step on active (sample, latent) pairs takes its place in SAELens's.

SAELens's `training_forward_pass` calls `encode_with_hidden_pre`, `decode` and `calculate_aux_loss`
of the SAE and adds up the losses. `TrainsOnPairs` lets one object, made for one step, answer these
three calls; `top_k_step` and `gated_step` each hold one family's such object.
"""

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import torch
from sae_lens.saes.sae import SAE, TrainingSAE, TrainStepInput, TrainStepOutput
from torch import nn
from typing_extensions import override

from sae_lens_bipolar import sparse
from sae_lens_bipolar.architectures.training.start import StartsFromData
from sae_lens_bipolar.sparse import fused_adam, heap
from sae_lens_bipolar.sparse.deferred import DeferredPreactivations, DeferredTensor, SparseLatents
from sae_lens_bipolar.sparse.projection import Projection

SomeSAE = TypeVar("SomeSAE", bound=TrainingSAE[Any])


class StepOnPairs(ABC, Generic[SomeSAE]):
    """One training step on active pairs: `encode`, then `decode`, then `losses`.

    Args:
        sae: the SAE in training.
        step_input: the batch, `[batch, d_in]`, and the mask of dead latents.
        by_kernel: whether Triton kernels search and sum.
    """

    latents: SparseLatents  # `[batch, d_sae]`; from `encode` on
    hidden_pre: DeferredPreactivations  # `[batch, d_sae]`; from `encode` on

    def __init__(self, sae: SomeSAE, step_input: TrainStepInput, by_kernel: bool = False):
        self.sae = sae
        self.step_input = step_input
        self.by_kernel = by_kernel
        self.has_encoded = False

    def begin(self, x: torch.Tensor) -> tuple[SparseLatents, DeferredPreactivations]:
        """Encode `x`, once per step, and return `latents` and `hidden_pre`."""
        self.encode(x)
        self.has_encoded = True
        return self.latents, self.hidden_pre

    @abstractmethod
    def encode(self, x: torch.Tensor) -> None:
        """Find the active pairs of `x` and set `latents` and `hidden_pre`."""

    @abstractmethod
    def decode(self) -> torch.Tensor:
        """`z W_dec`, `[batch, d_in]`, of the pairs."""

    @abstractmethod
    def losses(
        self, step_input: TrainStepInput, sae_out: torch.Tensor
    ) -> dict[str, torch.Tensor] | None:
        """The losses besides the squared error; None if the dense step's own are to be used.

        Args:
            step_input: with the coefficients of the losses.
            sae_out: the reconstruction, shaped like `step_input.sae_in`.
        """

    def made(self, tensor: torch.Tensor) -> bool:
        """Whether the step made `tensor` and nobody has read or written its entries since."""
        mine = self.has_encoded and (tensor is self.latents or tensor is self.hidden_pre)
        return mine and isinstance(tensor, DeferredTensor) and tensor.is_untouched


class TrainsOnPairs(StartsFromData):
    """Mixin for a training SAE whose steps run on pairs where that is faster and nothing forbids.

    A step is the dense one of the class below if hooks sit on pre- or post-activations, if the
    input is not `[batch, d_in]`, if dense products are faster at its density, or under
    `sparse.mode("dense")`.
    """

    _step: StepOnPairs[Any] | None = None  # while one runs

    def step_density(self) -> float | None:
        """Share of the latents that a step keeps active, or None if the step must be dense."""
        raise NotImplementedError

    def new_step(self, step_input: TrainStepInput, by_kernel: bool) -> StepOnPairs[Any]:
        """The object that answers for one step."""
        raise NotImplementedError

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        chosen = self._arithmetic(step_input.sae_in)
        if chosen == "dense":
            if self.W_dec.is_cuda:
                fused_adam.ask_for(self.W_dec)
            return super().training_forward_pass(step_input)
        return self._on_pairs(step_input, chosen == "triton")

    # A compiler has nothing to fuse here, and cannot trace through tensor subclasses.
    @torch.compiler.disable()
    def _on_pairs(self, step_input: TrainStepInput, by_kernel: bool) -> TrainStepOutput:
        fused_adam.ask_for(self.W_dec)
        heap.ask_for(self.W_dec)
        self._step = self.new_step(step_input, by_kernel)
        try:
            return super().training_forward_pass(step_input)
        finally:
            self._step = None

    def _arithmetic(self, sae_in: torch.Tensor) -> sparse.Arithmetic:
        """What the step runs on, of a batch shaped like the SAE's input."""
        if (
            sparse.is_always_dense(self.W_dec)  # then the density, on the device, is not asked for
            or sae_in.ndim != (3 if self.hook_z_reshaping_mode else 2)
            or has_hooks(self.hook_sae_acts_pre)
            or has_hooks(self.hook_sae_acts_post)
            or (density := self.step_density()) is None
        ):
            return "dense"
        return sparse.arithmetic(density, self.W_dec, len(sae_in))

    # Each of these calls the method of the class below (abstract in `TrainingSAE`, so pyright needs
    # to be told) unless the running step can answer. It cannot for tensors that a subclass has put
    # in place of its own, or that someone has written to.

    @override
    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents and pre-activations, `[batch, d_sae]` each."""
        step = self._step
        if step is None or step.has_encoded:
            return super().encode_with_hidden_pre(x)  # pyright: ignore[reportAbstractUsage]
        return step.begin(x)

    @override
    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        """The reconstruction, shaped like the SAE's input, of latents `[..., d_sae]`."""
        step = self._step
        if step is None or not step.made(feature_acts):
            return super().decode(feature_acts)
        recons = self.hook_sae_recons(step.decode() + self.b_dec)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(recons), self.d_head)

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        sae_out: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The losses besides the squared error, by name."""
        step, losses = self._step, None
        if step is not None and step.made(feature_acts) and step.made(hidden_pre):
            losses = step.losses(step_input, sae_out)
        if losses is None:
            losses = super().calculate_aux_loss(  # pyright: ignore[reportAbstractUsage]
                step_input, feature_acts, hidden_pre, sae_out
            )
        assert isinstance(losses, dict)  # by name, as those of both families are
        return losses


def input_projection(sae: SAE[Any], x: torch.Tensor, by_kernel: bool = False) -> Projection:
    """`u = process_sae_in(x) @ W_enc + b_enc` of an SAE (without `b_enc` if it has none).

    Args:
        sae: the SAE.
        x: activations, `[batch, d_in]`.
        by_kernel: whether Triton kernels sum over its pairs; under autocast they read its dtype.
    """
    sae_in, shift = sae.process_sae_in(x), None
    if not x.requires_grad and not has_hooks(sae.hook_sae_input):
        # Then only b_dec needs a gradient through the input, and `shift` gives it more cheaply.
        sae_in = sae_in.detach()
        shift = sae.b_dec if sae.cfg.apply_b_dec_to_input else None
    b_enc = getattr(sae, "b_enc", None)
    reading = None
    if by_kernel:
        device, reading = x.device.type, sae.W_enc.dtype
        if torch.is_autocast_enabled(device):
            reading = torch.get_autocast_dtype(device)
    return Projection(sae_in, sae.W_enc, b_enc, shift, reading)


def has_hooks(module: nn.Module) -> bool:
    """Whether anything is hooked to a module, forward or backward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
