"""Export of the polarity split for Neuronpedia: one file per call of `/api/feature/upload-batch`.

Neuronpedia knows non-negative latents, so each side is a feature of its own: latent `i` is feature
`i` where it is positive and `d_sae + i` where it is negative, as in `polarity.split`. The schema is
that of `apps/webapp/app/api/feature/upload-batch/route.tsx` at commit ebb8426 of
hijohnnylin/neuronpedia: at most 128 features a call, at least one activation each, at most 20
logits either way, tokens that are not empty. Uploading is left to the user, who has the key.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.explorer import site
from sae_lens_bipolar.explorer.packing import unpack
from sae_lens_bipolar.explorer.records import read_record
from sae_lens_bipolar.files.atomic import write_text
from sae_lens_bipolar.files.outputs import claim_output

FEATURES_PER_CALL = 128
MOST_LOGITS = 20


def export(folder: Path, output: Path) -> list[Path]:
    """Write the calls of every SAE of a finished explorer as `output/<sae>/batch-<n>.json`.

    `modelId` and `source` are the names here; those of your model and source set on Neuronpedia
    take their place, in lower case. Sides that never fired are left out.

    Raises:
        ConfigError: if the folder holds no explorer, or `output` is not ours.
    """
    try:
        facts = site.get(folder, "site")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} holds no finished explorer: {error}") from error
    claim_output(output)
    texts = [text or "\u2205" for text in site.get(folder, "tokens")["texts"]]
    written = []
    for sae in facts["saes"]:
        for number, features in enumerate(_batches(_features(folder, sae, facts["shard"], texts))):
            call = {
                "modelId": str(facts["model"]).rsplit("/")[-1].lower(),
                "source": sae["name"].lower(),
                "features": features,
            }
            file = output / sae["name"] / f"batch-{number}.json"
            write_text(file, json.dumps(call, ensure_ascii=True, allow_nan=False) + "\n")
            written.append(file)
    return written


def _batches(features: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for feature in features:
        batch.append(feature)
        if len(batch) == FEATURES_PER_CALL:
            yield batch
            batch = []
    if batch:
        yield batch


def _features(
    folder: Path, sae: dict[str, Any], shard: int, texts: list[str]
) -> Iterator[dict[str, Any]]:
    index = site.get(folder, f"{sae['name']}/index")
    counts = [unpack(index[f"{side}_count"]) for side in ("positive", "negative")]
    for start in range(0, sae["d_sae"], shard):
        for row, packed in enumerate(site.get(folder, f"{sae['name']}/latents-{start // shard}")):
            latent, record = start + row, read_record(packed)
            for side in (0, 1):
                if record["contexts"][side]:
                    density = counts[side][latent] / sae["n_tokens"]
                    yield _feature(record, side, latent + side * sae["d_sae"], density, texts)


def _feature(
    record: dict[str, Any], side: int, index: int, density: float, texts: list[str]
) -> dict[str, Any]:
    sign = -1 if side else 1
    # What one side promotes the other side lowers.
    promoted, lowered = record["outputs"][side], record["outputs"][1 - side]
    return {
        "index": index,
        "density": min(1.0, density),
        "topLogits": _logits(promoted, sign, texts),
        "bottomLogits": _logits(lowered, sign, texts),
        "activations": [
            {
                "tokens": [texts[rank] for rank in context["tokens"]],
                "values": _values(context, sign),
            }
            for context in record["contexts"][side]
        ],
    }


def _logits(outputs: list[list[Any]], sign: int, texts: list[str]) -> list[dict[str, Any]]:
    return [
        {"token": texts[rank], "value": round(sign * effect, 4)}
        for rank, effect in outputs[:MOST_LOGITS]
    ]


def _values(context: dict[str, Any], sign: int) -> list[float]:
    """|z| of this side; the peak to its own precision, which is finer than that of its window."""
    values = [round(max(0.0, sign * z), 4) for z in context["z"]]
    values[context["before"]] = round(context["peak"], 4)
    return values
