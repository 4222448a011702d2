"""Loading: logits equal Transformers', names and paths of every kind, and clear refusals."""

import copy
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import huggingface_hub
import pytest
import torch
from sae_lens import HookedSAETransformer
from transformer_lens import HookedTransformer
from transformer_lens import loading_from_pretrained as host
from transformers import AutoModelForCausalLM

from sae_lens_bipolar.errors import ConfigError, ModelError
from sae_lens_bipolar.inputs.fetch import check_hub
from sae_lens_bipolar.inputs.models import (
    DEFAULT_MODEL,
    bundled_model_dir,
    check_hook,
    load_model,
)
from tests.hub.fake.clients import close_session
from tests.tiny_models import TINY_ARCHITECTURES, save_tiny_model


def assert_same_logits(directory: Path, model: HookedTransformer, length: int = 96) -> None:
    hf_model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(hf_model.config.vocab_size, (2, length), generator=generator)
    with torch.no_grad():
        expected = hf_model(tokens).logits
        found = model(tokens, prepend_bos=False)
    assert expected.std() > 0.3  # far from constant, so agreement means something
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", TINY_ARCHITECTURES)
def test_logits_equal_transformers(architecture: str, tiny_model_dirs: dict[str, Path]) -> None:
    directory = tiny_model_dirs[architecture]
    model = load_model(directory)
    config = json.loads((directory / "config.json").read_text())
    assert type(model) is HookedSAETransformer  # a HookedTransformer, as SAEBench asks for
    assert model.cfg.d_model == 32
    assert model.cfg.n_layers == config.get("num_hidden_layers", config.get("n_layer"))
    assert model.cfg.n_ctx == 128
    assert model.cfg.d_vocab == 384
    assert model.cfg.normalization_type in ("LN", "RMS")  # nothing folded
    assert_same_logits(directory, model)


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("gpt2", {"n_inner": 48}),
        ("gpt_neox", {"rotary_emb_base": 500, "rotary_pct": 0.5}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
        ("gemma2", {"num_key_value_heads": 4, "num_hidden_layers": 3}),
        ("qwen3", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
        ("llama", {"head_dim": 16, "tie_word_embeddings": True}),
        ("llama", {"rope_theta": 500000.0}),
        ("smollm3", {"num_key_value_heads": 4}),
        ("smollm3", {"tie_word_embeddings": False, "no_rope_layers": [0, 1, 1, 0]}),
    ],
)
def test_logits_equal_transformers_for_other_sizes(
    architecture: str, changes: dict, tmp_path: Path
) -> None:
    directory = save_tiny_model(tmp_path / "model", architecture, **changes)
    assert_same_logits(directory, load_model(directory))


def test_folder_name_decides_nothing(tiny_model_dirs: dict[str, Path], tmp_path: Path) -> None:
    # The host reads the architecture from names: "llama" makes it skip the config altogether.
    named = tmp_path / "t5-bert-llama-7b" / "NeelNanda-gemma-2-llama"
    named.parent.mkdir()
    named.symlink_to(tiny_model_dirs["gpt2"])
    model = load_model(str(named))
    assert_same_logits(named, model)


def test_alias_has_no_separator_and_path_is_kept(tiny_model_dirs: dict[str, Path]) -> None:
    model = load_model(f"{tiny_model_dirs['llama']}{os.sep}")
    assert model.cfg.model_name == "llama"
    assert model.cfg.tokenizer_name == str(tiny_model_dirs["llama"].resolve())
    assert model.cfg.trust_remote_code is False


def test_tokenizer_prepends_bos_as_the_host_expects(tiny_model: HookedTransformer) -> None:
    tokens = tiny_model.to_tokens("The river carries warm bread.")
    assert tokens[0, 0] == 0
    assert tiny_model.to_string(tokens[0, 1:]) == "The river carries warm bread."
    assert (tiny_model.to_tokens("The river", prepend_bos=False) != 0).all()


def test_half_precision(tiny_model_dirs: dict[str, Path]) -> None:
    model = load_model(tiny_model_dirs["gpt2"], dtype="bfloat16")
    assert model.cfg.dtype == torch.bfloat16
    assert model.blocks[0].attn.W_Q.dtype == torch.bfloat16


def test_nope_layers_survive_a_copy(tiny_model_dirs: dict[str, Path]) -> None:
    model = load_model(tiny_model_dirs["smollm3"])
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(model)(tokens), model(tokens))


# What the conversion works around in TransformerLens 3.9.0; each fails once upstream changes.


def test_host_still_rejects_local_directories(tiny_model_dirs: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="not found"):
        HookedTransformer.from_pretrained_no_processing(str(tiny_model_dirs["gpt2"]))


