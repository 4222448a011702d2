"""Table 2 (and Figure 3) of the AbsTopK paper: SAEBench scores of JumpReLU, TopK and AbsTopK.

Trains the three of every layer of a language model in shared forward passes, runs the suites on
both protocols (`signed`, what the paper must have run, and `split`, see
`sae_lens_bipolar.saebench`), and prints the paper's own numbers beside ours, for every n and k.
The same command continues a run that stopped: a training or a suite that has results is not redone.
See recipes/configs/abstopk_table2.yaml for the commands and the settings.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from recipes.abstopk import figure3 as abstopk_figure3
from recipes.abstopk import scores as abstopk_scores
from recipes.abstopk.ranking import ranking_sentence
from recipes.abstopk.training import SWEEP, build, default_device, read_plan, train, training_cell
from recipes.common.cells import Cell, read_scale, recipe_arguments, run_cells
from recipes.common.claims import claims_table, read_claims, write_claims
from recipes.common.labelled_text import movie_reviews
from sae_lens_bipolar.errors import ConfigError, require_choice
from sae_lens_bipolar.files.atomic import read_json, write_json, write_text
from sae_lens_bipolar.files.names import CHECKPOINTS, SUMMARY
from sae_lens_bipolar.files.redaction import command_line
from sae_lens_bipolar.reports import tables
from sae_lens_bipolar.reports.figures import save
from sae_lens_bipolar.runs.directory import require_same_run, start_run
from sae_lens_bipolar.saebench import BenchConfig, bench, read_rows
from sae_lens_bipolar.saebench.results import write_rows
from sae_lens_bipolar.saebench.suites.registry import SUITES

CONFIG = Path(__file__).parent / "table2.yaml"
RESULT = "result.json"
BENCH = "saebench"  # the benchmark's directory of a cell
NOT_RUN = "results/not_run.json"


def run_cell(params: Mapping[str, Any], directory: Path) -> None:
    """Train the SAEs of one model, run the suites on them, and write what was found."""
    trained = train(params, directory)
    saes = [directory / SWEEP / CHECKPOINTS / row["name"] for row in trained]
    config = bench_config(params["bench"], params["device"])
    outcome = bench(saes, directory / BENCH, config)
    not_run = [one._asdict() for one in outcome.not_run]
    write_json(directory / RESULT, {"trained": trained, "not_run": not_run})


def bench_config(settings: Mapping[str, Any], device: str) -> BenchConfig:
    """The benchmark that a scale of the YAML file describes, on `device`."""
    return build(BenchConfig, {**settings, "device": device}, "bench")


def cells_of(
    settings: Mapping[str, Any], names: Sequence[str] | None, device: str, output: Path
) -> list[Cell]:
    """One cell a model, or of the models `names`.

    Raises:
        ConfigError: for a setting or a name that is not allowed.
    """
    training = {key: value for key, value in settings.items() if key not in ("bench", "not_run")}
    plan = read_plan(training)
    for name in names or ():
        require_choice(name, tuple(plan.models), "models")
    for suite in settings.get("not_run", {}):
        require_choice(suite, tuple(SUITES), "not_run")
    chosen = [name for name in plan.models if not names or name in names]
    benches = {name: {**settings["bench"], **plan.models[name].bench} for name in chosen}
    for bench_settings in benches.values():
        bench_config(bench_settings, device)
    for bench_settings in benches.values():
        if bench_settings.get("data_folder") == "movie-reviews":
            bench_settings["data_folder"] = str(movie_reviews())
    return [
        Cell(cell.name, {**cell.params, "bench": benches[name]})
        for name in chosen
        for cell in [training_cell(training, name, plan.models[name].layers, device, output)]
    ]


def collect(output: Path, settings: Mapping[str, Any]) -> None:
    """Put the cells' results into `output/results`."""
    rows, trained = [], []
    left_out = [
        {"suite": suite, "reason": reason} for suite, reason in settings.get("not_run", {}).items()
    ]
    for file in sorted((output / "cells").glob(f"*/{RESULT}")):
        found, benched = read_json(file), read_rows(file.parent / BENCH)
        aliases = {row["sae"]: row["model"] for row in benched}  # SAEBench's name of the model
        trained += [{**row, "alias": aliases.get(row["name"])} for row in found["trained"]]
        left_out += found["not_run"]
        rows += benched
    write_json(output / SUMMARY, trained)
    write_json(output / NOT_RUN, left_out)
    write_rows(output, rows)


def report(output: Path, settings: Mapping[str, Any]) -> None:
    """Write the tables and the verdicts, from the files in `output/results`."""
    trained, rows = read_json(output / SUMMARY), read_rows(output)
    plan = read_plan({k: v for k, v in settings.items() if k not in ("bench", "not_run")})
    papers = {model.model: model.paper for model in plan.models.values()}
    found = abstopk_scores.scores(rows, trained, papers)
    claims = abstopk_scores.claims(found, trained)
    text = abstopk_scores.markdown(found, read_json(output / NOT_RUN))
    opening = [ranking_sentence(claims, trained), *data_note(settings["bench"])]
    write_text(output / "results" / "table2.md", "\n\n".join([*opening, text]))
    write_text(output / "results" / "table2.csv", tables.csv([score._asdict() for score in found]))
    save(abstopk_figure3.figure(found), output / "results")
    write_claims(output, claims)


def data_note(bench_settings: Mapping[str, Any]) -> list[str]:
    """What a reader must know where the suites read other data than SAEBench's."""
    folder = bench_settings.get("data_folder")
    if folder is None:
        return []
    config = bench_config(bench_settings, "cpu")
    return [
        f"SCR, TPP and sparse probing read {folder} in place of SAEBench's own data sets "
        f"({config.ablation_test_size} and {config.probing_test_size} test examples, "
        f"{config.context_length} tokens), so their numbers are not comparable with the paper's; "
        "only the order of the three is."
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = recipe_arguments(__doc__, CONFIG)
    parser.add_argument("--models", nargs="+", help="names in the configuration; all by default")
    parser.add_argument("--device", default=default_device(), help="of models and SAEs")
    options = parser.parse_args(arguments)
    settings = read_scale(options.config, options.scale)
    if "bench" not in settings:
        raise ConfigError(f"{options.config}: scale {options.scale!r} has no section 'bench'")
    seed = settings.get("sweep", {}).get("seed", 0)
    resolved = {"recipe": "abstopk_table2", "scale": options.scale, "seed": seed, **settings}
    require_same_run(options.output, resolved)
    cells = cells_of(settings, options.models, options.device, options.output)
    start_run(options.output, resolved, command_line())
    retry_incomplete(options.output, cells)
    threads, gpus = torch.get_num_threads(), float(options.device.startswith("cuda"))
    resources = {"num_cpus": threads, "num_gpus": gpus}
    run_cells(cells, run_cell, options.output, options.cluster, only=options.cells, **resources)
    if not any((options.output / "cells").glob(f"*/{RESULT}")):
        return
    collect(options.output, settings)
    report(options.output, settings)
    print((options.output / "results" / "table2.md").read_text(encoding="utf-8"))
    print(claims_table(read_claims(options.output / "results" / "claims.json")))


def retry_incomplete(output: Path, cells: Sequence[Cell]) -> None:
    """Let a cell run again whose suites could not all run: its assets may be there by now."""
    for cell in cells:
        file = output / "cells" / cell.name / RESULT
        if file.exists() and read_json(file)["not_run"]:
            file.unlink()


if __name__ == "__main__":
    main()
