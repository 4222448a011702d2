"""`sae-lens-bipolar doctor`: versions, devices, optional parts and what they are for.

Nothing is fetched, and no address is asked.
"""

import argparse
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

EXAMPLES = ("sae-lens-bipolar doctor",)
_CORE = ("sae-lens-bipolar", "sae-lens", "transformer-lens", "transformers", "torch", "datasets")
# Module -> the extra that brings it, and what it is for.
_PARTS = {
    "gguf": ("demo", "the bundled model"),
    "matplotlib": ("reports", "figures and pages of reports"),
    "sae_bench": ("bench", "SAEBench's suites"),
    "numba": ("fast", "the compiled search for active latents on a CPU"),
    "ray": ("cluster", "recipes spread over machines"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command has no options."""


def run(options: argparse.Namespace) -> None:
    """Print what is here."""
    rows = [("Python", f"{platform.python_version()} at {sys.executable}")]
    rows += [(name, _version(name)) for name in (*_CORE, "huggingface-hub", "numpy")]
    rows += _devices()
    rows += [
        (f"[{extra}]", f"{_here(module)}: {purpose}") for module, (extra, purpose) in _PARTS.items()
    ]
    if find_spec("torchvision") is not None and "+cpu" in _version("torch"):
        rows.append(
            ("torchvision", "installed beside a CPU torch: pip uninstall torchvision if it fails")
        )
    rows += _places()
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name.ljust(width)}  {value}" for name, value in rows))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return f"missing: pip install {name}"


def _here(module: str) -> str:
    return "installed" if find_spec(module) is not None else "not installed"


def _devices() -> list[tuple[str, str]]:
    import torch

    from sae_lens_bipolar.sparse.products import choice

    found = [("cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")]
    how = choice()
    through = f"oneDNN, {how.speedup:.1f}x torch's own" if how.used else "as torch has them"
    found.append(("products", f"{through} (float32)"))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            found.append((f"cuda:{index}", f"{card.name}, {card.total_memory / 2**30:.0f} GiB"))
    else:
        found.append(("cuda", "none that this torch can use"))
    if torch.backends.mps.is_available():
        found.append(("mps", "here"))
    return found


def _places() -> list[tuple[str, str]]:
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    from sae_lens_bipolar.files.atomic import user_cache_dir
    from sae_lens_bipolar.inputs.models import BUNDLED, bundled_model_path

    cache = user_cache_dir()
    found = [("cache", f"{cache}, {_free(cache)} free")]
    for name in BUNDLED:
        there = bundled_model_path(name).exists()
        found.append((name, "in the cache" if there else "fetched when it is first used (93 MB)"))
    found.append(("Hub", "switched off (HF_HUB_OFFLINE)" if HF_HUB_OFFLINE else "allowed"))
    found.append(("Hub cache", f"{HF_HUB_CACHE}, {_free(Path(HF_HUB_CACHE))} free"))
    return found


def _free(folder: Path) -> str:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return f"{shutil.disk_usage(there).free / 2**30:.1f} GiB"
