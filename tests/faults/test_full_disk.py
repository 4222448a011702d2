"""A disk that takes no more: the operating system refuses the bytes, in a child with a file limit.

The limit on the size of a file (`RLIMIT_FSIZE`) makes the same writes fail that a full disk does,
in whichever library does them, and needs no disk of its own.
"""

import os
import resource
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformer_lens import HookedTransformer

from sae_lens_bipolar.errors import DiskFullError
from sae_lens_bipolar.files.atomic import explaining_full_disk
from sae_lens_bipolar.hub.publishing import PublishConfig, publish
from sae_lens_bipolar.inputs.corpora import load_documents, split_tokens
from sae_lens_bipolar.inputs.models import tokenizer_of
from sae_lens_bipolar.runs.runner import RunDirectoryRunner
from tests.hub.published_run import write_run
from tests.runs.test_runner import CONTEXT, make_config


def with_room_for(n_bytes: int, work: Callable[[], object], log: Path) -> str:
    """What `work` ended with in a child whose files cannot grow beyond `n_bytes`."""
    child = os.fork()
    if child == 0:
        said = "done"
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, resource.RLIM_INFINITY))
            work()
        except DiskFullError as error:
            said = f"DiskFullError: {error}"
        except BaseException:
            said = traceback.format_exc()
        finally:
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )
            log.write_text(said)
            os._exit(0)
    os.waitpid(child, 0)
    return log.read_text()


@pytest.mark.parametrize("kilobytes", [2, 14])
def test_training_stops_with_a_clear_error_and_resumes_to_the_same_weights(
    tmp_path: Path, tiny_model: HookedTransformer, tiny_text: Path, kilobytes: int
) -> None:
    documents = load_documents(tiny_text)
    tokens = split_tokens(documents, tokenizer_of(tiny_model), context_size=CONTEXT, seed=7)

    def train(run_dir: Path) -> None:
        run_dir.mkdir(exist_ok=True)
        cfg = make_config(tiny_model.cfg.d_model, training_tokens=192, n_checkpoints=1)
        RunDirectoryRunner(cfg, run_dir, tiny_model, tokens.train, log_every=1).run()

    run_dir = tmp_path / "run"
    said = with_room_for(1024 * kilobytes, lambda: train(run_dir), tmp_path / "log")
    assert said.startswith("DiskFullError: no space left while writing below"), said
    assert not (run_dir / "checkpoints").exists()
    train(run_dir)
    train(tmp_path / "whole")
    for file in (tmp_path / "whole/checkpoints").glob("*/*.safetensors"):
        found = load_file(run_dir / file.relative_to(tmp_path / "whole"))
        for name, tensor in load_file(file).items():
            assert torch.equal(found[name], tensor), (file, name)


def test_publish_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", ("abstopk",))
    before = {path: path.stat().st_size for path in run_dir.rglob("*") if path.is_file()}

    def work() -> None:
        publish(run_dir, PublishConfig("ada/x", license="mit"), dry_run=True)

    said = with_room_for(2048, work, tmp_path / "log")
    assert said.startswith("DiskFullError"), said
    after = {path: path.stat().st_size for path in run_dir.rglob("*") if path.is_file()}
    assert {path: size for path, size in after.items() if path.name != ".lock"} == before
    work()
    assert (run_dir / "publish/README.md").is_file()


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(KeyError), explaining_full_disk(tmp_path):
        raise KeyError("x")
