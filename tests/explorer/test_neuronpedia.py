"""The export against the published schema of Neuronpedia's upload-batch, and against the split."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformer_lens import HookedTransformer

from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.explorer import ExplorerConfig, build, neuronpedia, site
from sae_lens_bipolar.explorer.packing import unpack
from sae_lens_bipolar.polarity.splitting import split
from tests.explorer import plain


def require_schema(call: dict[str, Any]) -> None:
    """`uploadBatchSchema` of apps/webapp/app/api/feature/upload-batch/route.tsx, commit ebb8426."""

    def number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    def text(value: Any) -> bool:
        return isinstance(value, str) and value != ""

    assert set(call) == {"modelId", "source", "features"}
    for key in ("modelId", "source"):
        assert text(call[key])
        assert call[key] == call[key].lower()
    assert 1 <= len(call["features"]) <= 128
    indices = [feature["index"] for feature in call["features"]]
    assert len(set(indices)) == len(indices)
    for feature in call["features"]:
        assert set(feature) == {"index", "density", "topLogits", "bottomLogits", "activations"}
        assert isinstance(feature["index"], int)
        assert 0 <= feature["index"] <= 10_000_000
        assert 0 <= feature["density"] <= 1
        for key in ("topLogits", "bottomLogits"):
            assert len(feature[key]) <= 20
            for logit in feature[key]:
                assert set(logit) == {"token", "value"}
                assert text(logit["token"])
                assert number(logit["value"])
        assert len(feature["activations"]) >= 1
        for activation in feature["activations"]:
            assert set(activation) == {"tokens", "values"}
            assert 1 <= len(activation["tokens"]) <= 1024
            assert len(activation["values"]) == len(activation["tokens"])
            assert all(map(text, activation["tokens"]))
            assert all(map(number, activation["values"]))


def test_every_call_is_of_the_schema_and_holds_the_split(explored: Path, tmp_path: Path) -> None:
    files = neuronpedia.export(explored, tmp_path / "out")
    calls = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    for call in calls:
        require_schema(call)
    sides: dict[str, dict[int, Any]] = {"abstopk": {}, "topk": {}}
    for call in calls:
        sides[call["source"]].update({f["index"]: f for f in call["features"]})
    signed = sides["abstopk"]
    index = {key: unpack(value) for key, value in site.get(explored, "abstopk/index").items()}
    for latent in range(80):
        assert (latent in signed) == (index["positive_count"][latent] > 0)
        assert (latent + 80 in signed) == (index["negative_count"][latent] > 0)
    values = [v for f in signed.values() for one in f["activations"] for v in one["values"]]
    assert min(values) == 0 < max(values)
    one = next(f for f in signed.values() if f["index"] >= 80)
    top = [logit["value"] for logit in one["topLogits"]]
    assert top == sorted(top, reverse=True)
    assert top[0] > 0 > one["bottomLogits"][0]["value"]
    assert max(sides["topk"]) < 80


def test_more_latents_than_a_call_holds_make_several(
    tmp_path: Path, tiny_model: HookedTransformer
) -> None:
    source = plain.save("wide", tmp_path, "abstopk", d_sae=300)
    config = ExplorerConfig(dials=0, contexts=1, output_tokens=25, neighbours=0)
    build([source], tiny_model, config, tmp_path / "site", plain.some_text(tiny_model))
    files = neuronpedia.export(tmp_path / "site", tmp_path / "out")
    calls = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    assert len(calls) > 1
    assert [len(call["features"]) for call in calls[:-1]] == [128] * (len(calls) - 1)
    features = {}
    for call in calls:
        require_schema(call)
        features.update({f["index"]: f for f in call["features"]})
    tokens = plain.some_text(tiny_model)
    twin = split(source.load())  # the SAE that Neuronpedia would be given
    z = plain.dense_latents(twin, tiny_model, tokens).flatten(0, 1)
    n_tokens = site.get(tmp_path / "site", "site")["saes"][0]["n_tokens"]
    fired = (z > 1e-6).sum(0)
    assert sorted(features) == fired.nonzero().flatten().tolist()
    for index, feature in features.items():
        assert feature["density"] == pytest.approx(int(fired[index]) / n_tokens)
        peak = max(feature["activations"][0]["values"])
        assert peak == pytest.approx(z[:, index].max().item(), rel=1e-3)


def test_a_folder_without_an_explorer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no finished explorer"):
        neuronpedia.export(tmp_path, tmp_path / "out")
