"""One cell of Table 1, a method with a seed: its curve, its strengths, what they do on test text.

A point is a line of a file as soon as it is known, so a stopped cell goes on where it was.
"""

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from recipes.abstopk import steering_judges
from recipes.abstopk.steering_measures import Bench, Read
from recipes.abstopk.steering_methods import METHODS, Method, Steerer, candidates, choose
from recipes.abstopk.steering_saes import SAEPlan
from recipes.abstopk.steering_text import openings, reviews_of, windows
from recipes.common.scales import build
from sae_lens_bipolar.errors import ConfigError, require_choice, require_number
from sae_lens_bipolar.files.atomic import read_json, write_json
from sae_lens_bipolar.files.names import CENSUS, CHECKPOINTS
from sae_lens_bipolar.polarity.counting import Census
from sae_lens_bipolar.runs.checkpoints import load_sae
from sae_lens_bipolar.steering.edits import Edit
from sae_lens_bipolar.steering.units import ExtrapolationWarning

LINES, GENERATIONS, RESULT = "curve.jsonl", "generations.jsonl", "result.json"
SPLITS = ("validation", "test")
SIDES = (1, -1)


@dataclass(frozen=True, kw_only=True)
class Design:
    """What is measured of every method.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    methods: tuple[str, ...] = tuple(METHODS)  # of `steering_methods.METHODS`
    candidates: int = 16  # of every method
    error: str = "keep"  # of latents: what the SAE does not explain is kept, or dropped (eq. 22)
    strengths: tuple[float, ...] = (0.0625, 0.125, 0.25, 0.5)  # |change of x| over the median |x|
    budgets: tuple[float, ...] = (0.02, 0.05, 0.1)  # nats per token of held-out text
    generated: tuple[float, ...] = (0.05,)  # budgets at which text is generated and judged
    contrast_texts: int = 150  # reviews per side that directions and latents come from
    effect_texts: int = 20  # reviews per side whose log p is read, on validation and again on test
    text_length: int = 40  # tokens of a review that are read
    utility_texts: int = 8  # reviews whose log p is the utility, on validation and again on test
    utility_length: int = 64  # tokens of each
    prompts: int = 200  # openings of reviews, half of them for validation
    prompt_length: int = 8  # tokens
    new_tokens: int = 16  # of a continuation, greedy
    curve_prompts: int = 0  # validation prompts that are continued at every point of the curve
    judge_reviews: int | None = None  # reviews per side that a judge learns from; None for all

    def __post_init__(self) -> None:
        for name in self.methods:
            require_choice(name, tuple(METHODS), "methods")
        require_choice(self.error, ("keep", "drop"), "error")
        for value in (*self.strengths, *self.budgets):
            require_number(value, "strengths and budgets", 0, exclusive=True)
        if not set(self.generated) <= set(self.budgets):
            raise ConfigError(
                f"generated={list(self.generated)} is not allowed: all of it must be among "
                f"budgets={list(self.budgets)}"
            )
        for name in ("candidates", "contrast_texts", "effect_texts", "utility_texts", "prompts"):
            require_number(getattr(self, name), name, 2)
        require_number(self.curve_prompts, "curve_prompts", 0, self.prompts // 2)


class Split(NamedTuple):
    """The texts of validation or test."""

    better: Read  # positive reviews
    worse: Read  # negative reviews
    utility: Read
    prompts: list[str]


@dataclass(frozen=True, eq=False)
class Work:
    """What the cells of a run share."""

    bench: Bench
    splits: Mapping[str, Split]
    contrast: tuple[Read, Read]
    gradients: list[torch.Tensor]  # of the validation texts
    typical: torch.Tensor  # an activation of median norm
    base: Mapping[str, tuple[torch.Tensor, ...]]  # log p of better, worse, utility, unsteered


@lru_cache(maxsize=1)
def work_of(saes_json: str, design_json: str, device: str) -> Work:
    """Load the model and read all texts, once per process.

    Args:
        saes_json, design_json: fields of `SAEPlan` and `Design`.
    """
    plan = build(SAEPlan, json.loads(saes_json), "saes")
    design = build(Design, json.loads(design_json), "design")
    bench = Bench(plan.model, plan.layer, device)
    neutral = steering_judges.vader()
    prompts = openings(
        bench.tokenizer, design.prompts, design.prompt_length, lambda text: neutral([text])[0]
    )
    longer = [text for pair in zip(*reviews_of("prompts"), strict=True) for text in pair]
    rows = windows(bench.tokenizer, longer, 2 * design.utility_texts, design.utility_length)
    half = design.prompts // 2
    splits = {}
    for i, split in enumerate(SPLITS):
        sides = reviews_of(split, design.effect_texts)
        splits[split] = Split(
            *(bench.read(side, design.text_length) for side in sides),
            utility=bench.read_tokens(rows[i :: len(SPLITS)]),
            prompts=prompts[i * half : (i + 1) * half],
        )
    contrast = [
        bench.read(side, design.text_length)
        for side in reviews_of("contrast", design.contrast_texts)
    ]
    x = contrast[0].x[:, 1:][contrast[0].real[:, 1:]]
    validation = splits["validation"]
    return Work(
        bench,
        splits,
        (contrast[0], contrast[1]),
        bench.gradient(validation.better, validation.worse),
        x[x.norm(dim=-1).argsort()[len(x) // 2]],
        {
            name: tuple(bench.log_probs(text) for text in split[:3])
            for name, split in splits.items()
        },
    )


def run_cell(params: Mapping[str, Any], directory: Path) -> None:
    """Measure one method with one seed; write its lines and `result.json`."""
    warnings.simplefilter("ignore", ExtrapolationWarning)  # negative clamps are the question here
    design = build(Design, params["design"], "design")
    work = work_of(json.dumps(params["saes"]), json.dumps(params["design"]), params["device"])
    method, seed = METHODS[params["method"]], params["seed"]
    steerer = steerer_of(method, seed, work.bench, work.typical, Path(params["run"]))
    lines = Lines(directory, work, design, {"method": params["method"], "seed": seed})
    if method.source == "none":
        edit = None if steerer.sae is None else steerer.inserted()
        for budget in design.generated:
            lines.measure("test", edit, side=0, strength=0.0, budget=budget, prompts=True)
        write_json(directory / RESULT, {})
        return
    handles = candidates(method, steerer, work.contrast, design.candidates, seed)
    validation = work.splits["validation"]
    chosen, effects = choose(
        steerer, handles, (validation.better, validation.worse), work.gradients
    )
    for side in SIDES:
        for strength in design.strengths:
            edit = steerer.edit(chosen, side, strength, design.error)
            lines.measure("validation", edit, side=side, strength=strength)
    selected = []
    for budget in design.budgets:
        for side in SIDES:
            strength, reached = strength_at(budget, lines.costs(side))
            edit = steerer.edit(chosen, side, strength, design.error)
            lines.measure(
                *("test", edit),
                side=side,
                strength=strength,
                budget=budget,
                prompts=budget in design.generated,
            )
            selected.append(
                {"budget": budget, "side": side, "strength": strength, "reached": reached}
            )
    found = {"chosen": chosen.describe(), "first_order": effects, "selected": selected}
    write_json(directory / RESULT, found)


def steerer_of(
    method: Method, seed: int, bench: Bench, typical: torch.Tensor, run: Path
) -> Steerer:
    """What turns candidates into edits; the SAE and its census come from their run."""
    if method.sae is None:
        return Steerer(bench.hook, typical)
    name = f"{method.sae}_seed{seed}"
    sae = load_sae(run / CHECKPOINTS / name, device=bench.device)
    census = Census.from_dict(read_json(run / f"{CENSUS}/{name}.json"))
    return Steerer(bench.hook, typical, sae, census)


class Lines:
    """The lines of a cell: those on disk are not measured again."""

    def __init__(
        self, directory: Path, work: Work, design: Design, tags: Mapping[str, Any]
    ) -> None:
        self.directory, self.work, self.design, self.tags = directory, work, design, tags
        self.known = {_key(row): row for row in read_lines(directory / LINES)}
        self.written = {_key(row) for row in read_lines(directory / GENERATIONS)}

    def costs(self, side: int) -> list[tuple[float, float]]:
        """Strength and cost of the points of the curve on one side, by strength."""
        rows = [row for row in self.known.values() if row["split"] == "validation"]
        return sorted((row["strength"], row["cost"]) for row in rows if row["side"] == side)

    def measure(
        self,
        split: str,
        edit: Edit | None,
        *,
        side: int,
        strength: float,
        budget: float | None = None,
        prompts: bool = False,
    ) -> None:
        """Effect and cost of an edit and, where asked for, continuations of prompts."""
        texts = self.work.splits[split]
        row = {**self.tags, "split": split, "side": side, "strength": strength, "budget": budget}
        n = len(texts.prompts) if prompts else self.design.curve_prompts * (split != "test")
        if n and _key(row) not in self.written:
            found = self.work.bench.continuations(texts.prompts[:n], self.design.new_tokens, edit)
            append_line(self.directory / GENERATIONS, {**row, "texts": found})
            self.written.add(_key(row))
        if _key(row) in self.known:
            return
        base = self.work.base[split]
        better, worse, utility = (
            (self.work.bench.log_probs(text, edit) - before).tolist()
            for text, before in zip(texts[:3], base, strict=True)
        )
        by_text = [a - b for a, b in zip(better, worse, strict=True)]
        row |= {"effect": float(np.mean(by_text)), "cost": -float(np.mean(utility))}
        if split == "test":
            row |= {"effect_by_text": [round(one, 6) for one in by_text]}
        append_line(self.directory / LINES, row)
        self.known[_key(row)] = row


def strength_at(budget: float, curve: Sequence[tuple[float, float]]) -> tuple[float, bool]:
    """The strength at which the cost reaches a budget, and whether it does on the curve.

    Linear in the logarithms between points; below the first, cost goes with the square of the
    strength. Where no point costs as much, the largest strength.
    """
    before: tuple[float, float] | None = None
    for strength, cost in curve:
        if cost >= budget:
            if before is None or before[1] <= 0:
                low = 0.0 if before is None else before[0]
                return max(low, strength * math.sqrt(budget / cost)), True
            share = math.log(budget / before[1]) / math.log(cost / before[1])
            return before[0] * (strength / before[0]) ** share, True
        before = (strength, cost)
    return curve[-1][0], False


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; one that a stop cut off is taken away."""
    if not file.exists():
        return []
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(file, len(whole))
    return [json.loads(line) for line in whole.decode().splitlines()]


def append_line(file: Path, row: Mapping[str, Any]) -> None:
    """Add a line, on disk when this returns."""
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(row) + "\n")
        out.flush()
        os.fsync(out.fileno())


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes a line another one; the strength at a budget follows from the curve."""
    strength = row["strength"] if row["budget"] is None else None
    return row["split"], row["side"], row["budget"], strength
