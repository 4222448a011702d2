"""The cases: what was seen from outside on this package or on a related tool, each as one kind.

A case returns what it saw, and whether that is right. What was seen before is in `before.json`.
"""

import ast
import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.cases.place import (
    HOOK,
    SECRET,
    Ended,
    Place,
    card,
    change_config,
    config,
    long_text,
    published,
    sae_in,
    summary,
    swap_weights,
    weights,
)
from tests.tiny_models import save_tiny_model

Seen = tuple[str, bool]


class Case(NamedTuple):
    """One kind of fault."""

    name: str
    what: str  # what is done
    right: str  # what should come of it
    see: Callable[[Place], Seen]


CASES: list[Case] = []


def case(what: str, right: str) -> Callable[[Callable[[Place], Seen]], Callable[[Place], Seen]]:
    def enter(see: Callable[[Place], Seen]) -> Callable[[Place], Seen]:
        CASES.append(Case(see.__name__, what, right, see))
        return see

    return enter


def refused(ended: Ended, *words: str) -> Seen:
    return str(ended), ended.refused and all(word in ended.said for word in words)


# The user's files


@case("demo resumes where progress/ is a link to a folder of the user", "refused; folder intact")
def link_in_progress(place: Place) -> Seen:
    run, victim = place.new("run"), place.new("victim")
    place.run(*demo(place, run))
    (victim / "chapter").mkdir(parents=True)
    (victim / "chapter/thesis.tex").write_text("mine")
    shutil.rmtree(run / "progress", ignore_errors=True)
    (run / "progress").symlink_to(victim)
    for name in ("checkpoints", "results"):  # as one that was stopped
        shutil.rmtree(run / name)
    ended = place.run(*demo(place, run))
    kept = (victim / "chapter/thesis.tex").exists()
    return f"{ended}; folder {'intact' if kept else 'deleted'}", ended.code == 2 and kept


