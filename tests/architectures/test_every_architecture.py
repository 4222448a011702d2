"""What holds for every architecture: SAELens's runners, checkpoints, files, folding, hooks, split.

The tests run over `architecture_list.ARCHITECTURE_LIST`. Each entry is trained once, with SAELens's
runner on a tiny GPT-2, and the tests share the result.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import (
    SAE,
    HookedSAETransformer,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    MultiSAETrainingRunner,
    MultiSAETrainingRunnerConfig,
    TrainingSAE,
)
from sae_lens.config import LoggingConfig
from sae_lens.registry import (
    SAE_TRAINING_CLASS_REGISTRY,
    get_sae_class,
    get_sae_training_class,
)
from sae_lens.saes.sae import (
    SAEConfig,
    TrainCoefficientConfig,
    TrainingSAEConfig,
    TrainStepOutput,
)
from sae_lens.synthetic import (
    SyntheticModel,
    SyntheticModelConfig,
    SyntheticSAERunner,
    SyntheticSAERunnerConfig,
    train_toy_sae,
)
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file
from transformer_lens import HookedTransformer

from sae_lens_bipolar.architectures.registry import ARCHITECTURES, find
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.inputs.corpora import load_documents, split_tokens
from sae_lens_bipolar.inputs.models import tokenizer_of
from sae_lens_bipolar.polarity import census, is_signed, signed_latents, split, split_latents
from tests.architecture_list import ARCHITECTURE_LIST, Entry
from tests.architectures.family import step_input

HOOK = "blocks.0.hook_mlp_out"
D_IN, D_SAE, BATCH, STEPS, CONTEXT = 32, 128, 64, 24, 16

each = pytest.mark.parametrize("entry", ARCHITECTURE_LIST, ids=str)


def test_the_list_leaves_none_out() -> None:
    trained = {name for name, record in ARCHITECTURES.items() if record.training}
    assert {entry.name for entry in ARCHITECTURE_LIST} == trained
    names = [str(entry) for entry in ARCHITECTURE_LIST]
    assert len(set(names)) == len(names)


@each
def test_the_record(entry: Entry) -> None:
    """The record of what is trained and of what is saved are of one sign, and both can be shown."""
    trained = find(entry.name).of(make(entry).to_dict())
    assert trained.training == SAE_TRAINING_CLASS_REGISTRY[entry.name]
    assert trained.signed == entry.record.signed
    assert entry.record.name == entry.saved_as
    assert trained.at_l0 is not None
    config_class = type(make(entry))
    cfg = config_class(d_in=D_IN, d_sae=D_SAE, **trained.at_l0(D_SAE, 8))
    assert cfg.get_inference_config_class().architecture() == entry.saved_as


# --- training, once for each entry


@pytest.fixture(scope="module")
def rows(tiny_model: HookedTransformer, tiny_text: Path) -> Dataset:
    documents, tokenizer = load_documents(str(tiny_text)), tokenizer_of(tiny_model)
    split_rows = split_tokens(documents, tokenizer, context_size=CONTEXT, seed=7)
    return split_rows.train.with_format("torch")


@pytest.fixture(scope="module")
def batches(tiny_model: HookedTransformer, rows: Dataset) -> list[torch.Tensor]:
    """`STEPS` training batches of activations and a held-out one, scaled to mean norm sqrt(d)."""
    tokens = rows[: (STEPS + 1) * BATCH // CONTEXT]["input_ids"]
    cache = tiny_model.run_with_cache(tokens, names_filter=HOOK)[1]
    acts = cache[HOOK].flatten(0, 1)
    order = torch.randperm(len(acts), generator=torch.Generator().manual_seed(3))
    acts = acts[order] * D_IN**0.5 / acts.norm(dim=-1).mean()
    return list(acts.split(BATCH)[: STEPS + 1])


def make(entry: Entry, **fields: Any) -> TrainingSAEConfig:
    return entry.config(**{"d_in": D_IN, "d_sae": D_SAE, **fields})


def runner_config(sae: TrainingSAEConfig, **options: Any) -> LanguageModelSAERunnerConfig[Any]:
    defaults: dict[str, Any] = dict(
        sae=sae,
        model_name="tiny-gpt2",
        hook_name=HOOK,
        context_size=CONTEXT,
        training_tokens=BATCH * STEPS,
        n_checkpoints=0,
        checkpoint_path=None,
        output_path=None,
        **SHARED,
    )
    return LanguageModelSAERunnerConfig(**{**defaults, **options})


# Fields of the configurations of both runners on a language model.
SHARED: dict[str, Any] = {
    "dataset_trust_remote_code": False,
    "train_batch_size_tokens": BATCH,
    "store_batch_size_prompts": 8,
    "n_batches_in_buffer": 8,
    "n_batches_for_norm_estimate": 4,
    "lr": 1e-2,
    "lr_warm_up_steps": 2,
    "lr_decay_steps": 4,
    "dead_feature_window": 6,
    "feature_sampling_window": 10,
    "model_from_pretrained_kwargs": {},
    "logger": LoggingConfig(log_to_wandb=False),
}


def state_of(trainer: SAETrainer[Any, Any]) -> dict[str, Any]:
    """Everything a resumed training run must find again."""
    return copy.deepcopy(
        {
            "weights": trainer.sae.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "lr": trainer.lr_scheduler.state_dict(),
            "coefficients": {n: s.state_dict() for n, s in trainer.coefficient_schedulers.items()},
            "fired": trainer.n_forward_passes_since_fired,
            "samples": trainer.n_training_samples,
        }
    )


class RecordingRunner(LanguageModelSAETrainingRunner):
    """SAELens's runner on batches that a resumed run can take up where they were left.

    SAELens's own batches are shuffled by a generator that no checkpoint holds.
    """

    batches: list[torch.Tensor]

    def run_trainer_with_interruption_handling(self, trainer: SAETrainer[Any, Any]) -> Any:
        self.trainer, self.started, self.losses = trainer, state_of(trainer), []
        train_step = trainer.step

        def step(batch: torch.Tensor) -> TrainStepOutput:
            output = train_step(batch)
            self.losses.append({name: loss.detach() for name, loss in output.losses.items()})
            return output

        trainer.step = step  # type: ignore[method-assign]
        trainer.data_provider = iter(self.batches[trainer.n_training_samples // BATCH :])
        return super().run_trainer_with_interruption_handling(trainer)

    def save_checkpoint(self, checkpoint_path: Path | None) -> None:
        super().save_checkpoint(checkpoint_path)
        if not hasattr(self, "checkpoint"):
            assert checkpoint_path is not None
            self.checkpoint, self.checkpointed = checkpoint_path, state_of(self.trainer)


@dataclass
class Trained:
    """An entry after a run with one checkpoint half way."""

    runner: RecordingRunner
    initial: dict[str, torch.Tensor]
    folder: Path  # what the runner saved

    @property
    def sae(self) -> TrainingSAE[Any]:
        return self.runner.sae

    def copy(self, dtype: torch.dtype = torch.float32) -> TrainingSAE[Any]:
        """The trained SAE as SAELens reads it from files."""
        self.sae.save_model(self.folder / "training")
        return TrainingSAE.load_from_disk(
            self.folder / "training", dtype=str(dtype).removeprefix("torch.")
        )

    def saved(self, dtype: torch.dtype = torch.float32) -> SAE[Any]:
        """The inference SAE, from the training SAE in the same precision."""
        folder = self.folder / str(dtype)
        self.copy(dtype).save_inference_model(folder)
        return SAE.load_from_disk(folder)


@pytest.fixture(scope="module")
def train(
    tiny_model: HookedTransformer,
    rows: Dataset,
    batches: list[torch.Tensor],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    done: dict[str, Trained] = {}

    def run(entry: Entry) -> Trained:
        if str(entry) not in done:
            torch.manual_seed(0)
            folder = tmp_path_factory.mktemp("trained")
            cfg = runner_config(
                make(entry),
                n_checkpoints=1,
                checkpoint_path=str(folder / "checkpoints"),
                output_path=str(folder / "out"),
            )
            runner = RecordingRunner(cfg, override_dataset=rows, override_model=tiny_model)
            runner.batches = batches
            initial = copy.deepcopy(runner.sae.state_dict())
            with torch.enable_grad():  # the test that asks first may be without
                runner.run()
            done[str(entry)] = Trained(runner, initial, folder)
        return done[str(entry)]

    return run


# --- SAELens's runners


@each
def test_language_model_runner(
    entry: Entry, tiny_model: HookedTransformer, rows: Dataset, tmp_path: Path
) -> None:
    """SAELens's runner with its own activation store and normalisation, from start to file."""
    cfg = runner_config(
        make(entry, normalize_activations="expected_average_only_in"), output_path=str(tmp_path)
    )
    torch.manual_seed(0)
    runner = LanguageModelSAETrainingRunner(cfg, override_dataset=rows, override_model=tiny_model)
    assert type(runner.sae) is get_sae_training_class(entry.name)[0]
    trained = runner.run()
    sae = SAE.load_from_disk(tmp_path)
    assert type(sae) is get_sae_class(entry.saved_as)[0]
    assert sae.cfg.normalize_activations == "none"  # folded
    assert sae.cfg.metadata.hook_name == HOOK
    assert sae.cfg.metadata.training_architecture == entry.name
    tokens = rows[:8]["input_ids"]
    x = tiny_model.run_with_cache(tokens, names_filter=HOOK)[1][HOOK].flatten(0, 1)
    assert 0 < sae.encode(x).bool().float().sum(-1).mean() < D_SAE / 2
    if not entry.per_batch:
        torch.testing.assert_close(sae(x), trained(x), rtol=1e-4, atol=1e-4)
    runner_cfg = json.loads((tmp_path / "runner_cfg.json").read_text())
    assert LanguageModelSAERunnerConfig.from_dict(runner_cfg).sae == cfg.sae


