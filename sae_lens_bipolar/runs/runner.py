"""Training several SAEs in shared forward passes, into a run directory, resumably.

SAELens's `MultiSAETrainingRunner` does the work. What is added here: a line in `metrics.jsonl` for
each logged step, a progress bar that moves, checkpoints that are whole or ignored, and a resumed
run that ends where an uninterrupted one ends.
"""

import json
import shutil
import time
from collections.abc import Iterable, Sized
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sae_lens.config import HfDataset
from sae_lens.constants import RUNNER_CFG_FILENAME
from sae_lens.multi_sae_training_runner import (
    MultiSAETrainingRunner,
    MultiSAETrainingRunnerConfig,
)
from sae_lens.saes.sae import TrainingSAE, TrainStepOutput
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from sae_lens.training.sae_trainer import SAETrainer
from transformer_lens import HookedTransformer
from typing_extensions import override

from sae_lens_bipolar.errors import ConfigError, TrainingError
from sae_lens_bipolar.evaluation.averages import mean_nmse
from sae_lens_bipolar.files.atomic import atomic_path, explaining_full_disk, read_json, write_json
from sae_lens_bipolar.files.locks import lock_run
from sae_lens_bipolar.files.names import CHECKPOINTS, METRICS_FILE, PROGRESS, SAE_CONFIG
from sae_lens_bipolar.inputs.activations import CachedActivations
from sae_lens_bipolar.runs.batches import ResumableBatches
from sae_lens_bipolar.runs.cached import CachedStore, require_tokens
from sae_lens_bipolar.runs.checkpoints import latest_checkpoint, remove_checkpoints, seal_checkpoint
from sae_lens_bipolar.runs.demands import require_rows, require_widths
from sae_lens_bipolar.runs.devices import follow, read_copies
from sae_lens_bipolar.runs.directory import append_metrics, read_metrics, truncate_metrics
from sae_lens_bipolar.runs.step_clock import StepClock
from sae_lens_bipolar.runs.step_log import logged_row
from sae_lens_bipolar.sparse.products import fast_products

_SHOWN_EVERY = 0.5  # seconds