def test_host_still_reads_gemma_2_and_smollm3_by_name(tiny_model_dirs: dict[str, Path]) -> None:
    with pytest.raises(NotImplementedError, match="SmolLM3ForCausalLM"):
        host.convert_hf_model_config(str(tiny_model_dirs["smollm3"]))
    with pytest.raises((NotImplementedError, AttributeError)):
        host.convert_hf_model_config(str(tiny_model_dirs["gemma2"]))


def test_host_still_assumes_sizes(tiny_model_dirs: dict[str, Path], tmp_path: Path) -> None:
    changed = save_tiny_model(tmp_path / "neox", "gpt_neox", rotary_emb_base=500)
    assert "rotary_base" not in host.convert_hf_model_config(str(changed))
    assert host.convert_hf_model_config(str(tiny_model_dirs["qwen3"]))["n_ctx"] == 2048
    with pytest.raises(AttributeError, match="n_ctx"):
        host.convert_hf_model_config(str(tiny_model_dirs["gpt2"]))


def test_host_is_restored(tiny_model_dirs: dict[str, Path], tmp_path: Path) -> None:
    names = ("get_official_model_name", "convert_hf_model_config", "AutoConfig")
    before = [getattr(host, name) for name in names]
    load_model(tiny_model_dirs["gemma2"])
    scaled = {"rope_type": "linear", "factor": 4.0}
    broken = save_tiny_model(tmp_path / "scaled", "llama", rope_scaling=scaled)
    with pytest.raises(ModelError):
        load_model(broken)
    assert [getattr(host, name) for name in names] == before


# Refusals


def test_a_conversion_that_disagrees_is_refused(tmp_path: Path) -> None:
    # TransformerLens ignores linear rope scaling: the numbers would look plausible and be wrong.
    scaled = {"rope_type": "linear", "factor": 4.0}
    directory = save_tiny_model(tmp_path / "scaled", "llama", rope_scaling=scaled)
    with pytest.raises(ModelError, match="does not compute what this LlamaForCausalLM"):
        load_model(directory)


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("llama", {"attention_bias": True}, "attention_bias=True"),
        ("llama", {"mlp_bias": True}, "mlp_bias=True"),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 64}, "sliding window of 64"),
    ],
)
def test_what_the_host_ignores_is_refused(
    architecture: str, changes: dict, message: str, tmp_path: Path
) -> None:
    directory = save_tiny_model(tmp_path / "model", architecture, **changes)
    with pytest.raises(ModelError, match=message):
        load_model(directory)