def test_multi_sae_runner(tiny_model: HookedTransformer, rows: Dataset, tmp_path: Path) -> None:
    """Every architecture in one run, with one forward pass of the model per batch."""
    torch.manual_seed(0)
    cfg = MultiSAETrainingRunnerConfig(
        saes={str(entry).replace(" ", "-"): make(entry) for entry in ARCHITECTURE_LIST},
        hook_names=HOOK,
        context_size=CONTEXT,
        training_tokens=BATCH * 8,
        checkpoint_path=None,
        output_path=str(tmp_path),
        **SHARED,
    )
    runner = MultiSAETrainingRunner(cfg, override_dataset=rows, override_model=tiny_model)
    initial = {name: sae.W_dec.detach().clone() for name, sae in runner.saes.items()}
    trained = runner.run()
    for entry in ARCHITECTURE_LIST:
        name = str(entry).replace(" ", "-")
        assert not torch.equal(trained[name].W_dec, initial[name])
        sae = SAE.load_from_disk(tmp_path / name)
        assert sae.cfg.architecture() == entry.saved_as
        assert sae.cfg.metadata.training_architecture == entry.name


SYNTHETIC = SyntheticModelConfig(num_features=24, hidden_dim=12, seed=1)


@each
def test_synthetic_runner(entry: Entry, tmp_path: Path) -> None:
    """With whitening, which the trainer estimates and folds."""
    torch.manual_seed(0)
    cfg = SyntheticSAERunnerConfig(
        synthetic_model=SYNTHETIC,
        sae=entry.config(d_in=12, d_sae=32, normalize_activations="covariance_whitening"),
        training_samples=64 * 60,
        batch_size=64,
        lr=1e-2,
        n_batches_for_norm_estimate=10,
        eval_samples=512,
        dead_feature_window=10,
        checkpoint_path=None,
        output_path=str(tmp_path),
        logger=LoggingConfig(log_to_wandb=False),
    )
    assert SyntheticSAERunnerConfig.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg
    result = SyntheticSAERunner(cfg).run()
    assert result.final_eval is not None
    assert result.final_eval.explained_variance > 0.3
    sae = SAE.load_from_disk(tmp_path)
    assert sae.cfg.architecture() == entry.saved_as
    assert sae.cfg.normalize_activations == "none"


