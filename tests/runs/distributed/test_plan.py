"""The plan of a run: by hand, and against the memory and the traffic of real ranks."""

import ctypes
import gc
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_lens_bipolar.architectures.abstopk import AbsTopKTrainingSAEConfig
from sae_lens_bipolar.cli.main import main
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.inputs.sizes import parameters_of
from sae_lens_bipolar.runs.distributed.plan import Plan, table
from sae_lens_bipolar.runs.distributed.ranks import Ranks
from sae_lens_bipolar.runs.distributed.sharding import shard
from tests.runs.distributed.gloo import on_ranks
from tests.runs.distributed.training import make_trainer


def test_memory_traffic_and_bounds_by_hand() -> None:
    plan = Plan(d_in=10, d_sae=1001, devices=4, k=3, batch=100, buffer=50, dead=0.5)
    assert plan.width == 251
    assert plan.sae_bytes == 2 * 10 * 251 * 4
    assert plan.training_bytes == 4 * plan.sae_bytes
    assert plan.buffer_bytes == 2 * 50 * 10 * 4
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
    plan = Plan(d_in=2304, d_sae=1_048_576, devices=12, buffer=1024)  # 72 GiB with Adam
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


def kib(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def memory_of_training(ranks: Ranks, d_in: int, d_sae: int) -> int:
    """Bytes of a rank's latents with gradients and Adam, at the peak of two steps."""
    x = torch.randn(32, d_in, generator=torch.Generator().manual_seed(0))
    for size in (8_192, d_sae):  # the first loads what torch and numba load when they are used
        trainer = make_trainer(AbsTopKTrainingSAEConfig(d_in=d_in, d_sae=size, k=8), steps=3)
        shard(trainer, ranks)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        own = sum(p.to_local().nbytes for p in trainer.sae.parameters())
        before = kib("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
        for _ in range(2):
            trainer.step(x)
    return (kib("VmHWM") - before) * 1024 + own


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts the peak")
@pytest.mark.parametrize("d_sae", [32_768, 65_536, 131_072])
def test_memory_is_as_planned(tmp_path, d_sae) -> None:
    planned = Plan(d_in=256, d_sae=d_sae, devices=2).training_bytes
    for found in on_ranks(2, memory_of_training, tmp_path, 256, d_sae):
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
                gib = [plan.training_bytes, plan.device_bytes]
                mb = sum(plan.traffic().values()) / 1e6
                bounds = plan.tokens_per_second()
                least = min(bounds, key=bounds.__getitem__)
                rows.append(
                    f"| {model} | {d_sae:,} | {devices} | {gib[0] / 2**30:.1f} | "
                    f"{gib[1] / 2**30:.1f} | {'yes' if plan.fits else 'no'} | {mb:.0f} | "
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