@case("demo --output on a folder with report/, progress/ and .x.tmp of the user", "refused; kept")
def folder_that_is_no_run(place: Place) -> Seen:
    folder = place.new("work")
    for name in ("report/mine", "progress/1/mine", "a/.x.tmp/mine"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("mine")
    before = len([*folder.rglob("mine")])
    ended = place.run(*demo(place, folder))
    kept = len([*folder.rglob("mine")])
    return f"{ended}; {kept} of {before} files left", ended.code == 2 and kept == before


@case("publish where publish/ holds a file of the user", "refused; kept")
def publish_folder_of_the_user(place: Place) -> Seen:
    run = place.trained()
    (run / "publish").mkdir(exist_ok=True)
    (run / "publish/thesis.tex").write_text("mine")
    ended = place.publish(run)
    kept = (run / "publish/thesis.tex").exists()
    return f"{ended}; file {'kept' if kept else 'deleted'}", ended.code == 2 and kept


@case("publish a run whose metrics.jsonl is a link to a private file", "refused; nothing leaves")
def link_that_leaks(place: Place) -> Seen:
    run, key = place.trained(), place.new("key")
    key.write_text(json.dumps({"note": SECRET}) + "\n")
    for name in ("metrics.jsonl", "results/x.csv"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(key)
    ended = place.publish(run)
    leaks = SECRET in published(run)
    return f"{ended}; {'would upload it' if leaks else 'kept'}", ended.code == 2 and not leaks


@case("train without --dataset_path in a folder with texts", "refused, naming dataset_path")
def no_dataset_path(place: Place) -> Seen:
    home = place.new("notes")
    home.mkdir()
    shutil.copy(place.text, home / "private.jsonl")
    out = place.new("out")
    return refused(place.train(out, cwd=home, dataset_path=None), "dataset_path")


# Code from strangers


@case("publish an SAE whose model_name holds a quote and Python", "the card's code is its own")
def code_in_the_card(place: Place) -> Seen:
    run = place.trained()
    name = 'ada/x")\nimport os\nos.system("true")\nprint("'
    change_config(run, lambda values: values["metadata"].update(model_name=name, hook_name=name))
    shutil.rmtree(run / "results")  # its figures are of the SAE as it was
    ended = place.publish(run)
    blocks = re.findall(r"^```python\n(.*?)^```", card(run), re.S | re.M)
    calls = [node for block in blocks for node in ast.walk(ast.parse(block))]
    imported = {a.name for node in calls if isinstance(node, ast.Import) for a in node.names}
    bad = "os" in imported
    return f"{ended}; {'runs it' if bad else 'quoted'}", ended.code == 0 and not bad


@case("publish an SAE whose dataset_path holds HTML and a link", "shown as text")
def markup_in_the_card(place: Place) -> Seen:
    run = place.trained()
    name = "ada/<img src=x onerror=alert(1)>[free](javascript:1)"
    change_config(run, lambda values: values["metadata"].update(dataset_path=name))
    shutil.rmtree(run / "results")  # its figures are of the SAE as it was
    ended = place.publish(run)
    plain = re.sub(r"`[^`\n]*`", "", card(run))
    bad = "<img" in plain or "](javascript:1)" in plain
    return f"{ended}; {'becomes markup' if bad else 'shown as text'}", ended.code == 0 and not bad


@case("publish a run whose config.yaml is a bomb of aliases", "refused, naming the alias")
def yaml_bomb(place: Place) -> Seen:
    run = place.trained()
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    (run / "config.yaml").write_text("\n".join(lines))
    return refused(place.publish(run), "alias")


@case("report on a summary with numbers of 400 digits", "refused in a sentence")
def long_numbers(place: Place) -> Seen:
    run = place.trained()
    file = run / "results/summary.json"
    file.write_text(re.sub(r'("l0"): [0-9.]+', rf"\1: {'9' * 400}", file.read_text()))
    return refused(place.run("report", run))


@case("report on a run whose metrics.jsonl is a named pipe", "refused at once")
def pipe(place: Place) -> Seen:
    run = place.trained()
    (run / "metrics.jsonl").unlink(missing_ok=True)
    os.mkfifo(run / "metrics.jsonl")
    return refused(place.run("report", run))


@case("publish with an OAuth token of the Hub in config.yaml", "refused, without the token")
def token_in_the_config(place: Place) -> Seen:
    run, token = place.trained(), "hf_oauth_" + "Ab3" * 12
    (run / "config.yaml").write_text(f"model: x\nnote: {token}\n")
    ended = place.publish(run)
    leaks = token in published(run) or token in ended.said
    return f"{ended}; {'would upload it' if leaks else 'kept'}", ended.code == 2 and not leaks


# The truth of what is reported


@case("publish a checkpoint swapped for other weights", "refused: the numbers are of others")
def other_weights(place: Place) -> Seen:
    run = place.trained()
    swap_weights(run)
    return refused(place.publish(run), "other weights")


@case("fine-tune an AbsTopK SAE with --architecture sign_aware_gated, d_sae 128", "refused")
def fine_tuning_flags(place: Place) -> Seen:
    first, out = place.trained(), place.new("out")
    start = sae_in(first)
    more = ("--l0_target", "8", "--from_pretrained_path", start)
    ended = place.train(out, *more, architecture="sign_aware_gated", d_sae=128)
    seen, right = refused(ended, "architecture")
    found = summary(out)
    if found:
        seen += f"; trained {config(out)['architecture']}, summary {found['architecture']}"
    return seen, right


@case("fine-tune an SA-GSAE trained to L0 6 with --l0_target 2", "trained to 2")
def fine_tuning_target(place: Place) -> Seen:
    gated: dict[str, Any] = {"architecture": "sign_aware_gated"}
    first, out = place.new("a"), place.new("b")
    place.train(first, "--l0_target", "6", "--threshold_init_l0", "6", **gated)
    more = ("--l0_target", "2", "--from_pretrained_path", sae_in(first))
    ended = place.train(out, *more, **gated)
    if ended.code:
        return str(ended), False
    details = config(out)["metadata"].get("training_architecture_details") or {}
    return f"trained to {details.get('l0_target')}", details.get("l0_target") == 2


@case("publish a checkpoint from the middle of a run that scales activations", "refused or folded")
def unfolded_checkpoint(place: Place) -> Seen:
    kept = place.new("kept")
    scaled = ("--normalize_activations", "expected_average_only_in", "--n_checkpoints", "1")
    scaled += ("--n_batches_for_norm_estimate", "4")
    ended = place.train(place.new("out"), *scaled, checkpoint_path=kept, training_tokens=2048)
    found = sorted(kept.rglob("activation_scaler.json"))
    if ended.code or not found:
        return f"{ended}; {len(found)} checkpoints", False
    return refused(place.publish(found[0].parent), "middle of a training")


@case("measure an SAE of one head, k = 4", "L0 4 on that head alone")
def one_head(place: Place) -> Seen:
    out = place.new("out")
    head = {"hook_name": "blocks.0.attn.hook_z", "d_in": 8, "d_sae": 32}
    ended = place.train(out, "--hook_head_index", "1", **head)
    if ended.code:
        return str(ended), False
    found = summary(out)["l0"]
    return f"L0 {found:.2f}", abs(found - 4) < 0.01


@case("train at hook_z, hook_q, hook_k and hook_rot_k with stock settings", "results of all four")
def heads_together(place: Place) -> Seen:
    seen, right = [], True
    for model, hook, d_in in (
        (place.model, "hook_z", 32),
        (place.model, "hook_q", 32),
        (place.llama, "hook_k", 16),
        (place.llama, "hook_rot_k", 16),
    ):
        out = place.new("out")
        at = {"model_name": model, "hook_name": f"blocks.0.attn.{hook}", "d_in": d_in}
        ended = place.train(out, **at)
        has = bool(summary(out))
        seen.append(f"{hook} {'measured' if has else ended}")
        right = right and has and ended.code == 0
    return "; ".join(seen), right


@case("train --seed 1 twice", "the same weights")
def seed(place: Place) -> Seen:
    outs = [place.new("a"), place.new("b")]
    for out in outs:
        place.train(out)
    a, b = map(weights, outs)
    equal = all(torch.equal(a[name], b[name]) for name in a)
    return "equal weights" if equal else "different weights", equal


@case(
    "train on local text with --sequence_separator_token eos, which does nothing there", "refused"
)
def ignored_flags(place: Place) -> Seen:
    out = place.new("out")
    ended = place.train(out, "--sequence_separator_token", "eos")
    seen, right = refused(ended, "sequence_separator_token")
    if not ended.code:
        seen += f"; recorded {config(out)['metadata'].get('sequence_separator_token')!r}"
    return seen, right


@case("train where one token's activation is all zeros", "finite results")
def zero_activations(place: Place) -> Seen:
    from transformers import AutoModelForCausalLM

    folder = place.new("relu")
    save_tiny_model(folder, "gpt2", activation_function="relu")
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.bias.sub_(0.95)
    model.save_pretrained(folder)
    out = place.new("out")
    ended = place.train(out, model_name=folder, hook_name="blocks.0.mlp.hook_post", d_in=128)
    if ended.code:
        return str(ended), False
    nmse = summary(out)["nmse"]
    return f"nMSE {nmse:.3f}", math.isfinite(nmse)


# Size and machines


@case("train 1,024 tokens on 12 MiB of text beside 1 MiB", "the cost follows the tokens")
def long_texts(place: Place) -> Seen:
    seconds = []
    for size in (1, 12):
        text = long_text(place.new("long.jsonl"), size)
        seconds.append(place.train(place.new("out"), dataset_path=text).seconds)
    more = seconds[1] - seconds[0]
    return f"{more:+.1f} s of processor time", more < 0.35 * seconds[0]


@case("train on a single .txt file", "it trains and holds out")
def one_file(place: Place) -> Seen:
    file, out = place.new("one.txt"), place.new("out")
    lines = [json.loads(line)["text"] for line in place.text.read_text().splitlines()]
    file.write_text("\n\n".join(lines))
    ended = place.train(out, dataset_path=file)
    return str(ended), ended.code == 0 and bool(summary(out))


@case("train on rows of token ids", "they are taken as they are")
def token_ids(place: Place) -> Seen:
    file, out = place.new("ids.jsonl"), place.new("out")
    rows = [[(7 * i + j) % 90 for j in range(40)] for i in range(80)]
    file.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    ended = place.train(out, dataset_path=file)
    return str(ended), ended.code == 0 and bool(summary(out))


@case("train --lr 1e30", "an error that names what diverged")
def large_lr(place: Place) -> Seen:
    ended = place.train(place.new("out"), lr=1e30)
    return refused(ended)


@case("train, SIGTERM in the middle", "exit 143, one line")
def terminated(place: Place) -> Seen:
    words = place.words(place.new("out"), training_tokens=400_000)
    ended = place.run(*words, stop=signal.SIGTERM, after=4)
    right = ended.code == 143 and "Traceback" not in ended.said
    return f"exit {ended.code}" + ("" if "Traceback" not in ended.said else ", a traceback"), right


@case("train again into a run that was made with other flags", "refused, naming the difference")
def another_configuration(place: Place) -> Seen:
    run = place.trained()
    return refused(place.train(run, seed=2), "seed")


def demo(place: Place, run: Path) -> list[object]:
    return [
        *("demo", "--model", place.model, "--corpus", place.text, "--d-sae", 96, "--l0", 6),
        *("--hook-name", HOOK, "--context-size", 32, "--training-tokens", 640),
        *("--train-batch-size-tokens", 64, "--lr-warm-up-steps", 2, "--lr-decay-steps", 2),
        *("--eval-sequences", 8, "--loss-sequences", 8, "--latents-shown", 2, "--output", run),
    ]
