"""The plan of a run: by hand, and against the memory and the traffic of real ranks."""

from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from sae_lens_bipolar import ARCHITECTURES, sparse
from sae_lens_bipolar.architectures.abstopk import AbsTopKTrainingSAEConfig
from sae_lens_bipolar.architectures.training.on_pairs import TrainsOnPairs
from sae_lens_bipolar.cli.main import main
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.inputs.sizes import parameters_of
from sae_lens_bipolar.runs.distributed import plan as plans
from sae_lens_bipolar.runs.distributed.plan import Plan, table
from sae_lens_bipolar.runs.distributed.ranks import Ranks
from sae_lens_bipolar.runs.distributed.sharding import shard
from sae_lens_bipolar.sparse import projection
from tests.runs.distributed.gloo import on_ranks
from tests.runs.distributed.training import make_trainer


def test_memory_traffic_and_bounds_by_hand() -> None:
    plan = Plan(d_in=10, d_sae=1001, devices=4, k=3, batch=100, buffer=50, dead=0.5)
    assert plan.width == 251
    assert plan.sae_bytes == 2 * 10 * 251 * 4
    assert plan.training_bytes == 4 * plan.sae_bytes
    assert plan.buffer_bytes == 2 * 50 * 10 * 4
    assert plan.step_bytes == int(9.5 * 100 * 251 * 4)  # 7.2, and 2.3 with dead latents
    assert replace(plan, dead=0.0).step_bytes == int(7.2 * 100 * 251 * 4)
    pairs = replace(plan, arithmetic="sparse", llm_parameters=6.0)
    assert pairs.step_bytes == 2 * 100 * 251 * 4
    assert replace(pairs, batch=4096, d_sae=80_000).step_bytes == 2 * 512 * 14_336 * 4
    assert replace(pairs, architecture="bi_topk").step_bytes == int(16.9 * 100 * 251 * 4)
    assert pairs.device_bytes == 4 * 20_080 + 200_800 + 4_000 + 12
    # Received in a step: three other ranks' parts, and twice three quarters of what is added up.
    assert plan.traffic() == {
        "activations": 100 * 10 * 4 / 4 * 3,
        "reconstructions": 100 * 10 * 4 * 1.5,
        "k values": 100 * 3 * 4 * 3,
        "AuxK values": 100 * 5 * 4 * 3,
        "AuxK reconstruction": 100 * 10 * 4 * 1.5,
    }
    model = replace(plan, llm_parameters=1e9, llm_share=0.5, llm_tflops=2, tflops=1, gigabytes=3)
    assert model.tokens_per_second() == {
        "SAE": 1e12 / (2 * 10 * 251),
        "language model": 2e12 / (2 * 0.5e9 / 4),
        "traffic": 3e9 / (sum(plan.traffic().values()) / 100),
    }
    assert "traffic" not in replace(plan, devices=1).tokens_per_second()


def test_the_cheapest_layout_is_the_smallest_that_fits() -> None:
    plan = Plan(d_in=2304, d_sae=1_048_576, devices=12, buffer=1024, batch=64)  # 72 GiB with Adam
    assert [layout.devices for layout in plan.layouts()] == [1, 2, 4, 8, 12]
    cheapest = plan.cheapest()
    assert cheapest is not None
    assert cheapest.devices == 2
    assert replace(plan, memory=4.0).cheapest() is None
    assert "no layout of up to 12 devices fits" in table(replace(plan, memory=4.0))


@pytest.mark.parametrize(
    ("field", "value"), [("d_in", 0), ("devices", 0), ("architecture", "gated"), ("dead", 2.0)]
)
def test_what_cannot_be_planned_is_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{field}="):
        Plan(**{"d_in": 8, "d_sae": 64, field: value})  # type: ignore[arg-type]


def test_the_command_takes_a_model_s_sizes_from_its_configuration(capsys) -> None:
    words = ["--model", "gemma-2-2b", "--layer", "12", "--d-sae", "131072", "--devices", "2"]
    assert main(["plan", *words]) == 0
    said = capsys.readouterr().out
    assert said.startswith("abstopk, d_in 2304, d_sae 131072, 4096 tokens per step")
    assert "cheapest layout that fits: 1 device\n" in said
    assert main(["plan", "--d-sae", "64"]) == 2
    assert "d_in is missing: give --d-in, or --model" in capsys.readouterr().err
    assert main(["plan", "--model", "gemma-2-2b", "--layer", "26", "--d-sae", "64"]) == 2
    assert "layer=26 is not allowed" in capsys.readouterr().err


def memory_of_training(ranks: Ranks, plan: Plan) -> int:
    """Bytes of a rank's latents with gradients, Adam and a step: what torch holds at the peak."""
    x = torch.randn(plan.batch, plan.d_in, generator=torch.Generator().manual_seed(0))
    cfg = AbsTopKTrainingSAEConfig(d_in=plan.d_in, d_sae=plan.d_sae, k=plan.k)
    trainer = make_trainer(cfg, steps=3)
    shard(trainer, ranks)
    with sparse.mode(plan.arithmetic):  # type: ignore[arg-type]
        trainer.step(x)  # makes Adam's moments
        state = [t for of_one in trainer.optimizer.state.values() for t in of_one.values()]
        kept = [*trainer.sae.parameters(), *(t for t in state if t.ndim)]
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            trainer.step(x)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    events.sort(key=lambda e: e.start_ns())
    in_order = (e.nbytes() for e in events)  # type: ignore[attr-defined]
    return sum(t.to_local().nbytes for t in kept) + max(accumulate(in_order))  # type: ignore[attr-defined]


