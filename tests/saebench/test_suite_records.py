"""A suite's record: deleted, misspelt or changed, each of its facts fails a check that names it.

Three checks answer for a record: `checks.check` (it agrees with itself, its file and its options),
SAEBench's own schema (its numbers are there under these names), and `FACTS` below, for what
only the papers and SAEBench's code can tell, such as which protocol is right for signed latents.
"""

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from typing import Any, get_type_hints

import pytest

from sae_lens_bipolar.saebench import BenchConfig, suites
from sae_lens_bipolar.saebench.options import CommonOptions
from sae_lens_bipolar.saebench.suites import core, ravel, scr, tpp
from sae_lens_bipolar.saebench.suites.checks import check
from sae_lens_bipolar.saebench.suites.record import Cache, Suite, flat
from sae_lens_bipolar.saebench.suites.registry import SUITES

_SHARED = ("ablation", "checks", "record", "registry")  # files of suites/ that are not a suite
_BIOS, _AMAZON = "LabHC/bias_in_bios_class_set", "canrager/amazon_reviews_mcauley_1and5"


@dataclass(frozen=True)
class Facts:
    """What a record must say that follows from nothing else in it."""

    label: str
    headline: tuple[str, int | None, str, bool]  # metric, n or k, right protocol, higher is better
    column: str
    measure: str
    options: tuple[str, ...]
    allowed: dict[str, Any] = field(default_factory=dict)
    small: dict[str, Any] = field(default_factory=dict)
    paths: dict[str, str | None] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    labelled: bool = False
    cache: Cache | None = None
    needs: tuple[str, ...] = ()  # of the default options
    refuses: tuple[str, ...] = ()  # of `HOOKS`


