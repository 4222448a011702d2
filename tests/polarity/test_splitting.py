import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.saes.abstopk_sae import AbsTopKTrainingSAE as StockAbsTopKTrainingSAE
from sae_lens.saes.abstopk_sae import AbsTopKTrainingSAEConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.gated_sae import GatedTrainingSAE, GatedTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE
from sae_lens.saes.sae import SAE, SAEConfig, SAEMetadata, TrainingSAE
from sae_lens.saes.temporal_sae import TemporalSAE, TemporalSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKTrainingSAE, TopKTrainingSAEConfig
from safetensors.torch import save_file

from sae_lens_bipolar.architectures.abstopk import AbsTopKTrainingSAE
from sae_lens_bipolar.architectures.batch_abstopk import (
    BatchAbsTopKTrainingSAE,
    BatchAbsTopKTrainingSAEConfig,
    MatryoshkaBatchAbsTopKTrainingSAE,
    MatryoshkaBatchAbsTopKTrainingSAEConfig,
)
from sae_lens_bipolar.architectures.bi_jumprelu import (
    BiJumpReLUTrainingSAE,
    BiJumpReLUTrainingSAEConfig,
)
from sae_lens_bipolar.architectures.bi_topk import (
    BiTopKTrainingSAE,
    BiTopKTrainingSAEConfig,
)
from sae_lens_bipolar.architectures.registry import ARCHITECTURES, find
from sae_lens_bipolar.architectures.sign_aware_gated import (
    SignAwareGatedTrainingSAE,
    SignAwareGatedTrainingSAEConfig,
)
from sae_lens_bipolar.architectures.unrolled_abstopk import (
    UnrolledAbsTopKSAE,
    UnrolledAbsTopKSAEConfig,
)
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.polarity.splitting import (
    inference_form,
    is_signed,
    signed_latents,
    split,
    split_latents,
)
from tests.architectures.family import randomise
from tests.signed_saes import D_IN, D_SAE, SIGNED, signed_sae

NORMALIZATIONS = (
    "none",
    "expected_average_only_in",
    "constant_norm_rescale",
    "layer_norm",
    "covariance_whitening",
)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def draw(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@torch.no_grad()
def check_twin(sae: SAE[Any], twin: SAE[Any], x: torch.Tensor) -> None:
    """Same support, values and reconstructions; `sae` for inference, `twin` its split."""
    z, acts = sae.encode(x), twin.encode(x)
    tolerance = TOLERANCE[sae.dtype]
    torch.testing.assert_close(signed_latents(acts), z, rtol=tolerance, atol=tolerance)
    if "bi_topk" not in sae.cfg.architecture():  # which may keep both sides of a latent
        torch.testing.assert_close(acts, split_latents(z), rtol=tolerance, atol=tolerance)
        assert torch.equal(acts > 0, split_latents(z) > 0)
    assert acts.min() >= 0
    assert acts.max() > 0
    torch.testing.assert_close(
        twin.decode(acts), sae.decode(z), rtol=tolerance, atol=10 * tolerance
    )
    torch.testing.assert_close(twin(x), sae(x), rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize(
    ("name", "normalization", "apply_b_dec", "dtype"),
    product(SIGNED, NORMALIZATIONS, (True, False), ("float32", "float64")),
)
def test_the_split_is_exact(name, normalization, apply_b_dec, dtype):
    sae = signed_sae(
        name,
        dtype=dtype,
        normalize_activations=normalization,
        apply_b_dec_to_input=apply_b_dec,
        metadata=SAEMetadata(hook_name="blocks.0.hook_resid_post", nested={"a": [1]}),
    )
    twin = split(sae)
    check_twin(sae, twin, draw(64, D_IN, dtype=sae.dtype))
    assert type(twin) in (TopKSAE, JumpReLUSAE)
    assert is_signed(sae) == ("one-sided" not in name)
    assert not is_signed(twin)
    assert twin.cfg.d_sae == 2 * D_SAE
    assert twin.W_dec.dtype == twin.dtype == sae.dtype
    assert twin.cfg.dtype == dtype
    assert twin.cfg.device == "cpu"
    assert twin.device == sae.device
    assert twin.cfg.normalize_activations == normalization
    assert twin.cfg.apply_b_dec_to_input == apply_b_dec
    assert twin.cfg.metadata.polarity_split_of == sae.cfg.architecture()
    assert twin.cfg.metadata.polarity_split_d_sae == D_SAE
    assert twin.cfg.metadata.hook_name == "blocks.0.hook_resid_post"


@pytest.mark.parametrize("name", SIGNED)
def test_a_split_shares_nothing_with_its_source(name):
    sae = signed_sae(name, metadata=SAEMetadata(nested={"a": [1]}))
    before = {key: value.clone() for key, value in sae.state_dict().items()}
    twin = split(sae)
    twin.cfg.metadata.nested["a"].append(2)
    for parameter in twin.parameters():
        assert parameter.requires_grad
        parameter.data.fill_(7.0)
    assert sae.cfg.metadata.nested == {"a": [1]}
    assert "polarity_split_of" not in sae.cfg.metadata
    assert sae.cfg.d_sae == D_SAE
    for key, value in sae.state_dict().items():
        assert torch.equal(value, before[key])


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(SIGNED)),
    seed=st.integers(0, 2**31),
    d_in=st.integers(1, 9),
    d_sae=st.integers(4, 40),
    scale=st.sampled_from([0.01, 1.0, 100.0]),
)
def test_the_split_is_exact_on_random_weights(name, seed, d_in, d_sae, scale):
    sae = signed_sae(name, seed, d_in=d_in, d_sae=d_sae, dtype="float64")
    twin = split(sae)
    x = scale * draw(32, d_in, seed=seed, dtype=torch.float64)
    with torch.no_grad():
        z, acts = sae.encode(x), twin.encode(x)
        tolerance = {"rtol": 1e-11, "atol": 1e-11 * scale}
        torch.testing.assert_close(signed_latents(acts), z, **tolerance)
        torch.testing.assert_close(twin(x), sae(x), rtol=1e-10, atol=1e-10 * scale)
        if "bi_topk" not in name:
            assert torch.equal(acts > 0, split_latents(z) > 0)


