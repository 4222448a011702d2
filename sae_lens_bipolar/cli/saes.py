"""What commands on one SAE share: which SAE is meant, and the language model it reads."""

from pathlib import Path
from typing import Any

from sae_lens.saes.sae import SAE
from transformer_lens import HookedTransformer

from sae_lens_bipolar.errors import CheckpointError, ConfigError, did_you_mean
from sae_lens_bipolar.inputs.models import load_model
from sae_lens_bipolar.runs.sources import Source, find_saes

SAE_HELP = "checkpoint directory, RUN:NAME for one SAE of a run, or owner/name:id on the Hub"


def one_sae(given: str) -> Source:
    """The SAE that `given` names.

    Raises:
        CheckpointError: if there is none, or a name is not in the run.
        ConfigError: if there are several, naming them.
    """
    run, _, name = given.rpartition(":")
    if not (run and name and Path(run).expanduser().is_dir()):
        run, name = given, ""
    found = find_saes([run])
    names = [source.run_name for source in found]
    if name:
        if name not in names:
            raise CheckpointError(
                f"{run} holds no SAE {name!r}, but {', '.join(names)}{did_you_mean(name, names)}"
            )
        return found[names.index(name)]
    if len(found) > 1:
        raise ConfigError(f"{given} holds {len(found)} SAEs: give one, as {given}:{names[0]}")
    return found[0]


def model_of(sae: SAE[Any], given: str | None) -> HookedTransformer:
    """The model asked for, or the one the SAE was trained on.

    Raises:
        ConfigError: if neither is known.
        ModelError: if it cannot be loaded.
    """
    name = given or sae.cfg.metadata.model_name
    if not name:
        raise ConfigError("the SAE's metadata name no model: give --model")
    return load_model(str(name))
