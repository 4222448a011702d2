"""What a stranger's run can hold: seeded damage to the files of a run, each in one of many ways."""

import json
import os
import random
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save, save_file

ESCAPES = "\x1b]0;owned\x07\x1b[2J\u202eevil\r\n\x00"
MARKUP = "'''\"\"\"`x`\n```\nimport os\n<script>alert(1)</script>[a](javascript:1)|{{7*7}}"
MEGABYTE = 1 << 20
_DIGITS = "9" * 400

JSON_FILES = (
    *("environment.json", "results/summary.json", "results/census/abstopk.json", ".lock.json"),
    *("results/latents/topk.json", "checkpoints/runner_cfg.json", "checkpoints/topk/cfg.json"),
    *("checkpoints/abstopk/cfg.json", "checkpoints/topk/sealed.json"),
    *("checkpoints/topk/activation_scaler.json", "bench/saebench/core/signed/topk/run.json"),
    "progress/64/sealed.json",
)
YAML_FILES = ("config.yaml", "bench/config.yaml")
LINES = ("metrics.jsonl",)
WEIGHTS = (
    *("checkpoints/topk/sae_weights.safetensors", "checkpoints/abstopk/sae_weights.safetensors"),
    "checkpoints/topk/sparsity.safetensors",
)
FOLDERS = ("progress", "results", "publish", "report", "checkpoints", "checkpoints/topk", "bench")

VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**63, 10**39, 1e300, 0.5, "", "x" * 70_000, ESCAPES, MARKUP),
    *("../../decoy/authorized_keys", "/etc/passwd", "a/../../b", "\ud800", "٣", "__import__('os')"),
    *([], {}, [[]] * 3, {"a": {"b": ESCAPES}}, ["x"] * 50_000, float("nan"), float("inf")),
)


class Damage(NamedTuple):
    """What was done to a run, in words, so that a case can be told from its report."""

    what: str
    path: str


def damage(run: Path, decoy: Path, draw: random.Random) -> list[Damage]:
    """Change one to three things in a run."""
    return [_one(run, decoy, draw) for _ in range(draw.choice((1, 1, 2, 3)))]


