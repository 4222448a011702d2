"""What commands on one SAE share: which SAE is meant, and the language model it reads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_lens.saes.sae import SAE
from transformer_lens import HookedTransformer

from sae_lens_bipolar.errors import CheckpointError, ConfigError, did_you_mean
from sae_lens_bipolar.inputs.models import load_model
from sae_lens_bipolar.inputs.trained_on import loadable_name
from sae_lens_bipolar.runs.sources import Source, find_saes


def one_sae(given: str) -> Source:
    """The SAE that `given` names.

    Raises:
        CheckpointError: if there is none, or a name is not in the run.
        ConfigError: if there are several, naming them.
    """
    found = _found(given)
    if len(found) > 1:
        first = found[0].run_name
        raise ConfigError(f"{given} holds {len(found)} SAEs: give one, as {given}:{first}")
    return found[0]


def sources_of(given: Sequence[str]) -> list[Source]:
    """All SAEs that `given` name, in order.

    Raises:
        CheckpointError: if there is none, or a name is not in the run.
        ConfigError: if two have one name.
    """
    found = [source for one in given for source in _found(one)]
    names = [source.name for source in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(
            f"two SAEs are called {twice[0]!r}, and the explorer shows each under its name: "
            "rename a directory"
        )
    return found


def _found(given: str) -> list[Source]:
    run, _, name = given.rpartition(":")
    if not (run and name and Path(run).expanduser().is_dir()):
        return find_saes([given])
    found = find_saes([run])
    names = [source.run_name for source in found]
    if name not in names:
        raise CheckpointError(
            f"{run} holds no SAE {name!r}, but {', '.join(names)}{did_you_mean(name, names)}"
        )
    return [found[names.index(name)]]


def model_of(sae: SAE[Any], given: str | None) -> HookedTransformer:
    """The model asked for, or the one the SAE was trained on.

    Raises:
        ConfigError: if neither is known.
        ModelError: if it cannot be loaded.
    """
    name = given or loadable_name(sae.cfg.metadata)
    if not name:
        raise ConfigError("the SAE's metadata name no model: give --model")
    return load_model(name)
