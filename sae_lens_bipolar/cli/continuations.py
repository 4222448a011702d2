"""A prompt continued without and with one latent turned, side by side: what `steer` prints."""

import argparse
import shutil
import textwrap
import warnings
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from sae_lens.saes.sae import SAE
from transformer_lens import HookedTransformer

from sae_lens_bipolar.cli.saes import model_of, one_sae
from sae_lens_bipolar.errors import require_number
from sae_lens_bipolar.files.atomic import read_json
from sae_lens_bipolar.files.digests import DIGEST
from sae_lens_bipolar.files.names import CENSUS
from sae_lens_bipolar.inputs.corpora import load_documents, split_tokens
from sae_lens_bipolar.inputs.models import tokenizer_of
from sae_lens_bipolar.polarity.counting import Census
from sae_lens_bipolar.runs.sources import Source
from sae_lens_bipolar.steering import EditLatents, Scale, measure_scale, steering
from sae_lens_bipolar.steering.units import ExtrapolationWarning

_CONTEXT = 128  # tokens of a window that the scale is measured on


def print_continuations(options: argparse.Namespace) -> None:
    """Print the continuations.

    Raises:
        BipolarError: for an SAE, model, latent, value or text that is not allowed or not there.
    """
    require_number(options.max_new_tokens, "--max-new-tokens", 1)
    source = one_sae(options.sae)
    sae = source.load()
    # A bad latent or value is refused before a model is loaded and text is read.
    EditLatents(sae, dict.fromkeys([options.latent], 0.0), unit="raw")
    for value in options.values:
        require_number(value, "--value")
    model = model_of(sae, options.model)
    scale = _scale(source, sae, model, options)
    columns = {"unsteered": _continue(model, options, None)}
    notes = []
    for value in options.values:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExtrapolationWarning)  # said below
            edit = EditLatents(
                sae,
                {options.latent: value},
                mode=options.mode,
                unit=options.unit,
                error=options.error,
                scale=scale,
            )
        columns[f"latent {options.latent}: {value:+g}"] = _continue(model, options, edit)
        if edit.extrapolated:
            notes.append(
                f"extrapolated: latent {options.latent} never showed the sign of {value:+g}"
            )
    print(side_by_side(columns, shutil.get_terminal_size((120, 24)).columns))
    print("\n".join(notes), end="\n" if notes else "")


def _continue(model: HookedTransformer, options: argparse.Namespace, edit: Any) -> str:
    """The greedy continuation of the prompt, one text at a time: nothing is padded."""
    tokens = model.to_tokens(options.prompt)
    with steering(model, [] if edit is None else edit, positions=options.positions):
        found: Any = model.generate(
            tokens,
            max_new_tokens=options.max_new_tokens,
            do_sample=False,
            prepend_bos=False,
            verbose=False,
        )
    new = found[0, tokens.shape[1] :].tolist()
    return str(tokenizer_of(model).decode(new, skip_special_tokens=True))


def _scale(
    source: Source, sae: SAE[Any], model: HookedTransformer, options: argparse.Namespace
) -> Scale | None:
    """The census of the SAE's run where that is enough, else measured on text."""
    by_reach = options.mode == "dial" or (options.unit == "own" and options.mode != "ablate")
    if options.mode == "ablate" or not (by_reach or options.unit == "norm"):
        return None
    if by_reach and (known := _known_census(source)) is not None:
        return Scale(known)
    tokens = split_tokens(
        load_documents(options.text),
        tokenizer_of(model),
        context_size=min(_CONTEXT, model.cfg.n_ctx),
        max_held_out_tokens=options.scale_tokens,
    )
    return measure_scale(sae, model, torch.as_tensor(tokens.held_out[:]["input_ids"]))


def _known_census(source: Source) -> Census | None:
    if source.run_dir is None:
        return None
    file = source.run_dir / CENSUS / f"{source.run_name}.json"
    if not file.is_file():
        return None
    values = read_json(file)
    return Census.from_dict(values) if values.get(DIGEST) == source.digest else None


def side_by_side(columns: dict[str, str], width: int) -> str:
    """Texts in columns under their titles, wrapped to fit `width` characters."""
    each = max(12, (width - 3 * (len(columns) - 1)) // len(columns))
    cells = [_cell(title, text, each) for title, text in columns.items()]
    rows = zip_longest(*cells, fillvalue="")
    return "\n".join(" | ".join(part.ljust(each) for part in row).rstrip() for row in rows)


def _cell(title: str, text: str, width: int) -> Sequence[str]:
    lines = [textwrap.wrap(line, width) or [""] for line in text.splitlines()]
    return [title, "-" * width, *(wrapped for line in lines for wrapped in line)]