def test_pickled_weights_are_not_read(tiny_model_dirs: dict[str, Path], tmp_path: Path) -> None:
    directory = tmp_path / "pickled"
    directory.mkdir()
    for file in tiny_model_dirs["gpt2"].iterdir():
        if file.suffix != ".safetensors":
            (directory / file.name).write_bytes(file.read_bytes())
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dirs["gpt2"])
    torch.save(model.state_dict(), directory / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_model(directory)
    with pytest.raises(ModelError, match="pickled weights"):
        load_model("NeelNanda/GELU_1L512W_C4_Code")


def test_missing_and_foreign_directories(tmp_path: Path, tiny_model_dirs: dict[str, Path]) -> None:
    (tmp_path / "llama-tiny").mkdir()
    with pytest.raises(ModelError, match=r"no directory .*did you mean 'llama-tiny'"):
        load_model(tmp_path / "lama-tiny")
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(tmp_path / "llama-tiny")
    with pytest.raises(ModelError, match="no directory"):
        load_model("a/b/c")
    with pytest.raises(ConfigError, match=r"dtype='float8' is not one of float32"):
        load_model(tiny_model_dirs["gpt2"], dtype="float8")


@pytest.mark.parametrize(("name", "near"), [("gtp2", "'gpt2'"), ("smollm2-135m", DEFAULT_MODEL)])
def test_unknown_names_get_near_ones(name: str, near: str) -> None:
    with pytest.raises(ModelError, match=f"did you mean .*{near}"):
        load_model(name)


def test_remote_code_is_not_run(tiny_model_dirs: dict[str, Path], tmp_path: Path) -> None:
    directory = tmp_path / "remote"
    directory.mkdir()
    for file in tiny_model_dirs["gpt2"].iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    config = json.loads((directory / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (directory / "config.json").write_text(json.dumps(config))
    marker = tmp_path / "ran"
    (directory / "own.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(directory)
    assert not marker.exists()


# The Hub


class _Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the Hub does for files one may not have: status and X-Error-Code."""

    answers: ClassVar = {
        "refused": (500, ""),
        "gated": (403, "GatedRepo"),
        "absent": (404, "RepoNotFound"),
        "old": (404, "RevisionNotFound"),
        "bare": (404, "EntryNotFound"),
    }

    def do_HEAD(self) -> None:
        status, code = self.answers[self.path.split("/resolve/")[0].rsplit("/", 1)[-1]]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    template = (
        f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    for module in (huggingface_hub.constants, huggingface_hub.file_download):  # 0.x: a copy
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    close_session()
    yield "hub"
    server.shutdown()
    server.server_close()
    close_session()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("owner/gated", "ask for access at https://huggingface.co/owner/gated"),
        ("owner/absent", "'owner/absent' does not exist on the Hugging Face Hub"),
        ("owner/old", "owner/old on the Hugging Face Hub has no revision 'v9'"),
        ("owner/refused", "the Hugging Face Hub answered 500 for 'owner/refused'"),
        ("not a name", "neither an existing path nor a name"),
    ],
)
def test_hub_answers_become_clear_errors(
    hub: str, name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(ModelError, match=message) as caught:
        load_model(name, revision="v9")
    assert "hf_secret" not in str(caught.value)


def test_hub_repository_without_the_file_is_reachable(hub: str) -> None:
    found = check_hub("owner/bare", "dataset", "README.md", None, lambda: False, ModelError)
    assert found is True


_NO_NETWORK = """
import sys, time
from sae_lens_bipolar.errors import DataError, ModelError
from sae_lens_bipolar.inputs.documents import load_documents
from sae_lens_bipolar.inputs.models import load_model
start = time.monotonic()
for load, error in ((load_model, ModelError), (load_documents, DataError)):
    try:
        load("someone/something")
    except error as caught:
        assert "no network" in str(caught) and "cached" in str(caught), caught
    else:
        sys.exit("loaded without a network")
print("seconds", time.monotonic() - start)
model = load_model("gpt2-small")
print("seconds to load", time.monotonic() - start)
print("cached", model.cfg.model_name, model.cfg.tokenizer_name, model.cfg.n_layers)
"""


def test_without_network(tiny_model_dirs: dict[str, Path], tmp_path: Path) -> None:
    """A closed port stands for the Hub: an error within seconds, and cached models still load."""
    snapshot = tmp_path / "hub" / "models--gpt2" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for file in tiny_model_dirs["gpt2"].iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    config = json.loads((snapshot / "config.json").read_text())
    (snapshot / "config.json").write_text(json.dumps(config | {"n_ctx": 128}))
    (tmp_path / "hub" / "models--gpt2" / "refs").mkdir()
    (tmp_path / "hub" / "models--gpt2" / "refs" / "main").write_text("0" * 40)
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    environment = {key: value for key, value in os.environ.items() if key not in offline}
    environment |= {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", _NO_NETWORK], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.split("seconds ")[1].split()[0]) < 5
    assert "cached gpt2 gpt2 2" in done.stdout


# Hooks


def test_check_hook_gives_d_in(tiny_model_dirs: dict[str, Path]) -> None:
    model = load_model(tiny_model_dirs["qwen3"])  # n_heads * d_head = 64, twice d_model
    assert check_hook(model, "blocks.1.hook_resid_post") == 32
    assert check_hook(model, "blocks.0.hook_mlp_out") == 32
    assert check_hook(model, "blocks.0.hook_attn_out") == 32
    assert check_hook(model, "blocks.0.attn.hook_z") == 64
    assert check_hook(model, "blocks.0.mlp.hook_post") == 64
    assert check_hook(model, "hook_embed") == 32


@pytest.mark.parametrize(
    ("hook_name", "message"),
    [
        ("blocks.7.hook_resid_post", "no such hook; did you mean 'blocks.1.hook_resid_post'"),
        ("blocks.0.hook_resid_pots", "did you mean 'blocks.0.hook_resid_post'"),
        ("blocks.0.attn.hook_pattern", "not one vector per token"),
        ("blocks.0.attn.hook_result", "switched off"),
    ],
)
def test_check_hook_refuses(tiny_model: HookedTransformer, hook_name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_hook(tiny_model, hook_name)


# The bundled model


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    try:
        return bundled_model_dir(DEFAULT_MODEL)
    except ModelError as error:
        if "could not be fetched" not in str(error):
            raise
        pytest.skip(str(error))


def test_bundled_smollm2(smollm2_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Once cached, neither pip nor the Hub is asked.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    model = load_model()
    assert model.cfg.model_name == DEFAULT_MODEL
    assert (model.cfg.n_layers, model.cfg.d_model, model.cfg.n_ctx) == (30, 576, 8192)
    assert check_hook(model, "blocks.12.hook_resid_post") == 576
    text = "The capital of France is"
    tokens = model.to_tokens(text)
    hf_model = AutoModelForCausalLM.from_pretrained(smollm2_dir)
    with torch.no_grad():
        found, expected = model(tokens), hf_model(tokens).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert model.to_string(found[0, -1].argmax()) == " Paris"


def test_bundled_model_without_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAE_LENS_BIPOLAR_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match=r"pip install 'sae-lens-bipolar\[demo\]'"):
        load_model()
