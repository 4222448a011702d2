"""`RunDirectoryRunner` on several ranks: every rank trains, the first keeps the run directory."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any

from sae_lens.config import HfDataset
from sae_lens.multi_sae_training_runner import (
    MultiSAETrainingRunner,
    MultiSAETrainingRunnerConfig,
)
from sae_lens.saes.sae import TrainingSAE, TrainStepOutput
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from sae_lens.training.sae_trainer import SAETrainer
from transformer_lens import HookedTransformer
from typing_extensions import override

from sae_lens_bipolar.architectures.training.l0_control import MeetsL0Target
from sae_lens_bipolar.errors import ConfigError
from sae_lens_bipolar.files.names import METRICS_FILE, PROGRESS
from sae_lens_bipolar.runs.directory import append_metrics
from sae_lens_bipolar.runs.distributed.families import sharded_class
from sae_lens_bipolar.runs.distributed.language_model import share_language_model
from sae_lens_bipolar.runs.distributed.ranks import Ranks
from sae_lens_bipolar.runs.distributed.sharding import shard, whole
from sae_lens_bipolar.runs.runner import RunDirectoryRunner

# Options of SAELens's runner that a run on several ranks does not have, with what it has instead.
_REFUSED = {
    "autocast": "SAEs train in float32; autocast_lm is allowed",
    "compile_llm": "the language model runs as it is",
    "prefetch_llm_batches": "ranks exchange activations in step",
}


class DistributedRunner(RunDirectoryRunner):
    """A run as one process would start it, then trained with each SAE sharded by latents.

    Args:
        ranks: of this process; the others are those of `RunDirectoryRunner`.

    Raises:
        ConfigError: naming an architecture or option that several ranks do not have.
    """

    def __init__(
        self,
        ranks: Ranks,
        cfg: MultiSAETrainingRunnerConfig,
        run_dir: Path,
        model: HookedTransformer,
        dataset: HfDataset | Iterable[Any],
        **options: Any,
    ):
        for name, instead in _REFUSED.items():
            if value := getattr(cfg, name):
                raise ConfigError(f"{name}={value} is not allowed on several ranks: {instead}")
        if cfg.logger.log_to_wandb:
            raise ConfigError(
                "log_to_wandb=True is not allowed on several ranks: metrics.jsonl of the run "
                "directory has every logged step"
            )
        super().__init__(cfg, run_dir, model, dataset, **options)
        self.ranks = ranks
        for sae in self.saes.values():
            sharded_class(sae)
            ranks.require_latents(sae.cfg.d_sae)
            if isinstance(sae, MeetsL0Target) and cfg.train_batch_size_tokens < 2:
                raise ConfigError(
                    "train_batch_size_tokens=1 is not allowed on several ranks: the first "
                    "thresholds are quantiles of the first batch; give 2 or more"
                )
        if options.get("activations") is None:  # otherwise every rank reads the same batches
            share_language_model(self.activations_store, ranks)

    @override
    def run(self) -> dict[str, TrainingSAE[Any]]:
        """Train to the end. Only on the first rank are the SAEs whole, and the files written."""
        if self.ranks.is_first:
            return super().run()
        with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):  # progress bars
            newest = self._newest_checkpoint()
            self.cfg.resume_from_checkpoint = str(newest) if newest else None
            return MultiSAETrainingRunner.run(self)

    @override
    def _newest_checkpoint(self) -> Path | None:
        found = super()._newest_checkpoint() if self.ranks.is_first else None
        n_tokens = int(self.ranks.total_of(int(found.name) if found else 0)[0])
        return self.run_dir / PROGRESS / str(n_tokens) if n_tokens else None

    @override
    def _run_with_interruption_handling(
        self, trainer: MultiSAETrainer
    ) -> dict[str, TrainingSAE[Any]]:
        for single in trainer.trainers.values():
            shard(single, self.ranks)
        trainer.save_checkpoint = partial(  # type: ignore[method-assign]
            self._save_together, trainer, trainer.save_checkpoint
        )
        return super()._run_with_interruption_handling(trainer)

    def _save_together(
        self, trainer: MultiSAETrainer, save: Callable[..., None], checkpoint_name: str
    ) -> None:
        self._require_finite_losses()  # on every rank, so that none waits for one that has ended
        with self._all_whole(trainer):
            if self.ranks.is_first:
                save(checkpoint_name)
            else:
                self.batches.reseed()

    @override
    def _finish(self, saes: dict[str, TrainingSAE[Any]], trainer: MultiSAETrainer) -> None:
        with self._all_whole(trainer):
            if self.ranks.is_first:
                for single in trainer.trainers.values():
                    single.set_final_sae_metadata()
                super()._finish(saes, trainer)

    @contextmanager
    def _all_whole(self, trainer: MultiSAETrainer) -> Iterator[None]:
        with ExitStack() as stack:
            for single in trainer.trainers.values():
                stack.enter_context(whole(single, self.ranks))
            yield

    @override
    def _log_step(self, name: str, trainer: SAETrainer[Any, Any], output: TrainStepOutput) -> None:
        row = self._row(name, trainer, output)
        row["l0"], n_dead = self.ranks.total_of(row["l0"], row["dead"])
        row["dead"] = int(n_dead)
        if self.ranks.is_first:
            append_metrics(self.run_dir / METRICS_FILE, [row])
