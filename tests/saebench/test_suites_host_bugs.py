"""Each worked-around bug of sae_bench 0.6.0, as it is without the workaround.

A test here fails when upstream has fixed its bug: the workaround can then go.
"""

import inspect
import random
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch

from tests.saebench.bench_models import bench_sae, bench_tokenizer, save_bench_model

pytest.importorskip("sae_bench")
from sae_bench.evals.absorption import common, vocab
from sae_bench.evals.absorption import main as absorption
from sae_bench.evals.core import main as core
from sae_bench.evals.ravel import instance, mdbm
from sae_bench.evals.ravel import main as ravel
from sae_bench.evals.scr_and_tpp import main as ablation
from sae_bench.evals.sparse_probing import main as probing
from sae_bench.evals.sparse_probing import probe_training
from sae_bench.evals.unlearning import main as unlearning
from sae_bench.evals.unlearning.eval_config import UnlearningEvalConfig
from sae_bench.evals.unlearning.utils import feature_activation, metrics
from sae_bench.sae_bench_utils import activation_collection, dataset_utils
from transformer_lens import HookedTransformer
from transformers import AutoModelForCausalLM

from sae_lens_bipolar.inputs.models import load_model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bench_model(tmp_path_factory.mktemp("bugs") / "gpt2", "gpt2")


def test_models_are_loaded_by_listed_name_only(model_dir: Path) -> None:
    with pytest.raises(ValueError, match="not found"):
        HookedTransformer.from_pretrained_no_processing(str(model_dir))


def test_absorption_keeps_its_files_in_site_packages_and_no_seed() -> None:
    assert Path(inspect.getfile(common)).parents[2] in common.PROBES_DIR.parents
    assert "random_seed" not in inspect.getsource(absorption.run_eval)


def test_absorption_walks_the_vocabulary_in_no_order_of_its_own() -> None:
    tokenizer = bench_tokenizer()
    orders = {tuple(vocab.get_alpha_tokens(tokenizer)) for _ in range(5)}
    assert len(orders) > 1


def test_absorption_says_nothing_when_there_are_too_few_letters() -> None:
    source = inspect.getsource(absorption.run_eval)
    after = source.split("Cannot evaluate absorption")[1]
    assert "raise" not in after.split("run_feature_absortion_experiment")[0]


@pytest.mark.skipif(version("beartype").startswith("0.14."), reason="does not check dimensions")
def test_the_sklearn_probe_inherits_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    acts = {name: torch.randn(8, 6) for name in ("a", "b")}
    tests = {name: torch.randn(5, 6) for name in ("a", "b")}
    before = torch.is_grad_enabled()
    try:
        with pytest.raises(Exception, match=r"(?i)type"):
            probe_training.train_probe_on_activations(acts, tests, select_top_k=2)
        plain = vars(probe_training.train_sklearn_probe)["__wrapped__"]
        monkeypatch.setattr(probe_training, "train_sklearn_probe", plain)
        assert len(probe_training.train_probe_on_activations(acts, tests, select_top_k=2)[1]) == 2
    finally:
        torch.set_grad_enabled(before)


def test_a_cached_probing_run_draws_other_numbers() -> None:
    for function in (probing.run_eval_single_dataset, ablation.run_eval_single_dataset):
        source = inspect.getsource(function)
        assert "seed" not in source.split("torch.load")[1]


def test_scr_drops_its_metric_where_both_directions_start_equal() -> None:
    eval_probe = "male_professor / female_nurse"
    first, second = "professor / nurse", "male / female"
    clean = {first: 0.9, second: 0.9}
    clean |= {f"{eval_probe} probe on {name} data": 0.7 for name in (first, second)}
    found = ablation.get_scr_plotting_dict({first: {20: clean}, second: {20: clean}}, clean)
    assert "scr_dir2_threshold_20" in found
    assert "scr_metric_threshold_20" not in found


def test_ablation_leaks_through_padding(model_dir: Path) -> None:
    sae = bench_sae("topk", model_dir)
    acts = torch.zeros(1, 3, sae.cfg.d_in)
    acts[0, 0] = torch.randn(sae.cfg.d_in, generator=torch.Generator().manual_seed(0))
    padding = sae.encode(acts[0, 1])
    only_at_padding = (padding != 0) & (sae.encode(acts[0, 0]) == 0)
    assert only_at_padding.any()
    with torch.no_grad():
        found = ablation.ablated_precomputed_activations(acts, sae, only_at_padding, 1)
    assert not torch.allclose(found[0], acts[0, 0], atol=1e-3)


def test_texts_are_encoded_anew_for_every_n(model_dir: Path, monkeypatch: Any) -> None:
    sae, encoded = bench_sae("topk", model_dir), []
    encode = sae.encode
    monkeypatch.setattr(sae, "encode", lambda x: encoded.append(x) or encode(x))
    monkeypatch.setattr(ablation, "get_probe_test_accuracy", lambda *_: {})
    acts = {"class": torch.randn(2, 3, sae.cfg.d_in, generator=torch.Generator().manual_seed(0))}
    effects = {"class": torch.ones(sae.cfg.d_sae)}
    ablation.perform_feature_ablations({}, sae, 2, acts, effects, [1, 2, 5], ["class"], 2, False)
    assert len(encoded) == 3


def test_too_many_latents_are_an_assertion() -> None:
    with pytest.raises(AssertionError):
        ablation.select_top_n_features(torch.ones(4), 5, "class")