class RunDirectoryRunner(MultiSAETrainingRunner):
    """`MultiSAETrainingRunner` that keeps its files in a run directory and resumes from them.

    Args:
        cfg: SAELens's configuration; its paths for checkpoints and output are set here.
        run_dir: the run directory; finished SAEs go to `run_dir/checkpoints/NAME`.
        model: the language model, from `models.load_model`.
        dataset: rows of `context_size` token ids in a column `input_ids`.
        log_every: steps between two lines per SAE in `metrics.jsonl`.
        repeat: begin again where the rows end; otherwise they must be enough for the run.
        saes: training SAEs to start from, by the names in `cfg`; None for new ones.
        keep: a folder where training checkpoints stay, `keep/N` after N tokens, laid out as
            SAELens's runner of one SAE does (several SAEs have one folder each).
        activations: a cache that is trained on in place of what the model gives.

    Raises:
        ModelError: if the model has no such hook.
        ConfigError: if an SAE's `d_in` is not the width of the hook, or batches are computed ahead
            of a run that logs to wandb.
        DataError: if the data set is too short for `training_tokens`.
    """

    def __init__(
        self,
        cfg: MultiSAETrainingRunnerConfig,
        run_dir: Path,
        model: HookedTransformer,
        dataset: HfDataset | Iterable[Any],
        log_every: int = 10,
        *,
        repeat: bool = False,
        saes: dict[str, TrainingSAE[Any]] | None = None,
        keep: Path | None = None,
        activations: CachedActivations | None = None,
    ):
        require_widths(cfg, model)
        if activations is not None and not repeat:
            require_tokens(activations, cfg)
        elif isinstance(dataset, Sized) and not repeat:
            require_rows(cfg, len(dataset))
        cfg.checkpoint_path = str(run_dir / PROGRESS)
        cfg.output_path = None  # written by `run`, whole or not at all
        cfg.logger.log_to_wandb = cfg.logger.log_to_wandb and bool(cfg.logger.wandb_project)
        # A thread of SAELens's would read past checkpoints; see `ResumableBatches`.
        self.ahead, cfg.prefetch_llm_batches = int(cfg.prefetch_llm_batches), False
        if self.ahead and cfg.logger.log_to_wandb:
            raise ConfigError(
                f"prefetch_llm_batches={self.ahead} is not allowed with log_to_wandb: SAELens's "
                "evaluations read the same text; leave one of them out"
            )
        self.run_dir, self.log_every, self.keep = run_dir, log_every, keep
        self._seconds = dict.fromkeys(cfg.saes, 0.0)  # of the run that this one continues
        self._clocks: dict[str, StepClock] = {}
        self._losses: dict[str, tuple[int, torch.Tensor]] = {}  # of the last step of each SAE
        torch.manual_seed(cfg.seed)  # the initial weights
        super().__init__(
            cfg,
            override_dataset=dataset,  # type: ignore[arg-type]
            override_model=model,
            override_saes=saes,
        )
        if activations is not None:
            hooks = list(dict.fromkeys(cfg.hook_names_per_sae.values()))
            self.activations_store = CachedStore(activations, cfg, hooks)  # type: ignore[assignment]
        else:
            store = self.activations_store
            store.get_multi_hook_activations = fast_products(model.W_E.device)(  # type: ignore[method-assign]
                store.get_multi_hook_activations
            )

    @override
    def run(self) -> dict[str, TrainingSAE[Any]]:
        """Train to the end, from the newest whole checkpoint if there is one.

        Raises:
            LockError: if another process works in the run directory; names it.
            DiskFullError: if the disk is full; the last whole checkpoint is kept.
        """
        with lock_run(self.run_dir), explaining_full_disk(self.run_dir):
            return self._run()

    def _run(self) -> dict[str, TrainingSAE[Any]]:
        metrics = self.run_dir / METRICS_FILE
        newest = self._newest_checkpoint()
        self.cfg.resume_from_checkpoint = str(newest) if newest else None
        truncate_metrics(metrics, int(newest.name) if newest else 0)
        for row in read_metrics(metrics):
            self._seconds[row["sae"]] = row["seconds"]
        saes = super().run()
        remove_checkpoints(self.run_dir / PROGRESS)
        return saes

    def _newest_checkpoint(self) -> Path | None:
        return latest_checkpoint(self.run_dir / PROGRESS)

    @override
    def _run_with_interruption_handling(
        self, trainer: MultiSAETrainer
    ) -> dict[str, TrainingSAE[Any]]:
        # SAELens saves on an interrupt wherever it is, also between the SAEs of one step; the last
        # sealed checkpoint is the one to continue from.
        done = trainer.n_training_samples
        # sae-lens 6.54.12 counts a step after saving it (training/multi_sae_trainer.py:137-141) and
        # plans the checkpoints already passed again (training/multi_sae_trainer.py:100-109).
        steps = done // self.cfg.train_batch_size_tokens
        trainer.n_training_steps = steps
        for single in trainer.trainers.values():
            single.n_training_steps = steps
        trainer.checkpoint_thresholds = [t for t in trainer.checkpoint_thresholds if t >= done]
        resumed = self.cfg.resume_from_checkpoint
        self.batches = trainer.data_provider = ResumableBatches(
            self.activations_store,
            self.cfg.seed,
            read_copies(trainer, self.activations_store.device),
            self.ahead,
            partial(self._steps_left, trainer),
            Path(resumed) if resumed else None,
        )
        for name, single in trainer.trainers.items():
            follow(single)
            self._watch(name, single)
        trainer._update_pbar = partial(_show, trainer)  # type: ignore[method-assign]
        with closing(self.batches):
            saes = trainer.fit()
        self._finish(saes, trainer)
        return saes

    def _steps_left(self, trainer: MultiSAETrainer) -> int:
        """Steps from the next one on to that after which the run is saved, or ends."""
        done, batch = trainer.n_training_samples, self.cfg.train_batch_size_tokens
        to_end = -(-(self.cfg.training_tokens - done) // batch)
        to_save = [(t - done) // batch + 1 for t in trainer.checkpoint_thresholds[:1]]
        return max(1, min([to_end, *to_save]))

    def _finish(self, saes: dict[str, TrainingSAE[Any]], trainer: MultiSAETrainer) -> None:
        """Save the trained SAEs, whole or not at all."""
        for name, sae in saes.items():
            if not all(bool(weight.isfinite().all()) for weight in sae.state_dict().values()):
                raise self._diverged(name, "its weights are not finite")
        with atomic_path(self.run_dir / CHECKPOINTS) as scratch:
            self.cfg.output_path = str(scratch)
            self._save_final_outputs(saes, trainer)
            self.cfg.output_path = None
            for name in saes:
                _in_order(scratch / name / SAE_CONFIG)
                seal_checkpoint(scratch / name)
            # Within the run, and the same whether or not it was resumed.
            places = {"output_path": CHECKPOINTS, "checkpoint_path": PROGRESS}
            places |= {"resume_from_checkpoint": None}
            write_json(scratch / RUNNER_CFG_FILENAME, {**self.cfg.to_dict(), **places})

    @override
    def _save_runner_checkpoint_files(self, checkpoint_path: Path | None) -> None:
        self._require_finite_losses()  # what is not sealed is ignored
        super()._save_runner_checkpoint_files(checkpoint_path)
        if checkpoint_path is not None:
            if self.keep is not None:
                self._keep(checkpoint_path, self.keep / checkpoint_path.name)
            self.batches.save(checkpoint_path)
            seal_checkpoint(checkpoint_path)
            if checkpoint_path.name.isdigit():  # a run does not resume from SAELens's "final_N"
                remove_checkpoints(self.run_dir / PROGRESS, keep=checkpoint_path)
        self.batches.reseed()

    def _keep(self, checkpoint: Path, target: Path) -> None:
        """Copy a training checkpoint to where it stays; a single SAE gets no folder of its own."""
        with atomic_path(target) as scratch:
            shutil.copytree(checkpoint, scratch)
            if len(self.saes) == 1:
                (only,) = self.saes
                for file in (scratch / only).iterdir():
                    file.rename(scratch / file.name)
                (scratch / only).rmdir()

    def _diverged(self, name: str, what: str) -> TrainingError:
        kept = latest_checkpoint(self.run_dir / PROGRESS)
        return TrainingError(
            f"training of SAE {name!r} diverged at lr={self.cfg.lr:g}: {what}. Give a lower lr or "
            "more lr_warm_up_steps, and another output directory; "
            + (f"the last whole checkpoint is kept: {kept}" if kept else "nothing was saved before")
        )

    def _watch(self, name: str, trainer: SAETrainer[Any, Any]) -> None:
        """Time every step of one SAE's trainer, and log as `log_every` says.

        A step is logged before SAELens may save it, so that no checkpoint is ahead of the log. A
        loss on a GPU is looked at where the run waits for the device anyway: when the step is
        logged and before it is saved.
        """
        step = trainer.step
        device = trainer.sae.device
        clock = self._clocks[name] = StepClock(device, self._seconds[name])

        def watched(batch: torch.Tensor) -> TrainStepOutput:
            with clock.step():
                output = step(batch)
            self._losses[name] = trainer.n_training_steps + 1, output.loss.detach()
            done = trainer.n_training_samples >= self.cfg.training_tokens
            is_logged = done or (trainer.n_training_steps + 1) % self.log_every == 0
            if is_logged or not _is_queued(device):
                self._require_finite_loss(name)
            if is_logged:
                self._log_step(name, trainer, output)
            return output

        trainer.step = watched  # type: ignore[method-assign]

    def _require_finite_losses(self) -> None:
        for name in self._losses:
            self._require_finite_loss(name)

    def _require_finite_loss(self, name: str) -> None:
        step, loss = self._losses[name]
        if not loss.isfinite():
            raise self._diverged(name, f"the loss of step {step} is {loss.item()}")

    def _log_step(self, name: str, trainer: SAETrainer[Any, Any], output: TrainStepOutput) -> None:
        append_metrics(self.run_dir / METRICS_FILE, [self._row(name, trainer, output)])

    def _row(
        self, name: str, trainer: SAETrainer[Any, Any], output: TrainStepOutput
    ) -> dict[str, Any]:
        return logged_row(name, trainer, output, self._clocks[name].read())


def _is_queued(device: torch.device) -> bool:
    """Whether a number of a step is there only some time after the step was called."""
    return device.type != "cpu"


@torch.no_grad()
def _show(trainer: MultiSAETrainer, outputs: dict[str, TrainStepOutput], pbar: Any) -> None:
    """Move the progress bar, twice a second at most: the errors wait for the device."""
    done, now = trainer.n_training_samples, time.monotonic()
    is_early = now - getattr(pbar, "shown_at", 0.0) < _SHOWN_EVERY
    if is_early and done < trainer.cfg.total_training_samples:
        return
    pbar.shown_at = now
    errors = (f"{name} {mean_nmse(o.sae_in, o.sae_out):.3f}" for name, o in outputs.items())
    pbar.n = done
    pbar.set_description("training SAEs")
    pbar.set_postfix_str("nMSE " + ", ".join(errors))


def _in_order(file: Path) -> None:
    """Write a JSON file anew with sorted keys: SAELens's order changes from process to process."""
    file.write_text(json.dumps(read_json(file), sort_keys=True), encoding="utf-8")
