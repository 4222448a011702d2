"""Cached activations: what the model gives, bit for bit; damage and other things are refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from sae_lens.training.activations_store import ActivationsStore
from transformer_lens import HookedTransformer

from sae_lens_bipolar.errors import ConfigError, DataError, ModelError
from sae_lens_bipolar.evaluation.placement import activations
from sae_lens_bipolar.inputs.activations import CachedActivations
from sae_lens_bipolar.inputs.caching import CacheConfig, cache_activations, split_as
from sae_lens_bipolar.inputs.corpora import load_documents, split_tokens
from sae_lens_bipolar.inputs.models import load_model, tokenizer_of

RESID, HEADS = "blocks.1.hook_resid_post", "blocks.0.attn.hook_z"


@pytest.fixture(scope="module")
def config(tiny_model_dirs, tiny_text) -> CacheConfig:
    return CacheConfig(
        hooks=(RESID, HEADS),
        model=str(tiny_model_dirs["gpt2"]),
        corpus=str(tiny_text),
        tokens=2000,
        held_out=10,
        context_size=32,
        batch_size=4,
        shard_rows=8,
        seed=5,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, config) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "cache"
    cache_activations(config, folder)
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def files(folder: Path) -> dict[str, bytes]:
    names = (p for p in folder.rglob("*") if p.suffix in (".safetensors", ".json") and p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in names}


def test_reading_is_recomputing_bit_for_bit(
    folder: Path, config: CacheConfig, tiny_model: HookedTransformer
) -> None:
    cache = CachedActivations(folder)
    store = ActivationsStore.from_config_multi_hook(
        model=tiny_model,
        dataset=split_as(cache.manifest, config.corpus, tiny_model).train,
        hook_names=[RESID, HEADS],
        hook_d_ins={RESID: 32, HEADS: 32},
        context_size=32,
        store_batch_size_prompts=4,
        exclude_special_tokens=torch.tensor(cache.manifest.excluded_tokens),
    )
    assert len(cache.manifest.shards) == 9  # 65 rows of 8
    for shard, held in enumerate(cache.manifest.shards):
        n_batches = -(-held.rows // 4)
        store.store_batch_size_prompts = 4 if held.rows == 8 else held.rows
        if held.rows != 8:
            n_batches = 1
        computed = [store._get_filtered_multi_hook_llm_batch() for _ in range(n_batches)]
        for hook in (RESID, HEADS):
            assert torch.equal(
                cache.activations(hook, shard), torch.cat([part[hook] for part in computed])
            )
    assert cache.n_tokens == 65 * 31  # without BOS


def test_tokens_lie_beside_them(folder: Path, tiny_model: HookedTransformer) -> None:
    cache = CachedActivations(folder)
    tokens, kept = cache.tokens(3)
    assert tokens.shape == kept.shape == (8, 32)
    assert not kept[:, 0].any()
    assert kept[:, 1:].all()
    x = activations(tiny_model, tokens.long(), RESID)[kept]
    torch.testing.assert_close(cache.activations(RESID, 3), x)


def test_norms_are_those_of_what_is_held(folder: Path) -> None:
    cache = CachedActivations(folder)
    shards = range(len(cache.manifest.shards))
    lengths = torch.cat([cache.activations(RESID, i) for i in shards]).double().norm(dim=-1)
    found = cache.norms(RESID)
    assert found["mean"] == pytest.approx(lengths.mean().item())
    assert found["root_mean_square"] == pytest.approx(lengths.square().mean().sqrt().item())
    assert found["max"] == lengths.max().item()


def test_held_out_documents_are_not_in_it(folder: Path, config: CacheConfig) -> None:
    """A document is on one side, whatever the limits: no held-out window is among the cached."""
    cache = CachedActivations(folder)
    model = load_model(config.model)
    whole = split_tokens(
        load_documents(config.corpus), tokenizer_of(model), context_size=32, seed=5
    )
    held_out = {tuple(row) for row in whole.held_out["input_ids"]}
    cached = {tuple(row.tolist()) for i in range(9) for row in cache.tokens(i)[0]}
    assert held_out
    assert not held_out & cached


def test_half_precision_is_rounded_and_half_as_long(
    folder: Path, config: CacheConfig, tmp_path: Path
) -> None:
    half = cache_activations(replace(config, dtype="bfloat16"), tmp_path / "half")
    whole = CachedActivations(folder)
    assert torch.equal(half.activations(RESID, 0), whole.activations(RESID, 0).bfloat16())
    batch = next(half.batches([RESID], 16, seed=0))
    assert batch[RESID].dtype == torch.float32


def test_under_autocast_it_holds_what_the_model_computes_there(
    folder: Path, config: CacheConfig, tiny_model: HookedTransformer, tmp_path: Path
) -> None:
    cast = cache_activations(replace(config, autocast_lm=True), tmp_path / "cast")
    assert cast.manifest.autocast_lm
    rows = cast.tokens(0)[0].long()[: config.batch_size]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = tiny_model.run_with_cache(rows, names_filter=RESID, prepend_bos=False)[1][RESID]
    kept = ~torch.isin(rows, torch.tensor(cast.manifest.excluded_tokens))
    held = cast.activations(RESID, 0)[: int(kept.sum())]
    assert torch.equal(held, found[kept])
    exact = CachedActivations(folder).activations(RESID, 0)[: len(held)]
    assert not torch.equal(held, exact)
    torch.testing.assert_close(held, exact, rtol=0.1, atol=0.1)
    with pytest.raises(DataError, match="autocast_lm: True there, False now"):
        cache_activations(config, tmp_path / "cast")


def test_a_manifest_from_before_autocast_says_float32(copy: Path) -> None:
    file = copy / "manifest.json"
    made = json.loads(file.read_text())
    del made["autocast_lm"]
    file.write_text(json.dumps(made))
    assert not CachedActivations(copy).manifest.autocast_lm


def test_an_epoch_has_every_token_once_in_an_order_of_its_seed(folder: Path) -> None:
    cache = CachedActivations(folder)
    size = 31  # 65 batches are an epoch

    def epoch(seed: int, start: int = 0, mixed_rows: int = 16) -> torch.Tensor:
        found = cache.batches([RESID], size, seed=seed, start=start, mixed_rows=mixed_rows)
        return torch.cat([batch[RESID] for batch in islice(found, 65)])

    every = torch.cat([cache.activations(RESID, i) for i in range(9)])
    first, again, other = epoch(1), epoch(1), epoch(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, epoch(1, start=cache.n_tokens))  # the next epoch's own order
    for found in (first, other, epoch(1, mixed_rows=1000)):
        assert torch.equal(found.sort(dim=0).values, every.sort(dim=0).values)


@pytest.mark.parametrize("start", [0, 31, 31 * 40, 31 * 70])
def test_reading_goes_on_at_any_token_with_hooks_aligned(folder: Path, start: int) -> None:
    cache = CachedActivations(folder)
    options = {"size": 31, "seed": 1, "mixed_rows": 16}
    through = islice(cache.batches([RESID, HEADS], **options), start // 31, start // 31 + 9)
    resumed = cache.batches([HEADS, RESID], start=start, **options)
    for one, other in zip(through, resumed, strict=False):
        assert torch.equal(one[RESID], other[RESID])
        assert torch.equal(one[HEADS], other[HEADS])
    pairs = {
        tuple(x.tolist()): y
        for i in range(9)
        for x, y in zip(cache.activations(RESID, i), cache.activations(HEADS, i), strict=True)
    }
    batch = next(cache.batches([RESID, HEADS], **options))
    for x, y in zip(batch[RESID], batch[HEADS], strict=True):
        assert torch.equal(pairs[tuple(x.tolist())], y)


# Writes a cache and kills itself, for real, before or after a shard is noted.
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch; torch.set_num_threads(1)
from sae_lens_bipolar.inputs import caching
config = caching.CacheConfig(hooks=tuple(sys.argv[5:]), model=sys.argv[3], corpus=sys.argv[4],
    tokens=2000, held_out=10, context_size=32, batch_size=4, shard_rows=8, seed=5)
write = caching.write_json
def noted(path, value):
    n = len(value["shards"])
    if n == 3: os.kill(os.getpid(), signal.SIGKILL)
    write(path, value)
caching.write_json = noted
caching.cache_activations(config, Path(sys.argv[2]))
"""


