"""What importing the package does to SAELens's registry, and that it can be undone."""

import logging
import subprocess
import sys

import pytest
from sae_lens import AbsTopKTrainingSAE as StockAbsTopKTrainingSAE
from sae_lens import TopKSAE, TopKSAEConfig
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

import sae_lens_bipolar
from sae_lens_bipolar.architectures.registry import ARCHITECTURES, PREFIX


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
        from sae_lens import AbsTopKTrainingSAEConfig

        SAE_TRAINING_CLASS_REGISTRY["abstopk"] = (
            StockAbsTopKTrainingSAE,
            AbsTopKTrainingSAEConfig,
        )


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
