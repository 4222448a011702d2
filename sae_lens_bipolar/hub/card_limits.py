"""What the model card says the published SAEs cannot do, or was not measured."""

from sae_lens_bipolar.architectures.registry import record_of
from sae_lens_bipolar.hub.quoting import Quoted, codes
from sae_lens_bipolar.hub.staging import Staged
from sae_lens_bipolar.inputs.models import BUNDLED
from sae_lens_bipolar.reports.tables import is_number

_FEW_TOKENS = 100_000_000  # below this, the card calls the training short


def known_limits(staged: Staged, any_signed: bool) -> list[Quoted]:
    """One sentence or two per limit, in Markdown.

    Args:
        staged: what is published, with its figures.
        any_signed: whether latents of one of the SAEs can be negative.
    """
    limits = []
    saes, rows = staged.saes, staged.rows
    found = [row.get("n_train_tokens") for row in rows]
    tokens = [n for n in found if is_number(n) and n]
    tokens = tokens or [n for sae in saes if is_number(n := sae.runner.get("training_tokens"))]
    if tokens and max(tokens) < _FEW_TOKENS:
        limits.append(
            f"Trained on {int(max(tokens)):,} tokens, a short training: SAEs to rely on usually "
            "see 100 million and more. Expect rare features to be missing."
        )
    limits.append("One training run, one seed; the figures carry no error bars.")
    if rows:
        limits.append(
            "Reconstruction is measured on held-out documents of the training corpus and no other "
            "text. This card says nothing of what single latents mean."
        )
    if saes[0].model.name in BUNDLED:
        limits.append(
            "Trained and measured on activations of the 4-bit weights named above, converted to "
            "float32. Those of the original weights differ; the SAEs were not tried on them."
        )
    if any_signed:
        limits.append(
            "Tools that assume latents ≥ 0 (many dashboards, several suites of SAEBench) silently "
            "drop the negative sides of signed latents: give them the split."
        )
    splits = [sae for sae in saes if sae.split_id]
    if splits:
        limits.append(
            "A split equals its native form up to rounding, which may decide between two latents "
            "that compete for one place."
        )
    alone = [sae.id for sae in saes if sae.needs_package and not sae.split_id]
    if alone:
        limits.append(f"{codes(alone)}: no split is published, so this package is needed.")
    limits += dict.fromkeys(said for sae in saes if (said := record_of(sae.config).caveat))
    return list(map(Quoted, limits))
