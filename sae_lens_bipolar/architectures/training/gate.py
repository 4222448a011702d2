"""Bi-Jump-ReLU and its gate's code, pure functions of the projections u.

Source: arXiv 2605.28149, in the reading that `sign_aware_gated` documents.
"""

from typing import NamedTuple

import torch


class Polarities(NamedTuple):
    """Threshold, gain and bias of each side, `[d_sae]` or gathered to the shape of `u`."""

    threshold_positive: torch.Tensor
    threshold_negative: torch.Tensor
    gain_positive: torch.Tensor
    gain_negative: torch.Tensor
    bias_positive: torch.Tensor
    bias_negative: torch.Tensor


def bi_jump_relu(u: torch.Tensor, p: Polarities, two_sided: bool = True) -> torch.Tensor:
    """Bi-Jump-ReLU: `1[u > theta+] relu(e^{r+} u + b+) - 1[u < -theta-] relu(-e^{r-} u + b-)`.

    Args:
        u: projections, `[..., d_sae]`, or any shape the fields of `p` broadcast with.
        p: the two sides' thresholds, gains and biases.
        two_sided: whether the negative side exists (False: the one-sided ablation).
    """
    positive = (u > p.threshold_positive) * torch.relu(p.gain_positive * u + p.bias_positive)
    if not two_sided:
        return positive
    return positive - (u < -p.threshold_negative) * torch.relu(
        -p.gain_negative * u + p.bias_negative
    )


def gate_code(u: torch.Tensor, p: Polarities, two_sided: bool = True) -> torch.Tensor:
    """The gate path's signed code, `pi = relu(u - theta+) - relu(-u - theta-)`, shaped like `u`."""
    positive = torch.relu(u - p.threshold_positive)
    return positive - torch.relu(-u - p.threshold_negative) if two_sided else positive
