"""The builder against a plain dense computation, and a killed build against an unbroken one."""

import hashlib
import importlib
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformer_lens import HookedTransformer

from sae_lens_bipolar.errors import ConfigError, DataError
from sae_lens_bipolar.evaluation.describe import logit_effects
from sae_lens_bipolar.evaluation.reconstruction import measure
from sae_lens_bipolar.explorer import ExplorerConfig, build, site, stream
from sae_lens_bipolar.explorer.config import BINS, SHARD, TOKEN_SHARD
from sae_lens_bipolar.explorer.packing import unpack, unzigzag
from sae_lens_bipolar.explorer.records import read_record
from sae_lens_bipolar.runs.sources import Source
from tests.explorer import plain

CONFIG = ExplorerConfig(
    contexts=4,
    radius=5,
    neighbours=3,
    output_tokens=5,
    occurrences=6,
    per_token=7,
    compared_tokens=300,
    dials=1,
)
Built = tuple[Path, dict[str, Source], torch.Tensor]
VARIANTS = {"sign_aware_gated": "sign_aware_gated full"}
SIDES = ("positive", "negative")
ARCHITECTURES = ("abstopk", "sign_aware_gated", "bi_jumprelu", "topk", "jumprelu", "standard")


@pytest.fixture(scope="module", autouse=True)
def _small_batches() -> Any:
    patch = pytest.MonkeyPatch()
    patch.setattr(stream, "BATCH", 3)
    yield
    patch.undo()


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".lock")
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_model: HookedTransformer) -> Built:
    folder = tmp_path_factory.mktemp("explorer")
    sources = {name: plain.save(name, folder, VARIANTS.get(name, name)) for name in ARCHITECTURES}
    tokens = plain.some_text(tiny_model)
    build(list(sources.values()), tiny_model, CONFIG, folder / "out", tokens)
    return folder / "out", sources, tokens


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_counts_histograms_and_contexts_are_those_of_a_dense_computation(
    built: Built, tiny_model: HookedTransformer, name: str
) -> None:
    folder, sources, tokens = built
    sae = sources[name].load()
    z = plain.dense_latents(sae, tiny_model, tokens)
    vocabulary = unpack(site.get(folder, "tokens")["ids"])
    index = {key: unpack(value) for key, value in site.get(folder, f"{name}/index").items()}
    assert index["positive_count"] == (z > 0).sum((0, 1)).tolist()
    assert index["negative_count"] == (z < 0).sum((0, 1)).tolist()
    assert any(index["positive_count"])
    assert any(index["negative_count"]) == bool((z < 0).any())
    assert site.get(folder, f"{name}/latents-0")[1:2] != []
    for latent in range(sae.cfg.d_sae):
        packed = site.get(folder, f"{name}/latents-{latent // SHARD}")[latent % SHARD]
        record, own = read_record(packed), z[..., latent]
        assert record["largest"] == [max(0.0, own.max().item()), max(0.0, -own.min().item())]
        for side, fired in enumerate((own[own > 0], -own[own < 0])):
            if len(fired):
                assert record["mean"][side] == pytest.approx(
                    fired.mean().item(), abs=record["largest"][side] / 8000
                )
        if not (own != 0).any():
            assert record["contexts"] == [[], []]
            continue
        width = 2.0 ** record["histogram"]["exponent"]
        assert record["histogram"]["counts"] == plain.dense_histogram(own, width, BINS)
        assert BINS / 2 * width <= max(record["largest"]) < BINS * width
        for side in (0, 1):
            found = record["contexts"][side]
            wanted = plain.dense_contexts(own, side, CONFIG.contexts)
            assert [(c["sequence"], c["position"]) for c in found] == [w[:2] for w in wanted]
            for context, (sequence, position, peak) in zip(found, wanted, strict=True):
                start = max(0, position - CONFIG.radius)
                stop = min(tokens.shape[1], position + CONFIG.radius + 1)
                assert context["before"] == position - start
                ids = [vocabulary[rank] for rank in context["tokens"]]
                assert ids == tokens[sequence, start:stop].tolist()
                assert context["peak"] == pytest.approx(peak, abs=record["largest"][side] / 8000)
                for said, true in zip(
                    context["z"], own[sequence, start:stop].tolist(), strict=True
                ):
                    step = record["largest"][true < 0] / 63
                    assert (said == 0) == (true == 0)
                    assert said * true >= 0
                    assert abs(said - true) <= step * (0.5001 if abs(true) > step else 1.0)


