"""The record of an architecture: every fact of it that the rest of the package asks for.

The file of each architecture ends with its record; `registry` collects them. The model card, the
polarity split, SAEBench's protocols, the speed benchmark and the tests know an architecture by its
record alone, so a record is all that a new one needs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from sae_lens_bipolar.errors import ConfigError

if TYPE_CHECKING:  # a record stands also where SAELens has lost one of these names
    from sae_lens.saes.sae import SAE, SAEConfig, TrainingSAE, TrainingSAEConfig

Config: TypeAlias = Mapping[str, Any]  # the fields of an inference SAE, as in its cfg.json
TrainingClasses: TypeAlias = "tuple[type[TrainingSAE[Any]], type[TrainingSAEConfig]]"
InferenceClasses: TypeAlias = "tuple[type[SAE[Any]], type[SAEConfig]]"

# Lines that the formulas of several architectures share.
LINEAR = "u    = (x - b_dec) W_enc + b_enc\n"
DECODE = "x̂    = z W_dec + b_dec"
_RESCALED = (
    "(with |W_dec_i|, a latent's decoder norm: its pre-activation is multiplied by it\n"
    "before the selection, and the latent divided by it before decoding)"
)


@dataclass(frozen=True, eq=False)
class Sides:
    """The two sides of signed latents `z`, as the classes of stock SAELens can compute them.

    With `v = (x - b_dec) W_enc`, `[batch, d_sae]`:

        p+ = gain+ v + bias+            p- = -gain- v + bias-
        z  = relu(p+) [p+ kept] - relu(p-) [p- kept]

    A `p` is kept where it exceeds its threshold; without thresholds, the `k` largest of all
    `2 d_sae` are kept (`k` and the rescaling being the configuration's). Tensors are `[d_sae]`,
    positive side first.
    """

    bias: tuple[torch.Tensor, torch.Tensor]  # in units of p
    gain: tuple[torch.Tensor, torch.Tensor] | None = None  # above 0; None: 1
    threshold: tuple[torch.Tensor, torch.Tensor] | None = None  # in units of p; None: top-k


@dataclass(frozen=True, eq=False)
class OneSided:
    """Non-negative latents with one affine encoder, which `merge` can fold into signed latents.

        p = (x - b_dec) W_enc + bias            z = relu(p) [p > threshold]

    Without thresholds, `z` is `relu(p)` on the `k` largest of `p`.
    """

    W_enc: torch.Tensor  # [d_in, d_sae]
    bias: torch.Tensor  # [d_sae]
    threshold: torch.Tensor | None  # [d_sae], at least 0; None: top-k
    free_scale: bool  # whether scaling W_enc, bias, threshold and inversely W_dec changes nothing


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What one name of SAELens's registry stands for.

    Raises:
        ConfigError: naming the architecture and the fact that is missing or contradicts another.
    """

    name: str  # in SAELens's registry, and in cfg.json after the package's prefix
    title: str  # in words, as the model card shows it
    formula: str  # plain text, from the activation x over the latents z to the reconstruction x̂
    source: str  # the paper, for a reader
    cites: tuple[str, ...]  # BibTeX entries: the constants of `citations`, or an entry of your own
    signed: bool  # whether latents may be below 0
    when: str = ""  # when to use it, in a sentence or two for the documentation
    training: "TrainingClasses | None" = None  # SAE and configuration; None: SAELens's own, if any
    inference: "InferenceClasses | None" = None  # None: SAELens's own, or saved as another one
    takes_over: bool = False  # replaces SAELens's own training class of that name
    sides: Callable[[Any], Sides] | None = None  # of an inference SAE; None: no split in SAELens
    one_sided: Callable[[Any], OneSided] | None = None  # likewise; None: no merge
    at_l0: Callable[[int, int], dict[str, Any]] | None = None  # (d_sae, L0) -> training fields
    timed_beside: "TrainingClasses | None" = None  # SAELens's counterpart, in the speed benchmark
    options: Callable[[Config], dict[str, Any]] | None = None  # facts that a configuration changes
    saelens_from: str = ""  # the first SAELens that loads published weights; "": all, or none
    caveat: str = ""  # a sentence that the model card adds to the known limits, in Markdown

    def __post_init__(self) -> None:
        for field in ("name", "title", "formula", "source"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value.strip():
                self._refuse(field, "a text that is not empty")
        for symbol in ("z", "x̂"):
            if f"{symbol} " not in self.formula:
                self._refuse("formula", f"lines that say what {symbol} is, as in 'z    = relu(u)'")
        if not isinstance(self.signed, bool):
            self._refuse("signed", "True or False: whether latents may be below 0")
        if not all(isinstance(entry, str) and entry.startswith("@") for entry in self.cites):
            self._refuse("cites", "BibTeX entries, '@article{...}', as `citations` has them")
        for field in ("training", "inference"):
            classes = getattr(self, field)
            if classes is not None and classes[1].architecture() != self.name:
                self._refuse(field, f"a configuration whose architecture() is {self.name!r}")
        if self.takes_over and self.training is None:
            self._refuse("takes_over", "False where there is no training class")
        if self.training is not None and self.at_l0 is None:
            self._refuse("at_l0", "a function of d_sae and an L0, since the SAE can be trained")

    def _refuse(self, field: str, allowed: str) -> None:
        raise ConfigError(
            f"the record of architecture {self.name!r} has {field}={getattr(self, field)!r}; "
            f"it needs {allowed}"
        )

    def of(self, config: Config) -> "Architecture":
        """The record of one configuration: its options applied to formula, sign and the rest."""
        facts = {} if self.options is None else self.options(config)
        formula = facts.get("formula", self.formula)
        if not config.get("apply_b_dec_to_input", True):
            formula = formula.replace("(x - b_dec)", "x").replace("x - b_dec - ", "x - ")
        if config.get("rescale_acts_by_decoder_norm"):
            formula += f"\n{_RESCALED}"
        return replace(self, **{**facts, "formula": formula})
