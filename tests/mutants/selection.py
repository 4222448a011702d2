"""Which modules are mutated, which mutants of them are run, and which tests answer for a module."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from tests.mutants.mutations import Mutant, mutants_of

ROOT = Path(__file__).parents[2]
PACKAGE = "sae_lens_bipolar"
_SUITES = ("ablation", "absorption", "core", "ravel", "scr", "sparse_probing", "tpp", "unlearning")
# Folders, and of SAEBench's side the files that compute something.
MUTATED = (
    *("architectures", "sparse", "polarity", "evaluation"),
    *(f"saebench/{name}.py" for name in ("host/views", "protocols", "results", "sizes")),
    *(f"saebench/suites/{name}.py" for name in (*_SUITES, "record")),
)
_TEXTS = ("citations.py", "stock.py")  # no arithmetic at all
# Not mutated: what runs only on CUDA, and Triton's kernels, which Triton compiles (and interprets)
# from their files, where a mutant in memory does not stand. Their dense equivalents hold them.
_ELSEWHERE = ("sparse/triton/", "training/early_copy.py")
# Test files beside the mirror of a module, by its name; more modules of a kind share a line below.
_STEPS = ("architectures/training/top_k_step", "architectures/training/gated_step")
_ARITHMETIC = tuple(
    f"saebench/{name}"
    for name in (
        *("suite_arithmetic", "suite_calls", "suite_records", "suite_replacements"),
        *("forget_corpus", "results_tables"),
    )
)
_MEASURE = tuple(f"evaluation/{x}" for x in ("reconstruction", "sinks_and_batches", "placement"))
_MORE: dict[str, tuple[str, ...]] = {
    "abstopk": (_STEPS[0], "architectures/record", "architectures/registry", "polarity/splitting"),
    **dict.fromkeys(("bi_jumprelu", "bi_topk", "unrolled_abstopk"), ("polarity/splitting",)),
    "sparse_topk": (_STEPS[0], "architectures/record"),
    "gated_l0": (_STEPS[1], "architectures/training/l0_control", "architectures/record"),
    "sign_aware_gated": (_STEPS[1], "architectures/record", "polarity/splitting"),
    "record": ("architectures/registry", "saebench/suite_records", "saebench/suite_options"),
    "registry": ("architectures/record",),
    "gate": ("architectures/sign_aware_gated",),
    "l0_control": (_STEPS[1], "architectures/sign_aware_gated"),
    "l0_controller": tuple(
        f"architectures/{n}" for n in ("training/l0_control", "sign_aware_gated", "bi_jumprelu")
    ),
    "start": ("architectures/training/l0_control",),
    "on_pairs": ("architectures/training/step_objects", *_STEPS, "sparse/triton/steps"),
    "precision": (
        "architectures/training/no_float64",
        *(f"architectures/{n}" for n in ("bi_jumprelu", "sign_aware_gated")),
    ),
    "splitting": ("polarity/merging",),
    "antipodal": ("polarity/merging",),
    "pairs": ("sparse/ops", "sparse/triton/steps"),
    "projection": ("sparse/ops",),
    "reconstruction": ("sparse/triton/steps", *_MEASURE),
    "choice": ("sparse/measured", "sparse/ops"),
    "selection_numba": ("sparse/selection", "sparse/ops"),
    "deferred": ("architectures/training/step_objects",),
    **dict.fromkeys(("averages", "loss"), _MEASURE),
    "placement": ("evaluation/placement_by_hand",),
    "views": ("saebench/views",),
    "protocols": ("saebench/suites_protocols",),
    "results": ("saebench/results_tables",),
    **dict.fromkeys(("ablation", "absorption", "core", "ravel", "scr"), _ARITHMETIC),
    **dict.fromkeys(("sparse_probing", "tpp", "unlearning"), _ARITHMETIC),
}


def modules() -> list[str]:
    """The modules that are mutated, as paths from the root."""
    found: list[Path] = []
    for name in MUTATED:
        path = ROOT / PACKAGE / name
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    names = [str(p.relative_to(ROOT)) for p in found if p.name not in (*_TEXTS, "__init__.py")]
    return [name for name in names if not any(part in name for part in _ELSEWHERE)]


def tests_for(module: str) -> list[str]:
    """The test files that answer for a module, as paths from the root: its mirror, and more.

    All of its folder's for a module that has no mirror and is named nowhere here.
    """
    path = Path(module).relative_to(PACKAGE)
    names = dict.fromkeys([str(path.with_suffix("")), *_MORE.get(path.stem, ())])
    found = [Path(name).with_name(f"test_{Path(name).name}.py") for name in names]
    files = [f"tests/{name}" for name in found if (ROOT / "tests" / name).exists()]
    every = sorted((ROOT / "tests" / path.parts[0]).rglob("test_*.py"))
    return files or [str(file.relative_to(ROOT)) for file in every]


def sample(mutants: Sequence[Mutant], size: int, seed: int) -> list[Mutant]:
    """`size` mutants, as evenly over the modules as they have them; all where there are fewer.

    The order within a module is that of a hash of seed and key, so that a change in one function
    leaves the sample elsewhere as it was.
    """
    by_module: dict[str, list[Mutant]] = {}
    for mutant in sorted(mutants, key=lambda mutant: _hash(f"{seed} {mutant.key}")):
        by_module.setdefault(mutant.file, []).append(mutant)
    chosen: list[Mutant] = []
    turn = 0
    while len(chosen) < min(size, len(mutants)):
        for name in sorted(by_module):
            chosen += by_module[name][turn : turn + 1]
        turn += 1
    return chosen[:size]


def all_mutants() -> list[Mutant]:
    """Every mutant there is."""
    return [
        mutant
        for module in modules()
        for mutant in mutants_of((ROOT / module).read_text(encoding="utf-8"), module)
    ]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def digest(paths: Sequence[str]) -> str:
    """Changes with the content of any of the files."""
    return _hash(" ".join(_hash((ROOT / p).read_text(encoding="utf-8")) for p in paths))[:16]