def test_ravel_knows_two_models_only(model_dir: Path) -> None:
    assert set(ravel.LLM_NAME_MAP) == {"gemma-2-2b", "pythia-160m-deduped"}
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    with pytest.raises(ValueError, match="not supported"):
        activation_collection.get_module(model, 0)


@pytest.mark.skipif(version("transformers").startswith("4."), reason="its layers give tuples")
def test_ravel_knows_tuples_only(model_dir: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir)
    outputs: list[Any] = []
    handle = model.transformer.h[0].register_forward_hook(lambda *args: outputs.append(args[2]))
    model(torch.tensor([[5, 6]]))
    handle.remove()
    nobody: Any = SimpleNamespace()
    hook = mdbm.MDBM.create_intervention_hook(
        nobody, torch.zeros(1, 32), torch.zeros(1, dtype=torch.long)
    )
    assert isinstance(outputs[0], torch.Tensor)
    with pytest.raises(ValueError, match="Unexpected output shape"):
        hook(None, None, outputs[0])


def test_ravel_trains_the_language_model_too(model_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_dir).eval()
    sae = bench_sae("topk", model_dir)
    sae.cfg.hook_layer = 0  # type: ignore[attr-defined]
    config = SimpleNamespace(llm_batch_size=1)
    mdbm.MDBM(model, None, config, sae).train()  # type: ignore[arg-type]
    assert model.training


def test_ravel_is_off_by_one_without_a_bos_token() -> None:
    prompts = instance.RAVELInstance()
    prompts.attribute_type_to_templates = {"Country": ["%s has the first letter:"]}
    prompts.entityLBL_attrTYP_attrLBL = {" A": {"Country": "x"}}
    prompts.template_splits = {"%s has the first letter:": "train"}
    prompts.entity_splits = {" A": "train"}
    tokenizer = bench_tokenizer()
    (prompt,) = prompts.build_and_tokenize_prompts(tokenizer)
    assert prompt.input_ids is not None
    assert prompt.final_entity_token_pos is not None
    at = tokenizer.decode(prompt.input_ids[prompt.final_entity_token_pos])
    assert (at, tokenizer.decode(prompt.input_ids[prompt.final_entity_token_pos - 1])) == (
        " has",
        " A",
    )


@pytest.mark.skipif(version("huggingface-hub").startswith("0."), reason="it takes the argument")
def test_ravel_passes_an_argument_the_hub_client_does_not_take() -> None:
    assert "local_dir_use_symlinks" in inspect.getsource(instance.RAVELInstance.load_files)
    assert (
        "local_dir_use_symlinks"
        not in inspect.signature(huggingface_hub.snapshot_download).parameters
    )


def test_unlearning_refuses_models_by_name(model_dir: Path, tmp_path: Path) -> None:
    config = UnlearningEvalConfig(model_name="gpt2", llm_batch_size=1, llm_dtype="float32")
    with pytest.raises(ValueError, match="instruct tuned"):
        unlearning.run_eval(config, [], "cpu", str(tmp_path))
    with pytest.raises(Exception, match="not hardcoded"):
        metrics.get_output_probs_abcd(load_model(model_dir), ["a"])


def test_unlearning_takes_its_corpus_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(feature_activation, "load_dataset", lambda *_, **__: [])
    with pytest.raises(FileNotFoundError, match="bio-forget-corpus"):
        feature_activation.get_forget_retain_data()


def test_unlearning_reads_stale_sparsities_whatever_is_asked(tmp_path: Path) -> None:
    feature_activation.save_results(str(tmp_path), "sae", np.ones(3), np.ones(3))
    assert feature_activation.check_existing_results(str(tmp_path), "sae")
    assert "force" not in inspect.signature(feature_activation.save_feature_sparsity).parameters


def test_unlearning_splits_questions_without_a_seed() -> None:
    random.seed(1)
    torch.manual_seed(1)
    drawn = {tuple(metrics._split_train_test(np.arange(40))[0]) for _ in range(3)}
    assert len(drawn) > 1
    assert "np.random" not in inspect.getsource(unlearning.run_eval)


def test_repository_code_is_run_unasked_and_short_names_are_used() -> None:
    assert "trust_remote_code=True" in inspect.getsource(dataset_utils.get_github_code_dataset)
    source = inspect.getsource(feature_activation.get_forget_retain_data)
    assert 'load_dataset("wikitext"' in source


def test_core_swallows_exceptions_and_leaves_no_result(model_dir: Path, tmp_path: Path) -> None:
    sae = bench_sae("topk", model_dir)
    sae.cfg.metadata.prepend_bos = None  # its store will refuse
    model = load_model(model_dir)

    def give(*_: Any, **__: Any) -> Any:
        return model

    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patched:
        patched.setattr(HookedTransformer, "from_pretrained_no_processing", give)
        patched.setattr(core.general_utils.time, "sleep", lambda _: None)
        found = core.multiple_evals(
            [("topk", sae)], 1, 1, output_folder=str(tmp_path), device="cpu"
        )
    assert found == []
    assert list(tmp_path.iterdir()) == []


def test_cores_explained_variance_is_not_one() -> None:
    source = inspect.getsource(core.get_sparsity_and_variance_metrics)
    # a scalar minus the square of a mean of squares a dimension
    assert "mean_act_per_dimension.append(\n                (flattened_sae_input).pow(2)" in source


def test_core_asks_every_sae_with_a_magnitude_bias_for_an_encoder_bias(model_dir: Path) -> None:
    sae: Any = bench_sae("sign_aware_gated", model_dir)
    sae.cfg.architecture_str = "sign_aware_gated"
    with pytest.raises(AttributeError, match="b_enc"):
        core.get_featurewise_weight_based_metrics(sae)