PLANS = [
    *(Plan(d_in=256, d_sae=n, batch=32, arithmetic="sparse") for n in (32_768, 65_536, 131_072)),
    *(Plan(d_in=128, d_sae=n, batch=256) for n in (16_384, 32_768, 65_536)),
]


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.arithmetic}-{plan.d_sae}")
def test_memory_is_as_planned(tmp_path, plan) -> None:
    plan = replace(plan, k=8, devices=2)
    planned = plan.training_bytes + plan.step_bytes
    for found in on_ranks(2, memory_of_training, tmp_path, plan):
        print(f"{plan.arithmetic} {plan.d_sae}: {found / 2**20:.1f} MiB, {found / planned:.3f}")
        assert found == pytest.approx(planned, rel=0.1), found / planned


def loopback_bytes() -> int:
    line = next(x for x in Path("/proc/net/dev").read_text().splitlines() if "lo:" in x)
    return int(line.split(":")[1].split()[0])


def traffic_of_training(ranks: Ranks, d_in: int, d_sae: int, batch: int, k: int) -> dict[str, Any]:
    """Bytes per step that went over the loopback, and that a rank's collectives say it gave."""
    trainer = make_trainer(AbsTopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=k), 12, window=99)
    shard(trainer, ranks)
    x = torch.randn(batch, d_in, generator=torch.Generator().manual_seed(1))
    start = 0
    for step in range(12):
        if step == 2:  # the first steps also connect the ranks
            ranks.total_of(0)
            start = loopback_bytes()
        own = ranks.own(batch)
        trainer.step(ranks.gather_uneven(x[own], 0, batch))
        trainer.n_training_steps += 1
    ranks.total_of(0)
    return {"loopback": (loopback_bytes() - start) / 10}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net/dev").exists(), reason="Linux counts bytes")
@pytest.mark.parametrize("size", [2, 3])
def test_traffic_is_as_planned_and_does_not_grow_with_d_sae(tmp_path, monkeypatch, size) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    found = {}
    for d_sae in (512, 4096):
        ranks = on_ranks(size, traffic_of_training, tmp_path / str(d_sae), 128, d_sae, 1024, 32)
        found[d_sae] = ranks[0]["loopback"]
        plan = Plan(d_in=128, d_sae=d_sae, devices=size, batch=1024, k=32)
        planned = size * sum(plan.traffic().values())
        print(f"{size} ranks, {d_sae}: {found[d_sae]:.0f} bytes, {found[d_sae] / planned:.3f}")
        assert found[d_sae] == pytest.approx(planned, rel=0.1), found[d_sae] / planned
    assert found[4096] == pytest.approx(found[512], rel=0.03)


# Width, parameters and the share of them up to the hook, as `plan --model NAME --layer N` has them.
MODELS = {
    "gemma-2-2b, layer 12": (2304, 3_203_923_968, 13 * 77_856_768 / 3_203_923_968),
    "gemma-2-9b, layer 20": (3584, 10_158_604_288, 21 * 198_180_864 / 10_158_604_288),
}


def documented() -> list[str]:
    """The rows of the tables in docs/devices.md."""
    rows = []
    for model, (d_in, parameters, share) in MODELS.items():
        for d_sae in (131_072, 262_144, 1_048_576):
            for devices in (1, 2, 8):
                plan = Plan(
                    d_in=d_in,
                    d_sae=d_sae,
                    devices=devices,
                    llm_parameters=parameters,
                    llm_share=share,
                )
                sizes = (plan.training_bytes, plan.step_bytes, plan.device_bytes)
                gib = " | ".join(f"{size / 2**30:.1f}" for size in sizes)
                mb = sum(plan.traffic().values()) / 1e6
                bounds = plan.tokens_per_second()
                least = min(bounds, key=bounds.__getitem__)
                rows.append(
                    f"| {model} | {d_sae:,} | {devices} | {gib} | "
                    f"{'yes' if plan.fits else 'no'} | {mb:.0f} | "
                    f"{bounds[least]:,.0f} ({least}) |"
                )
    return rows


def test_the_documented_table_is_what_the_plan_says() -> None:
    page = (Path(__file__).parents[3] / "docs/devices.md").read_text(encoding="utf-8")
    assert [row for row in page.splitlines() if row.startswith("| gemma")] == documented()
    for model, (d_in, parameters, share) in MODELS.items():
        name, layer = model.split(", layer ")
        sizes = parameters_of(name)
        assert (sizes.d_model, sizes.parameters) == (d_in, parameters)
        assert sizes.share_until(int(layer)) == share


def test_plan_knows_what_trains_on_active_latents_and_in_which_tiles() -> None:
    """`plan` imports no torch, so it spells these out."""
    trained = {name: record.training for name, record in ARCHITECTURES.items()}
    on_pairs = {n for n, t in trained.items() if t is not None and issubclass(t[0], TrainsOnPairs)}
    assert set(plans._ON_PAIRS) == on_pairs
    assert projection._TILE["cpu"] == plans._TILE
