"""The parts of Figure 1: words in templates, latents turned, contexts read."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from recipes.abstopk import figure1_dial as dial
from recipes.abstopk import figure1_naming as naming
from recipes.abstopk.figure1_opposition import of_pairs
from recipes.abstopk.figure1_passes import Contexts, in_chunks, read_words
from recipes.abstopk.figure1_words import TEMPLATES, antonyms, controls, count_words
from recipes.common.scales import Resources
from sae_lens_bipolar.errors import ConfigError, require_number
from sae_lens_bipolar.evaluation.placement import activations
from sae_lens_bipolar.evaluation.reconstruction import sink_threshold
from sae_lens_bipolar.files.atomic import read_json
from sae_lens_bipolar.files.fields import load_yaml
from sae_lens_bipolar.files.names import CHECKPOINTS, CONFIG_FILE, SUMMARY
from sae_lens_bipolar.inputs.corpora import load_documents, split_tokens
from sae_lens_bipolar.inputs.models import load_model, tokenizer_of
from sae_lens_bipolar.polarity.counting import Census, CensusCounter
from sae_lens_bipolar.polarity.splitting import is_signed
from sae_lens_bipolar.runs.checkpoints import load_sae
from sae_lens_bipolar.steering.units import ExtrapolationWarning

_BATCH = 16  # sequences in one pass
_CHUNK = 5  # latents turned between two files
_LEAST = 10  # firings of a side from which a latent counts as having it


@dataclass(frozen=True, kw_only=True)
class Figure1Config(Resources):
    """One scale of `recipes/abstopk/figure1.yaml`.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    saes: Mapping[str, str]  # label -> name of an SAE in the run
    pairs: int  # antonym pairs, and as many controls
    templates: int  # of `figure1_words.TEMPLATES`
    text_sequences: int  # held-out sequences of the run: readouts, and contexts of firings
    dial_latents: int  # drawn at random from those that fire on the sides they have
    dial_values: tuple[float, ...]  # of t, with -1, 0 and 1
    dial_contexts: int
    context_length: int  # tokens of a context, BOS included
    readout_tokens: int  # per side
    naming_latents: int  # drawn at random from those that fire on both sides
    naming_top: int = 20  # strongest firings per side whose contexts are read
    draws: int = 999  # permutations behind a p-value
    flip_threshold: float = 0.5  # held-out share of templates from which a pair counts as opposed
    margin: float = 0.05  # by which a rate must be above its control's
    dial_margin: float = 0.1  # by which a share of dials must be above its null's
    rare: float = 0.05  # excess share of nameable latents up to which opposition is rare
    seed: int = 0  # of what is drawn
    device: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.saes or not {-1, 0, 1} <= set(self.dial_values):
            raise ConfigError("saes must not be empty, and dial_values must hold -1, 0 and 1")
        require_number(self.templates, "templates", 4, len(TEMPLATES))
        for name in ("pairs", "text_sequences", "dial_latents", "naming_latents"):
            require_number(getattr(self, name), name, 2)


class Text(NamedTuple):
    """The model and its held-out text."""

    model: Any
    contexts: torch.Tensor  # [dial_contexts, context_length]
    tokens: torch.Tensor  # [n] token ids, no BOS, no sink, not the last of a sequence
    following: torch.Tensor  # [n] the token after each
    x: torch.Tensor  # [n, d_in]


@lru_cache(maxsize=1)
def text_of(
    folder: Path, run: Path, contexts: int, length: int, sequences: int, device: str
) -> Text:
    """The run's model on its held-out text, read once; `folder` keeps the activations."""
    settings = load_yaml(run / CONFIG_FILE)
    model, size = load_model(settings["model"], device=device), settings["context_size"]
    rows = split_tokens(
        load_documents(settings["corpus"]),
        tokenizer_of(model),
        context_size=size,
        max_train_tokens=size,  # only the other side is read
        max_held_out_tokens=(contexts + sequences) * size,
        seed=settings["seed"],
    )
    held_out = torch.as_tensor(rows.held_out[:]["input_ids"])
    batches = held_out[contexts:].split(_BATCH)

    def read(i: int) -> dict[str, torch.Tensor]:
        x = activations(model, batches[i], _hook(run))[:, 1:-1]
        return {"x": x.cpu(), "tokens": batches[i][:, 1:-1], "following": batches[i][:, 2:]}

    parts = in_chunks(folder, len(batches), read)
    x, tokens, following = (torch.cat(parts[name]) for name in ("x", "tokens", "following"))
    norms = x.norm(dim=-1)
    keep = norms <= sink_threshold(parts["x"][0].flatten(0, 1))
    return Text(model, held_out[:contexts, :length], tokens[keep], following[keep], x[keep])


