"""What importing the package does to SAELens's registry, and that it can be undone."""

import logging
import subprocess
import sys

import pytest
from sae_lens import AbsTopKTrainingSAE as StockAbsTopKTrainingSAE
from sae_lens import AbsTopKTrainingSAEConfig, TopKSAE, TopKSAEConfig
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

import sae_lens_bipolar
from sae_lens_bipolar.architectures.registry import ARCHITECTURES, PREFIX, published_name
from sae_lens_bipolar.sparse import fused_adam


@pytest.fixture
def unregistered():
    sae_lens_bipolar.unregister()
    yield
    sae_lens_bipolar.unregister()
    sae_lens_bipolar.register()


def tables() -> tuple[dict, dict]:
    return dict(SAE_TRAINING_CLASS_REGISTRY), dict(SAE_CLASS_REGISTRY)


def test_every_architecture_is_registered_and_importing_twice_changes_nothing() -> None:
    for name, architecture in ARCHITECTURES.items():
        if architecture.training:
            assert SAE_TRAINING_CLASS_REGISTRY[name] == architecture.training
        if architecture.inference:
            assert SAE_CLASS_REGISTRY[name] == architecture.inference
            assert SAE_CLASS_REGISTRY[PREFIX + name] == architecture.inference
    before = tables()
    sae_lens_bipolar.register()
    assert tables() == before


def test_unregister_puts_saelens_back(unregistered: None) -> None:
    assert SAE_TRAINING_CLASS_REGISTRY["abstopk"][0] is StockAbsTopKTrainingSAE
    assert not {"sign_aware_gated", "gated_l0"} & SAE_TRAINING_CLASS_REGISTRY.keys()
    assert "sign_aware_gated" not in SAE_CLASS_REGISTRY
    stock = tables()
    sae_lens_bipolar.register()
    assert SAE_TRAINING_CLASS_REGISTRY["abstopk"][0] is not StockAbsTopKTrainingSAE
    sae_lens_bipolar.unregister()
    assert tables() == stock


def test_a_clash_warns_and_leaves_the_other_entry(
    unregistered: None, caplog: pytest.LogCaptureFixture
) -> None:
    other = type("SomebodysTopKSAE", (TopKSAE,), {"__module__": "somebody.else"})
    SAE_CLASS_REGISTRY["sign_aware_gated"] = (other, TopKSAEConfig)
    SAE_TRAINING_CLASS_REGISTRY["abstopk"] = (other, TopKSAEConfig)  # type: ignore[assignment]
    try:
        with caplog.at_level(logging.WARNING):
            sae_lens_bipolar.register()
        assert SAE_CLASS_REGISTRY["sign_aware_gated"][0] is other
        assert SAE_TRAINING_CLASS_REGISTRY["abstopk"][0] is other
        assert "somebody.else.SomebodysTopKSAE" in caplog.text
        sae_lens_bipolar.unregister()
        assert SAE_CLASS_REGISTRY["sign_aware_gated"][0] is other
    finally:
        SAE_CLASS_REGISTRY.pop("sign_aware_gated", None)
        SAE_TRAINING_CLASS_REGISTRY["abstopk"] = (
            StockAbsTopKTrainingSAE,
            AbsTopKTrainingSAEConfig,
        )


def test_the_hosts_own_class_gives_way_only_where_the_record_says_so(
    unregistered: None, caplog: pytest.LogCaptureFixture
) -> None:
    stock = SAE_TRAINING_CLASS_REGISTRY["topk"]
    for name in ("bi_topk", "abstopk"):
        SAE_TRAINING_CLASS_REGISTRY[name] = stock
    abstopk = StockAbsTopKTrainingSAE, AbsTopKTrainingSAEConfig
    try:
        sae_lens_bipolar.register()
        assert SAE_TRAINING_CLASS_REGISTRY["bi_topk"] == stock
        assert SAE_TRAINING_CLASS_REGISTRY["abstopk"] == ARCHITECTURES["abstopk"].training
        assert "already holds 'bi_topk'" in caplog.text
        assert "abstopk" not in caplog.text
    finally:
        sae_lens_bipolar.unregister()
        del SAE_TRAINING_CLASS_REGISTRY["bi_topk"]
        SAE_TRAINING_CLASS_REGISTRY["abstopk"] = abstopk


def test_nothing_is_warned_of_where_nothing_clashes(
    unregistered: None, caplog: pytest.LogCaptureFixture
) -> None:
    sae_lens_bipolar.register()
    assert not caplog.records
    assert all(SAE_TRAINING_CLASS_REGISTRY.values())
    assert all(SAE_CLASS_REGISTRY.values())


def test_adam_is_fused_while_the_architectures_are_registered(unregistered: None) -> None:
    assert fused_adam._handle is None
    sae_lens_bipolar.register()
    assert fused_adam._handle is not None


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("sign_aware_gated", PREFIX + "sign_aware_gated"),
        *((name, name) for name in ("topk", "abstopk", "sparse_topk", "gated_l0", "unheard_of")),
    ],
)
def test_published_weights_name_what_stock_saelens_does_not_have(name: str, published: str) -> None:
    assert published_name(name) == published


def test_import_registers_in_a_fresh_process_without_printing() -> None:
    code = (
        "import sae_lens_bipolar, sae_lens_bipolar as again\n"
        "from sae_lens.registry import get_sae_training_class\n"
        "found = get_sae_training_class('sign_aware_gated')[0]\n"
        "assert found.__module__.startswith('sae_lens_bipolar')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
