"""An SAE of which each rank holds some latents: what its step does beyond them.

Everything else of a step is the one-process class's own code, on this rank's parameters. Beyond
them go the sums over all latents, first of all the reconstruction. `top_k` has the families that
choose the k largest of all latents, `thresholds` those with a gate.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from sae_lens.saes.sae import TrainingSAE, TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import act_times_W_dec
from torch.distributed.tensor import DTensor
from typing_extensions import override

from sae_lens_bipolar import sparse
from sae_lens_bipolar.architectures.training.on_pairs import StepOnPairs, TrainsOnPairs
from sae_lens_bipolar.runs.distributed.ranks import Ranks


class Sharded(TrainingSAE[Any]):
    """Mixin, first among the bases: an SAE whose parameters are DTensors, sharded by latents.

    While a step runs, its attributes are this rank's tensors, so `W_dec` is `[own, d_in]`;
    `cfg.d_sae` counts the latents of all ranks.
    """

    ranks: Ranks

    @contextmanager
    def on_own_latents(self) -> Iterator[None]:
        """Inside, the attribute of every DTensor is this rank's own tensor, in the same memory."""
        own: dict[str, torch.Tensor] = {}
        for name, tensor in {**self._parameters, **self._buffers}.items():
            if isinstance(tensor, DTensor):
                own[name] = self._leaf_of(tensor)
        attributes: dict[str, Any] = vars(self)  # found before `_parameters`
        attributes.update(own)
        try:
            yield
        finally:
            for name in own:
                del attributes[name]

    def _leaf_of(self, tensor: DTensor) -> torch.Tensor:
        """This rank's part as a leaf, whose gradient becomes the DTensor's when it is complete."""
        with torch.no_grad():
            leaf = tensor.to_local().detach()
        if tensor.requires_grad and torch.is_grad_enabled():
            leaf.requires_grad_()
            leaf.register_post_accumulate_grad_hook(partial(_give, self.ranks, tensor))
        return leaf

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        with self.on_own_latents():
            return super().training_forward_pass(step_input)

    @override
    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        """The reconstruction `[batch, d_in]`, of all latents; `feature_acts` are this rank's."""
        own = self.own_recons(feature_acts) + self.ranks.on_first(self.b_dec)
        recons = self.hook_sae_recons(self.ranks.whole(own))
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(recons), self.d_head)

    def own_recons(self, feature_acts: torch.Tensor) -> torch.Tensor:
        """What this rank's latents add to the reconstruction, `[batch, d_in]`."""
        step: StepOnPairs[Any] | None = getattr(self, "_step", None)
        if step is not None and step.made(feature_acts):
            return step.decode()
        rescales = getattr(self.cfg, "rescale_acts_by_decoder_norm", False)
        return act_times_W_dec(feature_acts, self.W_dec, rescales)

    @override
    def _apply(self, *args: Any, **kwargs: Any) -> "Sharded":
        return self  # SAELens's trainer asks for the device that the SAE is on already

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        with self.on_own_latents():
            super().fold_activation_norm_scaling_factor(scaling_factor)

    @override
    @torch.no_grad()
    def fold_activation_whitening(self, *args: Any, **kwargs: Any) -> None:
        with self.on_own_latents():
            super().fold_activation_whitening(*args, **kwargs)


class ShardedOnPairs(Sharded, TrainsOnPairs):
    """Mixin of those that train on active pairs: by torch's operations, and all ranks alike."""

    @override
    def _arithmetic(self, sae_in: torch.Tensor) -> sparse.Arithmetic:
        # It is chosen by sizes, among them this rank's number of latents, which may differ.
        (n_sparse,) = self.ranks.total_of(super()._arithmetic(sae_in) != "dense")
        return "sparse" if n_sparse == self.ranks.size else "dense"


def _give(ranks: Ranks, tensor: DTensor, leaf: torch.Tensor) -> None:
    """Give `tensor` the gradient of its part; of what all ranks hold, the sum of their shares."""
    assert leaf.grad is not None
    grad = leaf.grad if tensor.placements[0].is_shard() else ranks.total(leaf.grad)
    spec = {"shape": tensor.shape, "stride": tensor.stride()}
    tensor.grad = DTensor.from_local(
        grad, tensor.device_mesh, tensor.placements, run_check=False, **spec
    )
    leaf.grad = None
