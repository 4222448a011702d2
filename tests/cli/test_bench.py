"""`sae-lens-bipolar bench`: options, YAML, exit codes."""

from pathlib import Path

import pytest

from sae_lens_bipolar.cli.bench import read_config
from sae_lens_bipolar.cli.main import _parser, main
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.saebench import BenchConfig
from sae_lens_bipolar.saebench.config import SCALES
from tests.hub.fake.clients import clients_at
from tests.hub.fake.server import HubServer
from tests.saebench.bench_models import bench_sae, save_bench_model, save_bench_sae
from tests.tiny_models import write_text

_SIZES = """
context_length: 24
llm_batch_size: 4
core_batch_size: 4
core_reconstruction_batches: 1
core_sparsity_batches: 1
"""


def parsed(*arguments: str) -> BenchConfig:
    return read_config(_parser().parse_args(["bench", "sae", "--output", "out", *arguments]))


def test_the_defaults_are_saebenchs_sizes() -> None:
    assert parsed() == BenchConfig()
    assert parsed("--scale", "small") == BenchConfig(**SCALES["small"])


def test_options_of_every_kind() -> None:
    config = parsed(
        *("--suites", "core,tpp", "--protocols", "split", "--seed", "7", "--ablation-n", "5,20"),
        *("--trust-remote-code", "--no-keep-caches", "--unlearning-retain", "0.5"),
    )
    assert config == BenchConfig(
        suites=("core", "tpp"),
        protocols=("split",),
        seed=7,
        ablation_n=(5, 20),
        trust_remote_code=True,
        keep_caches=False,
        unlearning_retain=(0.5,),
    )


def test_a_yaml_file_gives_what_options_do_not(tmp_path: Path) -> None:
    file = tmp_path / "bench.yaml"
    file.write_text("scale: small\nsuites: [core]\nseed: 3\n")
    config = parsed("--config", str(file), "--seed", "5")
    assert config == BenchConfig(**{**SCALES["small"], "suites": ("core",), "seed": 5})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--suites", "coer"), "did you mean 'core'"),
        (("--ablation-n", "3"), "ablation_n: 3 is not one of"),
        (("--protocols", "unsigned"), "protocols: 'unsigned'"),
        (("--context-length", "0"), "context_length=0 must be positive"),
        (("--device", "tpu9"), "device='tpu9'"),
    ],
)
def test_a_wrong_value_is_named(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parsed(*arguments)


def test_an_unknown_yaml_key_is_named(tmp_path: Path) -> None:
    file = tmp_path / "bench.yaml"
    file.write_text("suite: [core]\n")
    with pytest.raises(
        ConfigError, match="'suite' is not an option of bench; did you mean 'suites'"
    ):
        parsed("--config", str(file))


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sae_bench")
    run = tmp_path / "run"
    model_dir = save_bench_model(tmp_path / "gpt2", "gpt2")
    for name in ("topk", "abstopk"):
        save_bench_sae(run / "checkpoints" / name, bench_sae(name, model_dir))
    sizes = tmp_path / "sizes.yaml"
    sizes.write_text(f"{_SIZES}core_dataset: {write_text(tmp_path / 'text.jsonl')}\n")
    arguments = ["bench", str(run), "--output", str(tmp_path / "out"), "--config", str(sizes)]

    assert main([*arguments, "--suites", "core"]) == 0
    printed = capsys.readouterr().out
    assert "| topk | topk | gpt2 | blocks.0.hook_resid_post | split |" in printed
    assert "results/saebench.csv" in printed

    with HubServer() as empty, clients_at(empty, tmp_path / "caches"):
        assert main([*arguments, "--suites", "core,ravel"]) == 3
    assert (
        "not run: ravel split of abstopk: 'adamkarvonen/ravel_prompts' does not exist"
        in capsys.readouterr().out
    )

    assert main(["bench", str(tmp_path / "nothing"), "--output", str(tmp_path / "o")]) == 2
    assert "is neither a checkpoint" in capsys.readouterr().err
