"""The activation functions of sparse autoencoders as proximal operators, with their regularisers.

The proximal operator of `lambda R` is

    prox_{lambda R}(u) = argmin_v 1/2 |u - v|^2 + lambda R(v)

and one proximal gradient step on `1/2 |x - (D z + b)|^2 + lambda R(z)` from `z = 0` is an encoder,
so a choice of R is a choice of activation function (AbsTopK, arXiv 2510.00404, eq. 3 to 6):

    operator                           regulariser R                two-sided
    relu(u, lambda)                    nonnegative_l1               no   Lemma 1, case I
    jumprelu(u, sqrt(2 lambda))        nonnegative_l0               no   Lemma 1, case II
    topk(u, k)                         nonnegative_k_sparse(., k)   no   Lemma 1, case III
    soft_threshold(u, lambda)          l1                           yes
    hard_threshold(u, sqrt(2 lambda))  l0                           yes
    abstopk(u, k)                      k_sparse(., k)               yes  eq. 10 and 11

Every function takes a floating-point tensor `[..., P]`, works on its last dimension, and raises
`ConfigError` where the tensor holds NaN or infinite values or the parameter is not allowed.
Operators return a tensor like `u` and pass gradients; regularisers return `[...]`. Where the
minimiser is not unique, an entry that may be kept is kept (eq. 7), and of equal entries the one
with the smallest index (the paper's footnotes 2 and 3).

These are the definitions, written to be read and checked; tests hold the architectures' fast
paths to them.
"""

import math

import torch

from sae_lens_bipolar.errors import ConfigError


def relu(u: torch.Tensor, lambda_: float) -> torch.Tensor:
    """`ReLU_lambda(u)_i = max(u_i - lambda, 0)` (eq. 7).

    Prox of `lambda nonnegative_l1` (Lemma 1, case I).
    """
    _check_tensor(u, "u")
    return (u - _nonnegative(lambda_, "lambda_")).clamp(min=0)


def nonnegative_l1(z: torch.Tensor) -> torch.Tensor:
    """`R(z) = |z|_1` where every `z_i >= 0`, else infinity."""
    return _inf_unless((z >= 0).all(dim=-1), l1(z))


def jumprelu(u: torch.Tensor, theta: float) -> torch.Tensor:
    """`JumpReLU_theta(u)_i = u_i if u_i >= theta else 0` (eq. 7), `theta >= 0`.

    With `theta = sqrt(2 lambda)`: prox of `lambda nonnegative_l0` (Lemma 1, case II).
    """
    _check_tensor(u, "u")
    return torch.where(u >= _nonnegative(theta, "theta"), u, 0.0)


def nonnegative_l0(z: torch.Tensor) -> torch.Tensor:
    """`R(z) = |z|_0`, the number of nonzeros, where every `z_i >= 0`, else infinity."""
    return _inf_unless((z >= 0).all(dim=-1), l0(z))


def topk(u: torch.Tensor, k: int) -> torch.Tensor:
    """`TopK_k(u)_i = max(u_i, 0)` on the indices of the k largest `u_i`, else 0 (eq. 7).

    Prox of `nonnegative_k_sparse(., k)` (Lemma 1, case III).
    """
    _check_tensor(u, "u")
    return torch.where(_largest(u, k), u.clamp(min=0), 0.0)


def nonnegative_k_sparse(z: torch.Tensor, k: int) -> torch.Tensor:
    """`R(z) = 0` where every `z_i >= 0` and `|z|_0 <= k`, else infinity."""
    return _inf_unless((z >= 0).all(dim=-1), k_sparse(z, k))


def soft_threshold(u: torch.Tensor, lambda_: float) -> torch.Tensor:
    """`sign(u_i) max(|u_i| - lambda, 0)`: the two-sided `relu`, prox of `lambda l1`."""
    _check_tensor(u, "u")
    return u.sign() * (u.abs() - _nonnegative(lambda_, "lambda_")).clamp(min=0)


def l1(z: torch.Tensor) -> torch.Tensor:
    """`R(z) = |z|_1 = sum_i |z_i|`."""
    _check_tensor(z, "z")
    return z.abs().sum(dim=-1)


def hard_threshold(u: torch.Tensor, theta: float) -> torch.Tensor:
    """`u_i if |u_i| >= theta else 0`, `theta >= 0`: the two-sided `jumprelu`.

    With `theta = sqrt(2 lambda)`: prox of `lambda l0`.
    """
    _check_tensor(u, "u")
    return torch.where(u.abs() >= _nonnegative(theta, "theta"), u, 0.0)


def l0(z: torch.Tensor) -> torch.Tensor:
    """`R(z) = |z|_0`, the number of nonzeros, in the dtype of `z` or float32 if that is wider."""
    _check_tensor(z, "z")
    # bfloat16 counts to 256 and float16 to 2048.
    return (z != 0).sum(dim=-1).to(torch.promote_types(z.dtype, torch.float32))


def abstopk(u: torch.Tensor, k: int) -> torch.Tensor:
    """`AbsTopK_k(u)_i = u_i` on the indices of the k largest `|u_i|`, else 0 (eq. 11).

    Prox of `k_sparse(., k)` (eq. 10).
    """
    _check_tensor(u, "u")
    return torch.where(_largest(u.abs(), k), u, 0.0)


def k_sparse(z: torch.Tensor, k: int) -> torch.Tensor:
    """`R(z) = 0` where `|z|_0 <= k`, else infinity."""
    count = l0(z)
    _check_k(k, z.shape[-1])
    return _inf_unless(count <= k, torch.zeros_like(count))


def _largest(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Boolean mask `[..., P]` of exactly the k largest scores, equal ones by smallest index."""
    _check_k(k, scores.shape[-1])
    # torch.topk does not say which of equal entries it takes; a stable sort keeps their order.
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order[..., :k], True)


def _inf_unless(feasible: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.where(feasible, value, math.inf)


def _check_tensor(u: torch.Tensor, name: str) -> None:
    if not u.is_floating_point() or u.ndim == 0 or u.shape[-1] == 0:
        raise ConfigError(
            f"{name} has dtype {u.dtype} and shape {tuple(u.shape)}; a floating-point tensor "
            "[..., P] with P >= 1 is needed."
        )
    if not torch.isfinite(u).all():
        raise ConfigError(
            f"{name} holds {int(u.isnan().sum())} NaN and {int(u.isinf().sum())} infinite values; "
            "proximal operators are defined for finite tensors only."
        )


def _nonnegative(value: float, name: str) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"{name}={value!r} is not allowed: it must be a finite number >= 0.")
    return value


def _check_k(k: int, width: int) -> None:
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= width:
        raise ConfigError(f"k={k!r} is not allowed: it must be an integer from 1 to P ({width}).")
