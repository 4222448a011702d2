"""A record is complete or refused by name, and records of users come and go at run time."""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

import sae_lens_bipolar
from sae_lens_bipolar.architectures import bi_topk, citations, sign_aware_gated
from sae_lens_bipolar.architectures.bi_topk import BiTopKSAE, BiTopKSAEConfig
from sae_lens_bipolar.architectures.record import Architecture
from sae_lens_bipolar.architectures.registry import ARCHITECTURES, PREFIX, find, record_of
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.polarity import is_signed, split

ALL = pytest.mark.parametrize("record", ARCHITECTURES.values(), ids=lambda record: record.name)


@ALL
def test_the_formula_leads_from_the_activation_to_the_reconstruction(record: Architecture) -> None:
    assert " x" in record.formula or "(x" in record.formula
    assert record.source.startswith(("arXiv", "after arXiv", "our reading of arXiv", "SAELens"))


@ALL
def test_papers_are_those_of_the_citations(record: Architecture) -> None:
    known = [value for value in vars(citations).values() if isinstance(value, str)]
    assert all(entry in known for entry in record.cites)
    for entry in known:  # a paper that the reader is sent to is cited, where its entry is known
        number = re.search(r"arXiv:([\d.]+)", entry)
        if number and number[1] in record.source:
            assert entry in record.cites


@ALL
@pytest.mark.parametrize(
    "fact",
    [
        *({"title": ""}, {"formula": ""}, {"formula": "x̂    = relu(x)"}, {"source": " "}),
        *({"cites": ("abstopk",)}, {"signed": None}, {"signed": "no"}, {"name": ""}),
        *({"title": 3}, {"source": None}),
    ],
    ids=str,
)
def test_a_fact_that_is_missing_or_misspelt_is_refused_by_name(
    record: Architecture, fact: dict[str, Any]
) -> None:
    (field,) = fact
    with pytest.raises(ConfigError) as refused:
        replace(record, **fact)
    assert f"architecture {fact.get('name', record.name)!r} has {field}=" in str(refused.value)


@pytest.mark.parametrize(
    "fact",
    [
        {"name": "bi_topk2"},  # its configuration says bi_topk
        {"training": sign_aware_gated.RECORD.training},
        {"inference": sign_aware_gated.RECORD.inference},
        {"at_l0": None},
        {"training": None, "takes_over": True},
    ],
    ids=lambda fact: next(iter(fact)),
)
def test_facts_that_contradict_each_other_are_refused(fact: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="the record of architecture 'bi_topk"):
        replace(bi_topk.RECORD, **fact)


def test_facts_that_are_there_in_part_are_allowed() -> None:
    """No training class, or none for inference, or neither; whatever else depends on them."""
    for fact in ({"training": None}, {"training": None, "at_l0": None}, {"inference": None}):
        replace(bi_topk.RECORD, **fact)
    with pytest.raises(ConfigError, match="has takes_over=True"):
        replace(bi_topk.RECORD, training=None, takes_over=True)


SIGNED = {
    *("abstopk", "batch_abstopk", "matryoshka_batch_abstopk", "bi_jumprelu", "bi_topk"),
    *("sign_aware_gated", "unrolled_abstopk"),
}


def test_which_architectures_are_signed_and_which_take_over() -> None:
    assert {name for name, record in ARCHITECTURES.items() if record.signed} == SIGNED
    taken = {name for name, record in ARCHITECTURES.items() if record.takes_over}
    assert taken == {"abstopk"}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        *((name, {"k": 6}) for name in ("abstopk", "batch_abstopk", "bi_topk", "sparse_topk")),
        *((name, {"k": 6}) for name in ("unrolled_abstopk", "matryoshka_batch_abstopk")),
        # A target sets the first thresholds too.
        *((name, {"l0_target": 6}) for name in ("bi_jumprelu", "sign_aware_gated", "gated_l0")),
    ],
)
def test_the_fields_that_train_at_an_l0(name: str, fields: dict[str, Any]) -> None:
    at_l0 = find(name).at_l0
    assert at_l0 is not None
    assert at_l0(64, 6) == fields


def test_every_registered_name_has_a_record() -> None:
    for name in SAE_CLASS_REGISTRY:
        assert find(name).name == name.removeprefix(PREFIX)
    for name, (sae_class, _) in SAE_TRAINING_CLASS_REGISTRY.items():
        if sae_class.__module__.startswith("sae_lens_bipolar."):
            assert find(name).training == SAE_TRAINING_CLASS_REGISTRY[name]


def test_options_change_formula_and_sign() -> None:
    config = {"architecture": PREFIX + "sign_aware_gated", "two_sided_gate": False}
    record = record_of(config)
    assert not record.signed
    assert "z    = g+ m+\n" in record.formula
    assert find("sign_aware_gated").signed
    plain = record_of({"architecture": "abstopk", "apply_b_dec_to_input": False})
    assert plain.formula.startswith("u    = x W_enc + b_enc")
    scaled = record_of({"architecture": "abstopk", "rescale_acts_by_decoder_norm": True})
    assert "|W_dec_i|" in scaled.formula


# --- records of users


@dataclass
class OwnSAEConfig(BiTopKSAEConfig):
    @classmethod
    def architecture(cls) -> str:
        return "own"


class OwnSAE(BiTopKSAE):
    cfg: OwnSAEConfig  # type: ignore[assignment]


OWN = replace(bi_topk.RECORD, name="own", training=None, inference=(OwnSAE, OwnSAEConfig))


@pytest.fixture
def registered() -> Iterator[None]:
    sae_lens_bipolar.register(OWN)
    yield
    sae_lens_bipolar.unregister(OWN)


def test_a_record_of_a_user_is_known_everywhere(registered: None) -> None:
    sae = OwnSAE(OwnSAEConfig(d_in=4, d_sae=8, k=2))
    assert SAE_CLASS_REGISTRY["own"] == SAE_CLASS_REGISTRY[PREFIX + "own"] == OWN.inference
    assert is_signed(sae)
    twin = split(sae)
    assert twin.cfg.metadata.polarity_split_of == "own"
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(twin(x), sae(x))


def test_it_leaves_nothing_behind(registered: None) -> None:
    before = {name: entry for name, entry in SAE_CLASS_REGISTRY.items() if "own" not in name}
    sae_lens_bipolar.unregister(OWN)
    assert before == SAE_CLASS_REGISTRY
    assert "own" not in ARCHITECTURES
    assert "bi_topk" in ARCHITECTURES
    with pytest.raises(ConfigError, match="'own' has no record"):
        is_signed(OwnSAE(OwnSAEConfig(d_in=4, d_sae=8, k=2)))


def test_undoing_everything_forgets_it_and_keeps_ours(registered: None) -> None:
    sae_lens_bipolar.unregister()
    assert "own" not in ARCHITECTURES
    assert PREFIX + "bi_topk" not in SAE_CLASS_REGISTRY
    sae_lens_bipolar.register()
    assert PREFIX + "bi_topk" in SAE_CLASS_REGISTRY
    assert "own" not in SAE_CLASS_REGISTRY


def test_a_taken_name_keeps_its_record(registered: None, caplog: pytest.LogCaptureFixture) -> None:
    sae_lens_bipolar.register(OWN)  # the same record again
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        sae_lens_bipolar.register(replace(OWN, title="Another"))
    assert "'own' is the name of another architecture already" in caplog.text
    assert ARCHITECTURES["own"] is OWN