@pytest.mark.parametrize("name", SIGNED)
@pytest.mark.parametrize("shape", [(D_IN,), (0, D_IN), (3, 4, D_IN)], ids=str)
def test_any_number_of_leading_dimensions(name, shape):
    sae = signed_sae(name, dtype="float64")
    with torch.no_grad():
        x = draw(*shape, dtype=torch.float64)
        torch.testing.assert_close(signed_latents(split(sae).encode(x)), sae.encode(x))


@pytest.mark.parametrize("name", SIGNED)
def test_hook_z_is_reshaped_as_in_the_source(name):
    sae = signed_sae(
        name,
        dtype="float64",
        reshape_activations="hook_z",
        metadata=SAEMetadata(hook_name="blocks.0.attn.hook_z"),
    )
    twin = split(sae)
    x = draw(4, 5, 3, D_IN // 3, dtype=torch.float64)
    check_twin(sae, twin, x)
    assert twin(x).shape == x.shape

    sae.turn_off_forward_pass_hook_z_reshaping()
    check_twin(sae, split(sae), x.flatten(-2))


def test_both_sides_of_one_bi_topk_latent():
    sae: Any = signed_sae("bi_topk", dtype="float64", apply_b_dec_to_input=False)
    x = 0.01 * draw(16, D_IN, dtype=torch.float64)
    with torch.no_grad():
        sae.W_enc.data.mul_(0.1)
        sae.b_positive[0] = sae.b_negative[0] = 5.0
        twin = split(sae)
        acts = twin.encode(x)
        both = (acts[:, :D_SAE] > 0) & (acts[:, D_SAE:] > 0)
        assert both[:, 0].all()
        assert ((acts > 0).sum(-1) == 4).all()
        torch.testing.assert_close(signed_latents(acts), sae.encode(x))
        torch.testing.assert_close(twin(x), sae(x))


def test_gated_thresholds_by_hand():
    """exp(r) u + b against exp(r) theta + b, and the relu where that is negative."""
    sae: Any = signed_sae("sign_aware_gated none", d_in=1, d_sae=2, dtype="float64")
    log = torch.tensor([2.0, 3.0], dtype=torch.float64).log()
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 1.0]]))
        sae.b_dec.fill_(0.0)
        sae.log_threshold.copy_(torch.stack([log, log]))  # theta = 2, 3 on either side
        sae.log_gain.copy_(torch.stack([log, torch.zeros(2)]))  # gain 2, 3 and 1, 1
        sae.b_mag.copy_(torch.tensor([[1.0, -12.0], [-0.5, -4.0]]))
    twin = split(sae)
    expected = {
        "W_enc": [[2.0, 3.0, -1.0, -1.0]],
        "b_enc": [1.0, -12.0, -0.5, -4.0],
        "threshold": [5.0, 0.0, 1.5, 0.0],
    }
    for name, values in expected.items():
        wanted = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(getattr(twin, name).data, wanted)
    with torch.no_grad():
        acts = twin.encode(torch.tensor([[2.5], [5.0], [-3.5], [-5.0]], dtype=torch.float64))
    torch.testing.assert_close(
        acts,
        torch.tensor(
            [[6.0, 0, 0, 0], [11.0, 3.0, 0, 0], [0, 0, 3.0, 0], [0, 0, 4.5, 1.0]],
            dtype=torch.float64,
        ),
    )