def run_opposition(config: Figure1Config, run: Path, folder: Path) -> dict[str, Any]:
    """Every SAE on every antonym pair and control; `folder` keeps the activations."""
    settings = load_yaml(run / CONFIG_FILE)
    model = load_model(settings["model"], device=config.device)
    pairs = antonyms(tokenizer_of(model), config.pairs)
    documents = load_documents(settings["corpus"])
    others = controls(pairs, count_words([document.text for document in documents]))
    words = [word for pair in pairs for word in pair[1:]]
    index = {word: i for i, word in enumerate(words)}
    layer = int(_hook(run).split(".")[1])

    def read(template: int) -> dict[str, torch.Tensor]:
        return {"x": read_words(model, tokenizer_of(model), layer, words, template).cpu()}

    x = torch.stack(in_chunks(folder / "words", config.templates, read)["x"])
    found: dict[str, Any] = {"pairs": pairs, "controls": others, "saes": {}}
    best: tuple[float, dict[str, Any]] = (-1.0, {})
    for label, name in config.saes.items():
        sae = load_sae(run / CHECKPOINTS / name, device=config.device)
        z = torch.stack([_encode(sae, one.flatten(0, 1)).view(*one.shape[:2], -1) for one in x])
        signs = z.sign().to(torch.int8)
        directions = torch.nn.functional.normalize(sae.W_dec.detach().float().cpu(), dim=1)
        groups = {}
        for group, some in (("antonyms", pairs), ("controls", others)):
            indices = [(index[pair.a], index[pair.b]) for pair in some]
            groups[group] = of_pairs(signs, indices, directions, config.draws, config.seed)
        found["saes"][label] = groups
        if is_signed(sae):
            row, pair = max(
                zip(groups["antonyms"], pairs, strict=True), key=lambda one: one[0]["flip"]
            )
            if row["flip"] > best[0]:
                values = z[:, [index[pair.a], index[pair.b]], row["read"], row["latent"]]
                best = (row["flip"], {"sae": label, "pair": pair, **row, "z": values.tolist()})
    return {**found, "example": best[1]}


@torch.no_grad()
def run_dial(config: Figure1Config, run: Path, folder: Path, label: str) -> dict[str, Any]:
    """One SAE's latents turned, and random directions as long, under three readouts."""
    # A side that a latent lacks is turned to on purpose.
    warnings.simplefilter("ignore", ExtrapolationWarning)
    sae, text = load_sae(run / CHECKPOINTS / config.saes[label]), _text(config, run, folder)
    z = _encode(sae, text.x)
    census = _census(sae, z)
    latents = _drawn(census, is_signed(sae), config.dial_latents, config.seed)
    read = dial.readouts(z, text.following, latents, config.readout_tokens)
    del z
    layer = int(_hook(run).split(".")[1])
    contexts = Contexts(text.model, layer, text.contexts)
    ways = {
        "turned": dial.turned(sae, census, contexts, latents),
        "random": dial.random_directions(sae, census, contexts, latents, config.seed),
    }

    def curves(chunk: int) -> dict[str, torch.Tensor]:
        some = range(chunk * _CHUNK, min(len(latents), (chunk + 1) * _CHUNK))
        return {
            name: dial.curves(contexts, config.dial_values, read, way, some)
            for name, way in ways.items()
        }

    found = in_chunks(folder / "curves", -(-len(latents) // _CHUNK), curves)
    turned, random = torch.cat(found["turned"]), torch.cat(found["random"])
    of = {
        "latents": turned[:, 0],
        "another latent's readout": turned[:, 1],
        "random directions": random[:, 0],
    }
    return {
        "latents": latents,
        "signed": is_signed(sae),
        "values": list(config.dial_values),
        "curve": turned[:, 0].mean(0).tolist(),
        "measures": {name: dial.measures(d, config.dial_values) for name, d in of.items()},
    }


def run_naming(config: Figure1Config, run: Path, folder: Path) -> dict[str, Any]:
    """Signed SAEs: whether the contexts of a latent's two sides hold antonyms."""
    text = _text(config, run, folder)
    tokenizer = tokenizer_of(text.model)
    pairs = antonyms(tokenizer, config.pairs)
    ids = torch.tensor(
        [
            tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0]
            for pair in pairs
            for word in pair[1:]
        ]
    )
    found = {}
    for label, name in config.saes.items():
        sae = load_sae(run / CHECKPOINTS / name)
        if not is_signed(sae):
            continue
        z = _encode(sae, text.x)
        latents = _drawn(_census(sae, z), True, config.naming_latents, config.seed)
        positive, negative = (
            torch.stack(
                [
                    naming.contexts_hold(z, text.tokens, ids, latent, side, config.naming_top)
                    for latent in latents
                ]
            )
            for side in (1, -1)
        )
        hits = naming.opposition(
            positive, negative, [(2 * i, 2 * i + 1) for i in range(len(pairs))]
        )
        found[label] = naming.against_chance(hits, config.draws, config.seed)
    return found


def _text(config: Figure1Config, run: Path, folder: Path) -> Text:
    return text_of(
        folder.parent / "text",
        *(run, config.dial_contexts, config.context_length, config.text_sequences, config.device),
    )


def _hook(run: Path) -> str:
    return str(read_json(run / SUMMARY)[0]["hook_name"])


@torch.no_grad()
def _encode(sae: Any, x: torch.Tensor) -> torch.Tensor:
    parts = [sae.encode(part) for part in x.float().split(4096)]
    return torch.cat([one.to_dense() if one.is_sparse else one for one in parts]).cpu()


def _census(sae: Any, z: torch.Tensor) -> Census:
    counter = CensusCounter(sae.cfg.d_sae)
    for part in z.split(4096):
        counter.add(part)
    return counter.result()


def _drawn(census: Census, signed: bool, n: int, seed: int) -> list[int]:
    """Latents drawn at random from those that fire often enough on the sides they can have."""
    enough = census.positive_count >= _LEAST
    if signed:
        enough &= census.negative_count >= _LEAST
    there = enough.nonzero()[:, 0]
    order = torch.randperm(len(there), generator=torch.Generator().manual_seed(seed))
    return there[order[:n]].tolist()
