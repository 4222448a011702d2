"""Encoder and decoder as one operation equal the dense ones, with every gradient."""

import pytest
import torch

pytest.importorskip("triton")

from sae_lens_bipolar.sparse import triton
from sae_lens_bipolar.sparse.pairs import Support
from sae_lens_bipolar.sparse.projection import Projection
from sae_lens_bipolar.sparse.reconstruction import reconstruct

BATCH, D_IN, D_SAE = 3, 6, 10


def leaf(*shape: int, seed: int) -> torch.Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return made.requires_grad_()


@pytest.mark.skipif(not triton.usable(torch.device("cpu"), D_IN), reason="not interpreted here")
@pytest.mark.parametrize("with_slope", [True, False])
@pytest.mark.parametrize("times", [1, 2])
def test_every_gradient_the_inputs_too(with_slope: bool, times: int) -> None:
    """Also where the pairs are of the batch twice, as those of an auxiliary loss are."""
    x, W_enc, b_enc = leaf(BATCH, D_IN, seed=1), leaf(D_IN, D_SAE, seed=2), leaf(D_SAE, seed=4)
    W_dec = leaf(D_SAE, D_IN, seed=3)
    leaves = [x, W_enc, b_enc, W_dec]
    mask = torch.rand(times * BATCH, D_SAE, generator=torch.Generator().manual_seed(5)) < 0.4
    _, latents = mask.nonzero(as_tuple=True)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), mask.sum(1).cumsum(0)])
    support = Support(latents, offsets, D_SAE, reading=torch.float32)
    slope = torch.rand(len(latents), generator=torch.Generator().manual_seed(6)) + 0.5
    each = support.to_dense(slope) if with_slope else mask.float()
    u = (x @ W_enc + b_enc).repeat(times, 1)
    expected = (each * u) @ W_dec
    values = (each * u)[mask]
    found = reconstruct(
        support, values, slope if with_slope else None, Projection(x, W_enc, b_enc), W_dec
    )
    torch.testing.assert_close(found, expected)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(7))
    pairs = zip(
        torch.autograd.grad((found * weights).sum(), leaves),
        torch.autograd.grad((expected * weights).sum(), leaves),
        strict=True,
    )
    for actual, dense in pairs:
        torch.testing.assert_close(actual, dense)
