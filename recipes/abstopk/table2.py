"""Table 2 and Figure 3 of the AbsTopK paper: SAEBench scores of JumpReLU, TopK and AbsTopK.

Trains the three on every layer of a language model in shared forward passes, runs the suites on
both protocols (`signed`, what the paper must have run, and `split`, see
`sae_lens_bipolar.saebench`), and prints the paper's own numbers beside ours, for every n and k.

    results/summary.json          one row per SAE
    results/saebench.csv, .md     every number of the benchmark
    results/not_run.json          suites that were left out or could not run, and why
    results/table2.csv, .md       ours, the paper's and the difference
    results/claims.json           the paper's ranking, and its verdict in each task
    report/figure3.png            the figure, with a CSV of what it shows

    python -m recipes.abstopk.table2 --output runs/abstopk/table2

The same command continues a run that stopped: a training or a suite that has results is not redone.
More commands and all settings are in recipes/abstopk/table2.yaml.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.abstopk import figure3, scores
from recipes.abstopk.figure4_claims import FROM_MEAN
from recipes.abstopk.ranking import ranking_sentence
from recipes.abstopk.table2_claims import claims
from recipes.abstopk.training import (
    METHODS,
    SWEEP,
    add_options,
    chosen,
    read_plan,
    resources,
    seeded,
    train,
    training_cell,
)
from recipes.common.arguments import parse, recipe_command
from recipes.common.cells import Cell, run_config, run_recipe, seconds_of
from recipes.common.claims import claims_table, write_claims
from recipes.common.evidence import CELL_SECONDS
from recipes.common.labelled_text import HELD_OUT, movie_reviews
from recipes.common.scales import build, read_scale
from recipes.common.time_limit import limited
from sae_lens_bipolar.errors import ConfigError, require_choice, require_number
from sae_lens_bipolar.files.atomic import read_json, write_json, write_text
from sae_lens_bipolar.files.fields import load_yaml
from sae_lens_bipolar.files.names import CHECKPOINTS, CONFIG_FILE, SUMMARY
from sae_lens_bipolar.reports import drawing, tables
from sae_lens_bipolar.reports.figures import save
from sae_lens_bipolar.runs.directory import require_same_run
from sae_lens_bipolar.saebench import BenchConfig, bench, read_rows
from sae_lens_bipolar.saebench.results import write_rows
from sae_lens_bipolar.saebench.suites.registry import SUITES

CONFIG = Path(__file__).parent / "table2.yaml"
RESULT = "result.json"
_PLACE = f"cells/*/{SWEEP}/{CHECKPOINTS}/{{}}"  # of an SAE in a run of figure4
BENCH = "saebench"  # the benchmark's directory in a cell's
NOT_RUN = "results/not_run.json"
TABLE = "results/table2"  # .md and .csv
SECTIONS = ("bench", "held_out", "not_run", "margins")  # of a scale, that train nothing
ABSORPTION_TEST_SHARE = 0.2  # of the words: sae_bench 0.6.0 evals/absorption/probing.py:253


def run_cell(params: Mapping[str, Any], directory: Path) -> None:
    """Train the SAEs of one model, run the suites on them, and write what was found."""
    if "saes" in params:
        trained, saes = params["trained"], [Path(path) for path in params["saes"]]
    else:
        trained = train(params, directory)
        saes = [directory / SWEEP / CHECKPOINTS / row["name"] for row in trained]
    settings = dict(params["bench"])
    if settings.get("data_folder") == "movie-reviews":
        settings["data_folder"] = str(movie_reviews(params.get("held_out", HELD_OUT)))
    outcome = bench(saes, directory / BENCH, bench_config(settings, params["device"]))
    not_run = [one._asdict() for one in outcome.not_run]
    write_json(directory / RESULT, {"trained": trained, "not_run": not_run})


def bench_config(settings: Mapping[str, Any], device: str) -> BenchConfig:
    """The benchmark that a scale of the YAML file describes, on `device`."""
    return build(BenchConfig, {**settings, "device": device}, "bench")


def cells_of(
    settings: Mapping[str, Any], names: Sequence[str] | None, device: str, output: Path
) -> list[Cell]:
    """One cell per model, or per model of `names`.

    Raises:
        ConfigError: for a setting or a name that is not allowed.
    """
    for suite in settings.get("not_run", {}):
        require_choice(suite, tuple(SUITES), "not_run")
    training = {key: value for key, value in settings.items() if key not in SECTIONS}
    cells = []
    for name, model in chosen(read_plan(training), names).items():
        bench_settings = {**settings["bench"], **model.bench}
        bench_config(bench_settings, device)  # found here, before anything is loaded
        cell = training_cell(training, name, model.layers, device, output)
        cells.append(
            Cell(cell.name, {**cell.params, **_held_out(settings), "bench": bench_settings})
        )
    return cells


def cells_of_run(settings: Mapping[str, Any], trained: Path | None, device: str) -> list[Cell]:
    """One cell of the SAEs that a run of `figure4` has trained: they share what the model gives.

    Raises:
        ConfigError: if there is no such run, or it lacks one of the SAEs.
    """
    if trained is None or not (trained / SUMMARY).is_file():
        raise ConfigError(
            f"--trained {trained} is not a finished run of recipes.abstopk.figure4: this scale "
            "reads its SAEs from one"
        )
    k, seeds = settings["trained"]["k"], settings["trained"]["seeds"]
    rows = [
        row
        for row in read_json(trained / SUMMARY)
        if row["k"] == k and row["seed"] in seeds and row.get("start", FROM_MEAN) == FROM_MEAN
    ]
    found = {row["name"]: next(trained.glob(_PLACE.format(row["name"])), None) for row in rows}
    there = {(row["seed"], row["method"]) for row in rows if found[row["name"]]}
    for seed in seeds:
        if lacking := [method for method in METHODS if (seed, method) not in there]:
            raise ConfigError(
                f"--trained {trained} lacks SAEs of k={k} and seed {seed}: {', '.join(lacking)}"
            )
    params = {
        "trained": rows,
        "saes": [str(path) for path in found.values()],
        "bench": settings["bench"],
        "device": device,
        **_held_out(settings),
    }
    bench_config(settings["bench"], device)
    return [Cell("seeds", params)]


def _held_out(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The share of film reviews held out for tests, where a scale names one."""
    if "held_out" not in settings:
        return {}
    require_number(settings["held_out"], "held_out", 0.05, maximum=0.95)
    return {"held_out": settings["held_out"]}


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


