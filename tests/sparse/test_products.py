"""oneDNN's products are used where a check allows it, and the switch is put back."""

import json
from pathlib import Path

import pytest
import torch

from sae_lens_bipolar.sparse import products
from sae_lens_bipolar.sparse.products import Products, choice, fast_products
from sae_lens_bipolar.sparse.projection import Projection, tiles_of

FAST = Products(speedup=2.0, error=4e-7, own_error=3e-7)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SAE_LENS_BIPOLAR_CACHE", str(tmp_path / "cache"))
    choice.cache_clear()
    yield
    choice.cache_clear()


def precision() -> str:
    return torch.get_float32_matmul_precision()


@pytest.mark.parametrize(
    ("found", "used"),
    [
        (FAST, True),
        (Products(1.05, 4e-7, 3e-7), False),  # hardly faster
        (Products(2.0, 2e-3, 3e-7), False),  # bfloat16
        (Products(1.0, 3e-7, 3e-7), False),  # the same product
    ],
)
def test_it_is_used_where_it_is_faster_and_as_exact(monkeypatch, found, used) -> None:
    monkeypatch.setattr(products, "measure", lambda: found)
    with fast_products():
        assert precision() == ("medium" if used else "highest")
        with fast_products():
            assert precision() == ("medium" if used else "highest")
        assert precision() == ("medium" if used else "highest")
    assert precision() == "highest"


def test_the_switch_is_put_back_after_an_error(monkeypatch) -> None:
    monkeypatch.setattr(products, "measure", lambda: FAST)
    with pytest.raises(ZeroDivisionError), fast_products():
        _ = 1 / 0
    assert precision() == "highest"


def test_a_precision_that_was_chosen_stays(monkeypatch) -> None:
    monkeypatch.setattr(products, "measure", lambda: FAST)
    torch.set_float32_matmul_precision("high")
    try:
        with fast_products():
            assert precision() == "high"
        assert precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_other_devices_are_left_alone(monkeypatch) -> None:
    monkeypatch.setattr(products, "measure", lambda: pytest.fail("measured"))
    with fast_products(torch.device("meta")):
        assert precision() == "highest"


def test_the_encoders_product_runs_inside_and_nothing_else(monkeypatch) -> None:
    monkeypatch.setattr(products, "measure", lambda: FAST)
    seen = []
    mm = torch.mm

    def watched(*args, **kwargs):
        seen.append(precision())
        return mm(*args, **kwargs)

    monkeypatch.setattr(torch, "mm", watched)
    for tiles in tiles_of(Projection(torch.randn(3, 4), torch.randn(4, 6))):
        for _ in tiles:
            assert precision() == "highest"
    assert seen == ["medium"]


def test_a_choice_is_measured_once_per_machine(monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(products, "measure", lambda: calls.append(1) or FAST)
    assert choice() == choice() == FAST
    choice.cache_clear()
    assert choice() == FAST
    assert len(calls) == 1, "the second process reads it"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 97)
    choice.cache_clear()
    choice()
    assert len(calls) == 2, "another number of threads is another choice"


@pytest.mark.parametrize("damage", ['{"torch": 1}', "no json", '{"processor": "another"}', "[]"])
def test_a_damaged_or_foreign_file_is_measured_again(monkeypatch, tmp_path, damage) -> None:
    monkeypatch.setattr(products, "measure", lambda: FAST)
    choice()
    (file,) = (tmp_path / "cache/products").iterdir()
    file.write_text(damage)
    choice.cache_clear()
    assert choice() == FAST
    assert json.loads(file.read_text())["speedup"] == 2.0


def test_a_wrong_number_in_the_file_is_measured_again(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(products, "measure", lambda: FAST)
    choice()
    (file,) = (tmp_path / "cache/products").iterdir()
    file.write_text(json.dumps({**json.loads(file.read_text()), "speedup": "fast"}))
    choice.cache_clear()
    assert choice() == FAST


def test_measuring_tells_exact_products_from_rounded_ones(monkeypatch) -> None:
    monkeypatch.setattr(products, "_SHAPES", ((32, 48, 64),))
    found = products.measure()
    assert 0 < found.own_error < 1e-5
    assert found.speedup > 0
    assert precision() == "highest"
    exact = products._timed_product

    def rounded(a, b, precision):
        found, taken = exact(a, b, "highest")
        return (found.bfloat16().float(), taken / 3) if precision == "medium" else (found, taken)

    monkeypatch.setattr(products, "_timed_product", rounded)
    found = products.measure()
    assert found.error > 100 * found.own_error
    assert found.speedup > 1
    assert not found.used
