"""A run directory with every file of the contract, generated from a seed."""

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

TEXT = (
    "Fellow citizens of the Senate and of the House of Representatives: the state of our trade "
    "with foreign nations is sound.\n\nThe revenue of the last year exceeded the expenditure by "
    "four millions, and the public debt has been reduced. Peace has been preserved with Great "
    "Britain, but the war with Mexico has laid new duties upon the army and the navy. I recommend "
    "to Congress an increase of the tariff, that labor may be protected and wages raised, and a "
    "reduction of the tax on tea and coffee."
)
OUTPUTS = (
    " peace,war, revenue, debt,\n, increase, reduce,ing, the,<b>,  , treaty, army, never, more"
)
ARCHITECTURES = ("topk", "abstopk", "gated", "sign_aware_gated")
SIGNED = ("abstopk", "sign_aware_gated")


def make_run(
    path: Path, d_sae: int = 96, steps: int = 40, latents: int = 11, seed: int = 0
) -> Path:
    """Write the whole run under `path` and return it."""
    chance = random.Random(seed)
    (path / "results" / "census").mkdir(parents=True)
    (path / "results" / "latents").mkdir()
    config = {
        "model": "SmolLM2-135M-Instruct",
        "hook_name": "blocks.12.hook_resid_post",
        "corpus": {"name": "State of the Union addresses, 1790 to 2019", "context_size": 128},
        "l0_target": 64,
        "saes": {name: {"d_sae": d_sae, "lr": 1e-3} for name in ARCHITECTURES},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    environment = {
        "packages": {"sae-lens": "6.54.12", "torch": "2.13.0", "transformer-lens": "3.9.0"},
        "python": "3.11.9",
        "platform": "Linux x86_64",
        "device": "cpu",
        "threads": 2,
        "commit": "0123abc",
        "seed": 42,
        "command": "sae-lens-bipolar demo --output runs/demo",
    }
    write(path / "environment.json", environment)
    write(path / "results" / "summary.json", [_summary(n, d_sae, chance) for n in ARCHITECTURES])
    lines = [_metrics(n, i, steps, chance) for i in range(steps) for n in ARCHITECTURES]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ARCHITECTURES:
        census = _census(name, d_sae, chance)
        write(path / "results" / "census" / f"{name}.json", census)
        both = [
            i for i in range(d_sae) if census["positive_rate"][i] and census["negative_rate"][i]
        ]
        chosen = both[:latents] if name in SIGNED else range(2)
        write(
            path / "results" / "latents" / f"{name}.json",
            {"name": name, "latents": [_latent(i, census, chance) for i in chosen]},
        )
    return path


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def change(path: Path, edit: Any) -> None:
    """Load a JSON file, let `edit` change the value in place, and write it again."""
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def _summary(name: str, d_sae: int, chance: random.Random) -> dict[str, Any]:
    l0 = 64.0 if name.endswith("topk") else 64 + chance.uniform(-9, 9)
    nmse = 0.075 + chance.uniform(0, 0.05)
    return {
        "name": name,
        "architecture": name,
        "d_in": 576,
        "d_sae": d_sae,
        "l0": l0,
        "nmse": nmse,
        "r2": 0.93 - nmse,
        "loss_recovered": 0.97 - 0.6 * nmse,
        "dead_fraction": chance.uniform(0.003, 0.08),
        "bipolar_fraction": chance.uniform(0.3, 0.8) if name in SIGNED else 0.0,
        "n_train_tokens": 1_228_800,
        "n_eval_tokens": 65_536,
        "seed": 42,
        "with_sinks": {"nmse": nmse * 0.98, "r2": 0.9991, "loss_recovered": 0.9, "l0": l0 + 0.2},
        "n_sink_tokens": 512,
        "model": "SmolLM2-135M-Instruct",
        "hook_name": "blocks.12.hook_resid_post",
        "train_seconds": 252.4,
    }


def _metrics(name: str, i: int, steps: int, chance: random.Random) -> dict[str, Any]:
    t = (i + 1) / steps
    start = {"topk": 0.9, "abstopk": 1.0, "gated": 1.6, "sign_aware_gated": 1.3}[name]
    l0 = (
        64.0 if name.endswith("topk") else 64 + (380 if name == "gated" else 220) * math.exp(-7 * t)
    )
    nmse = 0.08 + start * math.exp(-9 * t) + 0.03 * (1 - t)
    return {
        "step": 10 * (i + 1),
        "n_tokens": 2048 * 10 * (i + 1),
        "sae": name,
        "loss": 90 * nmse,
        "mse_loss": 80 * nmse,
        "nmse": nmse * chance.uniform(0.96, 1.04),
        "l0": l0 if name.endswith("topk") else l0 * chance.uniform(0.97, 1.03),
        "dead": chance.randrange(30),
        "lr": 1e-3,
        "seconds": 2.5 * (i + 1),
        "losses/auxiliary_reconstruction_loss": 3.0,
    }


def _census(name: str, d_sae: int, chance: random.Random) -> dict[str, Any]:
    n = 65_536
    census: dict[str, Any] = {"n_tokens": n, "positive_rate": [], "negative_rate": []}
    for _ in range(d_sae):
        rate = math.exp(chance.gauss(-4.6, 1.4))
        other = rate * math.exp(chance.gauss(-1.2, 1.6))
        one_sided, flipped, dead = (chance.random() < p for p in (0.4, 0.4, 0.04))
        pair = [rate, 0.0 if one_sided or name not in SIGNED else other]
        if flipped and name in SIGNED:
            pair.reverse()
        positive, negative = (0 if dead else round(min(r, 1) * n) / n for r in pair)
        census["positive_rate"].append(positive)
        census["negative_rate"].append(negative)
    for key, value in (("mean", 3.1), ("max", 17.5)):
        for side in ("positive", "negative"):
            rates = census[f"{side}_rate"]
            census[f"{side}_{key}"] = [value * (rate > 0) for rate in rates]
    return census


def _latent(index: int, census: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    positive, negative = census["positive_rate"][index], census["negative_rate"][index]
    low, high = (-chance.uniform(6, 14) if negative else 0.0), chance.uniform(8, 18)
    edges = [low + (high - low) * i / 40 for i in range(41)]
    counts = [
        0 if abs(a) < 1.2 else int(900 * math.exp(-abs(a) / 2) * (1 if a > 0 else 0.6))
        for a in edges[:-1]
    ]
    words = OUTPUTS.split(",")
    return {
        "index": index,
        "positive_rate": positive,
        "negative_rate": negative,
        "histogram": {"edges": edges, "counts": counts},
        "contexts": {
            "positive": [_context(1, high, bool(negative), chance) for _ in range(7)]
            if positive
            else [],
            "negative": [_context(-1, -low, bool(positive), chance) for _ in range(7)]
            if negative
            else [],
        },
        "raises": [[w, chance.uniform(0.3, 1.4)] for w in chance.sample(words, 8)],
        "lowers": [[w, -chance.uniform(0.3, 1.4)] for w in chance.sample(words, 8)],
    }


def _context(sign: int, top: float, both: bool, chance: random.Random) -> dict[str, Any]:
    words = TEXT.split(" ")
    tokens = words[:1] + [" " + word for word in words[1:]]
    peak = chance.randrange(4, len(tokens))
    activations = [0.0] * len(tokens)
    for _ in range(chance.randrange(2, 9)):
        near = min(len(tokens) - 1, max(0, peak + chance.randrange(-12, 12)))
        activations[near] = (
            chance.choice((sign, sign, sign, -sign if both else sign))
            * top
            * chance.uniform(0.1, 0.6)
        )
    activations[peak] = sign * top * chance.uniform(0.7, 1)
    year = chance.randrange(1790, 2020)
    return {
        "tokens": tokens,
        "activations": activations,
        "peak": peak,
        "document": f"{year}-Polk.txt",
    }
