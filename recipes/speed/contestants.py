"""Who takes part in `training_step.py`: shapes, options, and each contestant's step."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from sae_lens import TrainingSAE

from sae_lens_bipolar import ARCHITECTURES
from sae_lens_bipolar.runs.step_times import trainer_step

Step = Callable[[torch.Tensor], Any]
SPARSIFY = "eai-sparsify"


@dataclass(frozen=True)
class Shape:
    d_in: int
    d_sae: int
    k: int
    batch: int  # samples per step
    cpu_batch: int | None = None  # the same on CPU, where it differs


SHAPES = {
    "tiny": Shape(32, 1024, 8, 128),  # for tests
    "pythia-70m": Shape(512, 8192, 51, 4096),
    "gpt2": Shape(768, 12288, 76, 4096),
    "gemma-2-2b": Shape(2304, 36864, 230, 4096, cpu_batch=512),
    "qwen3-4b": Shape(2560, 40960, 256, 4096, cpu_batch=512),
}


@dataclass
class Options:
    shapes: list[str] = field(default_factory=lambda: ["pythia-70m", "gpt2", "qwen3-4b"])
    only: list[str] = field(default_factory=list)  # contestants; empty: all
    steps: int = 5  # timed steps of each contestant in each comparison
    device: str = "cpu"
    autocast: bool = False  # SAELens's bfloat16 autocast
    batch: int | None = None  # samples per step, in place of the shape's own
    l0: int = 48  # mean L0 of SAEs without a k; SAELens's gated SAE is dense at any
    memory: bool = True  # measure peak memory, one process per contestant


def sae_lens_step(sae: TrainingSAE[Any], shape: Shape, options: Options) -> Step:
    """`SAETrainer.step` of a trainer as SAELens's runner makes it."""
    return trainer_step(sae, options.device, batch_size(shape, options), options.autocast)


def sparsify_step(shape: Shape, options: Options) -> Step:
    """What `sparsify.Trainer` does with a batch (eai-sparsify 1.3.3, trainer.py:410-567)."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints when imported
        from schedulefree import ScheduleFreeWrapper  # pyright: ignore[reportMissingImports]
        from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports]
        from sparsify.sign_sgd import SignSGD  # pyright: ignore[reportMissingImports]

    sae_cfg = SparseCoderConfig(num_latents=shape.d_sae, k=shape.k)
    sae = SparseCoder(shape.d_in, sae_cfg, device=options.device, dtype=torch.float32)
    lr = 5e-3 / (shape.d_sae / 2**14) ** 0.5
    optimizer = ScheduleFreeWrapper(SignSGD(sae.parameters(), lr=lr), momentum=0.95)
    optimizer.train()
    did_fire = torch.zeros(shape.d_sae, dtype=torch.bool, device=options.device)
    tokens_since_fired = torch.zeros(shape.d_sae, dtype=torch.long, device=options.device)

    def step(x: torch.Tensor) -> None:
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x, total_variance=(x - x.mean(0)).pow(2).sum())
        did_fire[out.latent_indices.flatten()] = True
        float(out.fvu.detach())
        out.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        tokens_since_fired.add_(x.shape[0])
        tokens_since_fired[did_fire] = 0
        did_fire.zero_()

    return step


def comparisons() -> list[tuple[str, str]]:
    """Ours and what it is compared with, for every record that names its counterpart in SAELens."""
    pairs = [
        (f"our {record.name}", f"SAELens {record.timed_beside[1].architecture()}")
        for record in ARCHITECTURES.values()
        if record.timed_beside is not None
    ]
    return [*pairs, ("our abstopk", SPARSIFY)]


def make_sae(name: str, shape: Shape, options: Options) -> TrainingSAE[Any]:
    """An SAE of ours or its counterpart, with about the same number of active latents.

    Raises:
        KeyError: if no record knows the contestant.
    """
    known = {}
    for record in ARCHITECTURES.values():
        if record.timed_beside is not None:
            counterpart = f"SAELens {record.timed_beside[1].architecture()}"
            known.setdefault(counterpart, (record, record.timed_beside))
        if record.training is not None:
            known[f"our {record.name}"] = (record, record.training)
    record, (sae_class, cfg_class) = known[name]
    allowed = {f.name for f in fields(cfg_class)}
    l0 = shape.k if "k" in allowed else options.l0
    drawn = record.at_l0(shape.d_sae, l0) if record.at_l0 is not None else {}
    cfg = cfg_class(
        d_in=shape.d_in,
        d_sae=shape.d_sae,
        device=options.device,
        **{key: value for key, value in drawn.items() if key in allowed},
    )
    return sae_class(cfg)


def make_step(name: str, shape: Shape, options: Options) -> Step:
    """The step of one contestant, at initialisation."""
    torch.manual_seed(0)
    if name == SPARSIFY:
        return sparsify_step(shape, options)
    return sae_lens_step(make_sae(name, shape, options), shape, options)


def batch_size(shape: Shape, options: Options) -> int:
    if options.batch is not None:
        return options.batch
    return shape.cpu_batch or shape.batch if options.device == "cpu" else shape.batch


def activations(shape: Shape, options: Options, seed: int = 0) -> torch.Tensor:
    """A batch, `[batch, d_in]`: rank d_in / 4 plus noise."""
    generator = torch.Generator().manual_seed(seed)
    rank = shape.d_in // 4
    mixing = torch.randn(rank, shape.d_in, generator=torch.Generator().manual_seed(99))
    code = torch.randn(batch_size(shape, options), rank, generator=generator)
    x = code @ mixing / rank**0.5
    return (x + 0.3 * torch.randn(x.shape, generator=generator)).to(options.device)