def test_killed_and_resumed_it_has_the_same_bytes(
    folder: Path, config: CacheConfig, tmp_path: Path
) -> None:
    target = tmp_path / "killed"
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(Path(__file__).parents[2])]
    arguments = [str(target), config.model, config.corpus, *config.hooks]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env={**os.environ}, timeout=300
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    with pytest.raises(DataError, match="unfinished: 16 of 65 rows"):
        CachedActivations(target)
    cache_activations(config, target)
    assert files(target) == files(folder)


def test_a_finished_cache_is_not_made_again_and_another_is_refused(
    folder: Path, config: CacheConfig
) -> None:
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    cache_activations(config, folder)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")} == before
    with pytest.raises(DataError, match="dtype: 'float32' there, 'bfloat16' now"):
        cache_activations(replace(config, dtype="bfloat16"), folder)


def test_a_flipped_byte_is_refused_by_name(copy: Path) -> None:
    file = copy / RESID / "00004.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    cache = CachedActivations(copy)
    assert cache.activations(RESID, 3).shape == (8 * 31, 32)
    with pytest.raises(DataError, match=r"00004\.safetensors .* a byte changed .* make the cache"):
        cache.activations(RESID, 4)
    with pytest.raises(DataError, match=r"00004\.safetensors"):
        for _ in islice(cache.batches([RESID], 31, seed=0), 65):
            pass


