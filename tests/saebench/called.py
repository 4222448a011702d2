"""A job that a suite can be run with, where SAEBench is stood in for by a function of the test."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sae_lens_bipolar.saebench import BenchConfig
from sae_lens_bipolar.saebench.suites import absorption, unlearning
from sae_lens_bipolar.saebench.suites.registry import SUITES

SIZES = SimpleNamespace(sae_batch_size=3, llm_batch_size=5, llm_batch_size_at=lambda n: n // 100)


class Called:
    """A job that notes what SAEBench is called with; `inside` runs where SAEBench would."""

    def __init__(self, folder: Path, inside: Callable[[], Any] = lambda: None, **options: Any):
        self.config = BenchConfig(**{"llm_dtype": "bfloat16", "seed": 7, **options})
        self.folder, self.cache, self.results = folder, folder / "cache", folder / "results"
        self.results.mkdir(parents=True)
        (self.results / "found.json").write_text("{}")
        self.name, self.layer, self.poles, self.sizes = "mine", 4, False, SIZES
        self.sae: Any = SimpleNamespace(cfg=SimpleNamespace(d_sae=40))
        tokenizer = SimpleNamespace(bos_token="", encode=lambda *_, **__: [0])
        self.model = SimpleNamespace(
            alias="tiny",
            hooked=SimpleNamespace(
                cfg=SimpleNamespace(model_name="x"),
                run_with_cache=lambda *args, **kwargs: (args, kwargs),
            ),
            tokenizer=tokenizer,
            transformers=object(),
            plain_tokenizer=lambda: tokenizer,
        )
        self.inside, self.found = inside, None

    def evaluate(self, run_eval: Any, host: Any, **options: Any) -> None:
        self.host, self.options = host, options
        self.found = self.inside()


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what needs a model or data before SAEBench is called."""
    monkeypatch.setattr(absorption, "one_token_words", lambda *_: (["b", "a"], -9))
    monkeypatch.setattr(unlearning, "_place_corpus", lambda _: None)
    monkeypatch.setattr(unlearning, "_known_datasets", lambda job, own: ["wmdp-bio", str(own)])


def called(suite: str, folder: Path, *args: Any, **options: Any) -> Called:
    """The job that the suite was run with."""
    job = Called(folder, *args, **options)
    if suite == "unlearning":
        (folder / "artifacts/unlearning/tiny/data").mkdir(parents=True)
    SUITES[suite].run(job)  # type: ignore[arg-type]
    return job
