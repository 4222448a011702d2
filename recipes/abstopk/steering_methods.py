"""The methods of Table 1 and their controls: candidates, and the edit at a strength.

Every method has the same number of candidates. Those of an SAE are the latents that separate the
contrast texts best; those of difference in means are directions of random halves of these texts;
those of the controls are drawn. From them one is chosen, and turned the right way round, by what it
does to validation texts to first order: for all methods alike, so that none gains more than
another from a choice of the best (the winner's curse).

A strength is the length of the change of x in units of the median |x| (`unit="norm"`). Latents are
clamped (eq. 22 of arXiv 2510.00404), directions added (eq. 20).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from sae_lens.saes.sae import SAE

from recipes.abstopk.steering_measures import Read, first_order
from sae_lens_bipolar.evaluation.reconstruction import sink_threshold
from sae_lens_bipolar.polarity.counting import Census
from sae_lens_bipolar.steering import AddVector, EditLatents
from sae_lens_bipolar.steering.edits import Edit
from sae_lens_bipolar.steering.find import rank_contrast
from sae_lens_bipolar.steering.units import Scale, latents_of

PROBE = 0.1  # strength at which candidates are compared; to first order any would do
_DRAWS = 99  # shufflings behind the ranking of latents

Source = Literal["latent", "pair", "random latent", "mean", "random direction", "none"]


class Method(NamedTuple):
    """One row of the table."""

    label: str
    source: Source
    sae: str | None = None  # kind of SAE, of `steering_saes.KINDS`
    control: str | None = None  # the method that it must beat


METHODS = {
    "abstopk": Method("AbsTopK", "latent", "abstopk", "abstopk_random"),
    "topk": Method("TopK, one latent, clamped below 0 too", "latent", "topk", "topk_random"),
    "topk_pair": Method("TopK, a pair of latents", "pair", "topk", "topk_random"),
    "topk_2x": Method("TopK, a pair, twice the width", "pair", "topk_2x", "topk_random"),
    "jumprelu": Method("JumpReLU", "latent", "jumprelu", "jumprelu_random"),
    "dim": Method("DiM", "mean", None, "random_direction"),
    "abstopk_random": Method("random latents of AbsTopK", "random latent", "abstopk"),
    "topk_random": Method("random latents of TopK", "random latent", "topk"),
    "jumprelu_random": Method("random latents of JumpReLU", "random latent", "jumprelu"),
    "random_direction": Method("random directions", "random direction"),
    "abstopk_reconstruction": Method("AbsTopK, reconstruction only", "none", "abstopk"),
    "topk_reconstruction": Method("TopK, reconstruction only", "none", "topk"),
    "jumprelu_reconstruction": Method("JumpReLU, reconstruction only", "none", "jumprelu"),
    "unsteered": Method("the model itself", "none"),
}


@dataclass(frozen=True, eq=False)
class Handle:
    """One candidate: what is turned towards the concept, and towards its opposite.

    Exactly one of `vector` and `latents` is given.
    """

    vector: torch.Tensor | None = None  # [d_in], of length 1
    latents: tuple[tuple[int, int], tuple[int, int]] | None = None  # (latent, sign) by side

    def flipped(self) -> "Handle":
        """The same with its two sides exchanged."""
        if self.latents is not None:
            return Handle(latents=(self.latents[1], self.latents[0]))
        assert self.vector is not None
        return Handle(-self.vector)

    def describe(self) -> dict[str, Any]:
        """What `selected.json` says of it."""
        return {"latents": self.latents, "direction": self.vector is not None}


@dataclass(frozen=True, eq=False)
class Steerer:
    """Turns handles of one method and seed into edits."""

    hook: str
    typical: torch.Tensor  # [d_in], an activation of median norm
    sae: SAE[Any] | None = None  # of methods that turn latents
    census: Census | None = None  # of the SAE

    def edit(self, handle: Handle, side: int, strength: float, error: str = "keep") -> Edit:
        """The edit towards the concept (side 1) or its opposite (side -1)."""
        if handle.vector is not None:
            size = side * strength * self.typical.norm().item()
            return AddVector(handle.vector, size, self.hook)
        assert handle.latents is not None
        assert self.sae is not None
        assert self.census is not None
        latent, sign = handle.latents[0 if side > 0 else 1]
        return EditLatents(
            self.sae,
            {latent: sign * strength},
            unit="norm",
            scale=Scale(self.census, self.typical),
            hook=self.hook,
            error=error,  # type: ignore[arg-type]
        )

    def inserted(self) -> Edit:
        """The SAE's reconstruction in place of x, nothing steered."""
        assert self.sae is not None
        return EditLatents(self.sae, {}, hook=self.hook, error="drop")