HOOKS = ("blocks.0.hook_resid_post", "blocks.0.hook_resid_pre", "blocks.3.hook_mlp_out")
_N = (2, 5, 10, 20, 50, 100, 500)
_ABLATION = ("n", "train_size", "test_size", "epochs", "datasets", "mask_padding")
ABLATION = tuple(f"ablation_{name}" for name in _ABLATION)
_ABLATION_ALLOWED = {
    "ablation_n": _N,
    "ablation_train_size": range(4, 2**63 - 1),
    "ablation_test_size": range(4, 2**63 - 1),
    "ablation_datasets": (f"{_BIOS}1", _AMAZON),
}
_ABLATION_CACHE = ("seed", "context_length", *ABLATION[1:5])
FACTS = {
    "absorption": Facts(
        label="absorption",
        headline=("mean_absorption_fraction_score", None, "split", False),
        column="absorption (1 - mean fraction)",
        measure="absorption: 1 - mean absorbed fraction",
        options=tuple(
            f"absorption_{name}" for name in ("max_k", "min_letters", "min_f1", "epochs", "words")
        ),
        small={"absorption_words": 2000},
        cache=Cache(("seed", "absorption_words"), True),
        refuses=HOOKS[1:],
    ),
    "scr": Facts(
        label="SCR",
        headline=("scr_metric", 20, "signed", True),
        column="scr (n=20)",
        measure="SCR, n = 20",
        options=(*ABLATION, "scr_pairs"),
        allowed={**_ABLATION_ALLOWED, "scr_pairs": range(1, 5)},
        small={"ablation_train_size": 400, "ablation_test_size": 200, "scr_pairs": 1},
        labelled=True,
        cache=Cache((*_ABLATION_CACHE, "scr_pairs"), True),
        needs=("LabHC/bias_in_bios", _AMAZON),
    ),
    "tpp": Facts(
        label="TPP",
        headline=("tpp_total_metric", 20, "split", True),
        column="tpp (n=20)",
        measure="TPP, n = 20",
        options=ABLATION,
        allowed=_ABLATION_ALLOWED,
        small={"ablation_train_size": 400, "ablation_test_size": 200},
        labelled=True,
        cache=Cache(_ABLATION_CACHE, True),
        needs=("LabHC/bias_in_bios", _AMAZON),
    ),
    "ravel": Facts(
        label="RAVEL",
        headline=("disentanglement_score", None, "signed", True),
        column="ravel (disentanglement_score)",
        measure="RAVEL: disentanglement",
        options=tuple(
            f"ravel_{name}"
            for name in (
                *("data", "entities", "pairs", "downsample", "epochs", "generated_tokens"),
                "batch_size",
            )
        ),
        small={"ravel_entities": 40, "ravel_pairs": 200, "ravel_downsample": 800},
        paths={"ravel_data": None},
        cache=Cache(
            (
                *("seed", "ravel_data", "ravel_entities", "ravel_downsample"),
                "ravel_generated_tokens",
            ),
            False,
        ),
        needs=("adamkarvonen/ravel_prompts",),
        refuses=HOOKS[1:],
    ),
    "unlearning": Facts(
        label="unlearning",
        headline=("unlearning_score", None, "split", True),
        column="unlearning (unlearning_score)",
        measure="unlearning: score",
        options=(
            "forget_corpus",
            *(
                f"unlearning_{name}"
                for name in ("known", "datasets", "n", "multipliers", "retain", "sequences")
            ),
            "unlearning_length",
        ),
        allowed={"unlearning_known": ("all_orders", "given_order")},
        small={
            "unlearning_known": "given_order",
            "unlearning_sequences": 64,
            "unlearning_length": 256,
        },
        paths={"forget_corpus": "sae_bench/evals/unlearning/data/bio-forget-corpus.jsonl"},
        labelled=True,
        cache=Cache(("seed", "unlearning_known", "unlearning_datasets"), False),
        needs=("cais/wmdp", "cais/mmlu", "Salesforce/wikitext", "cais/wmdp-bio-forget-corpus"),
    ),
    "sparse_probing": Facts(
        label="sparse probing",
        headline=("sae_top_k_test_accuracy", 5, "signed", True),
        column="sparse_probing (k=5)",
        measure="sparse probing, k = 5: accuracy",
        options=tuple(f"probing_{name}" for name in ("k", "train_size", "test_size", "datasets")),
        allowed={
            "probing_k": (1, 2, 5, 10, 20, 50, 100),
            "probing_datasets": (
                *(f"{_BIOS}{i}" for i in (1, 2, 3)),
                *(_AMAZON, f"{_AMAZON}_sentiment"),
                *("codeparrot/github-code", "fancyzhx/ag_news", "Helsinki-NLP/europarl"),
            ),
        },
        small={"probing_train_size": 400, "probing_test_size": 200},
        labelled=True,
        cache=Cache(
            (
                *("seed", "context_length", "probing_train_size", "probing_test_size"),
                *("probing_datasets", "probing_k"),
            ),
            True,
        ),
        needs=(
            *("LabHC/bias_in_bios", _AMAZON, "codeparrot/github-code", "fancyzhx/ag_news"),
            "Helsinki-NLP/europarl",
        ),
    ),
    "core": Facts(
        label="core",
        headline=("ce_loss_score", None, "split", True),
        column="core (ce_loss_score)",
        measure="core: loss recovered",
        options=(
            *("core_dataset", "core_batch_size", "core_reconstruction_batches"),
            "core_sparsity_batches",
        ),
        small={"core_reconstruction_batches": 2, "core_sparsity_batches": 4},
        texts=("core_dataset",),
        needs=("Skylion007/openwebtext",),
    ),
}
# SAEBench's class of each suite's result, in the folder of its module.
OUTPUTS = {
    "absorption": "AbsorptionEvalOutput",
    "scr": "ScrEvalOutput",
    "tpp": "TppEvalOutput",
    "ravel": "RAVELEvalOutput",
    "unlearning": "UnlearningEvalOutput",
    "sparse_probing": "SparseProbingEvalOutput",
    "core": "CoreEvalOutput",
}


