"""The step on active pairs equals SAELens's dense one, for both architectures that take it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.abstopk_sae import AbsTopKTrainingSAE as StockAbsTopK
from sae_lens.saes.abstopk_sae import AbsTopKTrainingSAEConfig
from sae_lens.saes.sae import SAEMetadata, TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import TopKTrainingSAE as StockTopK
from sae_lens.saes.topk_sae import TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from sae_lens_bipolar import sparse
from sae_lens_bipolar.architectures.abstopk import AbsTopKTrainingSAE
from sae_lens_bipolar.architectures.sparse_topk import (
    SparseTopKTrainingSAE,
    SparseTopKTrainingSAEConfig,
)
from sae_lens_bipolar.architectures.training.start import DataStartConfig
from sae_lens_bipolar.errors import ActivationError, ConfigError
from sae_lens_bipolar.sparse import projection
from sae_lens_bipolar.sparse.deferred import DeferredPreactivations, SparseLatents
from tests.architectures.family import step_input

D_IN, D_SAE, BATCH, N_HEADS = 16, 160, 37, 4
NORMALISATIONS = [
    "none",
    "expected_average_only_in",
    "constant_norm_rescale",
    "layer_norm",
    "covariance_whitening",
]
# name -> ours, its config, SAELens's, its config
PAIRS: dict[str, tuple[Any, Any, Any, Any]] = {
    "abstopk": (
        AbsTopKTrainingSAE,
        AbsTopKTrainingSAEConfig,
        StockAbsTopK,
        AbsTopKTrainingSAEConfig,
    ),
    "topk": (
        SparseTopKTrainingSAE,
        SparseTopKTrainingSAEConfig,
        StockTopK,
        TopKTrainingSAEConfig,
    ),
}
both = pytest.mark.parametrize("pair", PAIRS)


@pytest.fixture(autouse=True)
def _tiles_that_divide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "_TILE", {"cpu": (16, 64)})


def make(pair: str, **options: Any) -> tuple[Any, Any]:
    """Ours and SAELens's, with the same random parameters."""
    ours_class, ours_config, stock_class, stock_config = PAIRS[pair]
    options = {"d_in": D_IN, "d_sae": D_SAE, "k": 5, **options}

    def metadata() -> SAEMetadata:
        return SAEMetadata(hook_name="blocks.1.attn.hook_z")

    stock = stock_class(stock_config(**options, metadata=metadata()))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    ours = ours_class(ours_config(**options, metadata=metadata()))
    ours.load_state_dict(stock.state_dict())
    return ours, stock


def inputs(*shape: int, seed: int = 1) -> torch.Tensor:
    return (
        torch.randn(*(shape or (BATCH, D_IN)), generator=torch.Generator().manual_seed(seed)) + 0.2
    )


def dead_mask(n_dead: int) -> torch.Tensor:
    mask = torch.zeros(D_SAE, dtype=torch.bool)
    mask[torch.randperm(D_SAE, generator=torch.Generator().manual_seed(2))[:n_dead]] = True
    return mask


def run(
    sae: Any, x: torch.Tensor, dead: torch.Tensor | None = None, step: int = 0
) -> TrainStepOutput:
    """One forward and backward pass."""
    sae.zero_grad()
    output = sae.training_forward_pass(step_input(x, dead, step))
    output.loss.backward()
    return output


def forward(sae: Any, x: torch.Tensor) -> TrainStepOutput:
    """One forward pass, on pairs where the SAE has such a step."""
    with sparse.mode("sparse"):
        return sae.training_forward_pass(step_input(x))