def candidates(
    method: Method, steerer: Steerer, contrast: Sequence[Read], n: int, seed: int
) -> list[Handle]:
    """The candidates of a method with a seed, `n` of them or, of latents that fire, fewer.

    Args:
        contrast: texts with the concept, and texts with its opposite.
        n: the budget, the same for all methods.
        seed: of what is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    if method.source == "random direction":
        drawn = torch.randn(n, contrast[0].x.shape[-1], generator=generator)
        return [Handle(one / one.norm()) for one in drawn]
    means = [_means(text) for text in contrast]
    if method.source == "mean":
        found = []
        for _ in range(n):
            halves = [
                one[torch.randperm(len(one), generator=generator)[: (len(one) + 1) // 2]].mean(0)
                for one in means
            ]
            found.append(Handle((halves[0] - halves[1]) / (halves[0] - halves[1]).norm()))
        return found
    assert steerer.sae is not None
    pooled = [_pooled(steerer.sae, text) for text in contrast]
    fires = sum(one.abs().sum(0) for one in pooled)
    assert isinstance(fires, torch.Tensor)
    alive = fires.nonzero()[:, 0]
    if method.source == "random latent":
        drawn = alive[torch.randperm(len(alive), generator=generator)[:n]]
        return [Handle(latents=((int(i), 1), (int(i), -1))) for i in drawn]
    ranking = rank_contrast(pooled[0], pooled[1], n=len(fires), n_draws=_DRAWS, seed=seed)
    ranked = [one for one in ranking.latents if fires[one.latent] > 0]
    if method.source == "latent":
        return [
            Handle(latents=((one.latent, one.sign), (one.latent, -one.sign))) for one in ranked[:n]
        ]
    # Latents of a non-negative SAE that fire on either kind of text, best with best.
    sides = [[one.latent for one in ranked if one.sign == sign][:n] for sign in (1, -1)]
    return [Handle(latents=((a, 1), (b, 1))) for a, b in zip(*sides, strict=False)]


def choose(
    steerer: Steerer,
    handles: Sequence[Handle],
    texts: Sequence[Read],
    gradients: Sequence[torch.Tensor],
) -> tuple[Handle, list[float]]:
    """The candidate with the largest first-order effect, turned so that it is above 0.

    Returns:
        It, and the effects of all: what side 1 does to the validation texts less what side -1 does.
    """
    effects = [
        sum(
            side * first_order(texts, gradients, steerer.edit(handle, side, PROBE))
            for side in (1, -1)
        )
        for handle in handles
    ]
    best = max(range(len(handles)), key=lambda i: abs(effects[i]))
    return handles[best] if effects[best] >= 0 else handles[best].flipped(), effects


def _means(text: Read) -> torch.Tensor:
    """Mean activation of each text without BOS and sinks, `[texts, d_in]`."""
    keep = _kept(text)[..., None]
    return (text.x * keep).sum(1) / keep.sum(1).clamp_min(1)


def _pooled(sae: SAE[Any], text: Read) -> torch.Tensor:
    """Mean z of each text without BOS and sinks, `[texts, d_sae]`."""
    keep = _kept(text)
    rows, _ = keep.nonzero(as_tuple=True)
    total = torch.zeros(len(keep), sae.cfg.d_sae)
    with torch.no_grad():
        total.index_add_(0, rows, latents_of(sae, text.x[keep]).float())
    return total / keep.sum(1, keepdim=True).clamp_min(1)


def _kept(text: Read) -> torch.Tensor:
    keep = text.real.clone()
    keep[:, 0] = False
    return keep & (text.x.norm(dim=-1) <= sink_threshold(text.x[keep]))