@pytest.mark.parametrize("name", SIGNED)
def test_bfloat16_keeps_its_dtype(name):
    sae = signed_sae(name).to(torch.bfloat16)
    twin = split(sae)
    assert {parameter.dtype for parameter in twin.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        x = draw(64, D_IN).bfloat16()
        z, acts = sae.encode(x), twin.encode(x)
    if name.startswith(("abstopk", "unrolled")):  # equal but for ties, of which bfloat16 has many
        assert torch.equal(acts.sort(-1).values[:, -4:], z.abs().sort(-1).values[:, -4:])
        return
    folded = signed_latents(acts)
    same_side = folded.sign() == z.sign()
    assert same_side.float().mean() > 0.99  # rounding decides at a threshold
    torch.testing.assert_close(folded[same_side], z[same_side], rtol=2**-6, atol=2**-5)


# --- splitting, then what SAELens does with an SAE, is what it does, then splitting ---


@pytest.mark.parametrize(
    "name",
    # SAELens refuses where the selection is on unscaled activations.
    [name for name in SIGNED if name not in ("abstopk", "bi_topk", "unrolled_abstopk of one step")],
)
def test_folding_decoder_norms_commutes(name):
    sae = signed_sae(name, dtype="float64")
    twin = split(sae)
    sae.fold_W_dec_norm()
    twin.fold_W_dec_norm()
    check_twin(sae, twin, draw(32, D_IN, dtype=torch.float64))


@pytest.mark.parametrize("name", SIGNED)
def test_folding_the_input_scale_commutes(name):
    sae = signed_sae(name, dtype="float64", normalize_activations="expected_average_only_in")
    twin = split(sae)
    sae.fold_activation_norm_scaling_factor(3.0)
    twin.fold_activation_norm_scaling_factor(3.0)
    check_twin(sae, twin, draw(32, D_IN, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "apply_b_dec"),
    [
        (name, apply_b_dec)
        for name, apply_b_dec in product(SIGNED, (True, False))
        if apply_b_dec or not name.startswith("sign_aware_gated")  # which has no encoder bias
    ],
)
def test_folding_a_whitening_commutes(name, apply_b_dec):
    sae = signed_sae(
        name,
        dtype="float64",
        normalize_activations="covariance_whitening",
        apply_b_dec_to_input=apply_b_dec,
    )
    twin = split(sae)
    matrix = draw(D_IN, D_IN, seed=5, dtype=torch.float64) + 3 * torch.eye(D_IN)
    whitening = (draw(D_IN, seed=6, dtype=torch.float64), matrix, matrix.inverse())
    sae.fold_activation_whitening(*whitening)
    twin.fold_activation_whitening(*whitening)
    x = draw(32, D_IN, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(signed_latents(twin.encode(x)), sae.encode(x))
        torch.testing.assert_close(twin(x), sae(x))


# --- training SAEs ---

COMMON: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float64"}


TOP_K: dict[str, Any] = {"k": 4, **COMMON}
TRAINED: dict[str, Callable[[], TrainingSAE[Any]]] = {
    "stock abstopk": lambda: StockAbsTopKTrainingSAE(AbsTopKTrainingSAEConfig(**TOP_K)),
    "abstopk": lambda: AbsTopKTrainingSAE(AbsTopKTrainingSAEConfig(**TOP_K)),
    "abstopk, unscaled": lambda: AbsTopKTrainingSAE(
        AbsTopKTrainingSAEConfig(rescale_acts_by_decoder_norm=False, **TOP_K)
    ),
    "bi_topk": lambda: BiTopKTrainingSAE(BiTopKTrainingSAEConfig(**TOP_K)),
    "bi_jumprelu": lambda: BiJumpReLUTrainingSAE(BiJumpReLUTrainingSAEConfig(**COMMON)),
    "batch_abstopk": lambda: BatchAbsTopKTrainingSAE(BatchAbsTopKTrainingSAEConfig(**TOP_K)),
    "matryoshka_batch_abstopk": lambda: MatryoshkaBatchAbsTopKTrainingSAE(
        MatryoshkaBatchAbsTopKTrainingSAEConfig(matryoshka_widths=[8, D_SAE], **TOP_K)
    ),
    "sign_aware_gated": lambda: SignAwareGatedTrainingSAE(
        SignAwareGatedTrainingSAEConfig(symmetry="none", **COMMON)
    ),
}


def training_sae(name: str) -> TrainingSAE[Any]:
    return randomise(TRAINED[name]())


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_sae_is_split_as_saved_for_inference(name, tmp_path):
    sae: Any = training_sae(name)
    if hasattr(sae, "topk_threshold"):
        sae.topk_threshold.fill_(1.5)
    before = {key: value.clone() for key, value in sae.state_dict().items()}
    sae.save_inference_model(tmp_path)
    saved = SAE.load_from_disk(tmp_path)
    twin = split(sae)
    assert type(twin) in (TopKSAE, JumpReLUSAE)
    assert is_signed(sae)
    assert not is_signed(twin)
    assert twin.cfg.metadata.training_architecture == sae.cfg.architecture()
    check_twin(saved, twin, draw(64, D_IN, dtype=torch.float64))
    assert inference_form(sae).cfg.to_dict() == saved.cfg.to_dict()
    for key, value in sae.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", ["abstopk", "abstopk, unscaled", "bi_topk", "sign_aware_gated"])
def test_what_a_training_sae_encodes_is_what_its_split_encodes(name):
    sae = training_sae(name)
    x = draw(64, D_IN, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(signed_latents(split(sae).encode(x)), sae.encode(x))


def test_an_inference_class_nobody_registered(monkeypatch):
    monkeypatch.delitem(SAE_CLASS_REGISTRY, "bi_jumprelu")
    with pytest.raises(ConfigError, match=r"bi_jumprelu.*register\(\)"):
        split(training_sae("batch_abstopk"))


# --- what is non-negative already, and what has no split ---


@pytest.mark.parametrize(
    "architecture", ["standard", "topk", "jumprelu", "gated", "matching_pursuit"]
)
def test_a_non_negative_sae_is_its_own_split(architecture):
    sae_class, cfg_class = SAE_CLASS_REGISTRY[architecture]
    k: dict[str, Any] = {"k": 3} if architecture == "topk" else {}
    sae = sae_class(cfg_class(d_in=D_IN, d_sae=D_SAE, **k))
    assert split(sae) is sae
    assert not is_signed(sae)
    assert sae.encode(draw(50, D_IN)).min() >= 0


@pytest.mark.parametrize(
    "architecture",
    ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"],
)
def test_a_transcoder_is_its_own_split(architecture):
    sae_class, cfg_class = SAE_CLASS_REGISTRY[architecture]
    sae = sae_class(cfg_class(d_in=D_IN, d_sae=D_SAE, d_out=3, apply_b_dec_to_input=False))  # type: ignore[call-arg]
    assert split(sae) is sae
    assert not is_signed(sae)
    assert sae.encode(draw(50, D_IN)).min() >= 0


def test_a_temporal_sae_is_its_own_split():
    sae = TemporalSAE(TemporalSAEConfig(d_in=8, d_sae=64, n_heads=1, kval_topk=4))
    assert split(sae) is sae
    assert not is_signed(sae)
    assert sae.encode(draw(2, 5, 8)).min() >= 0


@pytest.mark.parametrize(
    ("sae_class", "cfg_class", "options"),
    [
        (TopKTrainingSAE, TopKTrainingSAEConfig, {"k": 4}),
        (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {"k": 4}),
        (GatedTrainingSAE, GatedTrainingSAEConfig, {}),
    ],
)
def test_a_non_negative_training_sae_gives_its_inference_form(
    sae_class, cfg_class, options, tmp_path
):
    sae = randomise(sae_class(cfg_class(**COMMON, **options)))
    sae.save_inference_model(tmp_path)  # type: ignore[attr-defined]
    saved = SAE.load_from_disk(tmp_path)
    twin = split(sae)
    assert type(twin) is type(saved)
    assert not is_signed(sae)
    x = draw(20, D_IN, dtype=torch.float64)
    assert torch.equal(twin.encode(x), saved.encode(x))


def test_every_registered_architecture_is_either_split_or_refused_by_name():
    """A new architecture has to state which it is: silence would pass signed latents as split."""
    signed = {name.split()[0] for name in SIGNED}
    for name in SAE_CLASS_REGISTRY:
        record = find(name)
        assert record.signed == (record.name in signed), name
        assert (record.sides is not None) == record.signed, name


def test_unrolled_abstopk_says_why_not():
    sae = UnrolledAbsTopKSAE(UnrolledAbsTopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=3, n_steps=2))
    with pytest.raises(ConfigError, match=r"n_steps=2.*one affine map"):
        split(sae)


@dataclass
class OtherSAEConfig(SAEConfig):
    @classmethod
    def architecture(cls) -> str:
        return "abstop"


class OtherSAE(SAE[Any]):
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.W_enc

    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        return feature_acts @ self.W_dec


@pytest.mark.parametrize("ask", [split, is_signed])
def test_an_unknown_architecture_is_never_taken_for_non_negative(ask):
    with pytest.raises(ConfigError, match=r"'abstop' has no record.*did you mean 'abstopk'"):
        ask(OtherSAE(OtherSAEConfig(d_in=2, d_sae=3)))


@pytest.mark.parametrize("ask", [split, is_signed])
def test_a_known_name_on_somebody_elses_class(ask):
    with pytest.raises(ConfigError, match=r"UnrolledAbsTopKSAE.*OtherSAE"):
        ask(OtherSAE(UnrolledAbsTopKSAEConfig(d_in=2, d_sae=3, k=1)))


def test_a_signed_architecture_whose_record_knows_no_split(monkeypatch):
    record = replace(find("bi_topk"), sides=None)
    monkeypatch.setitem(ARCHITECTURES, "bi_topk", record)
    with pytest.raises(ConfigError, match="'bi_topk': its record gives no `sides`"):
        split(signed_sae("bi_topk"))


def test_latents_there_and_back():
    z = draw(5, 3, D_SAE)
    assert torch.equal(signed_latents(split_latents(z)), z)
    assert split_latents(torch.tensor([1.0, -2.0, 0.0])).tolist() == [1.0, 0, 0, 0, 2.0, 0]
    with pytest.raises(ConfigError, match="even; got 3"):
        signed_latents(torch.zeros(2, 3))


# --- stock SAELens, without this package ---

STOCK = """
import sys
import torch
from safetensors.torch import load_file
from sae_lens import SAE

for directory in sys.argv[1:]:
    sae = SAE.load_from_disk(directory)
    data = load_file(directory + "/expected.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(data["x"]), data["acts"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sae(data["x"]), data["recons"], rtol=1e-5, atol=1e-5)
    assert sae.cfg.metadata.polarity_split_d_sae * 2 == sae.cfg.d_sae
    print(sae.cfg.architecture(), sae.cfg.metadata.polarity_split_of)
assert not [name for name in sys.modules if name.startswith("sae_lens_bipolar")]
"""


def test_a_saved_split_loads_without_this_package(tmp_path):
    names = ["abstopk rescaled", "bi_topk", "bi_jumprelu", "sign_aware_gated one-sided"]
    for index, name in enumerate(names):
        sae = signed_sae(name, normalize_activations="layer_norm")
        x = draw(16, D_IN)
        directory = tmp_path / str(index)
        split(sae).save_model(directory)
        with torch.no_grad():
            z = sae.encode(x)
            acts = split(sae).encode(x) if name == "bi_topk" else split_latents(z)
            expected = {"x": x, "acts": acts, "recons": sae.decode(z)}
        save_file(expected, directory / "expected.safetensors")
    directories = [str(tmp_path / str(index)) for index in range(len(names))]
    done = subprocess.run(
        [sys.executable, "-c", STOCK, *directories], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == [
        "topk abstopk",
        "topk bi_topk",
        "jumprelu bi_jumprelu",
        "jumprelu sign_aware_gated",
    ]