def test_rates_are_those_of_the_census(built: Built, tiny_model: HookedTransformer) -> None:
    folder, sources, tokens = built
    sae = sources["abstopk"].load()
    counted = measure({"abstopk": sae}, tiny_model, tokens, n_loss_sequences=1, batch_size=3)
    index = site.get(folder, "abstopk/index")
    whole = counted["abstopk"].census
    assert unpack(index["positive_count"]) == whole.positive_count.tolist()
    assert unpack(index["negative_count"]) == whole.negative_count.tolist()
    facts = {one["name"]: one for one in site.get(folder, "site")["saes"]}
    assert facts["abstopk"]["n_tokens"] == whole.n_tokens
    assert (facts["abstopk"]["signed"], facts["topk"]["signed"]) == (True, False)


@pytest.mark.parametrize("name", ["abstopk", "topk"])
def test_the_token_index_is_that_of_a_dense_computation(
    built: Built, tiny_model: HookedTransformer, name: str
) -> None:
    folder, sources, tokens = built
    z = plain.dense_latents(sources[name].load(), tiny_model, tokens)
    flat, z = tokens.flatten(), z.flatten(0, 1)
    largest = torch.stack([z.max(0).values.clamp(min=0), (-z).max(0).values.clamp(min=0)])
    ids = unpack(site.get(folder, "tokens")["ids"])
    checked = 0
    for token in flat.unique().tolist():
        rank = ids.index(token)
        packed = site.get(folder, f"{name}/words-{rank // TOKEN_SHARD}")[rank % TOKEN_SHARD]
        counted, *rest = unpack(packed)
        first = z[(flat == token).nonzero().squeeze(1)[: CONFIG.occurrences]].double()
        assert counted == len(first)
        sides = torch.stack([first.relu(), (-first).relu()])  # [2, occurrences, d_sae]
        strength = (sides.mean(1) / largest.double().clamp(min=1e-30)).flatten()
        order = strength.argsort(descending=True, stable=True)[: CONFIG.per_token]
        wanted = strength[order[strength[order] > 0]]
        entries = [rest[i : i + 3] for i in range(0, len(rest), 3)]
        assert len(entries) == len(wanted)
        for (key, told, n), value in zip(entries, wanted.tolist(), strict=True):
            latent, side = divmod(key, 2)
            own = strength[side * z.shape[1] + latent].item()
            assert own == pytest.approx(value, abs=1e-6)  # of equals either may come first
            assert abs(told / 127 - own) <= max(0.5001 / 127, 1 / 127 - own)
            assert n == int((sides[side, :, latent] > 0).sum())
            checked += 1
    assert checked > 50


def test_neighbours_and_output_tokens_are_those_of_the_whole_matrices(
    built: Built, tiny_model: HookedTransformer
) -> None:
    folder, sources, _ = built
    decoder = sources["abstopk"].load().W_dec.detach()
    unit = decoder / decoder.norm(dim=1, keepdim=True)
    cosine = unit @ unit.T
    effects = logit_effects(tiny_model, decoder)
    ids = unpack(site.get(folder, "tokens")["ids"])
    index = site.get(folder, "abstopk/index")
    counts = zip(*(unpack(index[f"{side}_count"]) for side in SIDES), strict=True)
    fires = [latent for latent, count in enumerate(counts) if any(count)]
    assert len(fires) > 10
    for latent, packed in enumerate(site.get(folder, "abstopk/latents-0")):
        record = read_record(packed)
        others = [i for i in fires if i != latent]
        if latent not in fires:  # nothing is said of it
            assert record["nearest"] == record["antipodal"] == []
            assert record["outputs"] == [[], []]
            continue
        near = sorted(others, key=lambda i: -cosine[latent, i].item())[:3]
        far = sorted(others, key=lambda i: cosine[latent, i].item())[:3]
        assert [i for i, _ in record["nearest"]] == near
        assert [i for i, _ in record["antipodal"]] == far
        for i, said in record["nearest"] + record["antipodal"]:
            assert said == pytest.approx(cosine[latent, i].item(), abs=6e-4)
        top = effects[latent].topk(5)
        assert [ids[rank] for rank, _ in record["outputs"][0]] == top.indices.tolist()
        bottom = effects[latent].topk(5, largest=False)
        assert [ids[rank] for rank, _ in record["outputs"][1]] == bottom.indices.tolist()
        step = effects[latent].abs().max().item() / 127
        assert record["outputs"][1][0][1] == pytest.approx(bottom.values[0].item(), abs=step)


