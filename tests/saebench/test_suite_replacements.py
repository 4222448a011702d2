"""What SAEBench gets instead of functions of its own, called as SAEBench would call it."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sae_lens_bipolar.errors import BenchError
from sae_lens_bipolar.saebench import BenchConfig
from sae_lens_bipolar.saebench.suites import core, ravel, sparse_probing
from sae_lens_bipolar.saebench.suites.registry import SUITES
from tests.saebench.called import Called, called, stand_ins  # noqa: F401

pytest.importorskip("sae_bench")
from sae_bench.evals.absorption import common, k_sparse_probing
from sae_bench.evals.absorption import main as absorption_main
from sae_bench.evals.core import main as core_main
from sae_bench.evals.ravel import instance, mdbm
from sae_bench.evals.ravel import main as ravel_main
from sae_bench.evals.sparse_probing import main as probing_main
from sae_bench.evals.sparse_probing import probe_training
from sae_bench.sae_bench_utils import activation_collection, general_utils

pytestmark = pytest.mark.usefixtures("stand_ins")


def drawn() -> tuple[float, float]:
    return random.random(), torch.rand(()).item()


# --- absorption -----------------------------------------------------------------------------------


def test_no_larger_k_than_there_are_latents(tmp_path: Path) -> None:
    job = Called(tmp_path, absorption_max_k=10)
    job.sae.cfg.d_sae = 6
    SUITES["absorption"].run(job)  # type: ignore[arg-type]
    assert job.host.max_k_value == 6


def test_absorption_has_its_own_folders_words_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(k_sparse_probing, "load_or_train_probe", lambda *_, **__: drawn())
    noted: list[dict[str, Any]] = []
    monkeypatch.setattr(
        absorption_main,
        "run_feature_absortion_experiment",
        lambda **kwargs: noted.append({**kwargs, "drawn": drawn()}),
    )
    job: Any = None

    def inside() -> None:
        before = drawn()
        inner = k_sparse_probing.load_or_train_probe()  # type: ignore[call-arg]
        after = drawn()
        assert inner == after != before, "from the seed, whether it was trained or read"
        for _ in range(2):
            absorption_main.run_feature_absortion_experiment()  # type: ignore[call-arg]
        assert noted[0] == noted[1]
        assert noted[0]["drawn"] == inner
        assert common.get_alpha_tokens(None) == ["b", "a"]  # type: ignore[arg-type]
        assert job.model.hooked.run_with_cache(1) == ((1,), {"stop_at_layer": 5})
        assert job.model.hooked.run_with_cache(stop_at_layer=2)[1] == {"stop_at_layer": 2}
        probing: Any = absorption_main.run_k_sparse_probing_experiment
        raw, probes = tmp_path / "raw", tmp_path / "cache" / "probes"
        assert probing.keywords == {
            "experiment_dir": raw / "k_sparse_probing",
            "probes_dir": probes,
        }
        del noted[0]["drawn"]
        assert noted[0] == {
            "experiment_dir": raw / "feature_absorption",
            "sparse_probing_experiment_dir": raw / "k_sparse_probing",
            "probes_dir": probes,
        }

    job = Called(tmp_path, inside)
    SUITES["absorption"].run(job)


@pytest.mark.parametrize(("f1", "found"), [(0.6, "a"), (0.59, "ab")])
def test_a_model_that_knows_too_few_letters_is_named(tmp_path: Path, f1: float, found: str) -> None:
    """Letters whose F1 is above the limit, not at it; SAEBench writes null where it has none."""
    job = Called(tmp_path, absorption_min_f1=f1)
    (job.results / "found.json").unlink()
    file = tmp_path / "artifacts/absorption/x_k_sparse_probing.json"
    file.parent.mkdir(parents=True)
    rows = [("a", 0.9), ("b", 0.6), ("c", 0.1), ("d", None)]
    text = ", ".join(
        f'{{"letter": "{name}", "f1_probe": {"null" if value is None else value}}}'
        for name, value in rows
    )
    file.write_text(f"[{text}]")
    with pytest.raises(BenchError, match=rf"{len(found)} first letters.*\({found}\).*20 are"):
        SUITES["absorption"].run(job)  # type: ignore[arg-type]


# --- sparse probing -------------------------------------------------------------------------------


def test_probing_is_seeded_and_calls_the_function_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing_main, "get_dataset_activations", lambda *_: drawn())
    monkeypatch.setattr(activation_collection, "get_sae_meaned_activations", lambda *_: drawn())

    def inside() -> tuple[Any, ...]:
        collect: Any = probing_main.get_dataset_activations
        encode: Any = activation_collection.get_sae_meaned_activations
        return collect(1), encode(1), collect(1), probe_training.train_sklearn_probe

    theirs: Any = probe_training.train_sklearn_probe
    first, second, third, function = called("sparse_probing", tmp_path, inside).found  # type: ignore[misc]
    assert first == second == third
    assert function is theirs.__wrapped__
    assert not hasattr(function, "__wrapped__")
    assert sparse_probing.read(
        {"eval_result_metrics": {"sae": {"sae_top_20_test_accuracy": 0.5, "sae_test_accuracy": 1}}}
    ) == [("sae_top_k_test_accuracy", 20, 0.5), ("sae_test_accuracy", None, 1)]


# --- core -----------------------------------------------------------------------------------------


def test_core_asks_for_what_the_options_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: dict[str, Any] = {}

    def multiple_evals(saes: Any, **kwargs: Any) -> None:
        noted.update(kwargs, saes=saes)
        assert general_utils.retry_with_exponential_backoff(retries=9)(multiple_evals) is (
            multiple_evals
        ), "what cannot succeed is not tried again"

        def swallow() -> None:
            try:
                raise ZeroDivisionError
            except ZeroDivisionError:
                core_main.logger.error("swallowed")

        with pytest.raises(ZeroDivisionError):
            swallow()
        with pytest.raises(RuntimeError, match="alone"):
            core_main.logger.error("alone")

    monkeypatch.setattr(core_main, "multiple_evals", multiple_evals)
    job = called(
        *("core", tmp_path),
        core_dataset="sotu",
        core_batch_size=9,
        core_reconstruction_batches=8,
        core_sparsity_batches=7,
        context_length=96,
    )
    assert noted == {
        "saes": [("mine", job.sae)],
        "n_eval_reconstruction_batches": 8,
        "n_eval_sparsity_variance_batches": 7,
        "eval_batch_size_prompts": 9,
        "compute_featurewise_density_statistics": True,
        "compute_featurewise_weight_based_metrics": True,
        "exclude_special_tokens_from_reconstruction": True,
        "dataset": "sotu",
        "context_size": 96,
        "output_folder": str(tmp_path / "results"),
        "dtype": "bfloat16",
        "device": "cpu",
        "force_rerun": True,
    }


def test_weights_without_an_encoder_bias_are_measured_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(core_main, "get_featurewise_weight_based_metrics", seen.append)

    def sae(architecture: str, **more: Any) -> Any:
        cfg = SimpleNamespace(architecture_str=architecture)
        return SimpleNamespace(W_enc=1, W_dec=2, b_mag=3, cfg=cfg, **more)

    with_bias, gated, without = sae("x", b_enc=4), sae("gated"), sae("sign_aware_gated")

    def multiple_evals(*_: Any, **__: Any) -> None:
        for one in (with_bias, gated, without):
            core_main.get_featurewise_weight_based_metrics(one)

    monkeypatch.setattr(core_main, "multiple_evals", multiple_evals)
    called("core", tmp_path)
    assert seen[0] is with_bias
    assert seen[1] is gated
    assert vars(seen[2]) == {"W_enc": 1, "W_dec": 2, "cfg": without.cfg}


@pytest.mark.parametrize("dataset", ["sotu", "a.txt", "owner/name"])
def test_core_reads_local_text_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("One paragraph.\n\nAnother.\n")
    noted: dict[str, Any] = {}
    store = SimpleNamespace(shuffle_input_dataset=lambda **kwargs: noted.update(shuffled=kwargs))

    def from_sae(*args: Any, **kwargs: Any) -> Any:
        noted.update(kwargs)
        return store

    monkeypatch.setattr(core.ActivationsStore, "from_sae", from_sae)
    monkeypatch.setattr(core, "_text", lambda source: f"text of {source}")

    def multiple_evals(*_: Any, **__: Any) -> None:
        store_class: Any = core_main.ActivationsStore
        made = store_class.from_sae("m", "s", dataset, 96, streaming=True)
        made.shuffle_input_dataset(42, buffer_size=3)

    monkeypatch.setattr(core_main, "multiple_evals", multiple_evals)
    called("core", tmp_path / "job", trust_remote_code=True, core_dataset=dataset)
    is_local = dataset != "owner/name"
    assert noted == {
        "dataset": f"text of {dataset}" if is_local else dataset,
        "context_size": 96,
        "dataset_trust_remote_code": True,
        "device": "cpu",
        "shuffled": {"seed": 7, "buffer_size": 3},
    }
    kind = "file" if is_local else "data set"
    assert core.needs(BenchConfig(core_dataset=dataset)) == [(kind, dataset, "")]


# --- RAVEL ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "expected"), [([7], [4, -1]), ([0, 7], [5, None])], ids=["no bos", "bos"]
)
def test_ravel_finds_the_entity_with_and_without_a_bos_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: list[int], expected: list[Any]
) -> None:
    prompts = [SimpleNamespace(final_entity_token_pos=p) for p in (5, None)]
    kind = instance.RAVELInstance
    monkeypatch.setattr(kind, "build_and_tokenize_prompts", lambda self, tokenizer: prompts)
    monkeypatch.setattr(kind, "create_from_files", staticmethod(lambda n: random.random() + n))
    tokenizer = SimpleNamespace(encode=lambda _: ids, all_special_ids=[0])
    job: Any = None

    def inside() -> None:
        found = kind.build_and_tokenize_prompts(None, tokenizer)  # type: ignore[arg-type]
        assert [prompt.final_entity_token_pos for prompt in found] == expected  # type: ignore[attr-defined]
        state = random.getstate()
        assert kind.create_from_files(2) > 2  # type: ignore[call-arg,operator]
        assert random.getstate() == state, "a cached data set draws nothing"
        assert ravel_main.LLM_NAME_MAP == {"tiny": "tiny"}
        loaded: Any = ravel_main.AutoModelForCausalLM.from_pretrained("any", device_map="x")
        assert loaded is job.model.transformers
        assert ravel_main.AutoTokenizer.from_pretrained("any") is job.model.tokenizer

    job = Called(tmp_path, inside)
    SUITES["ravel"].run(job)
    assert job.options == {"artifacts_path": str(tmp_path / "artifacts")}
    assert job.host.artifact_dir == str(tmp_path / "cache")


@pytest.mark.parametrize("as_tuple", [False, True])
def test_ravels_hooks_see_a_tuple_and_may_replace_it(tmp_path: Path, as_tuple: bool) -> None:
    class Layer(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return (x, "cache") if as_tuple else x

    layer, x = Layer(), torch.ones(2)
    model = SimpleNamespace(base_model=SimpleNamespace(h=torch.nn.ModuleList([Layer(), layer])))
    outputs: list[Any] = []
    results = iter([None, (3 * x, "cache")[: 1 + as_tuple]])

    def inside() -> None:
        module: Any = activation_collection.get_module(model, 1)  # type: ignore[arg-type]

        def hook(module: Any, inputs: Any, output: Any) -> Any:
            outputs.append(output)
            return next(results)

        module.register_forward_hook(hook)
        for factor in (1, 3):
            found = layer(x)
            torch.testing.assert_close(found[0] if as_tuple else found, factor * x)

    called("ravel", tmp_path, inside)
    assert [len(output) for output in outputs] == [1 + as_tuple] * 2
    layer(x)
    assert len(outputs) == 2, "no hook is left behind"


def test_ravel_trains_its_mask_and_not_the_language_model(tmp_path: Path) -> None:
    class Mask(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = torch.nn.Dropout()

        train: Any = None

    def inside() -> tuple[bool, bool, bool]:
        mask = Mask()
        Mask.train = mdbm.MDBM.train
        same = mask.train() is mask
        return same, mask.training, mask.model.training

    assert called("ravel", tmp_path, inside).found == (True, True, False)


def test_ravel_copies_the_prompts_it_is_given_once(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    (given / "ravel_city.json").write_text("new")
    (given / "other.json").write_text("not RAVEL's")
    job = called("ravel", tmp_path / "job", ravel_data=str(given))
    base = job.cache / "base"
    assert [(file.name, file.read_text()) for file in base.iterdir()] == [
        ("ravel_city.json", "new")
    ]
    (given / "ravel_city.json").write_text("newer")
    SUITES["ravel"].run(job)  # type: ignore[arg-type]
    assert (base / "ravel_city.json").read_text() == "new"
    assert not (called("ravel", tmp_path / "none").cache / "base").exists()
    assert ravel.needs(job.config) == [("file", str(given), "")]


# --- unlearning -----------------------------------------------------------------------------------


def test_unlearning_shares_what_depends_on_the_model_alone(tmp_path: Path) -> None:
    def run(folder: str, cache: Path) -> Called:
        job = Called(tmp_path / folder)
        job.cache = cache
        own = job.folder / "artifacts/unlearning/tiny/data"
        if not (cache / "data").exists():
            own.mkdir(parents=True)
            (own / "ids.csv").write_text(folder)
        SUITES["unlearning"].run(job)  # type: ignore[arg-type]
        assert job.host.dataset_names == ["wmdp-bio", str(own.parent)]
        assert job.options == {"artifacts_path": str(job.folder / "artifacts")}
        assert "it" in job.host.model_name, "as SAEBench asks of an instruction-tuned model"
        assert "ti" in job.host.model_name
        assert "gemma" not in job.host.model_name
        assert job.host.model_name == "tiny"
        return job

    shared = tmp_path / "shared"
    run("first", shared)
    assert (shared / "data/ids.csv").read_text() == "first"
    second = run("second", shared)
    assert (second.folder / "artifacts/unlearning/tiny/data/ids.csv").read_text() == "first"