def test_a_shortened_or_missing_shard_is_refused_by_name(copy: Path) -> None:
    file = copy / HEADS / "00002.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(DataError, match=r"hook_z/00002\.safetensors .* bytes and not .* anew"):
        CachedActivations(copy)
    file.unlink()
    with pytest.raises(DataError, match=r"hook_z/00002\.safetensors .* is missing"):
        CachedActivations(copy)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1}', '{"format": 9, "shards": []}'])
def test_a_damaged_manifest_is_refused(copy: Path, content: str) -> None:
    (copy / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest|another version"):
        CachedActivations(copy)


def test_no_cache_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no manifest\.json"):
        CachedActivations(tmp_path)


def test_another_model_text_or_hook_is_refused(
    folder: Path, config: CacheConfig, tiny_model: HookedTransformer, tmp_path: Path
) -> None:
    cache = CachedActivations(folder)
    cache.require_model(tiny_model, "tiny")
    changed = load_model(config.model)
    changed.blocks[1].mlp.W_in.data[0, 0] += 1e-6  # type: ignore[union-attr,operator]
    with pytest.raises(ModelError, match=r"made with another model: with '.*gpt2'"):
        cache.require_model(changed, "changed")
    text = Path(config.corpus).read_text()
    (tmp_path / "other.jsonl").write_text(text.replace("sparrow", "swallow"))
    other = split_as(cache.manifest, str(tmp_path / "other.jsonl"), tiny_model)
    with pytest.raises(DataError, match="made of another text"):
        cache.require_text(other, "other")
    cache.require_text(split_as(cache.manifest, config.corpus, tiny_model), config.corpus)
    with pytest.raises(ConfigError, match=r"hook_resid_pst.* did you mean 'blocks\.1"):
        cache.require_hooks(["blocks.1.hook_resid_pst"])


def test_too_little_text_and_impossible_options(config: CacheConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"need .* give more text"):
        cache_activations(replace(config, tokens=10**6), tmp_path / "much")
    assert not (tmp_path / "much").exists()
    with pytest.raises(ConfigError, match="shard_rows=6"):
        replace(config, shard_rows=6)
    with pytest.raises(ConfigError, match="hooks is empty"):
        replace(config, hooks=())
    with pytest.raises(ConfigError, match="context_size=1000"):
        cache_activations(replace(config, context_size=1000), tmp_path / "long")