def test_two_saes_are_compared_by_cosine_and_by_what_fires_together(
    built: Built, tiny_model: HookedTransformer
) -> None:
    folder, sources, tokens = built
    saes = {name: sources[name].load() for name in ("abstopk", "topk")}
    a, b = (plain.dense_latents(sae, tiny_model, tokens).flatten(0, 1) for sae in saes.values())
    units = [torch.nn.functional.normalize(sae.W_dec.detach(), dim=1) for sae in saes.values()]
    cosine = units[0] @ units[1].T
    fires = [(one != 0).any(0) for one in (a, b)]
    cosine[:, ~fires[1]] = float("nan")  # a counterpart is one that fires
    a, b = (one[: CONFIG.compared_tokens] for one in (a, b))
    seen = 0.0
    for latent, packed in enumerate(site.get(folder, "abstopk/with-topk")):
        numbers = unpack(packed)
        assert bool(numbers) == bool(fires[0][latent])
        if not numbers:
            continue
        known = cosine[latent].nan_to_num(0.0)
        assert [numbers[0], numbers[4]] == [known.argmax().item(), known.argmin().item()]
        for partner, said, *together in (numbers[:4], numbers[4:]):
            assert unzigzag(said) / 1000 == pytest.approx(known[partner].item(), abs=6e-4)
            other = b[:, partner] * known[partner].sign()
            for share, sign in zip(together, (1, -1), strict=True):
                own, theirs = a[:, latent] * sign > 0, other * sign > 0
                wanted = int((own & theirs).sum()) / max(1, int((own | theirs).sum()))
                assert share / 1000 == pytest.approx(wanted, abs=6e-4)
                seen += wanted
    assert seen > 0


def test_a_killed_build_ends_with_the_same_bytes(
    built: Built, tiny_model: HookedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, sources, tokens = built
    config = replace(CONFIG, save_seconds=0.0)

    def work() -> Path:
        return build(list(sources.values()), tiny_model, config, tmp_path / "out", tokens)

    builder = importlib.import_module("sae_lens_bipolar.explorer.build")
    places = ((stream.Pass, "_add", 2), (stream.Pass, "_save", 1), (stream.Pass, "_add", 0))
    for owner, name, calls in (*places, (site, "write_pair", 3), (builder, "_replace", 0)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, killing(getattr(owner, name), calls))
            assert killed_child(work)
        assert not (tmp_path / "out/index.html").exists()
    page = work()
    assert digests(tmp_path / "out") == digests(whole)
    before = page.stat().st_mtime_ns  # a finished build is left as it is
    work()
    assert page.stat().st_mtime_ns == before


def killing(function: Callable[..., Any], calls: int) -> Callable[..., Any]:
    """The function, which ends its process by SIGKILL after some calls."""
    left = iter(range(calls, -1, -1))

    def called(*arguments: Any) -> Any:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)

    return called


def killed_child(work: Callable[[], object]) -> bool:
    """Do the work in a forked child; whether SIGKILL ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def test_a_pass_of_other_text_is_not_taken_up(
    built: Built,
    tiny_model: HookedTransformer,
    tmp_path: Path,
) -> None:
    _, sources, tokens = built
    source = [sources["abstopk"]]
    build(source, tiny_model, CONFIG, tmp_path / "out", tokens)
    first = site.get(tmp_path / "out", "abstopk/index")
    other = tokens.flip(1).contiguous()
    build(source, tiny_model, CONFIG, tmp_path / "out", other)
    assert site.get(tmp_path / "out", "abstopk/index") != first


def test_nothing_of_a_strangers_folder_is_touched(
    built: Built,
    tiny_model: HookedTransformer,
    tmp_path: Path,
) -> None:
    _, sources, tokens = built
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        build([sources["topk"]], tiny_model, CONFIG, tmp_path, tokens)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_saes_of_two_hooks_are_refused(tiny_model: HookedTransformer, tmp_path: Path) -> None:
    hooks = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
    sources = [plain.save(f"sae{i}", tmp_path, "topk", hook=hook) for i, hook in enumerate(hooks)]
    with pytest.raises(DataError, match="one hook"):
        build(sources, tiny_model, CONFIG, tmp_path / "out", plain.some_text(tiny_model))


@pytest.mark.parametrize(
    ("field", "value"), [("radius", 16), ("contexts", 0), ("tokens", 130), ("per_token", 0)]
)
def test_sizes_that_cannot_be_are_refused(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{field}={value}"):
        ExplorerConfig(**cast("dict[str, Any]", {field: value}))