@each
def test_toy_training(entry: Entry) -> None:
    torch.manual_seed(0)
    model = SyntheticModel(SYNTHETIC)
    sae = TrainingSAE.from_dict(entry.config(d_in=12, d_sae=32).to_dict())
    before = copy.deepcopy(sae.state_dict())
    train_toy_sae(
        sae, model.feature_dict, model.activation_generator, training_samples=640, batch_size=64
    )
    for name, value in sae.named_parameters():
        assert torch.isfinite(value).all(), name
    assert not torch.equal(sae.W_dec, before["W_dec"])


# --- checkpoints and files


@each
def test_checkpoint_and_resume(
    entry: Entry, train: Any, tiny_model: HookedTransformer, rows: Dataset, tmp_path: Path
) -> None:
    """A resumed run starts from what was saved, bit for bit, and ends where the first one did."""
    whole = train(entry).runner
    saved = load_file(whole.checkpoint / "sae_weights.safetensors")
    for name in entry.moving_buffers:
        assert not torch.equal(saved[name], train(entry).initial[name]), name
    cfg = runner_config(
        make(entry),
        n_checkpoints=1,
        checkpoint_path=str(tmp_path / "checkpoints"),
        resume_from_checkpoint=str(whole.checkpoint),
    )
    torch.manual_seed(1)  # other initial weights
    resumed = RecordingRunner(cfg, override_dataset=rows, override_model=tiny_model)
    resumed.batches = whole.batches
    resumed.run()
    assert 0 < resumed.started["samples"] < resumed.trainer.n_training_samples == BATCH * STEPS
    torch.testing.assert_close(resumed.started, whole.checkpointed, rtol=0, atol=0)
    end = state_of(resumed.trainer)
    torch.testing.assert_close(end, state_of(whole.trainer), rtol=0, atol=0)
    assert not torch.equal(end["weights"]["W_dec"], saved["W_dec"])


