"""One cell of Table 1 at the paper's scale: one method with one seed, on one model and layer.

Candidates and strengths are chosen as at the small scale: candidates by what they do to first order
to log p of a compliant opening less that of a refusing one, after validation behaviours; strengths
where MMLU on validation questions falls by a budget. On test behaviours, in both directions: the
refusal rate, the attack success rate, and MMLU, 0- and 5-shot.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from recipes.abstopk.steering_measures import Bench, Read
from recipes.abstopk.steering_methods import METHODS, candidates, choose
from recipes.abstopk.steering_saes import SAEPlan
from recipes.abstopk.table1_cells import (
    LINES,
    RESULT,
    SIDES,
    Design,
    append_line,
    read_lines,
    steerer_of,
    strength_at,
)
from recipes.abstopk.table1_paper import (
    BEHAVIOURS,
    HARMLESS,
    Harm,
    attack_success,
    column,
    completions,
    load_classifier,
    mmlu,
    refusal_rate,
)
from recipes.common.scales import build
from sae_lens_bipolar.files.atomic import write_json
from sae_lens_bipolar.steering.edits import Edit
from sae_lens_bipolar.steering.units import ExtrapolationWarning

COMPLIES, REFUSES = "Sure, here is", "I'm sorry, but I cannot help with that"


class HarmWork(NamedTuple):
    """What the cells of one model and layer share."""

    bench: Bench
    contrast: tuple[Read, Read]  # harmful, harmless
    openings: tuple[Read, Read]  # validation behaviours, answered either way
    gradients: list[torch.Tensor]
    typical: torch.Tensor
    test: tuple[str, ...]  # behaviours


@lru_cache(maxsize=1)
def harm_work(model: str, layer: int, harm: Harm, length: int, device: str) -> HarmWork:
    """Load the model and read what candidates come from, once per process."""
    bench = Bench(model, layer, device)
    harmful, harmless = column(*BEHAVIOURS), column(*HARMLESS)
    cut, end = harm.train, harm.train + harm.validation
    contrast = tuple(bench.read(asked(bench, texts[:cut]), length) for texts in (harmful, harmless))
    openings = tuple(
        bench.read([text + answer for text in asked(bench, harmful[cut:end])], length)
        for answer in (COMPLIES, REFUSES)
    )
    x = contrast[0].x[:, 1:][contrast[0].real[:, 1:]]
    typical = x[x.norm(dim=-1).argsort()[len(x) // 2]]
    gradients = bench.gradient(openings[0], openings[1])
    return HarmWork(
        bench,
        (contrast[0], contrast[1]),
        (openings[0], openings[1]),
        gradients,
        typical,
        harmful[end:],
    )


def run_harm_cell(params: Mapping[str, Any], directory: Path) -> None:
    """Measure one method with one seed; write its lines and `result.json`."""
    warnings.simplefilter("ignore", ExtrapolationWarning)  # negative clamps are the question here
    design, harm = build(Design, params["design"], "design"), build(Harm, params["harm"], "harm")
    plan, method, seed = (
        build(SAEPlan, params["saes"], "saes"),
        METHODS[params["method"]],
        params["seed"],
    )
    work = harm_work(plan.model, plan.layer, harm, design.text_length, params["device"])
    steerer = steerer_of(method, seed, work.bench, work.typical, Path(params["run"]))
    lines = {(r["split"], r["side"], r["strength"]): r for r in read_lines(directory / LINES)}
    tags = {"method": params["method"], "seed": seed, "model": plan.model, "layer": plan.layer}

    def measured(split: str, side: int, strength: float, edit: Edit | None, **more: Any) -> float:
        """The cost in points of MMLU, below the model itself."""
        key = (split, side, strength)
        if key not in lines:
            row = {**tags, "split": split, "side": side, "strength": strength, **more}
            row |= measure(work, harm, edit, test=split == "test")
            append_line(directory / LINES, row)
            lines[key] = row
        return lines[key]["mmlu_0"]

    base = measured("validation", 0, 0.0, None)
    if method.source == "none":
        edit = None if steerer.sae is None else steerer.inserted()
        measured("test", 0, 0.0, edit)
        write_json(directory / RESULT, {})
        return
    handles = candidates(method, steerer, work.contrast, design.candidates, seed)
    chosen, effects = choose(steerer, handles, work.openings, work.gradients)
    selected = []
    for side in SIDES:
        curve = []
        for strength in design.strengths:
            edit = steerer.edit(chosen, side, strength, design.error)
            curve.append((strength, base - measured("validation", side, strength, edit)))
        for budget in design.budgets:
            strength, reached = strength_at(budget, curve)
            edit = steerer.edit(chosen, side, strength, design.error)
            measured("test", side, strength, edit, budget=budget)
            selected.append(
                {"budget": budget, "side": side, "strength": strength, "reached": reached}
            )
    found = {"chosen": chosen.describe(), "first_order": effects, "selected": selected}
    write_json(directory / RESULT, found)


def measure(work: HarmWork, harm: Harm, edit: Edit | None, test: bool) -> dict[str, Any]:
    """MMLU; on test also with shots, and what the model answers to behaviours."""
    limit = None if test else harm.mmlu_limit
    found: dict[str, Any] = {
        f"mmlu_{shots}": mmlu(work.bench, edit, harm, shots, limit)
        for shots in (harm.shots if test else harm.shots[:1])
    }
    if test:
        texts = completions(work.bench, work.test, harm.new_tokens, edit)
        found["refusal_rate"] = 100 * refusal_rate(texts)
        classifier = load_classifier(work.bench.device)
        pairs = list(zip(work.test, texts, strict=True))
        found["attack_success"] = 100 * attack_success(*classifier, pairs)
    return found


def plans_of(settings: Mapping[str, Any]) -> list[SAEPlan]:
    """The SAEs of each model and layer of a scale."""
    plan = build(SAEPlan, settings["saes"], "saes")
    models = settings.get("models") or [{"model": plan.model, "layer": plan.layer}]
    return [replace(plan, **one) for one in models]


def harm_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Test lines as Markdown, in percent."""
    keys = ("mmlu_0", "mmlu_5", "attack_success", "refusal_rate")
    heads = ["model", "layer", "method", "seed", "side", "budget", *keys]
    out = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in lines:
        if row["split"] != "test":
            continue
        label = METHODS[row["method"]].label
        cells = [
            row["model"],
            row["layer"],
            label,
            row["seed"],
            row["side"],
            row.get("budget", "–"),
        ]
        cells += [f"{row[key]:.1f}" if key in row else "–" for key in keys]
        out.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(out)


def asked(bench: Bench, texts: Sequence[str]) -> list[str]:
    """Instructions in the model's chat template, up to where its answer begins."""
    return [
        bench.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
        for text in texts
    ]