def found_facts(suite: Suite[Any]) -> dict[str, Any]:
    """What a record says, by the names of its fields."""
    main = suite.headline
    return {
        "read": f"{suite.read.__module__.rpartition('.')[2]}.{suite.read.__name__}",
        "label": suite.label,
        "headline.metric": main.metric,
        "headline.budget": main.budget,
        "headline.protocol": main.protocol,
        "headline.higher_is_better": main.higher_is_better,
        "headline.column": main.column,
        "headline.measure": main.measure,
        "options": suite.own_options,
        "allowed": dict(suite.allowed),
        "small": dict(suite.small),
        "paths": {name: place and str(place) for name, place in suite.paths.items()},
        "texts": suite.texts,
        "labelled": suite.labelled,
        "cache": suite.cache,
        "needs": tuple(dict.fromkeys(need.name for need in suite.needs(suite.options()))),
        "refusal": tuple(hook for hook in HOOKS if suite.refusal and suite.refusal(hook)),
    }


def expected_facts(name: str) -> dict[str, Any]:
    facts = vars(FACTS[name]).copy()
    metric, budget, protocol, higher = facts.pop("headline")
    facts |= {"headline.metric": metric, "headline.budget": budget}
    facts |= {"headline.protocol": protocol, "headline.higher_is_better": higher}
    facts |= {f"headline.{x}": facts.pop(x) for x in ("column", "measure")}
    facts["read"] = "record.flat" if name in ("absorption", "ravel") else f"{name}.read"
    return facts | {"refusal": facts.pop("refuses")}


def sample(suite: str, host: str) -> dict[str, Any]:
    """A result of SAEBench in which every metric it knows is 0.5, from its own classes."""
    module = importlib.import_module(host.rpartition(".")[0] + ".eval_output")
    categories = get_type_hints(getattr(module, OUTPUTS[suite]))["eval_result_metrics"]
    metrics = {
        name: dict.fromkeys((one.name for one in fields(category)), 0.5)
        for name, category in get_type_hints(categories).items()
        if is_dataclass(category)
    }
    classes = {"class": dict.fromkeys(metrics.get("tpp_metrics", {}), 0.5)}
    return {"eval_result_metrics": metrics, "eval_result_unstructured": {"data": classes}}


def problems(suite: Suite[Any], name: str) -> list[str]:
    """What the three checks say of a record that claims to be `name`'s."""
    try:
        check(suite)
    except ValueError as error:
        return [str(error)]
    expected = expected_facts(name)
    found = [
        f"suite {name!r}: {fact} is {value!r}, expected {expected[fact]!r}"
        for fact, value in found_facts(suite).items()
        if value != expected[fact]
    ]
    found += schema_problems(suite, name)
    return found


def schema_problems(suite: Suite[Any], name: str) -> list[str]:
    try:
        importlib.import_module(suite.host)
        result = sample(name, suite.host)
    except (ImportError, AttributeError) as error:
        return [f"suite {name!r}: host {suite.host!r} is not the suite's module: {error}"]
    try:
        read = suite.read(result)
    except (KeyError, ValueError, IndexError) as error:
        return [f"suite {name!r}: read cannot read SAEBench's result: {error!r}"]
    main = suite.headline
    if (main.metric, main.budget, 0.5) not in read:
        return [f"suite {name!r}: read finds no headline.metric {main.metric!r}, {main.budget}"]
    return []


def mutants(suite: Suite[Any]) -> Iterator[tuple[str, Suite[Any]]]:
    """(fact, record with that fact misspelt, swapped or left out)."""
    for one in fields(Suite):
        if one.name == "headline":
            continue
        for value in wrong_values(one.name, getattr(suite, one.name)):
            yield one.name, replace(suite, **{one.name: value})
    for one in fields(suite.headline):
        for value in wrong_values(one.name, getattr(suite.headline, one.name)):
            yield (
                f"headline.{one.name}",
                replace(suite, headline=replace(suite.headline, **{one.name: value})),
            )


