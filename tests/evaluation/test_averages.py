"""nMSE by hand."""

import torch

from sae_lens_bipolar.evaluation.averages import nmse


def test_nmse_by_hand() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    xhat = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    torch.testing.assert_close(nmse(x, xhat), torch.tensor([16 / 25, 1 / 4]))