def assert_same_step(
    ours: Any,
    stock: Any,
    x: torch.Tensor,
    dead: torch.Tensor | None = None,
    tolerance: float = 1e-5,
    mode: sparse.Mode = "sparse",
) -> TrainStepOutput:
    """Losses and gradients agree within `tolerance`, relative to their norm."""
    with sparse.mode(mode):
        actual = run(ours, x, dead)
    expected = run(stock, x, dead)
    assert isinstance(actual.feature_acts, SparseLatents)
    assert isinstance(actual.hidden_pre, DeferredPreactivations)
    assert actual.losses.keys() == expected.losses.keys()
    pairs = {name: (actual.losses[name], expected.losses[name]) for name in expected.losses}
    pairs |= {"loss": (actual.loss, expected.loss), "sae_out": (actual.sae_out, expected.sae_out)}
    pairs |= {"latents": (actual.feature_acts.to_dense(), expected.feature_acts.to_dense())}
    pairs |= {"hidden_pre": (actual.hidden_pre + 0, expected.hidden_pre)}
    for (name, p), q in zip(ours.named_parameters(), stock.parameters(), strict=True):
        pairs[f"gradient of {name}"] = (p.grad, q.grad)
    for name, (a, b) in pairs.items():
        assert a.dtype == b.dtype, name
        error, size = (a - b).double().norm(), b.double().norm()
        assert error <= tolerance * size, f"{name}: {error} of {size}"
    return actual


