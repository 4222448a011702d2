"""An SAE seen through other latents, where no stock SAE computes the same: rescaled or split.

Only for what neither SAELens's `fold_W_dec_norm` nor the polarity split can express.
"""

import copy
from typing import Any

import torch
from sae_lens.saes.sae import SAE

from sae_lens_bipolar.polarity.splitting import signed_latents, split_latents


class LatentView(torch.nn.Module):
    """Latents of `sae` times the norms of their decoder rows, split into poles if asked.

        encode(x) = z |W_dec|           or  [relu(z |W_dec|), relu(-z |W_dec|)]
        decode(z) = sae.decode(z / |W_dec|)
        W_dec     = W_dec / |W_dec|     or  [.; -.]

    `decode(encode(x))` is exactly the SAE's own reconstruction; decoder rows have unit norm.
    Shapes: x `[..., d_in]`, z `[..., d_sae]` or `[..., 2 d_sae]`.
    """

    W_enc: torch.Tensor
    W_dec: torch.Tensor
    b_enc: torch.Tensor
    norms: torch.Tensor

    @torch.no_grad()
    def __init__(self, sae: SAE[Any], split: bool = False):
        super().__init__()
        self.sae = sae
        self.split = split
        self.cfg = copy.deepcopy(sae.cfg)
        norms = sae.W_dec.norm(dim=-1)
        norms = torch.where(norms > 0, norms, torch.ones_like(norms))
        bias = getattr(sae, "b_enc", torch.zeros_like(norms))
        tensors = (sae.W_enc * norms, sae.W_dec / norms[:, None], bias * norms)
        if split:
            self.cfg.d_sae = 2 * sae.cfg.d_sae
            tensors = tuple(
                torch.cat([tensor, -tensor], dim=dim)
                for tensor, dim in zip(tensors, (1, 0, 0), strict=True)
            )
        for name, tensor in zip(("W_enc", "W_dec", "b_enc"), tensors, strict=True):
            self.register_buffer(name, tensor.detach())
        self.register_buffer("norms", norms.detach())

    @property
    def device(self) -> torch.device:
        return self.W_dec.device

    @property
    def dtype(self) -> torch.dtype:
        return self.W_dec.dtype

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        latents = self.sae.encode(x) * self.norms
        return split_latents(latents) if self.split else latents

    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        latents = signed_latents(feature_acts) if self.split else feature_acts
        return self.sae.decode(latents / self.norms)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(x))
