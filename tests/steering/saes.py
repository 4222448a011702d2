"""Small SAEs of every architecture, signed and not, at the hook the steering tests edit."""

from typing import Any

from sae_lens.registry import get_sae_training_class
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.matching_pursuit_sae import MatchingPursuitSAE, MatchingPursuitSAEConfig
from sae_lens.saes.sae import SAE
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

from sae_lens_bipolar.polarity.splitting import inference_form
from tests.architecture_list import ARCHITECTURE_LIST
from tests.architectures.family import randomise
from tests.steering.models import HOOK

WIDTH, D_SAE = 32, 80

_STOCK: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "standard": (StandardSAE, StandardSAEConfig, {}),
    "topk": (TopKSAE, TopKSAEConfig, {"k": 6}),
    "topk rescaled": (TopKSAE, TopKSAEConfig, {"k": 6, "rescale_acts_by_decoder_norm": True}),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
    "gated": (GatedSAE, GatedSAEConfig, {}),
    "matching_pursuit": (
        *(MatchingPursuitSAE, MatchingPursuitSAEConfig),
        {"max_iterations": 6, "residual_threshold": 0.01},
    ),
}
TRAINING = {str(entry): entry for entry in ARCHITECTURE_LIST}
STOCK = tuple(_STOCK)
EVERY = (*TRAINING, *STOCK)


def make_sae(name: str, hook: str = HOOK, seed: int = 0, **cfg: Any) -> SAE[Any]:
    """The SAE of that name in its form for inference, parameters drawn at random, at `hook`."""
    sizes = {"d_in": WIDTH, "d_sae": D_SAE, **cfg}
    if name in TRAINING:
        config = TRAINING[name].config(**sizes)
        sae = get_sae_training_class(config.architecture())[0](config)
    else:
        sae_class, config_class, fields = _STOCK[name]
        sae = sae_class(config_class(**fields, **sizes))
    randomise(sae, seed)
    sae.cfg.metadata.hook_name = hook
    return inference_form(sae)