def _one(run: Path, decoy: Path, draw: random.Random) -> Damage:
    kinds: tuple[tuple[Callable[..., str], tuple[str, ...]], ...] = (
        (_json_text, JSON_FILES),
        (_json_value, JSON_FILES),
        (_json_value, JSON_FILES),
        (_yaml_text, YAML_FILES),
        (_line, LINES),
        (_weights, WEIGHTS),
        (_torn, (*JSON_FILES, *YAML_FILES, *LINES, *WEIGHTS)),
        (_no_file, (*JSON_FILES, *YAML_FILES, *LINES, *WEIGHTS, *FOLDERS)),
    )
    how, names = draw.choice(kinds)
    name = draw.choice(names)
    path = run / name
    if any(os.path.lexists(above) and not above.is_dir() for above in path.parents) or any(
        above.is_symlink() for above in path.parents if run in above.parents
    ):
        return Damage("nothing, it is gone already", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return Damage(f"{how.__name__[1:]}: {how(path, draw, decoy)}", name)


def _fresh(path: Path) -> Path:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        path.rename(path.with_name(f"old-{path.name}"))
    return path


def _content(path: Path) -> bytes:
    """What a file holds; nothing of one that is gone, or is a pipe, whose reader would wait."""
    return path.read_bytes() if path.is_file() else b""


def _json_text(path: Path, draw: random.Random, _: Path) -> str:
    texts = {
        "deep lists": "[" * 100_000,
        "deep objects": '{"a":' * 50_000 + "1" + "}" * 50_000,
        "many lists": "[" + "[]," * 1_500_000 + "[]]",
        "400 digits": f'{{"seed": {_DIGITS}, "d_in": {_DIGITS}}}',
        "a float out of range": '{"l0": 1e999}',
        "a long name": json.dumps({"x" * MEGABYTE: "y" * MEGABYTE}),
        "escapes": json.dumps({ESCAPES: ESCAPES, "name": ESCAPES}),
        "a number": "7",
        "nothing": "",
        "blank": " \n\n",
        "a list of rows": json.dumps([{"name": "topk"}, 3, None]),
        "a mark of order": '\ufeff{"a": 1}',
        "twice the same key": '{"name": "a", "name": "topk"}',
    }
    what = draw.choice(sorted(texts))
    _fresh(path).write_text(texts[what])
    return what


def _json_value(path: Path, draw: random.Random, _: Path) -> str:
    """Another value somewhere in the file."""
    try:
        value = json.loads(_content(path))
    except ValueError:
        value = {"name": "topk", "digest": "0"}
    node: Any = value
    at = ""
    while isinstance(node, dict | list) and node:
        keys: list[Any] = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = draw.choice(keys)
        at += f"/{key}"
        if not isinstance(node[key], dict | list) or draw.random() < 0.3:
            change = draw.choice(("set", "set", "set", "drop", "rename"))
            new: Any = draw.choice(VALUES)
            if change == "set":
                node[key] = new
            elif isinstance(node, dict):
                old = node.pop(key)
                if change == "rename":
                    node[str(draw.choice(("", ESCAPES, "x" * 400)))] = old
            at += f" {change} {str(new)[:20]!r}"
            break
        node = node[key]
    _fresh(path).write_text(json.dumps(value))
    return at[:120]


def _yaml_text(path: Path, draw: random.Random, decoy: Path) -> str:
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
    )
    texts = {
        "a bomb of aliases": bomb,
        "a merge of itself": "a: &a\n  <<: *a\n",
        "Python": f"!!python/object/apply:os.system ['touch {decoy}/owned']",
        "a Python name": "model: !!python/name:os.system",
        "deep lists": "[" * 20_000,
        "deep mappings": "".join(f"{' ' * n}a:\n" for n in range(700)),
        "400 digits": f"seed: {_DIGITS}\nlr: 0x{'f' * 400}\n",
        "sixties": "seed: " + ":".join(["59"] * 200),
        "a date": "seed: 9999-99-99\nmodel: 2024-02-30T99:99:99Z",
        "binary": "model: !!binary |\n  //8=",
        "two documents": "a: 1\n---\nb: 2\n",
        "a list": "- a\n- b\n",
        "escapes": json.dumps({"model": ESCAPES, "hook_name": MARKUP}),
        "a long name": f"model: {'x' * MEGABYTE}\n",
        "a large file": "a: 1\n" * 300_000,
        "a set": "? a\n? b\n",
        "tabs": "a:\n\t- b",
        "keys that are lists": "? [a, b]\n: c\n",
    }
    what = draw.choice(sorted(texts))
    _fresh(path).write_text(texts[what])
    return what


def _line(path: Path, draw: random.Random, _: Path) -> str:
    lines = {
        "no object": "[1, 2]\n",
        "deep": "[" * 50_000 + "\n",
        "of a megabyte": json.dumps({"sae": "x" * MEGABYTE}) + "\n",
        "400 digits": f'{{"n_tokens": {_DIGITS}}}\n',
        "not a number": '{"sae": "topk", "n_tokens": NaN, "l0": Infinity}\n',
        "no tokens": '{"sae": "topk"}\n',
        "words for numbers": '{"sae": "topk", "n_tokens": "many", "step": []}\n',
        "torn in the middle": '{"sae": "topk", "n_tok\n{"sae": "topk", "n_tokens": 3}\n',
        "empty lines": "\n\n\n",
        "escapes": json.dumps({"sae": ESCAPES, "n_tokens": 1, "step": 1}) + "\n",
        "other bytes": "\udcff\udcfe\n",
    }
    what = draw.choice(sorted(lines))
    before = _content(path)
    _fresh(path).write_bytes(before + lines[what].encode(errors="surrogateescape"))
    return what


