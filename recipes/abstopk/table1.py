"""Table 1 of the AbsTopK paper: steering by one latent, against difference in means.

Every method has the same number of candidates and is turned along a log grid of strengths on
validation text; at fixed budgets of utility (nats per token of held-out text) its strength is read
off that curve, once, and what it does is measured on test text. Effects: two judges of generated
text, and the log probability of positive less that of negative reviews. Controls: the SAE inserted
and nothing steered, random latents, random directions.

    results/saes.json                the SAEs, as a sweep measures them
    results/curve.jsonl              every point: side, strength, effect, cost; validation and test
    results/selected.json            what was chosen of each method, and strengths at the budgets
    results/generations/*.jsonl.gz   the texts, and what the judges say of each
    results/table1.csv, .md          effects at the budgets, with intervals
    results/claims.json              the paper's claims, and their verdicts
    report/table1.png                effect against utility, with a CSV of what it shows

    python -m recipes.abstopk.table1 --output runs/abstopk/table1

The same command continues a run that stopped. `--dry-run` loads every piece of a scale that it can
and lists what is missing. All settings are in recipes/abstopk/table1.yaml.
"""

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recipes.abstopk import steering_judges, steering_saes
from recipes.abstopk.steering_methods import METHODS
from recipes.abstopk.steering_saes import SAEPlan
from recipes.abstopk.table1_cells import GENERATIONS, LINES, Design, read_lines, run_cell
from recipes.abstopk.table1_claims import Margins
from recipes.abstopk.table1_harm import harm_table, plans_of, run_harm_cell
from recipes.abstopk.table1_paper import Harm, dry_run, pieces_table
from recipes.abstopk.table1_report import CURVE, SELECTED, TABLE, TEXTS, report
from recipes.common.arguments import parse, recipe_command
from recipes.common.cells import Cell, run_recipe
from recipes.common.scales import Resources, build, read_scale
from sae_lens_bipolar.errors import require_choice
from sae_lens_bipolar.files.atomic import read_json, write_json, write_text
from sae_lens_bipolar.reports import drawing

CONFIG = Path(__file__).parent / "table1.yaml"
RESULT = "result.json"
SAES = "results/saes.json"
SWEEP = "sweep"  # the run directory of the SAEs, in their cell


@dataclass(frozen=True, kw_only=True)
class Table1Config(Resources):
    """One scale of `recipes/abstopk/table1.yaml`.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    saes: Mapping[str, Any]  # fields of SAEPlan
    design: Mapping[str, Any] = field(default_factory=dict)  # fields of Design
    margins: Mapping[str, Any] = field(default_factory=dict)  # fields of Margins
    concept: str = "sentiment"  # or "refusal"
    models: tuple[Mapping[str, Any], ...] = ()  # {model, layer} each; none: that of the SAEs
    harm: Mapping[str, Any] = field(default_factory=dict)  # fields of Harm: refusal alone
    device: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        build(SAEPlan, self.saes, "saes")
        build(Design, self.design, "design")
        build(Margins, self.margins, "margins")
        build(Harm, self.harm, "harm")
        require_choice(self.concept, ("sentiment", "refusal"), "concept")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = recipe_command("abstopk.table1", __doc__, CONFIG)
    parser.add_argument(
        "--dry-run", action="store_true", help="say which pieces of the scale are here; run nothing"
    )
    options = parse(parser, arguments)
    settings = read_scale(options.config, options.scale)
    config = build(Table1Config, settings, "a scale")
    if options.dry_run:
        print(pieces_table(dry_run(settings)))
        return
    drawing.require_matplotlib()  # now rather than after the training
    harm = config.concept == "refusal"
    plans = plans_of(settings)
    training = [Cell(_saes_cell(plan, harm), {"saes": asdict(plan)}) for plan in plans]
    if not run_recipe(options, asdict(config), training, train_cell, config, RESULT):
        return
    cells = [cell for plan in plans for cell in make_cells(config, plan, options.output)]
    run = run_harm_cell if harm else run_cell
    if not run_recipe(options, asdict(config), cells, run, config, RESULT):
        return
    if harm:
        files = [options.output / "cells" / cell.name / LINES for cell in cells]
        lines = [row for file in files for row in read_lines(file)]
        write_text(options.output / CURVE, "".join(json.dumps(row) + "\n" for row in lines))
        write_text(options.output / f"{TABLE}.md", harm_table(lines) + "\n")
        print(harm_table(lines))
        return
    collect(config, cells, options.output)
    print(report(options.output))


def train_cell(params: Mapping[str, Any], directory: Path) -> None:
    """Train the SAEs of all kinds and seeds."""
    rows = steering_saes.train(build(SAEPlan, params["saes"], "saes"), directory / SWEEP)
    write_json(directory / RESULT, rows)


def make_cells(config: Table1Config, plan: SAEPlan, output: Path) -> list[Cell]:
    """One cell per method and seed; the model itself needs no seed."""
    design, harm = build(Design, config.design, "design"), config.concept == "refusal"
    saes = _saes_cell(plan, harm)
    shared: dict[str, Any] = {"saes": asdict(plan), "design": asdict(design)}
    shared |= {"run": str((output / "cells" / saes / SWEEP).resolve()), "device": config.device}
    if harm:
        shared["harm"] = dict(config.harm)
    where = saes.removeprefix("saes")
    return [
        Cell(f"{name}.seed{seed}{where}", {"method": name, "seed": seed, **shared})
        for seed in plan.seeds
        for name in design.methods
        if name != "unsteered" or seed == plan.seeds[0]
    ]


def _saes_cell(plan: SAEPlan, harm: bool) -> str:
    """The name of the cell that trains a plan's SAEs."""
    return f"saes.{Path(plan.model).name}.l{plan.layer}" if harm else "saes"


def collect(config: Table1Config, cells: Sequence[Cell], output: Path) -> None:
    """Put the cells' lines into `output/results`, the texts with their judges' scores."""
    design = build(Design, config.design, "design")
    judges, accuracy = steering_judges.make(design.judge_reviews)
    lines, selected = [], []
    texts: dict[str, list[str]] = {}
    for cell in cells:
        folder, tags = output / "cells" / cell.name, {k: cell.params[k] for k in ("method", "seed")}
        lines += read_lines(folder / LINES)
        selected.append({**tags, **read_json(folder / RESULT)})
        for row in read_lines(folder / GENERATIONS):
            scores = {name: judge(row["texts"]) for name, judge in judges.items()}
            for i, text in enumerate(row.pop("texts")):
                judged = {name: round(float(found[i]), 4) for name, found in scores.items()}
                one = json.dumps({**row, "prompt": i, "text": text, **judged}, ensure_ascii=False)
                texts.setdefault(cell.params["method"], []).append(one)
    write_text(output / CURVE, "".join(json.dumps(row) + "\n" for row in lines))
    write_json(output / SELECTED, {"judge_accuracy": accuracy, "methods": selected})
    rows = [
        {key: value for key, value in row.items() if key != "train_seconds"}
        for row in read_json(output / "cells/saes" / RESULT)
    ]
    write_json(output / SAES, [{**row, "model": Path(row["model"]).name} for row in rows])
    (output / TEXTS).mkdir(parents=True, exist_ok=True)
    for name in METHODS:
        if name in texts:
            content = ("\n".join(texts[name]) + "\n").encode()
            file = output / TEXTS / f"{name}.jsonl.gz"
            file.write_bytes(gzip.compress(content, mtime=0))  # no date: equal bytes each time


if __name__ == "__main__":
    main()