def report(output: Path) -> str:
    """Write tables, figure and verdicts from `results/`; return the tables."""
    settings = load_yaml(output / CONFIG_FILE)
    trained, found = read_json(output / SUMMARY), scores.of_run(output)
    shown = scores.averaged(found)
    bench_settings = bench_config(settings["bench"], "cpu")
    examples = n_examples(bench_settings)
    found_claims = claims(found, trained, examples, settings.get("margins"))
    opening = [ranking_sentence(found_claims, trained), *data_note(settings["bench"])]
    text = "\n\n".join([*opening, scores.markdown(shown, read_json(output / NOT_RUN))])
    write_text(output / f"{TABLE}.md", text)
    write_text(output / f"{TABLE}.csv", tables.csv([score._asdict() for score in found]))
    save(figure3.figure(found), output / "report")
    write_claims(output, found_claims)
    return f"{text}\n{claims_table(found_claims)}"


def n_examples(bench_settings: BenchConfig) -> dict[str, int]:
    """How many test examples stand behind a task's score, where the scale says it."""
    found = {
        "scr": bench_settings.ablation_test_size,
        "tpp": bench_settings.ablation_test_size,
        "sparse_probing": bench_settings.probing_test_size,
    }
    if words := bench_settings.absorption_words:
        found["absorption"] = round(words * ABSORPTION_TEST_SHARE)
    return found


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


def retry_incomplete(output: Path, cells: Sequence[Cell]) -> None:
    """Let a cell run again whose suites could not all run: its assets may be there by now."""
    for cell in cells:
        file = output / "cells" / cell.name / RESULT
        if file.exists() and read_json(file)["not_run"]:
            file.unlink()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = recipe_command("abstopk.table2", __doc__, CONFIG)
    add_options(parser)
    parser.add_argument("--trained", type=Path, help="run of figure4, of the scale 'medium'")
    options = parse(parser, arguments)
    drawing.require_matplotlib()  # now rather than after the training
    settings = read_scale(options.config, options.scale)
    if "bench" not in settings:
        raise ConfigError(f"{options.config}: scale {options.scale!r} lacks the section 'bench'")
    if "trained" in settings:
        cells = cells_of_run(settings, options.trained, options.device)
    else:
        cells = cells_of(settings, options.models, options.device, options.output)
    require_same_run(options.output, run_config(options, seeded(settings)))
    retry_incomplete(options.output, cells)
    with limited(options.minutes):
        if run_recipe(options, seeded(settings), cells, run_cell, resources(options), RESULT):
            collect(options.output, settings)
            write_json(options.output / CELL_SECONDS, seconds_of(options.output, cells))
            print(report(options.output))


if __name__ == "__main__":
    main()
