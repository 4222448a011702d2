"""Every scale of the AbsTopK recipes' YAML files builds, and `paper` says what the paper says."""

from typing import Any

import pytest

from recipes.abstopk import figure4, table2
from recipes.abstopk.paper_numbers import TASKS
from recipes.abstopk.training import TrainingPlan, read_plan
from recipes.common.scales import read_scale
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.inputs.models import DEFAULT_MODEL

CONFIGS = {"figure4": figure4.CONFIG, "table2": table2.CONFIG}
SCALES = ("small", "paper")
# d_model of the models, from their configuration files on the Hub.
WIDTHS = {
    DEFAULT_MODEL: 576,
    "EleutherAI/pythia-70m": 512,
    "openai-community/gpt2": 768,
    "google/gemma-2-2b": 2304,
    "Qwen/Qwen3-4B": 2560,
}
# Appendix D and B of the paper.
PAPER_K = {
    "pythia-70m": ([10, 20, 30, 40, 50], 51),
    "gpt2": ([10, 30, 50, 60, 76], 76),
    "gemma-2-2b": ([30, 50, 100, 200, 230], 230),
    "qwen3-4b": ([30, 50, 100, 200, 256], 256),
}
PAPER_LAYERS = {
    "pythia-70m": (3, 4),
    "gpt2": (6, 8),
    "gemma-2-2b": (12, 14, 16),
    "qwen3-4b": (18, 20),
}


def recipe(name: str, scale: str) -> tuple[TrainingPlan, dict[str, Any]]:
    """Plan and settings of a recipe's scale."""
    settings = read_scale(CONFIGS[name], scale)
    training = {k: v for k, v in settings.items() if k not in table2.SECTIONS or name == "figure4"}
    return read_plan(training), settings


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_scale_builds_its_saes(name: str, scale: str) -> None:
    plan, _ = recipe(name, scale)
    for model in plan.models.values():
        d_in = WIDTHS[model.model]
        assert model.d_sae == (16 if scale == "paper" else 4) * d_in
        saes = plan.saes(model, model.layers)
        assert len(saes) == len(model.layers) * (2 * len(model.k) + len(model.jumprelu))
        for sae in saes.values():
            config = sae.config(d_in=d_in)
            assert (config.d_in, config.d_sae) == (d_in, model.d_sae)
            assert config.architecture() in ("abstopk", "sparse_topk", "jumprelu")
            assert sae.hook_name == f"blocks.{sae.tags['layer']}.hook_resid_post"
        assert plan.sweep_config(model, "cpu").model == model.model


@pytest.mark.parametrize("name", CONFIGS)
def test_the_papers_settings(name: str) -> None:
    plan, _ = recipe(name, "paper")
    for model, (ks, k) in PAPER_K.items():
        assert list(plan.models[model].k) == (ks if name == "figure4" else [k])
        assert plan.models[model].layers == PAPER_LAYERS[model]
        sweep = plan.sweep_config(plan.models[model], "cpu")
        assert sweep.corpus == "monology/pile-uncopyrighted"
        assert sweep.training_tokens == 30_000 * 4096
        assert sweep.train_batch_size_tokens == 4096
        assert (sweep.lr, sweep.adam_beta1, sweep.adam_beta2) == (3e-4, 0.9, 0.99)
    assert plan.jumprelu["jumprelu_bandwidth"] == 0.001
    assert (plan.corpus_characters or 0) > 2 * 30_000 * 4096


@pytest.mark.parametrize("scale", SCALES)
def test_the_benchmark_of_table_2(scale: str) -> None:
    pytest.importorskip("sae_bench")
    from sae_lens_bipolar.saebench.suites.ablation import ABLATION_N
    from sae_lens_bipolar.saebench.suites.sparse_probing import PROBING_DATASETS

    plan, settings = recipe("table2", scale)
    for model in plan.models.values():
        config = table2.bench_config({**settings["bench"], **model.bench}, "cpu")
        # Every column of the table is run, or said to be left out.
        assert {*config.suites, *settings.get("not_run", {})} == set(TASKS)
        assert config.protocols == ("signed", "split")
        # The defaults that the table marks must be among what is run.
        assert 20 in config.ablation_n
        assert 5 in config.probing_k
        if scale == "paper":
            assert (config.ablation_n, config.probing_datasets) == (ABLATION_N, PROBING_DATASETS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": []}, "layers, k and jumprelu"),
        ({"k": [0]}, "k"),
        ({"d_sae": 8}, "k"),
        ({"paper": "GPT3"}, "paper='GPT3'"),
        ({"layer": [3]}, "models.smollm2-135m has no setting 'layer'; did you mean 'layers'"),
        ({"jumprelu": [{"theta": 1.0}]}, "JumpReLUTrainingSAEConfig has no setting 'theta'"),
    ],
)
def test_bad_settings_are_named(change: dict[str, Any], message: str) -> None:
    _, settings = recipe("figure4", "small")
    settings["models"]["smollm2-135m"] |= change
    with pytest.raises(ConfigError, match=message):
        read_plan(settings)
