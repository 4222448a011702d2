"""A learning rate for each method, chosen on validation documents by one procedure.

Every method trains one SAE per rate of the same list, at one sparsity, with one seed that is none
of those compared and the same number of tokens. The rate is chosen whose SAE has the lowest nMSE on
the validation documents among those that meet the L0 target within a tenth; if none does, among
all. `results/learning_rates.json` holds every candidate and the choice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from recipes.common.cells import Cell
from sae_lens_bipolar.errors import ConfigError, require_number
from sae_lens_bipolar.evaluation.reconstruction import measure
from sae_lens_bipolar.files.atomic import read_json, write_json
from sae_lens_bipolar.files.names import CHECKPOINTS
from sae_lens_bipolar.inputs.corpora import load_documents, split_tokens
from sae_lens_bipolar.inputs.models import load_model, tokenizer_of
from sae_lens_bipolar.runs.checkpoints import load_sae
from sae_lens_bipolar.runs.sweep import run_sweep
from sae_lens_bipolar.runs.sweep_config import SweepConfig, SweepSAE

RATES = "results/learning_rates.json"
RESULT = "result.json"
_TOLERANCE = 0.1  # relative distance of L0 from its target


@dataclass(frozen=True)
class Search:
    """The same budget for every method.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    rates: tuple[float, ...]  # candidates
    training_tokens: int  # of each candidate
    seed: int  # none of those compared
    sequences: int = 128  # validation sequences

    def __post_init__(self) -> None:
        if not self.rates:
            raise ConfigError("search: rates is empty: give one or more")
        for rate in self.rates:
            require_number(rate, "search: rates", 0, exclusive=True)
        require_number(self.training_tokens, "search: training_tokens", 2)
        require_number(self.sequences, "search: sequences", 1)


def search_cells(
    search: Search, methods: Mapping[str, Mapping[str, Any]], validation: Path
) -> list[Cell]:
    """One cell per method and rate.

    Args:
        search: the budget.
        methods: by name, the parameters with which the recipe trains one SAE of it.
        validation: text that the SAEs are measured on.
    """
    return [
        Cell(
            f"lr.{method.replace(' ', '_')}.{rate:g}",
            {
                **params,
                "method": method,
                "lr": rate,
                "seed": search.seed,
                "training_tokens": search.training_tokens,
                "validation": str(validation),
                "sequences": search.sequences,
            },
        )
        for method, params in methods.items()
        for rate in search.rates
    ]


def try_rate(
    params: Mapping[str, Any],
    config: SweepConfig,
    name: str,
    sae: SweepSAE,
    l0: float,
    directory: Path,
) -> None:
    """Train the SAE of a search cell and write how it does on the validation documents."""
    share = params["training_tokens"] / config.training_tokens
    config = replace(
        config,
        lr=params["lr"],
        seed=params["seed"],
        training_tokens=params["training_tokens"],
        lr_warm_up_steps=int(config.lr_warm_up_steps * share),
        lr_decay_steps=int(config.lr_decay_steps * share),
        eval_sequences=1,  # the held-out text is for the SAEs that are compared
        loss_sequences=1,
    )
    run_sweep(config, {name: sae}, directory / "sweep")
    model = load_model(config.model, device=config.device, dtype=config.llm_dtype)
    limit = params["sequences"] * config.context_size
    rows = split_tokens(
        load_documents(params["validation"]),
        tokenizer_of(model),
        context_size=config.context_size,
        held_out_fraction=0.5,  # of either side the documents are validation's
        max_train_tokens=limit,
        max_held_out_tokens=config.context_size,
        seed=params["seed"],
    ).train
    trained = load_sae(directory / "sweep" / CHECKPOINTS / name, device=config.device)
    tokens = torch.as_tensor(rows["input_ids"][:])
    found = measure({name: trained}, model, tokens, n_loss_sequences=1)[name]
    write_json(
        directory / RESULT,
        {
            "method": params["method"],
            "lr": params["lr"],
            "nmse": found.without_sinks.nmse,
            "l0": found.without_sinks.l0,
            "l0_target": l0,
            "dead_fraction": found.dead_fraction,
        },
    )


def chosen_rates(cells: Sequence[Cell], output: Path) -> dict[str, float]:
    """The rate of each method, from the results of the search cells; written to `RATES`."""
    rows = [read_json(output / "cells" / cell.name / RESULT) for cell in cells]
    chosen = choose(rows)
    write_json(output / RATES, {"chosen": chosen, "candidates": rows})
    return chosen


def choose(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """By method, the rate with the lowest nMSE among those that meet their L0 target."""
    found = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        meet = [row for row in mine if abs(row["l0"] / row["l0_target"] - 1) <= _TOLERANCE]
        found[method] = min(meet or mine, key=lambda row: row["nmse"])["lr"]
    return found
