"""Batch sizes: the largest power of two that fits a quarter of the free memory."""

from pathlib import Path

import pytest

from sae_lens_bipolar.saebench import BenchConfig, sizes

D_SAE, D_VOCAB, LENGTH = 1000, 500, 64
PER_LLM = 4 * 4 * D_SAE * LENGTH  # bytes per sequence: float32, four buffers as wide as the SAE
PER_SAE = {"float32": 4 * 4 * D_SAE * LENGTH, "bfloat16": 2 * 4 * D_SAE * LENGTH}


def chosen(monkeypatch: pytest.MonkeyPatch, free: float, **options: object) -> sizes.Sizes:
    monkeypatch.setattr(sizes, "free_memory", lambda device: 4 * free)  # a quarter is used
    config = BenchConfig(context_length=LENGTH, **options)  # type: ignore[arg-type]
    return sizes.choose_sizes(config, D_SAE, D_VOCAB)


@pytest.mark.parametrize(
    ("fitting", "expected"), [(0.5, 1), (1, 1), (3.9, 2), (4, 4), (31.9, 16), (32, 32), (1e6, 32)]
)
def test_forward_passes(monkeypatch: pytest.MonkeyPatch, fitting: float, expected: int) -> None:
    assert chosen(monkeypatch, fitting * PER_LLM).llm_batch_size == expected


@pytest.mark.parametrize("dtype", PER_SAE)
@pytest.mark.parametrize(("fitting", "expected"), [(1, 1), (64, 64), (124, 64), (125, 125)])
def test_encodings(
    monkeypatch: pytest.MonkeyPatch, dtype: str, fitting: float, expected: int
) -> None:
    found = chosen(monkeypatch, fitting * PER_SAE[dtype], llm_dtype=dtype)
    assert found.sae_batch_size == expected


def test_longer_sequences_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    found = chosen(monkeypatch, 16 * PER_LLM)
    assert [found.llm_batch_size_at(n * LENGTH) for n in (1, 2, 4, 100)] == [16, 8, 4, 1]


def test_a_wide_vocabulary_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "free_memory", lambda device: 4 * 16 * PER_LLM)
    config = BenchConfig(context_length=LENGTH)
    assert sizes.choose_sizes(config, D_SAE, 4 * D_SAE).llm_batch_size == 4


def test_what_is_given_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    found = chosen(monkeypatch, 1, llm_batch_size=3, sae_batch_size=7)
    assert (found.llm_batch_size, found.sae_batch_size, found.llm_batch_size_at(9)) == (3, 7, 3)


def test_free_memory_is_what_the_system_and_the_group_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sizes, "_available", lambda: 5 << 30)
    monkeypatch.setattr(sizes, "_left_in_group", lambda: 3 << 30)
    assert sizes.free_memory("cpu") == 3 << 30
    monkeypatch.setattr(sizes, "_left_in_group", lambda: 1 << 62)
    assert sizes.free_memory("cpu") == 5 << 30


def test_a_group_without_a_limit_leaves_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"memory.max": "max\n", "memory.current": "1\n", "memory.stat": "file 2\n"}
    monkeypatch.setattr(Path, "read_text", lambda self, **_: files[self.name])
    assert sizes._left_in_group() == 1 << 62
    files |= {"memory.max": f"{8 << 30}", "memory.current": f"{5 << 30}"}
    files |= {"memory.stat": f"anon 7\nfile {1 << 30}\n"}
    assert sizes._left_in_group() == 4 << 30, "what can be reclaimed is free"
    files |= {"memory.current": f"{9 << 30}", "memory.stat": "anon 7\n"}
    assert sizes._left_in_group() == 1 << 28, "a group that is over its limit still gets something"


def test_what_the_system_tells_or_else_a_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["MemTotal: 9 kB\nMemAvailable:   1024 kB\n", "MemTotal: 9 kB\n", ""]
    monkeypatch.setattr(Path, "read_text", lambda self, **_: texts[0])
    numbers = {"SC_AVPHYS_PAGES": 3, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(sizes.os, "sysconf", lambda name: numbers[name])
    assert sizes._available() == 1024 * 1024
    del texts[0]
    assert sizes._available() == 3 * 4096

    def refuse(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr(sizes.os, "sysconf", refuse)
    assert sizes._available() == 2 * 1024**3


def test_on_a_gpu_it_is_the_gpus_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes.torch.cuda, "mem_get_info", lambda device: (7, 9))
    assert sizes.free_memory("cuda:1") == 7
