"""Settings of the AbsTopK recipes at their smallest: a tiny model, a few steps."""

from pathlib import Path
from typing import Any

import yaml


def tiny_scale(model: Path, text: Path) -> dict[str, Any]:
    """What both recipes train, on a tiny model of two layers and d_model 32."""
    return {
        "models": {
            "tiny": {
                "model": str(model),
                "layers": [0, 1],
                "d_sae": 64,
                "k": [4, 8],
                "jumprelu": [{"jumprelu_init_threshold": 0.01}, {"jumprelu_init_threshold": 0.1}],
            }
        },
        "sae": {"normalize_activations": "expected_average_only_in"},
        "jumprelu": {"jumprelu_bandwidth": 0.001},
        "sweep": {
            "corpus": str(text),
            "context_size": 32,
            "training_tokens": 512,
            "train_batch_size_tokens": 128,
            "lr": 1e-3,
            "lr_warm_up_steps": 0,
            "lr_decay_steps": 0,
            "n_checkpoints": 1,
            "store_batch_size_prompts": 4,
            "n_batches_in_buffer": 8,
            "eval_sequences": 8,
            "loss_sequences": 4,
        },
    }


def write_config(folder: Path, **scales: Any) -> Path:
    """A recipe's YAML file."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(scales), encoding="utf-8")
    return path
