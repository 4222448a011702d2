"""Seeded generators of bad input: configurations, YAML files and damaged checkpoints."""

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from sae_lens.saes.sae import TrainingSAEConfig
from safetensors.torch import load, save_file

from tests.architecture_list import Entry

D_IN, D_SAE = 4, 16
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 2, 3, 16, 17, -1, 10**9 + 7, 0.0, 0.5, 1.0, -0.25, 1e-9, 1e30),
    *(float("nan"), float("inf"), -float("inf"), "", "none", "full", "mean", "float16", "cpu"),
    *("bfloat16", "hook_z", "layer_norm", "expected_average_only_in", "constant_norm_rescale"),
    *("nonsense", "3", "ä", [], [4, 16], [16, 4], [1.5], ["a"], {}, {"a": 1}, (), b"x"),
)
# Sizes that are allowed and would only be slow, and places that differ by machine.
_NOT_DRAWN = ("metadata",)


class ConfigCase(NamedTuple):
    """A configuration with some fields drawn at random."""

    entry: Entry
    drawn: dict[str, Any]  # the fields that are not as they should be, perhaps

    def build(self) -> TrainingSAEConfig:
        valid = self.entry.config(d_in=D_IN, d_sae=D_SAE)
        arguments = {field.name: getattr(valid, field.name) for field in fields(valid)}
        return type(valid)(**arguments | self.drawn)


def configs(entry: Entry, seed: int, n: int) -> Iterator[ConfigCase]:
    draw = random.Random(f"{entry} {seed}")
    for _ in range(n):
        valid = entry.config(d_in=D_IN, d_sae=D_SAE)
        names = [field.name for field in fields(valid) if field.name not in _NOT_DRAWN]
        drawn = {}
        for name in draw.sample(sorted(names), draw.choice((1, 1, 2))):
            plausible = [v for v in VALUES if type(v) is type(getattr(valid, name))]
            drawn[name] = draw.choice(plausible if draw.random() < 0.5 and plausible else VALUES)
        if any(drawn.get(name) == 10**9 + 7 for name in ("d_in", "d_sae")):
            continue  # allowed, and larger than any test machine
        if entry.name.startswith("matryoshka") and "d_sae" in drawn:
            continue  # its widths follow from a valid d_sae
        yield ConfigCase(entry, drawn)


OPTIONS: dict[str, Any] = {
    "architecture": "abstopk",
    "hook_name": "blocks.0.hook_mlp_out",
    "context_size": 16,
    "training_tokens": 128,
    "train_batch_size_tokens": 32,
    "store_batch_size_prompts": 4,
    "n_batches_in_buffer": 8,
    "n_batches_for_norm_estimate": 2,
    "lr": 0.003,
    "lr_warm_up_steps": 1,
    "lr_decay_steps": 1,
    "adam_beta1": 0.9,
    "seed": 3,
    "device": "cpu",
    "dtype": "float32",
    "n_checkpoints": 0,
    "prepend_bos": True,
    "exclude_special_tokens": True,
    "activations_mixing_fraction": 0.5,
    "lr_scheduler_name": "constant",
    "dead_feature_window": 10,
    "feature_sampling_window": 10,
    "sae": {"d_in": 32, "d_sae": 48, "k": 4, "dtype": "float32"},
}
_YAML_VALUES = tuple(value for value in VALUES if value != b"x")


class YamlCase(NamedTuple):
    """A YAML file for `train`, and which keys were changed in it."""

    text: bytes
    changed: tuple[str, ...]  # empty where bytes were changed: any key, or none, may suffer


def yaml_files(seed: int, n: int) -> Iterator[YamlCase]:
    draw = random.Random(seed)
    for _ in range(n):
        options = json.loads(json.dumps(OPTIONS))
        kind = draw.choice(("value", "value", "value", "sae", "unknown", "bytes", "missing"))
        if kind == "bytes":
            text = bytearray(yaml.safe_dump(options).encode())
            for _ in range(draw.randint(1, 4)):
                text[draw.randrange(len(text))] = draw.randrange(256)
            yield YamlCase(bytes(text), ())
            continue
        where = options["sae"] if kind == "sae" else options
        if kind == "unknown":
            name = draw.choice(("trainng_tokens", "k_", "", "sea", "--lr", "0", "ä", "config"))
        else:
            name = draw.choice([key for key in where if key != "sae"])
        if kind == "missing":
            del where[name]
        else:
            where[name] = draw.choice(_YAML_VALUES)
        text = yaml.dump(options, allow_unicode=True).encode()
        yield YamlCase(text, (name,))


def damage(checkpoint: Path, draw: random.Random) -> str:
    """Change one thing in a checkpoint directory, and say what."""
    config, weights = checkpoint / "cfg.json", checkpoint / "sae_weights.safetensors"
    file = draw.choice((config, weights))
    kinds = ("truncate", "flip", "flip", "field", "field", "tensor", "tensor", "replace")
    kind = draw.choice(kinds)
    if kind == "truncate":
        data = file.read_bytes()
        file.write_bytes(data[: draw.randrange(len(data))])
    elif kind == "flip":
        data = bytearray(file.read_bytes())
        place = draw.randrange(min(len(data), 600))  # the header, where it matters most
        data[place] ^= 1 << draw.randrange(8)
        file.write_bytes(data)
        kind = f"flip byte {place}"
    elif kind == "field":
        fields_ = json.loads(config.read_text())
        name = draw.choice([*fields_, "unknown"])
        value = draw.choice([v for v in VALUES if not isinstance(v, bytes | tuple)])
        if name in ("d_in", "d_sae") and value == 10**9 + 7:
            value = 5
        if draw.random() < 0.2:
            fields_.pop(name, None)
        else:
            fields_[name] = value
        config.write_text(json.dumps(fields_))
        return f"cfg.json {name}={value!r}"
    elif kind == "tensor":
        _change_a_tensor(weights, draw)
        return "tensor"
    else:
        _replace(file, draw)
    return f"{kind} {file.name}"


def _change_a_tensor(weights: Path, draw: random.Random) -> None:
    tensors = load(weights.read_bytes())  # not mapped: the file is written below
    name = draw.choice(sorted(tensors))
    tensor = tensors.pop(name)
    change = draw.choice(("drop", "rename", "reshape", "dtype", "nan", "scalar"))
    if change == "rename":
        tensors[f"{name}_"] = tensor
    elif change == "reshape":
        tensors[name] = tensor.reshape(-1)[: max(tensor.numel() - 1, 1)].clone()
    elif change == "dtype":
        tensors[name] = tensor.to(draw.choice((torch.float16, torch.int32, torch.bool)))
    elif change == "nan":
        tensors[name] = torch.full_like(tensor, torch.nan)
    elif change == "scalar":
        tensors[name] = torch.tensor(1.0)
    save_file(tensors, weights)


def _replace(file: Path, draw: random.Random) -> None:
    file.unlink()
    what = draw.choice(("nothing", "directory", "empty", "noise", "pickle", "list"))
    if what == "directory":
        file.mkdir()
    elif what == "empty":
        file.write_bytes(b"")
    elif what == "noise":
        file.write_bytes(draw.randbytes(200))
    elif what == "pickle":
        torch.save({"W_dec": torch.zeros(2)}, file)
    elif what == "list":
        file.write_text("[1, 2]")


def copy_of(checkpoint: Path, target: Path) -> Path:
    """A fresh copy of a checkpoint at `target`, in place of whatever lies there."""
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(checkpoint, target))