def wrong_values(name: str, value: Any) -> list[Any]:
    if name == "protocol":
        return ["splt", "signed" if value == "split" else "split"]
    if name == "budget":
        return [None, 50] if value else [20]
    if name == "options":
        return [CommonOptions, None, type("Other", (CommonOptions,), {})]
    if name == "cache":
        wrong = [Cache((*value.options[:-1], "sede"), value.of_hook)] if value else []
        wrong += [Cache(value.options[1:], value.of_hook)] if value else []
        wrong += [value._replace(of_hook=not value.of_hook)] if value else [Cache(("seed",), True)]
        return [*wrong, None] if value else wrong
    if name == "read":
        others = {flat, scr.read, tpp.read, core.read, SUITES["unlearning"].read} - {value}
        return [None, *(others - {flat} if value is core.read else others)]
    if name == "needs":
        return [None, lambda _: [] if value(BenchConfig()) else [core.Need("file", "x")]]
    if name == "run":
        return [None, *(one.run for one in SUITES.values() if one.run is not value)]
    if name == "refusal":
        return ["blocks", ravel.refusal if value is None else None]
    if isinstance(value, bool):
        return [not value, "yes"]
    if isinstance(value, str):
        return ["", f"{value}x", value[:-1]]
    if isinstance(value, tuple):
        return [(*value, "core_datset"), *([value[:-1]] if value else [])]
    assert isinstance(value, dict), (name, value)
    key = next(iter(value), None)
    wrong = [{**value, "no_such_option": 1}]
    return [*wrong, {k: x for k, x in value.items() if k != key}] if key else wrong


@pytest.mark.parametrize("name", SUITES)
def test_a_record_is_right(name: str) -> None:
    assert problems(SUITES[name], name) == []


@pytest.mark.parametrize("name", SUITES)
def test_each_fact_that_is_wrong_is_named(name: str) -> None:
    seen = set()
    for fact, record in mutants(SUITES[name]):
        found = problems(record, name)
        assert found, f"{name}: a wrong {fact} passes: {record}"
        # Another name or function of another suite shows where the two disagree: in the name.
        names = {fact, "name"} if fact == "run" else {fact}
        names |= {"headline.metric", "read"} if fact in ("read", "headline.metric") else set()
        assert any(f"{x} " in text for text in found for x in names), (fact, found)
        seen.add(fact.split(".")[0])
    assert seen == {one.name for one in fields(Suite)}, "every field has a mutant"


def test_no_fact_of_a_record_can_be_left_out() -> None:
    """A record without a fact is a TypeError that names it: no field has a default."""
    for kind in (Suite, type(SUITES["core"].headline)):
        for one in fields(kind):
            assert one.default is MISSING is one.default_factory, one.name
    given = {one.name: getattr(SUITES["tpp"], one.name) for one in fields(Suite)}
    for name in given:
        with pytest.raises(TypeError, match=f"'{name}'"):
            Suite(**{key: value for key, value in given.items() if key != name})


def test_every_file_of_suites_is_a_suite_that_is_registered() -> None:
    files = {info.name for info in pkgutil.iter_modules(suites.__path__)}
    assert files - set(_SHARED) == set(SUITES) == set(FACTS)
    assert list(SUITES) == list(FACTS), "the order in which they are run and shown"
    for name in SUITES:
        module = importlib.import_module(f"{suites.__name__}.{name}")
        assert module.SUITE is SUITES[name]


def test_every_option_belongs_to_a_suite_or_to_all() -> None:
    common = {one.name for one in fields(CommonOptions)}
    owned = {name for suite in SUITES.values() for name in suite.own_options}
    assert not common & owned
    assert {one.name for one in fields(BenchConfig)} == common | owned
    for suite in SUITES.values():
        assert is_dataclass(suite.options)
        assert issubclass(BenchConfig, suite.options), suite.name
        given = vars(BenchConfig())
        own = {name: given[name] for name in suite.own_options}
        assert own == {name: vars(suite.options())[name] for name in own}, "one set of defaults"
    assert common == {
        *("suites", "protocols", "model", "device", "llm_dtype", "seed", "trust_remote_code"),
        *("data_folder", "keep_caches", "context_length", "llm_batch_size", "sae_batch_size"),
    }


def test_options_come_suite_by_suite() -> None:
    names = [one.name for one in fields(BenchConfig)]
    assert names[:3] == ["suites", "protocols", "model"]
    order = ("absorption", "scr", "sparse_probing", "ravel", "unlearning", "core")
    own = [name for suite in order for name in SUITES[suite].own_options]
    assert names[-len(own) :] == own
