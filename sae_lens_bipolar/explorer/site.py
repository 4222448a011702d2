"""The folder that a browser opens: the page, and its data as scripts.

On file:// a page may run scripts but neither fetch files nor load modules, so every data file is a
classic script that hands over one value, `explorer.put(name, value)`. A value is JSON in ASCII with
`<` escaped: nothing in it can end the script.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from sae_lens_bipolar.explorer.config import SHARD, TOKEN_SHARD
from sae_lens_bipolar.explorer.latents import LatentStatistics
from sae_lens_bipolar.explorer.packing import pack_column, pack_rows, shares, zigzag
from sae_lens_bipolar.explorer.pairs import Pair
from sae_lens_bipolar.explorer.records import COSINE_STEPS, Described, latent_records
from sae_lens_bipolar.explorer.vocabulary import Vocabulary
from sae_lens_bipolar.explorer.words import TokenIndex

HERE = Path(__file__).parent
SCRIPTS = (
    *("vendor/preact.umd.js", "vendor/hooks.umd.js", "vendor/htm.umd.js"),
    *("vendor/minisearch.umd.js", "core.js", "records.js", "search.js", "parts.js", "notes.js"),
    *("live.js", "dials.js", "latent.js", "table.js", "words.js", "compare.js", "app.js"),
)
STRENGTH_STEPS = 127
TOGETHER_STEPS = 1000
LABELS = 3  # peak tokens shown per side in the table


def put(folder: Path, name: str, value: Any) -> None:
    """Write one data file, `data/<name>.js`."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    file = folder / "data" / f"{name}.js"
    file.parent.mkdir(parents=True, exist_ok=True)
    content = text.replace("<", "\\u003c")
    file.write_text(f"explorer.put({json.dumps(name)},{content});\n", encoding="ascii")


def get(folder: Path, name: str) -> Any:
    """The value of one data file."""
    text = (folder / "data" / f"{name}.js").read_text(encoding="ascii")
    return json.loads(text[text.index(",") + 1 : text.rindex(")")])


def write_page(folder: Path, title: str) -> None:
    """Write index.html and the scripts it loads."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    shutil.copytree(HERE / "static", folder / "static")
    shutil.copytree(HERE / "vendor", folder / "static/vendor")
    page = environment.get_template("index.html.j2").render(title=title, scripts=SCRIPTS)
    (folder / "index.html").write_text(page.strip() + "\n", encoding="utf-8")
    put(folder, "live", None)  # the server answers with what it offers


def write_sae(
    folder: Path, name: str, found: Described, tokens: np.ndarray, vocabulary: Vocabulary
) -> None:
    """Write one SAE's index and latents."""
    statistics = found.statistics
    for start in range(0, statistics.d_sae, SHARD):
        stop = min(start + SHARD, statistics.d_sae)
        records = latent_records(found, tokens, vocabulary.ranks, start, stop)
        put(folder, f"{name}/latents-{start // SHARD}", records)
    put(folder, f"{name}/index", _index(statistics, tokens, vocabulary))


def _index(
    statistics: LatentStatistics, tokens: np.ndarray, vocabulary: Vocabulary
) -> dict[str, str]:
    """Columns over latents: counts and largest |z| per side, and the tokens at the peaks."""
    columns: dict[str, str] = {}
    for side, sign in enumerate(("positive", "negative")):
        columns[f"{sign}_count"] = pack_column(statistics.count[side].numpy())
        # The upper half of a float32: three digits, for sorting.
        bits = statistics.largest[side].numpy().astype("<f4").view("<u4") >> 16
        columns[f"{sign}_largest"] = pack_column(bits)
        place = statistics.place[side, :, :LABELS].numpy()
        ranks = vocabulary.ranks[tokens[place[..., 0], place[..., 1]]] + 1
        there = statistics.peak[side, :, :LABELS].numpy() > 0
        columns[f"{sign}_tokens"] = pack_column(_padded(np.where(there, ranks, 0)))
    return columns


def _padded(labels: np.ndarray) -> np.ndarray:
    return np.pad(labels, ((0, 0), (0, LABELS - labels.shape[1])))


def write_words(folder: Path, name: str, index: TokenIndex, vocabulary: Vocabulary) -> None:
    """Write one SAE's token index: per token how often it was counted, and its entries.

    A record holds the occurrences counted, then per entry latent times 2 plus side, the strength,
    and the occurrences on which it fires.
    """
    rank = vocabulary.ranks[index.token.numpy()]
    order = np.argsort(rank, kind="stable")
    rank = rank[order]
    entry = np.stack(
        [
            index.latent.numpy() * 2 + index.side.numpy(),
            np.maximum(shares(index.strength.numpy(), 1.0, STRENGTH_STEPS), 1),
            index.n.numpy(),
        ],
        axis=1,
    )[order]
    nth = np.arange(len(rank)) - np.searchsorted(rank, rank)
    counted = index.counted.numpy()[vocabulary.ids]
    seen = int((vocabulary.counts > 0).sum())
    for start in range(0, seen, TOKEN_SHARD):
        stop = min(start + TOKEN_SHARD, seen)
        here = (rank >= start) & (rank < stop)
        width = int(nth[here].max(initial=-1)) + 1
        values = np.zeros((stop - start, 1 + 3 * width), dtype=np.int64)
        present = np.zeros(values.shape, dtype=bool)
        values[:, 0], present[:, 0] = counted[start:stop], True
        columns = 1 + 3 * nth[here][:, None] + np.arange(3)
        values[rank[here][:, None] - start, columns] = entry[here]
        present[rank[here][:, None] - start, columns] = True
        put(folder, f"{name}/words-{start // TOKEN_SHARD}", pack_rows(values, present))


def write_pair(folder: Path, a: str, b: str, pair: Pair, fires: np.ndarray) -> None:
    """Write what latents of `a` that fire, a mask, have to do with those of `b`.

    A record holds the latent along a latent's direction, then the one against it: each its number,
    the cosine, and the shares of tokens on which both fire, of the positive and the negative side.
    """
    ranked = pair.ranked
    partners = np.concatenate([ranked.high.numpy(), ranked.low.numpy()], axis=1)
    cosine = np.concatenate([ranked.high_value.numpy(), ranked.low_value.numpy()], axis=1)
    cells = np.concatenate(
        [
            partners[..., None],
            zigzag(shares(cosine, 1.0, COSINE_STEPS))[..., None],
            shares(pair.together.numpy(), 1.0, TOGETHER_STEPS),
        ],
        axis=2,
    )
    cells = cells.reshape(len(cells), -1)
    present = np.broadcast_to(fires[:, None], cells.shape)
    put(folder, f"{a}/with-{b}", pack_rows(cells, present))


def write_vocabulary(
    folder: Path, texts: list[str], vocabulary: Vocabulary, sources: Mapping[str, Any]
) -> None:
    """Write the tokens' texts, ids and counts, and the facts of the site."""
    put(
        folder,
        "tokens",
        {
            "texts": texts,
            "ids": pack_column(vocabulary.ids),
            "counts": pack_column(vocabulary.counts),
        },
    )
    put(folder, "site", dict(sources))
