"""What decides a suite's numbers, what its cache depends on, and which values are allowed."""

from pathlib import Path
from typing import Any

import pytest

from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.saebench import BenchConfig
from sae_lens_bipolar.saebench.suites.record import (
    Headline,
    content_of,
    data_sets,
    flat,
    require_allowed,
)
from sae_lens_bipolar.saebench.suites.registry import SUITES


def test_what_decides_the_numbers_of_a_suite() -> None:
    found = SUITES["core"].decisive(BenchConfig(seed=3))
    assert found == {
        "device": "cpu",
        "llm_dtype": "float32",
        "seed": 3,
        "context_length": 128,
        "trust_remote_code": False,
        "core_dataset": "Skylion007/openwebtext",
        "core_batch_size": 16,
        "core_reconstruction_batches": 10,
        "core_sparsity_batches": 10,
    }


def test_what_a_cache_depends_on() -> None:
    config, hook = BenchConfig(seed=3), "blocks.1.hook_resid_post"
    assert SUITES["core"].cache_key(config, hook) is None
    assert SUITES["absorption"].cache_key(config, hook) == {
        "suite": "absorption",
        "hook": hook,
        "seed": 3,
        "absorption_words": None,
    }
    found = SUITES["unlearning"].cache_key(config, hook)
    assert found is not None
    assert found["hook"] is None
    assert set(found) == {"suite", "hook", "seed", "unlearning_known", "unlearning_datasets"}


def test_files_count_by_their_content(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("a.txt", "b.txt", "c.txt"))
    one.write_text("same")
    two.write_text("same")
    three.write_text("other")
    assert content_of(str(one)) == content_of(str(two)) != content_of(str(three))
    assert content_of(None) is None
    assert content_of("sotu") == "sotu"
    before = content_of(str(tmp_path))
    assert before not in (content_of(str(one)), str(tmp_path))
    (tmp_path / "folder").mkdir()
    assert content_of(str(tmp_path)) == before, "an empty folder holds nothing"
    (tmp_path / "folder" / "d.txt").write_text("more")
    assert content_of(str(tmp_path)) != before
    config = BenchConfig(core_dataset=str(one))
    assert SUITES["core"].decisive(config)["core_dataset"] == content_of(str(two))
    config = BenchConfig(ravel_data=str(tmp_path))
    key = SUITES["ravel"].cache_key(config, "x")
    assert key is not None
    assert key["ravel_data"] == content_of(str(tmp_path))


@pytest.mark.parametrize(("value", "allowed"), [(2, (1, 2)), ((1, 2), (1, 2)), (4, range(4, 9))])
def test_values_that_are_allowed(value: Any, allowed: Any) -> None:
    require_allowed("n", value, allowed)


@pytest.mark.parametrize(
    ("value", "allowed", "said"),
    [
        (3, (1, 2), "n: 3 is not one of 1, 2$"),
        ((1, 3), (1, 2), "n: 3 is not one of 1, 2$"),
        (3, range(4, 9), "n=3 must lie between 4 and 8$"),
        (9, range(4, 9), "n=9 must lie between 4 and 8$"),
        ("spilt", ("signed", "split"), "did you mean 'split'"),
    ],
)
def test_values_that_are_not(value: Any, allowed: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        require_allowed("n", value, allowed)


def test_a_headline_is_shown_so_that_higher_is_better() -> None:
    shared: dict[str, Any] = {"metric": "m", "budget": None, "protocol": "split"}
    shared |= {"column": "c", "measure": "m"}
    assert Headline(**shared, higher_is_better=True).shown(0.25) == 0.25
    assert Headline(**shared, higher_is_better=False).shown(0.25) == 0.75


def test_metrics_and_data_sets_by_name() -> None:
    result = {"eval_result_metrics": {"a": {"x": 1, "y": None}, "b": {"z": 0.5}}}
    assert flat(result) == [("x", None, 1), ("y", None, None), ("z", None, 0.5)]
    names = ["LabHC/bias_in_bios_class_set2", "canrager/amazon_reviews_mcauley_1and5_sentiment"]
    found = data_sets([*names, "fancyzhx/ag_news"], "leave it out")
    assert [need.name for need in found] == [
        *("LabHC/bias_in_bios", "canrager/amazon_reviews_mcauley_1and5", "fancyzhx/ag_news")
    ]
    assert {(need.kind, need.otherwise) for need in found} == {("data set", "leave it out")}