@each
def test_save_and_load(entry: Entry, train: Any, batches: list[torch.Tensor]) -> None:
    """Training SAEs come back bit for bit; inference SAEs compute what the training SAE does."""
    x = batches[-1]
    again = train(entry).copy()
    assert type(again) is type(train(entry).sae)
    assert again.cfg.to_dict() == json.loads(json.dumps(train(entry).sae.cfg.to_dict()))
    for name, value in train(entry).sae.state_dict().items():
        # SAELens's loader casts every tensor to the SAE's dtype, batch thresholds among them.
        assert torch.equal(again.state_dict()[name], value.to(again.state_dict()[name].dtype)), name
    assert torch.equal(again(x), train(entry).sae(x))
    # As the runner saved it, and in a precision that leaves no latent undecided.
    assert torch.equal(SAE.load_from_disk(train(entry).folder / "out")(x), train(entry).saved()(x))
    training, inference = train(entry).copy(torch.float64), train(entry).saved(torch.float64)
    assert type(inference) is get_sae_class(entry.saved_as)[0]
    z, u = training.encode_with_hidden_pre(x.double())
    if entry.per_batch:
        z = torch.where(u.abs() > inference.threshold_positive, u, 0.0)
        assert z.bool().any()
    torch.testing.assert_close(inference.encode(x), z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(inference(x), training.decode(z), rtol=1e-9, atol=1e-9)


@each
def test_configurations_survive_dictionaries(entry: Entry) -> None:
    cfg = make(entry, dtype="float64", apply_b_dec_to_input=True)
    cfg.metadata.hook_name = HOOK
    as_read = json.loads(json.dumps(cfg.to_dict()))
    assert as_read["architecture"] == entry.name
    for config_class in (TrainingSAEConfig, type(cfg)):
        read = config_class.from_dict(as_read)
        assert type(read) is type(cfg)
        assert read == cfg
    inference = SAEConfig.from_dict(json.loads(json.dumps(cfg.get_inference_sae_cfg_dict())))
    assert type(inference) is get_sae_class(entry.saved_as)[1]
    assert SAEConfig.from_dict(json.loads(json.dumps(inference.to_dict()))) == inference


# --- folding


def forms(trained: Trained) -> Iterator[SAE[Any]]:
    yield trained.copy(torch.float64)
    yield trained.saved(torch.float64)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@each
@torch.no_grad()
def test_folding_decoder_norms(entry: Entry, train: Any, batches: list[torch.Tensor]) -> None:
    x = batches[-1].double()
    allowed = (entry.folds_norms, entry.saved_folds_norms)
    for sae, folds in zip(forms(train(entry)), allowed, strict=True):
        if not folds:
            with pytest.raises(NotImplementedError, match="W_dec_norm"):
                sae.fold_W_dec_norm()
            continue
        sae.W_dec.mul_(torch.linspace(0.5, 2.0, D_SAE)[:, None])
        folded = copy.deepcopy(sae)
        folded.fold_W_dec_norm()
        close(folded.W_dec.norm(dim=-1), torch.ones(D_SAE, dtype=torch.float64))
        close(folded(x), sae(x))
        assert torch.equal(folded.encode(x).bool(), sae.encode(x).bool())


@each
@torch.no_grad()
def test_folding_normalisation(entry: Entry, train: Any, batches: list[torch.Tensor]) -> None:
    """A folded SAE does on raw activations what the SAE did on scaled or whitened ones."""
    x = batches[-1].double()
    generator = torch.Generator().manual_seed(3)
    mean = torch.randn(D_IN, generator=generator, dtype=torch.float64)
    noise = torch.randn(D_IN, D_IN, generator=generator, dtype=torch.float64)
    matrix = torch.eye(D_IN, dtype=torch.float64) + 0.1 * noise
    for sae in forms(train(entry)):
        scaled = copy.deepcopy(sae)
        scaled.fold_activation_norm_scaling_factor(0.7)
        close(scaled(x / 0.7) * 0.7, sae(x))
        assert torch.equal(scaled.encode(x / 0.7).bool(), sae.encode(x).bool())
        whitened = copy.deepcopy(sae)
        whitened.fold_activation_whitening(mean, matrix, matrix.inverse())
        raw = x @ matrix.inverse() + mean
        close(whitened(raw), sae(x) @ matrix.inverse() + mean)
        close(whitened.decode(whitened.encode(raw)), whitened(raw))
        assert torch.equal(whitened.encode(raw).bool(), sae.encode(x).bool())


# --- precision and compilation


def step(sae: TrainingSAE[Any], x: torch.Tensor, i: int = 0) -> TrainStepOutput:
    """One training step's forward and backward pass, a third of the latents dead."""
    coefficients = {
        name: c.value if isinstance(c, TrainCoefficientConfig) else c
        for name, c in sae.get_coefficients().items()
    }
    sae.zero_grad()
    dead = torch.arange(D_SAE) % 3 == 0
    output = sae.training_forward_pass(step_input(x, dead, i, **coefficients))
    output.loss.backward()
    return output


def gradients(sae: TrainingSAE[Any]) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in sae.named_parameters() if p.grad is not None}


