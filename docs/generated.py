"""Pages that are generated when the site is built: one per architecture, and the command line's.

MkDocs calls `on_config` and `on_files`. What they show has one source each: the architectures'
records, and the sentences of the options.
"""

from collections.abc import Iterator
from io import StringIO
from typing import Any

import torch
from matplotlib.figure import Figure
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import sae_lens_bipolar
from sae_lens_bipolar.architectures.record import Architecture
from sae_lens_bipolar.cli.declared import architectures, options_of
from sae_lens_bipolar.cli.main import COMMANDS, _parser
from sae_lens_bipolar.cli.parsing import sentence
from sae_lens_bipolar.cli.sentences import SENTENCES
from sae_lens_bipolar.cli.train import help_page

OURS = [record for record in sae_lens_bipolar.ARCHITECTURES.values() if record.training is not None]
# Parameters of a fresh SAE that are 0, at values at which the figure shows what they do.
_SHOWN = {
    "log_threshold": -0.3,
    "log_gain": 0.1,
    "b_mag": -0.1,
    "b_gate": -0.7,
    "threshold_positive": 0.7,
    "threshold_negative": 1.0,
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the architectures' pages in the navigation."""
    assert config.nav is not None
    for entry in config.nav:
        if isinstance(entry, dict) and "Architectures" in entry:
            entry["Architectures"] += [f"architectures/{record.name}.md" for record in OURS]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for name, text in pages():
        files.append(File.generated(config, name, content=text))
    return files


def pages() -> Iterator[tuple[str, str]]:
    """(path under docs/, text) of every generated file."""
    yield "architectures/index.md", overview()
    for record in OURS:
        yield f"architectures/{record.name}.md", architecture(record)
        yield f"architectures/{record.name}.svg", figure(record)
    yield "cli.md", command_line()


def overview() -> str:
    """The table of architectures."""
    rows = [
        f"| [`{r.name}`]({r.name}.md) | {_escaped(r.title)} | {'yes' if r.signed else 'no'} "
        f"| `{sparsity(r)}` | {_linked(r.source)} |"
        for r in OURS
    ]
    head = "| `architecture=` | what it is | signed | its sparsity number | source |\n"
    return "\n".join(["# Architectures", "", head + "|---|---|---|---|---|", *rows, ""])


def architecture(record: Architecture) -> str:
    """The page of one architecture."""
    module, config = architectures()[record.name]
    options = options_of(module, config).values()
    table = "\n".join(
        f"| `{o.name}` | `{_kind(o)}` | {_escaped(said(o))} |"
        for o in options
        if o.name not in ("metadata", "device", "dtype")
    )
    saved = record.training[1](
        d_in=4, d_sae=16, **_at_l0(record, 16, 4)
    ).get_inference_sae_cfg_dict()  # type: ignore[index]
    return f"""# {record.name}

{record.title}.

{record.when}

<!-- not run: a formula -->
```text
{record.formula}
```

Source: {_linked(record.source)}. Saved for inference as `{saved["architecture"]}`.

![One latent as its pre-activation grows, beside others that do not change]({record.name}.svg)

One latent as its pre-activation runs from negative to positive, beside 63 that stay as they are.

## Options

`sae-lens-bipolar train --architecture {record.name} {_flag(record)} 32 ...`, or as fields of
`{config}`.

| option | type | what it does |
|---|---|---|
{table}
"""


def _kind(option: Any) -> str:
    return option.kind.replace(" | ", " or ")  # a bar would end the table's cell


def said(option: Any) -> str:
    """An option's sentence, with its default."""
    own = SENTENCES.get(option.name, option.sentence)
    return sentence(option._replace(sentence=own)).replace("%%", "%")


def command_line() -> str:
    """Every command's help page."""
    commands: Any = next(action for action in _parser()._actions if action.dest == "command")
    parts = ["# Command line", ""]
    for name, summary in COMMANDS.items():
        page = help_page([]) if name == "train" else commands.choices[name].format_help()
        said = summary[0].upper() + summary[1:]
        parts += [f"## {name}", "", f"{said}.", ""]
        parts += ["<!-- not run: output -->", "```text", page.rstrip(), "```", ""]
    return "\n".join(parts)


@torch.no_grad()
def figure(record: Architecture) -> str:
    """An SVG of one latent over its pre-activation, computed by the architecture's own class."""
    size = 64
    torch.manual_seed(0)
    assert record.training is not None
    sae_class, config_class = record.training
    sae = sae_class(config_class(d_in=size, d_sae=size, **_at_l0(record, size, 16)))
    for name, parameter in sae.named_parameters():
        if name in ("W_enc", "W_dec"):
            parameter.copy_(torch.eye(size))
        elif name in _SHOWN:
            parameter.fill_(_SHOWN[name])
    steps = torch.linspace(-3, 3, 601)
    x = torch.randn(size).clamp(-2, 2).repeat(len(steps), 1)
    x[:, 0] = steps
    z = torch.cat([sae.encode(row[None])[:, 0] for row in x])
    drawing = Figure(figsize=(4.2, 3), layout="constrained")
    axes = drawing.subplots()
    axes.axhline(0, color="0.8", linewidth=0.8)
    axes.axvline(0, color="0.8", linewidth=0.8)
    axes.plot(steps, z, color="#3f51b5")
    axes.set_xlabel("pre-activation u")
    axes.set_ylabel("latent z")
    target = StringIO()
    drawing.savefig(target, format="svg", metadata={"Date": None})
    return target.getvalue()


def sparsity(record: Architecture) -> str:
    """The field that says how many latents fire."""
    return next(iter(_at_l0(record, 64, 8)))


def _flag(record: Architecture) -> str:
    name = sparsity(record)
    return f"-{name}" if len(name) == 1 else f"--{name}"


def _at_l0(record: Architecture, d_sae: int, l0: int) -> dict[str, Any]:
    assert record.at_l0 is not None
    return record.at_l0(d_sae, l0)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _linked(source: str) -> str:
    """A source whose arXiv numbers are links."""
    words = []
    for word in source.split(" "):
        number = word.strip(",;()")
        is_paper = number[:4].isdigit() and number[4:5] == "."
        link = f"[{number}](https://arxiv.org/abs/{number})"
        words.append(word.replace(number, link) if is_paper else word)
    return " ".join(words)
