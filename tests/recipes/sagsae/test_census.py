"""The census recipe: slopes and concentration by hand, parameters, and a tiny run end to end."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sae_lens import AbsTopKTrainingSAEConfig

from recipes.sagsae import census, census_verdicts, parameters
from sae_lens_bipolar.architectures.sign_aware_gated import SignAwareGatedTrainingSAEConfig
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.files.atomic import read_json
from sae_lens_bipolar.polarity.counting import Census
from sae_lens_bipolar.runs.sweep import SweepConfig, SweepSAE, run_sweep


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, tiny_model_dirs, tiny_text) -> Path:
    gated = partial(SignAwareGatedTrainingSAEConfig, d_sae=32, threshold_init_l0=6, l0_target=6)
    saes = {
        "gated.mlp": SweepSAE("blocks.1.hook_mlp_out", gated),
        "gated.attn": SweepSAE("blocks.1.hook_attn_out", gated),
        "top.mlp": SweepSAE(
            "blocks.1.hook_mlp_out", partial(AbsTopKTrainingSAEConfig, d_sae=32, k=4)
        ),
    }
    config = SweepConfig(
        model=str(tiny_model_dirs["gpt2"]),
        corpus=str(tiny_text),
        context_size=32,
        training_tokens=1600,
        train_batch_size_tokens=64,
        n_checkpoints=1,
        eval_sequences=8,
        loss_sequences=2,
        n_batches_in_buffer=16,
        seed=1,
    )
    path = tmp_path_factory.mktemp("runs") / "sweep"
    run_sweep(config, saes, path)
    return path


def write_scale(file: Path, **changes: Any) -> Path:
    scale = {
        "model": "nowhere",
        "corpus": "nowhere",
        "context_size": 16,
        "sequences": 8,
        "seed": 0,
        "min_count": 5,
        "d_ins": [32],
        "widths": [64],
        **changes,
    }
    file.write_text(yaml.safe_dump({"small": scale}))
    return file


def test_a_run_end_to_end(run_dir: Path, tmp_path: Path) -> None:
    config = write_scale(tmp_path / "c.yaml")
    output = tmp_path / "census"
    census.main([f"--config={config}", f"--output={output}", f"--run={run_dir}", "--names=gated*"])
    rows = {row["name"]: row for row in read_json(output / "results/census.json")}
    assert rows.keys() == {"gated.mlp", "gated.attn"}
    trained = {row["name"]: row for row in read_json(run_dir / "results/summary.json")}
    for name, row in rows.items():
        # The text and the split are the run's: the same tokens, the same counts.
        assert row["n_tokens"] == trained[name]["n_eval_tokens"]
        assert row["bipolar_fraction"] == pytest.approx(trained[name]["bipolar_fraction"])
        assert row["dead_fraction"] == pytest.approx(trained[name]["dead_fraction"])
        assert row["concentration"]["1.0"] == 1.0
        assert row["positive_slopes"]["n"] > 0
    for figure in ("concentration", "slopes", "break_even"):
        assert (output / f"report/{figure}.png").read_bytes()[:4] == b"\x89PNG"
        assert (output / f"report/{figure}.csv").read_text().count("\n") > 1
    assert len(read_json(output / "results/claims.json")) == 4


def test_a_checkpoint_by_its_path(
    run_dir: Path, tmp_path: Path, tiny_model_dirs, tiny_text
) -> None:
    config = write_scale(
        tmp_path / "c.yaml", model=str(tiny_model_dirs["gpt2"]), corpus=str(tiny_text)
    )
    source = f"--sae=mine={run_dir / 'checkpoints/top.mlp'}"
    census.main([f"--config={config}", f"--output={tmp_path / 'out'}", source])
    (row,) = read_json(tmp_path / "out/results/census.json")
    assert (row["name"], row["architecture"]) == ("mine", "abstopk")


def test_no_saes_at_all(run_dir: Path, tmp_path: Path) -> None:
    config = write_scale(tmp_path / "c.yaml")
    more = [f"--run={run_dir}", "--names=nothing*"]
    with pytest.raises(ConfigError, match="no SAEs to count"):
        census.main([f"--config={config}", f"--output={tmp_path / 'out'}", *more])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--sae=mine"], "--sae 'mine'"), (["--run=nowhere"], "--run nowhere")],
)
def test_sources_that_are_not_allowed(arguments: list[str], message: str, tmp_path: Path) -> None:
    config = write_scale(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match=message):
        census.main([f"--config={config}", f"--output={tmp_path / 'out'}", *arguments])


def shrunk_sae(factor: float, normalize: str = "none") -> Any:
    """Three orthogonal decoder rows of norm 2; latents are `factor` times the true coefficients."""
    W_dec = 2 * torch.eye(3, 5)
    cfg = SimpleNamespace(d_sae=3, normalize_activations=normalize)
    return SimpleNamespace(cfg=cfg, W_dec=W_dec, decode=lambda z: z @ W_dec, factor=factor)


@pytest.mark.parametrize("factor", [1.0, 0.8])
def test_slopes_are_one_where_calibrated_and_undo_shrinkage(factor: float) -> None:
    sae = shrunk_sae(factor)
    true = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    true[:, 2] = true[:, 2].clamp(min=0)
    counted = census.Calibration(sae)
    for rows in true.split(64):
        counted.add(rows @ sae.W_dec, factor * rows)
    slopes = counted.result(min_count=10)
    assert slopes["positive"] == pytest.approx([1 / factor] * 3)
    assert slopes["negative"] == pytest.approx([1 / factor] * 2)  # the third never fires there
    assert counted.result(min_count=1000) == {"positive": [], "negative": []}


def test_each_side_has_its_own_slope() -> None:
    sae = shrunk_sae(1.0)
    true = torch.randn(100, 3, generator=torch.Generator().manual_seed(1))
    counted = census.Calibration(sae)
    counted.add(true @ sae.W_dec, torch.where(true > 0, true, 0.5 * true))
    slopes = counted.result(min_count=5)
    assert slopes["positive"] == pytest.approx([1.0] * 3)
    assert slopes["negative"] == pytest.approx([2.0] * 3)


def test_run_time_normalisation_is_refused() -> None:
    with pytest.raises(ConfigError, match="layer_norm"):
        census.Calibration(shrunk_sae(1.0, "layer_norm"))


def test_lorenz_curve() -> None:
    even, one = (
        census_verdicts.lorenz(np.ones(10)),
        census_verdicts.lorenz(np.array([1.0] + [0.0] * 9)),
    )
    assert even == pytest.approx(census_verdicts.SHARES)
    assert one[0] == 0
    assert one[5] == 1.0  # a tenth of the latents holds everything
    assert census_verdicts.lorenz(np.zeros(4)).tolist() == [0.0] * len(census_verdicts.SHARES)
    assert census_verdicts.lorenz(np.zeros(0)).tolist() == [0.0] * len(census_verdicts.SHARES)


def counted_by_hand(hook: str = "blocks.1.hook_mlp_out") -> dict[str, Any]:
    """Four latents: even on both sides, mostly positive, positive only, dead."""
    census = Census(
        n_tokens=100,
        positive_count=torch.tensor([10, 10, 10, 0]),
        negative_count=torch.tensor([10, 1, 0, 0]),
        positive_mean=torch.tensor([1.0, 1.0, 1.0, 0.0]).double(),
        negative_mean=torch.tensor([1.0, 1.0, 0.0, 0.0]).double(),
        positive_max=torch.ones(4).double(),
        negative_max=torch.ones(4).double(),
    )
    where = {"hook_name": hook, "model": "m", "d_in": 5, "d_sae": 4, "seed": 0}
    slopes = {"positive": [0.9, 1.0, 1.1], "negative": [1.0]}
    name = {"name": "x", "architecture": "sign_aware_gated"}
    return {**name, **where, "census": census.to_dict(), "slopes": slopes}


def test_summary_by_hand() -> None:
    row = census_verdicts.summarise(counted_by_hand())
    assert row["dead_fraction"] == 0.25
    assert row["bipolar_fraction"] == pytest.approx(2 / 3)
    # Smaller sides 0.10, 0.01, 0 of a total mass of 0.41.
    assert row["two_sided_share_of_mass"] == pytest.approx(2 * 0.11 / 0.41)
    assert row["concentration"]["1.0"] == pytest.approx(1.0)
    assert row["positive_slopes"]["q0.5"] == 1.0


def test_seeds_of_an_sae_are_drawn_alike_and_named_once() -> None:
    names = ("a@seed0", "b@seed0", "a@seed1", "b@seed1")
    looks = census_verdicts.looks([{"name": name} for name in names], str.upper)
    assert [look.pop("label", None) for look in looks] == ["A", "B", None, None]
    assert looks[:2] == looks[2:]
    assert looks[0] != looks[1]


def test_changing_a_summary_changes_the_verdict() -> None:
    row = census_verdicts.summarise(counted_by_hand())

    def outcome(words: str, seeds: int = 3) -> str:
        rows = [{**row, "name": f"x@seed{seed}", "seed": seed} for seed in range(seeds)]
        (claim,) = [c for c in census_verdicts.claims(rows, []) if words in c.claim]
        return claim.verdict

    assert outcome("fire on both sides") == "holds"
    assert outcome("fire on both sides", seeds=1) == "undecided"
    assert outcome("free of shrinkage") == "holds"
    assert outcome("on attention outputs") == "not run at this scale"
    assert outcome("pays in parameters") == "not run at this scale"
    row["bipolar_fraction"], row["negative_slopes"]["q0.5"] = 0.4, 1.3
    assert outcome("fire on both sides") == "does not hold"
    assert outcome("free of shrinkage") == "does not hold"


def test_parameters_of_each_kind() -> None:
    d, p = 6, 10
    matrices = 2 * d * p + d  # W_enc, W_dec, b_dec
    assert parameters.n_parameters("Gated", d, p) == matrices + 3 * p
    assert parameters.n_parameters("SA-GSAE, all tied", d, p) == matrices + 3 * p
    assert parameters.n_parameters("SA-GSAE, gain tied", d, p) == matrices + 5 * p
    assert parameters.n_parameters("SA-GSAE, untied", d, p) == matrices + 6 * p
    assert parameters.n_parameters("TopK", d, p) == matrices + p


def test_break_even_is_where_the_parameters_are_equal() -> None:
    d = 6
    assert parameters.break_even("SA-GSAE, all tied", d) == 0
    q = parameters.break_even("SA-GSAE, untied", d)
    directions = 1000
    signed = directions * (1 - q / 2) * parameters.latent_cost("SA-GSAE, untied", d)
    assert signed == pytest.approx(directions * parameters.latent_cost("Gated", d))