@each
def test_autocast(entry: Entry, train: Any, batches: list[torch.Tensor]) -> None:
    """In bfloat16 a step's losses and gradients are finite and near those of float32."""
    exact, rounded = train(entry).copy(), train(entry).copy()
    expected = step(exact, batches[-1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = step(rounded, batches[-1])
    assert output.losses.keys() == expected.losses.keys()
    for name, loss in expected.losses.items():
        torch.testing.assert_close(output.losses[name].float(), loss, rtol=0.05, atol=0.02)
    assert gradients(rounded).keys() == gradients(exact).keys()
    for name, gradient in gradients(exact).items():
        found = gradients(rounded)[name]
        assert torch.isfinite(found).all(), name
        assert found.dtype == gradient.dtype
        cosine = torch.cosine_similarity(found.flatten(), gradient.flatten(), dim=0)
        assert cosine > 0.95 or gradient.norm() < 1e-6, f"{name}: {cosine}"


@each
def test_compiled_steps_equal_eager_ones(
    entry: Entry, train: Any, batches: list[torch.Tensor]
) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    eager, compiled = train(entry).copy(), train(entry).copy()
    compiled.training_forward_pass = torch.compile(
        compiled.training_forward_pass, backend="aot_eager"
    )
    for i, x in enumerate(batches[:3]):
        expected, output = step(eager, x, i), step(compiled, x, i)
        assert output.losses.keys() == expected.losses.keys()
        for name, loss in expected.losses.items():
            torch.testing.assert_close(output.losses[name], loss, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradients(compiled), gradients(eager), rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    for (name, a), b in zip(eager.named_buffers(), compiled.buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.slow
@each
def test_compile_sae(
    entry: Entry,
    tiny_model: HookedTransformer,
    rows: Dataset,
    batches: list[torch.Tensor],
) -> None:
    """`compile_sae=True` in SAELens's runner, with inductor: every step's losses are the same."""
    losses = []
    for compile_sae in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        cfg = runner_config(make(entry), compile_sae=compile_sae, training_tokens=BATCH * 6)
        runner = RecordingRunner(cfg, override_dataset=rows, override_model=tiny_model)
        runner.batches = batches
        runner.run()
        losses.append(runner.losses)
    assert len(losses[0]) == 6
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)


# --- the saved SAE in use


@pytest.fixture(scope="module")
def hooked(tiny_model: HookedTransformer) -> HookedSAETransformer:
    model = HookedSAETransformer(copy.deepcopy(tiny_model.cfg), tokenizer=tiny_model.tokenizer)
    model.load_state_dict(tiny_model.state_dict())
    return model.eval()


@each
@torch.no_grad()
def test_hooked_sae_transformer(
    entry: Entry,
    train: Any,
    hooked: HookedSAETransformer,
    tiny_model: HookedTransformer,
    rows: Dataset,
) -> None:
    sae = SAE.load_from_disk(train(entry).folder / "out")
    tokens = rows[:4]["input_ids"]
    logits: Any
    logits, cache = tiny_model.run_with_cache(tokens, names_filter=HOOK)
    x = cache[HOOK]
    z = sae.encode(x)
    assert z.bool().any()
    replaced: Any
    replaced, cache = hooked.run_with_cache_with_saes(tokens, saes=[sae])
    torch.testing.assert_close(cache[f"{HOOK}.hook_sae_acts_post"], z, rtol=1e-5, atol=1e-5)
    by_hand = tiny_model.run_with_hooks(tokens, fwd_hooks=[(HOOK, lambda value, hook: sae(value))])
    torch.testing.assert_close(replaced, by_hand, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(replaced, logits, atol=1e-3)
    with_error = hooked.run_with_saes(tokens, saes=[sae], use_error_term=True)
    torch.testing.assert_close(with_error, logits, rtol=1e-4, atol=1e-4)
    # Latents can be steered: without them what is left is the decoder's bias.
    silenced = hooked.run_with_hooks_with_saes(
        tokens,
        saes=[sae],
        fwd_hooks=[(f"{HOOK}.hook_sae_acts_post", lambda value, hook: torch.zeros_like(value))],
    )
    bias = tiny_model.run_with_hooks(
        tokens, fwd_hooks=[(HOOK, lambda value, hook: sae.b_dec.expand_as(value))]
    )
    torch.testing.assert_close(silenced, bias, rtol=1e-4, atol=1e-4)
    assert torch.equal(hooked(tokens), hooked(tokens))
    torch.testing.assert_close(hooked(tokens), logits, rtol=1e-5, atol=1e-5)  # removed again


@each
@torch.no_grad()
def test_polarity_split(entry: Entry, train: Any, batches: list[torch.Tensor]) -> None:
    """The trained SAE's split fires on the same sides, with the same values to 1e-5."""
    sae, x = SAE.load_from_disk(train(entry).folder / "out"), torch.cat(batches[-4:])
    assert not torch.allclose(train(entry).sae.W_enc, train(entry).initial["W_enc"], atol=1e-2)
    z = sae.encode(x)
    assert (z > 0).any()
    assert (z < 0).any() == entry.record.signed == is_signed(sae)
    if entry.splits_into is None:
        with pytest.raises(ConfigError, match=f"{entry.name} with n_steps=3 has no polarity split"):
            split(sae)
        return
    twin = split(sae)
    if type(sae) is entry.splits_into:
        assert twin is sae
        return
    assert type(twin) is entry.splits_into
    acts = twin.encode(x)
    assert acts.shape == (len(x), 2 * D_SAE)
    positive, negative = acts.chunk(2, dim=-1)
    assert ((positive > 0) & (negative > 0)).any() <= entry.both_sides_at_once
    assert torch.equal(signed_latents(acts).bool(), z.bool())
    torch.testing.assert_close(signed_latents(acts), z, rtol=1e-5, atol=1e-5)
    if not entry.both_sides_at_once:
        assert torch.equal(acts > 0, split_latents(z) > 0)
        torch.testing.assert_close(acts, split_latents(z), rtol=1e-5, atol=1e-5)
    assert not is_signed(twin)
    torch.testing.assert_close(twin(x), sae(x), rtol=1e-5, atol=1e-5)


@each
@torch.no_grad()
def test_census(entry: Entry, train: Any, batches: list[torch.Tensor]) -> None:
    """Both sides are counted as they fire, the negative one where the record says there is one."""
    sae = SAE.load_from_disk(train(entry).folder / "out")
    counted, z = census(sae, batches), sae.encode(torch.cat(batches))
    assert torch.equal(counted.positive_count, (z > 0).sum(0))
    assert torch.equal(counted.negative_count, (z < 0).sum(0))
    assert counted.negative_count.any() == entry.record.signed
    assert (counted.bipolar_fraction > 0) == entry.record.signed