@both
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("apply_b_dec", [True, False])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("hook_z", [False, True])
@pytest.mark.parametrize("k", [1, 5, D_SAE])
def test_equals_sae_lens(
    pair: str, rescale: bool, apply_b_dec: bool, normalisation: str, hook_z: bool, k: int
) -> None:
    ours, stock = make(
        pair,
        k=k,
        rescale_acts_by_decoder_norm=rescale,
        apply_b_dec_to_input=apply_b_dec,
        normalize_activations=normalisation,
        reshape_activations="hook_z" if hook_z else "none",
    )
    x = inputs(BATCH, N_HEADS, D_IN // N_HEADS) if hook_z else inputs()
    if hook_z:
        ours.turn_on_forward_pass_hook_z_reshaping()
        stock.turn_on_forward_pass_hook_z_reshaping()
    # With d_in / 2 = 8 latents in the auxiliary loss: none dead, fewer, more, all.
    for n_dead in (0, 5, 50, D_SAE):
        if n_dead and normalisation in ("constant_norm_rescale", "layer_norm"):
            for sae in (ours, stock):
                with pytest.raises(ValueError, match="does not support activation normalization"):
                    run(sae, x, dead_mask(n_dead))
            # SAELens leaves the statistics of the refused batch behind.
            ours, stock = copy.deepcopy(ours), copy.deepcopy(stock)
        else:
            assert_same_step(ours, stock, x, dead_mask(n_dead))
    assert_same_step(ours, stock, x, None)


@both
@pytest.mark.parametrize("mode", ["auto", "sparse"])
def test_auxiliary_loss_dense_or_sparse(pair: str, mode: sparse.Mode) -> None:
    """8 of 150 dead latents are sparse by density, 8 of 20 dense."""
    ours, stock = make(pair, aux_loss_coefficient=0.3)
    for n_dead in (20, 150):
        with sparse.mode(mode):
            actual = run(ours, inputs(), dead_mask(n_dead))
        expected = run(stock, inputs(), dead_mask(n_dead))
        assert expected.losses["auxiliary_reconstruction_loss"] > 0
        assert_close(actual.losses, expected.losses, rtol=1e-5, atol=0)
        for p, q in zip(ours.parameters(), stock.parameters(), strict=True):
            assert (p.grad - q.grad).norm() <= 1e-5 * q.grad.norm()


@both
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("n_dead", [0, 50])
def test_equals_sae_lens_under_autocast(pair: str, rescale: bool, n_dead: int) -> None:
    ours, stock = make(pair, rescale_acts_by_decoder_norm=rescale)
    losses = []
    for sae, mode in ((ours, "sparse"), (stock, "auto")):
        with sparse.mode(mode), torch.autocast("cpu", dtype=torch.bfloat16):  # type: ignore[arg-type]
            output = sae.training_forward_pass(step_input(inputs(), dead_mask(n_dead)))
        output.loss.backward()
        losses.append(output.loss)
    assert_close(losses[0], losses[1], rtol=1e-2, atol=0)
    for p, q in zip(ours.parameters(), stock.parameters(), strict=True):
        assert p.grad.dtype == torch.float32
        assert (p.grad - q.grad).norm() <= 1e-2 * q.grad.norm()


@both
def test_gradients_through_what_the_step_returns(pair: str) -> None:
    """Losses that users build on the returned latents and pre-activations train the same."""

    def loss(output: TrainStepOutput) -> torch.Tensor:
        return output.feature_acts.pow(4).sum() + (output.hidden_pre.abs() + 1).log().sum()

    ours, stock = make(pair)
    for sae in (ours, stock):
        with sparse.mode("sparse"):
            output = sae.training_forward_pass(step_input(inputs()))
        loss(output).backward()
    for p, q in zip(ours.parameters(), stock.parameters(), strict=True):
        if q.grad is not None:
            assert (p.grad - q.grad).norm() <= 1e-5 * q.grad.norm()


@both
def test_gradient_of_the_input(pair: str) -> None:
    ours, stock = make(pair)
    grads = []
    for sae in (ours, stock):
        x = inputs().requires_grad_()
        with sparse.mode("sparse"):
            run(sae, x)
        grads.append(x.grad)
    assert (grads[0] - grads[1]).norm() <= 1e-5 * grads[1].norm()
    for p, q in zip(ours.parameters(), stock.parameters(), strict=True):
        assert (p.grad - q.grad).norm() <= 1e-5 * q.grad.norm()


HOOKS: dict[str, Callable[[Any, list[Any]], Any]] = {
    "pre, changed": lambda sae, seen: sae.hook_sae_acts_pre.add_hook(lambda t, hook: t * 1.5),
    "post, changed": lambda sae, seen: sae.hook_sae_acts_post.add_hook(lambda t, hook: t.abs()),
    "pre, watched": lambda sae, seen: sae.hook_sae_acts_pre.register_forward_hook(
        lambda module, args, out: seen.append(out.detach().clone())
    ),
    "post, gradient": lambda sae, seen: sae.hook_sae_acts_post.add_hook(
        lambda t, hook: seen.append(t.clone()), dir="bwd"
    ),
    "pre, forward pre-hook": lambda sae, seen: sae.hook_sae_acts_pre.register_forward_pre_hook(
        lambda module, args: (args[0] + 0.1,)
    ),
}


@both
@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_on_latents_get_sae_lens_tensors(pair: str, hook: str) -> None:
    ours, stock = make(pair)
    seen: tuple[list[Any], list[Any]] = ([], [])
    for sae, into in zip((ours, stock), seen, strict=True):
        HOOKS[hook](sae, into)
    with sparse.mode("sparse"):
        actual = run(ours, inputs())
    expected = run(stock, inputs())
    assert type(actual.feature_acts) is torch.Tensor
    assert_close(actual.loss, expected.loss, rtol=0, atol=0)
    assert_close(seen[0], seen[1], rtol=0, atol=0)
    for p, q in zip(ours.parameters(), stock.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


@both
def test_hooks_elsewhere_work_in_the_sparse_step(pair: str) -> None:
    ours, stock = make(pair)
    scale = nn.Parameter(torch.tensor(1.3))
    for sae in (ours, stock):
        sae.hook_sae_input.add_hook(lambda t, hook: t * scale)
        sae.hook_sae_recons.add_hook(lambda t, hook: t + 0.1)
    assert_same_step(ours, stock, inputs())


@both
def test_a_learned_hook_on_the_input_is_trained(pair: str) -> None:
    grads = []
    for sae in make(pair):
        scale = nn.Parameter(torch.full((D_IN,), 1.3))
        sae.hook_sae_input.add_hook(lambda t, hook, scale=scale: t * scale)
        with sparse.mode("sparse"):
            run(sae, inputs(), dead_mask(50))
        grads.append(scale.grad)
    assert grads[1].any()
    assert (grads[0] - grads[1]).norm() <= 1e-5 * grads[1].norm()


@both
@pytest.mark.parametrize("mode", ["auto", "sparse"])
@pytest.mark.parametrize("n_dead", [6, 7, 8, D_SAE])
def test_auxiliary_loss_of_an_odd_width(pair: str, mode: sparse.Mode, n_dead: int) -> None:
    """7 of the dead latents at d_in 15, which is rounded down."""
    ours, stock = make(pair, d_in=15)
    assert_same_step(ours, stock, inputs(BATCH, 15), dead_mask(n_dead), mode=mode)


@both
def test_what_is_left_to_sae_lens(pair: str) -> None:
    ours, stock = make(pair)
    x = inputs(4, 9, D_IN)
    with sparse.mode("sparse"):
        three_dimensional = run(ours, x)
    assert type(three_dimensional.feature_acts) is torch.Tensor
    assert torch.equal(three_dimensional.loss, run(stock, x).loss)
    with sparse.mode("dense"):
        assert type(run(ours, inputs()).feature_acts) is torch.Tensor
    # 5 of 160 latents are below the density at which dense is faster, 80 are above it.
    assert isinstance(run(ours, inputs()).feature_acts, SparseLatents)
    wide, _ = make(pair, k=80)
    assert type(run(wide, inputs()).feature_acts) is torch.Tensor


@both
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize(
    ("n_dead", "on_pairs"), [(D_SAE, True), (D_IN // 2 + 1, False), (3, False)]
)
def test_dead_latents_are_searched_with_the_others_where_few_of_them_are_used(
    pair: str, rescale: bool, n_dead: int, on_pairs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, stock = make(pair, rescale_acts_by_decoder_norm=rescale)
    found, search = [], sparse.encode_top_k_twice
    monkeypatch.setattr(
        sparse, "encode_top_k_twice", lambda *args: found.append(search(*args)) or found[-1]
    )
    assert_same_step(ours, stock, inputs(), dead_mask(n_dead), mode="auto")
    assert bool(found) == on_pairs


TOUCHED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nothing": lambda z: z,
    "detach": lambda z: z.detach(),
    "float": lambda z: z.float(),
    "to": lambda z: z.to(torch.float32),
    "double and back": lambda z: z.double().float(),
    "clone": lambda z: z.clone(),
    "cpu": lambda z: z.cpu(),
    "bool": lambda z: z.bool().float(),
    "indexing": lambda z: z[:],
    "where": lambda z: torch.where(z > 0.1, z, 0.0),
    "part set to 0": lambda z: (z.__setitem__((slice(None), slice(0, 6)), 0), z)[1],
    "mul_": lambda z: (z.mul_(2), z)[1],
    "zero_": lambda z: (z.zero_(), z)[1],
    "masked_fill_": lambda z: (z.masked_fill_(z < 0, 0.0), z)[1],
    "view written to": lambda z: (z[:, ::2].neg_(), z)[1],
    "read": lambda z: (z.abs(), z)[1],
}


@both
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("name", TOUCHED)
def test_latents_decode_as_sae_lens_decodes_them(pair: str, rescale: bool, name: str) -> None:
    actual, expected = (
        sae.decode(TOUCHED[name](forward(sae, inputs()).feature_acts))
        for sae in make(pair, rescale_acts_by_decoder_norm=rescale)
    )
    assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@both
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("n_dead", [0, 3, D_SAE])
@pytest.mark.parametrize("change", ["both", "in place", "pre-activations"])
def test_a_subclass_may_change_latents_within_the_step(
    pair: str, rescale: bool, n_dead: int, change: str
) -> None:
    """Between SAELens's calls, anyone may put other latents or pre-activations in their place."""

    def encode(sae: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        below: Any = super(type(sae), sae)
        z, u = below.encode_with_hidden_pre(x + 0.1)
        if change == "in place":
            z[:, ::2] = 0
            return z, u
        return z * 0.5 if change == "both" else z, u + 0.1

    ours, stock = make(pair, rescale_acts_by_decoder_norm=rescale)
    for sae in (ours, stock):
        sae.__class__ = type("Changed", (type(sae),), {"encode_with_hidden_pre": encode})
    with sparse.mode("sparse"):
        actual = run(ours, inputs(), dead_mask(n_dead))
    expected = run(stock, inputs(), dead_mask(n_dead))
    assert_close(actual.losses, expected.losses, rtol=1e-5, atol=0)
    for p, q in zip(ours.parameters(), stock.parameters(), strict=True):
        assert (p.grad - q.grad).norm() <= 1e-5 * q.grad.norm()


@both
def test_an_encoding_within_the_step_is_not_taken_for_the_steps_own(pair: str) -> None:
    """As of a loss that also encodes something else."""

    def losses(sae: Any, step_input: TrainStepInput, *args: Any, **kwargs: Any) -> Any:
        other = sae.decode(sae.encode(step_input.sae_in.flip(0)))
        below: Any = super(type(sae), sae)
        found = below.calculate_aux_loss(step_input, *args, **kwargs)
        return {**found, "other": other.pow(2).mean()}

    ours, stock = make(pair)
    for sae in (ours, stock):
        sae.__class__ = type("Twice", (type(sae),), {"calculate_aux_loss": losses})
    assert_same_step(ours, stock, inputs(), dead_mask(50))


@both
def test_evaluation_returns_ordinary_tensors(pair: str) -> None:
    ours, stock = make(pair)
    with sparse.mode("sparse"):
        run(ours, inputs())
        for sae_out, expected in (
            (ours.encode(inputs()), stock.encode(inputs())),
            (ours(inputs()), stock(inputs())),
            (ours.decode(ours.encode(inputs())), stock(inputs())),
        ):
            assert type(sae_out) is torch.Tensor
            assert torch.equal(sae_out, expected)


@both
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_activations_that_are_not_finite(pair: str, bad: float) -> None:
    ours, _ = make(pair)
    x = inputs()
    x[3, 2] = bad
    with pytest.raises(ActivationError, match=r"'blocks\.1\.attn\.hook_z', batch 7,"):
        run(ours, x, step=7)


@both
@pytest.mark.parametrize("k", [0, -1, D_SAE + 1])
def test_k_out_of_range(pair: str, k: int) -> None:
    with pytest.raises(ConfigError, match=f"k={k}.*1 to d_sae"):
        make_ours(pair, k)


def make_ours(pair: str, k: int) -> Any:
    ours_class, ours_config, *_ = PAIRS[pair]
    return ours_class(ours_config(d_in=D_IN, d_sae=D_SAE, k=k))


@both
def test_copies_and_moves(pair: str) -> None:
    ours, stock = make(pair)
    with sparse.mode("sparse"):
        run(ours, inputs())
    assert_same_step(copy.deepcopy(ours), stock, inputs())
    wide_ours, wide_stock = ours.to(torch.float64), stock.to(torch.float64)
    assert_same_step(wide_ours, wide_stock, inputs(), tolerance=1e-12)


@both
def test_a_compiled_step(pair: str) -> None:
    """As SAELens compiles it (llm_sae_training_runner.py:314), but for the backend."""
    ours, stock = make(pair)
    ours.training_forward_pass = torch.compile(ours.training_forward_pass, backend="eager")
    assert_same_step(ours, stock, inputs(), dead_mask(5))
    assert_same_step(ours, stock, inputs(seed=3), dead_mask(5))


def trainer(sae: Any, batch_size: int = BATCH, **options: Any) -> SAETrainer[Any, Any]:
    settings: dict[str, Any] = {
        "n_checkpoints": 0,
        "checkpoint_path": None,
        "save_final_checkpoint": False,
        "total_training_samples": 200 * batch_size,
        "device": "cpu",
        "autocast": False,
        "lr": 1e-3,
        "lr_end": 1e-4,
        "lr_scheduler_name": "cosineannealing",
        "lr_warm_up_steps": 10,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "lr_decay_steps": 0,
        "n_restart_cycles": 1,
        "train_batch_size_samples": batch_size,
        "dead_feature_window": 15,
        "feature_sampling_window": 50,
        "logger": LoggingConfig(log_to_wandb=False),
    }
    cfg = SAETrainerConfig(**{**settings, **options})
    return SAETrainer(cfg, sae, iter([]))


@both
@pytest.mark.parametrize("rescale", [True, False])
def test_two_hundred_trainer_steps(pair: str, rescale: bool) -> None:
    ours_class, ours_config, stock_class, stock_config = PAIRS[pair]
    trainers = []
    for sae_class, config in ((ours_class, ours_config), (stock_class, stock_config)):
        torch.manual_seed(0)
        options: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE, "k": 5}
        options["rescale_acts_by_decoder_norm"] = rescale
        if issubclass(config, DataStartConfig):  # SAELens starts there
            options |= {"b_dec_init": "zeros", "decoder_init_norm": 0.1}
        sae = sae_class(config(**options))
        trainers.append(trainer(sae))
    ours, stock = trainers
    mixing = torch.randn(4, D_IN, generator=torch.Generator().manual_seed(5))
    had_dead = False
    outputs: list[TrainStepOutput] = []
    for step in range(200):
        x = inputs(BATCH, 4, seed=100 + step) @ mixing + 0.1 * inputs(seed=900 + step)
        outputs = []
        for t in (ours, stock):
            t.maybe_reset_sparsity()
            outputs.append(t.step(x))
            t.n_training_steps += 1
        assert isinstance(outputs[0].feature_acts, SparseLatents)
        assert_close(outputs[0].loss, outputs[1].loss, rtol=1e-4, atol=0)
        assert ours.dead_neurons.sum() == stock.dead_neurons.sum()
        had_dead |= bool(stock.dead_neurons.any())
    assert had_dead  # so that the auxiliary loss took part
    assert torch.equal(ours.n_forward_passes_since_fired, stock.n_forward_passes_since_fired)
    assert torch.equal(ours.act_freq_scores, stock.act_freq_scores)
    for (name, p), q in zip(ours.sae.named_parameters(), stock.sae.parameters(), strict=True):
        assert (p - q).abs().max() <= 1e-4, name
    logs = [
        t.build_train_step_log_dict(output=o, n_training_samples=t.n_training_samples)
        for t, o in zip((ours, stock), outputs, strict=True)
    ]
    assert logs[0].keys() == logs[1].keys()
    assert_close(logs[0], logs[1], rtol=1e-3, atol=1e-5)


class LargestTensor(TorchDispatchMode):
    """The most entries any result of any operation has, backward included."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                self.entries = max(self.entries, tensor.numel())
        return result


@both
@pytest.mark.parametrize("n_dead", [0, 20])
def test_a_trainer_step_never_holds_the_dense_matrix(pair: str, n_dead: int) -> None:
    batch_size = 1280  # a quarter of the matrix exceeds the keys that a short sort is filled up to
    ours, _ = make(pair)
    t = trainer(ours, batch_size)
    x = inputs(batch_size, D_IN)
    t.n_forward_passes_since_fired[dead_mask(n_dead)] = 99
    with sparse.mode("sparse"), LargestTensor() as seen:
        output = t.step(x)
    assert seen.entries < batch_size * D_SAE // 4
    assert isinstance(output.feature_acts, SparseLatents)
    with sparse.mode("dense"), LargestTensor() as seen:  # the same watch does see it
        t.step(x)
    assert seen.entries == batch_size * D_SAE


def test_every_option_of_the_product_is_tested() -> None:
    """SAELens accepts no normalisation that the product above leaves out."""
    from typing import get_args, get_type_hints

    accepted = get_args(get_type_hints(AbsTopKTrainingSAEConfig)["normalize_activations"])
    assert set(accepted) <= set(NORMALISATIONS)
