"""Seconds of a training step, by arithmetic: what `sae-lens-bipolar tune` measures on a device.

A step is `SAETrainer.step`, whole: forward, firing statistics, backward, clipping, Adam, scheduler.
The arithmetics take turns, batch by batch, in one process, so that whatever else the machine does
falls on all of them. The SAE is an AbsTopK one at initialisation; activations are random.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.abstopk_sae import AbsTopKTrainingSAEConfig
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_bipolar import sparse
from sae_lens_bipolar.architectures.abstopk import AbsTopKTrainingSAE
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.sparse import triton
from sae_lens_bipolar.sparse.measured import ARITHMETICS, Arithmetic, Row

Step = Callable[[torch.Tensor], Any]
IN_A_ROW = 4  # steps that are timed together on CUDA
WARM_UP = 3  # steps before the timed ones: kernels are compiled, the optimizer's state is made


@dataclass(frozen=True)
class Shape:
    """The size of a step."""

    d_in: int
    d_sae: int
    k: int
    batch: int = 4096  # samples

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """A shape from `D_IN:D_SAE:K` or `D_IN:D_SAE:K:BATCH`.

        Raises:
            ConfigError: if it is not that, or k is above d_sae.
        """
        parts = text.split(":")
        are_sizes = all(p.isdecimal() and len(p) < 10 and int(p) > 0 for p in parts)
        if len(parts) not in (3, 4) or not are_sizes:
            raise ConfigError(
                f"shape {text!r} is not allowed: give D_IN:D_SAE:K or D_IN:D_SAE:K:BATCH, four "
                "integers from 1, such as 768:12288:76:4096"
            )
        shape = cls(*map(int, parts))
        if shape.k > shape.d_sae:
            raise ConfigError(f"shape {text!r} is not allowed: k must be at most d_sae")
        return shape


# Those of 16 latents per dimension, k a tenth of d_in, at Pythia-70M, GPT-2, Gemma 2 2B, Qwen3 4B.
SHAPES = ("512:8192:51", "768:12288:76", "2304:36864:230", "2560:40960:256")


def trainer_step(sae: TrainingSAE[Any], device: str, batch: int, autocast: bool = False) -> Step:
    """`SAETrainer.step` of a trainer as SAELens's runner makes it."""
    cfg = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=10**9,
        device=device,
        autocast=autocast,
        lr=1e-4,
        lr_end=1e-5,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=batch,
        dead_feature_window=1000,
        feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(cfg, sae, iter([]))

    def step(x: torch.Tensor) -> Any:
        output = trainer.step(x)
        trainer.n_training_steps += 1  # as `fit` does; a first step looks at its data once more
        return output

    return step


def seconds(work: Callable[[], Any], device: str) -> float:
    """How long `work` takes; on CUDA the mean of some in a row, between two events on the stream.

    Training does not wait for the device between steps, unless a step does so itself.
    """
    if torch.device(device).type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(IN_A_ROW):
        work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000 / IN_A_ROW


@contextmanager
def products_in(precision: str) -> Iterator[bool]:
    """Float32 products in TF32 or not, as `precision` says; yields whether autocast is its way."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield precision == "bfloat16"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def measure(
    shape: Shape, precision: str, device: str, steps: int, say: Callable[[str], None] = print
) -> Row | None:
    """Median seconds of a step of each arithmetic that runs here; None if the dense one does not.

    Args:
        shape: the size of the step.
        precision: "float32", "tf32" or "bfloat16" (SAELens's autocast).
        device: where it runs.
        steps: timed steps of each.
        say: takes a line for each arithmetic that fails.
    """
    here = torch.device(device)
    has_kernels = here.type != "cpu" and triton.usable(here, shape.d_in)  # not Triton's interpreter
    names: list[Arithmetic] = [n for n in ARITHMETICS if n != "triton" or has_kernels]
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(shape.batch, shape.d_in, generator=generator) for _ in range(2)]
    batches = [x.to(device) for x in batches]
    times: dict[Arithmetic, list[float]] = {name: [] for name in names}
    made: dict[Arithmetic, Step] = {}
    with products_in(precision) as autocast:
        for i in range(WARM_UP + steps):
            for name in list(times):  # those that have run so far
                try:
                    with sparse.mode(name):
                        if name not in made:
                            made[name] = _new_step(shape, device, autocast)
                        step, x = made[name], batches[i % 2]
                        times[name].append(seconds(lambda step=step, x=x: step(x), device))
                except Exception as error:  # what runs on a device is found out by running it
                    why = f"{type(error).__name__}: {error}".splitlines()[0]
                    say(f"{name} does not run here: {why}")
                    del times[name]
                    made.pop(name, None)
    medians: dict[str, float] = {
        name: statistics.median(values[WARM_UP:]) for name, values in times.items()
    }
    if "dense" not in medians:
        return None
    return Row(precision, shape.d_in, shape.d_sae, shape.k, shape.batch, medians)


def _new_step(shape: Shape, device: str, autocast: bool) -> Step:
    torch.manual_seed(0)
    size = {"d_in": shape.d_in, "d_sae": shape.d_sae, "k": shape.k, "device": device}
    sae = AbsTopKTrainingSAE(AbsTopKTrainingSAEConfig(**size))
    return trainer_step(sae, device, shape.batch, autocast)


def lines(rows: Sequence[Row]) -> str:
    """The rows as a table: milliseconds by arithmetic, and which is used from there on."""
    head = f"{'precision':9s} {'d_in':>6s} {'d_sae':>7s} {'k':>5s} {'batch':>6s}"
    head += "".join(f"{name + ' ms':>11s}" for name in ARITHMETICS) + "  used"
    found = [head]
    for row in rows:
        line = f"{row.precision:9s} {row.d_in:6d} {row.d_sae:7d} {row.k:5d} {row.batch:6d}"
        for name in ARITHMETICS:
            taken = row.seconds.get(name)
            line += f"{'-':>11s}" if taken is None else f"{1000 * taken:11.2f}"
        found.append(f"{line}  {row.winner}")
    return "\n".join(found)