def _weights(path: Path, draw: random.Random, _: Path) -> str:
    try:
        tensors = load(_content(path))
        name = draw.choice(sorted(tensors))
    except (SafetensorError, IndexError):
        return "damaged already"
    old = tensors[name]
    changed: dict[str, Callable[[], Any]] = {
        "NaN": lambda: tensors.update({name: torch.full_like(old, torch.nan)}),
        "infinite": lambda: tensors.update({name: torch.full_like(old, torch.inf)}),
        "huge": lambda: tensors.update({name: torch.full_like(old, 3e38)}),
        "complex": lambda: tensors.update({name: old.to(torch.complex64)}),
        "whole numbers": lambda: tensors.update({name: old.long()}),
        "booleans": lambda: tensors.update({name: old.bool()}),
        "a scalar": lambda: tensors.update({name: torch.tensor(1.0)}),
        "no rows": lambda: tensors.update({name: old[:0]}),
        "transposed": lambda: tensors.update({name: old.T.contiguous()}),
        "a long name": lambda: tensors.update({"x" * MEGABYTE: old.clone()}),
        "escapes": lambda: tensors.update({ESCAPES.replace("\x00", ""): old.clone()}),
        "ten thousand names": lambda: tensors.update(
            {f"t{n}": old[:1].clone() for n in range(10_000)}
        ),
        "missing": lambda: tensors.pop(name),
    }
    headers = {
        "a header of 2**62 bytes": struct.pack("<Q", 2**62) + b"{}",
        "a header longer than the file": struct.pack("<Q", 90_000_000) + b"{" * 100,
        "a header of 50,000 lists": _header("[" * 50_000),
        "shapes of 2**80": _header(
            json.dumps({name: {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}})
        ),
        "negative shapes": _header(
            json.dumps({name: {"dtype": "F32", "shape": [-4, -1], "data_offsets": [0, 16]}})
        ),
        "offsets beyond": _header(
            json.dumps({name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 2**50]}})
        ),
        "an unknown type": _header(
            json.dumps({name: {"dtype": "F7", "shape": [1], "data_offsets": [0, 4]}})
        ),
        "free text": save(tensors, {"note": ESCAPES.replace("\x00", "") * 1000}),
        "a pickle": b"\x80\x04cposix\nsystem\n(S'true'\ntR.",
    }
    what = draw.choice(sorted({**changed, **headers}))
    if what in headers:
        _fresh(path).write_bytes(headers[what])
    else:
        changed[what]()
        _fresh(path)
        save_file(tensors, path)
    return f"{name} {what}"


def _header(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode() + b"\0" * 64


def _torn(path: Path, draw: random.Random, _: Path) -> str:
    if not path.is_file():
        return "gone"
    data = path.read_bytes()
    if draw.random() < 0.5:
        cut = draw.randrange(len(data) + 1)
        _fresh(path).write_bytes(data[:cut])
        return f"cut at {cut}"
    place = draw.randrange(max(1, len(data)))
    _fresh(path).write_bytes(data[:place] + bytes([draw.randrange(256)]) + data[place + 1 :])
    return f"byte {place}"


def _no_file(path: Path, draw: random.Random, decoy: Path) -> str:
    """Something else where a file, or a folder, belongs."""
    place = _fresh(path)
    what = draw.choice(
        (
            *("a pipe", "a folder", "a socket", "a device", "a loop", "nothing", "a hole"),
            *("a link to a file", "a link to a folder", "a link to nothing", "a link to a device"),
        )
    )
    if what == "a pipe":
        os.mkfifo(place)
    elif what == "a folder":
        (place / "x").mkdir(parents=True)
    elif what == "a socket":
        here = os.getcwd()
        os.chdir(place.parent)  # a socket's address has at most about a hundred bytes
        try:
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(place.name)
        finally:
            os.chdir(here)
    elif what == "a device":
        try:
            os.mknod(place, 0o20666, os.makedev(1, 5))  # /dev/zero
        except OSError:  # not for everybody
            os.symlink("/dev/zero", place)
    elif what == "a loop":
        os.symlink(place.name, place)
    elif what == "a hole":
        with open(place, "wb") as file:
            file.truncate(300 * MEGABYTE)
    elif what != "nothing":
        targets = {
            "a link to a file": decoy / "authorized_keys",
            "a link to a folder": decoy,
            "a link to nothing": decoy / "absent",
            "a link to a device": Path("/dev/zero"),
        }
        place.symlink_to(targets[what])
    return what
