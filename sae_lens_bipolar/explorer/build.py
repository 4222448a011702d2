"""Build an explorer: one pass of a corpus, then the folder that a browser opens."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.sae import SAE
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

from sae_lens_bipolar.architectures.registry import record_of
from sae_lens_bipolar.evaluation.text_reader import TextReader
from sae_lens_bipolar.explorer import dials, site
from sae_lens_bipolar.explorer.config import SHARD, TOKEN_SHARD, ExplorerConfig
from sae_lens_bipolar.explorer.directions import counterparts, neighbours, output_tokens
from sae_lens_bipolar.explorer.pairs import Pair, pair
from sae_lens_bipolar.explorer.records import Described
from sae_lens_bipolar.explorer.stream import Pass, fingerprint
from sae_lens_bipolar.explorer.vocabulary import Vocabulary, token_texts
from sae_lens_bipolar.files.atomic import atomic_path, explaining_write_errors, remove_scratch
from sae_lens_bipolar.files.locks import lock_run
from sae_lens_bipolar.files.outputs import claim_output
from sae_lens_bipolar.inputs.corpora import load_documents, split_tokens
from sae_lens_bipolar.inputs.models import tokenizer_of
from sae_lens_bipolar.runs.sources import Source

PAGE = "index.html"
_PROGRESS = ".progress.safetensors"
_PARTS = ("data", "static", PAGE)  # what a build replaces, the page last
FORMAT = 2

__all__ = ["PAGE", "ExplorerConfig", "build", "corpus", "sae_facts"]


def build(
    sources: Sequence[Source],
    model: HookedTransformer,
    config: ExplorerConfig,
    output: Path,
    tokens: torch.Tensor | None = None,
    reader: TextReader | None = None,
) -> Path:
    """Write the explorer of SAEs that read one hook into `output`; return the path of its page.

    A build that was stopped goes on where it was, and ends with the same bytes. A finished one of
    the same SAEs, text and sizes is left as it is.

    Args:
        sources: from `find_saes`.
        model: the model they were trained on.
        config: text and sizes.
        output: a folder that is new, empty or ours.
        tokens: a corpus `[sequences, context_size]` instead of `config.text`.
        reader: of this model; what it keeps of the corpus is not read again.

    Raises:
        ConfigError: if `output` is not ours.
        DataError: if the SAEs read different hooks, or there is not enough text.
        LockError: if another process builds there.
    """
    claim_output(output)
    with explaining_write_errors(output), lock_run(output):
        remove_scratch(output)
        if tokens is None:
            tokens = corpus(model, config)
        saes = {source.name: source.load().to(model.cfg.device) for source in sources}
        digests = {source.name: source.digest for source in sources}
        mark = fingerprint(digests, tokens, config)
        build_mark = {"fingerprint": mark, "config": asdict(config), "format": FORMAT}
        del build_mark["config"]["save_seconds"]
        if (output / PAGE).is_file() and _known(output) == build_mark:
            return output / PAGE
        reading = Pass(saes, model, tokens, config, reader)
        reading.run(output / _PROGRESS, mark)
        with atomic_path(output / "new") as scratch:
            scratch.mkdir()
            _write(scratch, reading, {source.name: source for source in sources}, build_mark)
        _replace(output)
        (output / _PROGRESS).unlink(missing_ok=True)
    return output / PAGE


def corpus(model: HookedTransformer, config: ExplorerConfig) -> torch.Tensor:
    """Sequences `[sequences, context_size]` of the text, drawn as `split_tokens` draws them."""
    half = max(config.context_size, config.tokens // 2)
    split = split_tokens(
        load_documents(config.text),
        tokenizer_of(model),
        context_size=min(config.context_size, model.cfg.n_ctx),
        held_out_fraction=0.5,  # both halves are read
        max_train_tokens=half,
        max_held_out_tokens=half,
        seed=config.seed,
    )
    halves = [torch.as_tensor(part[:]["input_ids"]) for part in (split.train, split.held_out)]
    return torch.cat(halves).long()


def sae_facts(sae: SAE[Any], source: Source) -> dict[str, Any]:
    """What the page says of an SAE."""
    record = record_of(sae.cfg.to_dict())
    return {
        "name": source.name,
        "architecture": record.name,
        "title": record.title,
        "signed": record.signed,
        "d_sae": sae.cfg.d_sae,
        "digest": source.digest,
    }


def _known(output: Path) -> Any:
    try:
        return site.get(output, "build")
    except (OSError, ValueError):
        return None


def _write(
    folder: Path, reading: Pass, sources: Mapping[str, Source], build_mark: dict[str, Any]
) -> None:
    model, config, tokens = reading.model, reading.config, reading.tokens
    found = {}
    for name, sae in tqdm(reading.saes.items(), desc="comparing directions", unit="SAE"):
        statistics, decoder = reading.latents[name], sae.W_dec.detach()
        found[name] = Described(
            statistics,
            output_tokens(model, decoder, config.output_tokens, statistics.fires),
            neighbours(decoder, config.neighbours, statistics.fires),
        )
    promoted = [
        part[one.statistics.fires]
        for one in found.values()
        for part in (one.outputs.high, one.outputs.low)
    ]
    vocabulary = Vocabulary.of(tokens, promoted, reading.d_vocab)
    text = dials.neutral_text(tokens, config.dial_sequences)
    facts = []
    for name, sae in reading.saes.items():
        statistics = reading.latents[name]
        site.write_sae(folder, name, found[name], tokens.numpy(), vocabulary)
        index = reading.words[name].result(statistics.largest, config.per_token)
        site.write_words(folder, name, index, vocabulary)
        census = dials.census_of(statistics, reading.n_tokens[name])
        curves = dials.dial_curves(
            sae, model, census, found[name].outputs, text, config.dials, name
        )
        site.put(folder, f"{name}/dials", curves)
        facts.append({**sae_facts(sae, sources[name]), "n_tokens": reading.n_tokens[name]})
    pairs = dict(_pairs(reading))
    for (a, b), found_pair in pairs.items():
        site.write_pair(folder, a, b, found_pair, reading.latents[a].fires.numpy())
    texts = token_texts(tokenizer_of(model), vocabulary.ids.tolist())
    site.write_vocabulary(
        folder,
        texts,
        vocabulary,
        {
            "title": f"{', '.join(reading.saes)} on {_name_of(model)}",
            "model": _name_of(model),
            "hook_name": reading.hook_name,
            "text": Path(config.text).name,
            "sequences": len(tokens),
            "context_size": tokens.shape[1],
            "shard": SHARD,
            "token_shard": TOKEN_SHARD,
            "neutral": text.tolist(),
            "pairs": [list(names) for names in pairs],
            "saes": facts,
        },
    )
    site.put(folder, "build", build_mark)
    site.write_page(folder, f"Explorer of {', '.join(reading.saes)}")


def _pairs(reading: Pass) -> Iterator[tuple[tuple[str, str], Pair]]:
    """Every two SAEs whose decoder rows are of one length, as either sees the other."""
    for a, b in combinations(reading.saes, 2):
        decoders = [reading.saes[name].W_dec.detach() for name in (a, b)]
        if decoders[0].shape[1] == decoders[1].shape[1]:
            fires = [reading.latents[name].fires for name in (a, b)]
            there, back = counterparts(*decoders, *fires)
            yield (a, b), pair(reading.samples[a], reading.samples[b], there)
            yield (b, a), pair(reading.samples[b], reading.samples[a], back)


def _name_of(model: HookedTransformer) -> str:
    return str(model.cfg.model_name)


def _replace(output: Path) -> None:
    """Put the parts of a finished build in their place, the page last: without it none is whole."""
    (output / PAGE).unlink(missing_ok=True)
    for part in _PARTS:
        with atomic_path(output / part) as scratch:
            (output / "new" / part).rename(scratch)
    (output / "new").rmdir()
