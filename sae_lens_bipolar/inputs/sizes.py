"""How large a language model is, from its configuration alone."""

from typing import NamedTuple

from transformer_lens.loading_from_pretrained import get_pretrained_model_config

from sae_lens_bipolar.errors import ConfigError, ModelError
from sae_lens_bipolar.inputs.trained_on import recorded_name


class ModelSizes(NamedTuple):
    """Width, depth and parameters of a model as TransformerLens holds it."""

    d_model: int
    n_layers: int
    per_layer: int  # parameters of a layer
    embeddings: int  # of the embedding and the unembedding, which are two tensors

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return self.n_layers * self.per_layer + self.embeddings

    def share_until(self, layer: int) -> float:
        """Which share of the parameters takes part in a pass that ends after `layer`.

        Raises:
            ConfigError: if the model has no such layer.
        """
        if not 0 <= layer < self.n_layers:
            raise ConfigError(
                f"layer={layer} is not allowed: the model has layers 0 to {self.n_layers - 1}"
            )
        return (layer + 1) * self.per_layer / self.parameters


def parameters_of(name: str) -> ModelSizes:
    """The sizes of a model that TransformerLens knows, from its configuration; biases and norms
    are left out.

    Raises:
        ModelError: if the configuration cannot be had here.
    """
    try:
        cfg = get_pretrained_model_config(recorded_name(name))
    except Exception as error:  # whatever the Hub or a table of names raises
        raise ModelError(
            f"the sizes of {name!r} are not known here ({type(error).__name__}: "
            f"{str(error).splitlines()[0][:200] if str(error) else ''}): give --d-in and "
            "--llm-parameters"
        ) from error
    n_key_value = cfg.n_key_value_heads or cfg.n_heads
    attention = cfg.d_model * cfg.d_head * 2 * (cfg.n_heads + n_key_value)
    mlp = cfg.d_model * (cfg.d_mlp or 0) * (3 if cfg.gated_mlp else 2)
    return ModelSizes(cfg.d_model, cfg.n_layers, attention + mlp, 2 * cfg.d_vocab * cfg.d_model)
