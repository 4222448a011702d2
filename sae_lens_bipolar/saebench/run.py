"""`bench`: every suite on every SAE and protocol; resumable, and starts only what can finish."""

import importlib
import logging
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from sae_lens_bipolar.errors import BipolarError, ConfigError, ModelError
from sae_lens_bipolar.files.atomic import explaining_full_disk, is_full_disk, write_json
from sae_lens_bipolar.files.locks import lock_run
from sae_lens_bipolar.files.outputs import require_output
from sae_lens_bipolar.files.redaction import command_line
from sae_lens_bipolar.inputs.models import check_hook
from sae_lens_bipolar.runs.directory import require_same_run, start_run
from sae_lens_bipolar.runs.sources import find_saes
from sae_lens_bipolar.saebench import assets, caches, store
from sae_lens_bipolar.saebench.config import BenchConfig
from sae_lens_bipolar.saebench.host.data_only import data_only
from sae_lens_bipolar.saebench.host.isolation import isolated, same_randomness
from sae_lens_bipolar.saebench.host.llm import LanguageModel, served
from sae_lens_bipolar.saebench.host.version import require_saebench
from sae_lens_bipolar.saebench.job import Job
from sae_lens_bipolar.saebench.protocols import benchmarked
from sae_lens_bipolar.saebench.results import write_rows
from sae_lens_bipolar.saebench.sizes import choose_sizes
from sae_lens_bipolar.saebench.suites.registry import SUITES
from sae_lens_bipolar.saebench.tasks import Subject, Task, identity_of, pending_tasks, subject_of

logger = logging.getLogger(__name__)
# May differ between commands on one output directory: they decide what is run, not its numbers.
_FREE = (
    *("suites", "protocols", "keep_caches", "llm_batch_size", "sae_batch_size"),
    *(name for suite in SUITES.values() for name in suite.paths),  # each run records their content
)


class NotRun(NamedTuple):
    """A run that gave no number, and why."""

    sae: str
    suite: str
    protocol: str
    reason: str


class BenchOutcome(NamedTuple):
    """What `bench` found."""

    rows: list[dict[str, Any]]  # as in results/saebench.csv
    not_run: list[NotRun]


@data_only()  # also while SAEs and models are loaded
def bench(saes: Sequence[str | Path], output: str | Path, config: BenchConfig) -> BenchOutcome:
    """Run SAEBench's suites on SAEs, each on the protocols `signed` and `split`.

    Args:
        saes: checkpoint or run directories (every SAE of a run), Hub names `owner/name:id`.
        output: where everything goes (see `store`); the same call again continues a stopped one,
            and calls with further SAEs, suites or protocols add to it.
        config: suites, protocols and sizes.

    Returns:
        All rows of `output`, and the runs of this call that gave no number, with the reason.

    Raises:
        BenchError: if SAEBench is not installed, or of a version that this package does not know.
        CheckpointError, ConfigError, LockError: bad input, before any forward pass.
        DiskFullError: if the disk is full; what was finished is kept.
    """
    require_saebench()
    output = Path(output).expanduser().resolve()
    resolved = assets.resolve_paths(config)
    subjects = [subject_of(source, config) for source in find_saes(saes)]
    identity = {name: value for name, value in vars(config).items() if name not in _FREE}
    require_output(output)
    # Loading a model draws numbers too.
    with lock_run(output), same_randomness(), explaining_full_disk(output):
        require_same_run(output, identity)
        pending = pending_tasks(subjects, resolved, output)
        start_run(output, identity, command_line())
        store.clean(output)
        not_run = _run_all(pending, resolved, output) if pending else []
        if not config.keep_caches:
            caches.remove_all(output)
        return _report(output, not_run)


def _run_all(pending: Sequence[Task], config: BenchConfig, output: Path) -> list[NotRun]:
    models = list(dict.fromkeys(task.subject.model for task in pending))
    found = assets.check_assets(config, models)
    print(assets.table(found), flush=True)
    absent = {asset.name: asset.problem for asset in found if asset.kind == "model"}
    not_run, possible = [], []
    for task in pending:
        reason = absent[task.subject.model] or _refusal(task, found)
        if reason:
            not_run += _not_run(task, reason)
        else:
            possible.append(task)
    with tqdm(total=len(possible), desc="SAEBench", unit="run") as progress:
        for name in dict.fromkeys(task.subject.model for task in possible):
            tasks = [task for task in possible if task.subject.model == name]
            for task, reason in _run_model(name, tasks, config, output, progress):
                not_run += _not_run(task, reason)
    return not_run


def _refusal(task: Task, found: Iterable[assets.Asset]) -> str | None:
    refuse = SUITES[task.suite].refusal
    return assets.missing_for(task.suite, found) or (refuse and refuse(task.subject.hook))


def _not_run(task: Task, reason: str) -> list[NotRun]:
    name = task.subject.source.name
    return [NotRun(name, task.suite, protocol, reason) for protocol in task.protocols]


def _run_model(
    name: str, tasks: Sequence[Task], config: BenchConfig, output: Path, progress: Any
) -> list[tuple[Task, str]]:
    """Run `tasks`, suite by suite, so that runs that share a cache follow one another."""
    try:
        model = LanguageModel(name, config.device, config.llm_dtype, config.trust_remote_code)
    except ModelError as error:
        progress.update(len(tasks))
        return [(task, str(error)) for task in tasks]
    failed = []
    for suite in config.suites:
        for task in [task for task in tasks if task.suite == suite]:
            progress.set_description(f"{suite} {task.protocol} {task.subject.source.name}")
            reason = _run_task(task, model, config, output)
            if reason:
                logger.warning("%s %s: %s", suite, task.subject.source.name, reason)
                failed.append((task, reason))
            write_rows(output, store.rows_of(output))
            progress.update()
    return failed


def _run_task(task: Task, model: LanguageModel, config: BenchConfig, output: Path) -> str | None:
    """Run one suite on one SAE; the reason if it gave no number."""
    suite = SUITES[task.suite]
    subject, name = task.subject, task.subject.source.name
    log = store.log_path(output, task.suite, task.protocol, name)
    started = time.perf_counter()
    folder = store.new_scratch(output)
    key = suite.cache_key(config, subject.hook)
    shared = None
    if key is not None:
        shared = caches.path_of(output, task.suite, {**key, "model": model.fingerprint})
    cache = shared if shared and caches.is_usable(output, shared) else folder / "cache"
    try:
        sae = _prepared(subject, task.protocol, model)
        job = Job(
            name=name,
            sae=sae,
            poles=task.protocol == "split",
            model=model,
            layer=subject.layer,
            config=config,
            sizes=choose_sizes(config, sae.cfg.d_sae, model.hooked.cfg.d_vocab),
            folder=folder,
            cache=cache,
        )
        log.unlink(missing_ok=True)
        importlib.import_module(suite.host)  # before seeding: an import may draw random numbers
        for made in (job.results, job.cache):
            made.mkdir(parents=True, exist_ok=True)
        with isolated(config.seed, folder, [model.hooked, sae], log), served(model):
            suite.run(job)
        if shared:
            caches.keep(cache, shared)
        record = {
            "sae": name,
            "origin": subject.source.origin,
            "architecture": subject.architecture,
            "model": model.alias,
            "hook": subject.hook,
            "suite": task.suite,
            "protocols": list(task.protocols),
            "seed": config.seed,
            "seconds": round(time.perf_counter() - started, 2),
            "identity": identity_of(task, config),
        }
        store.finish(output, task.suite, task.protocol, name, job.results, record)
    except Exception as error:  # a suite that fails must not take the others with it
        if is_full_disk(error):  # which no other suite could write to either
            raise
        if isinstance(error, BipolarError):
            return str(error)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(traceback.format_exc())
        return f"{type(error).__name__}: {str(error)[:300]} (traceback in {log})"
    finally:
        store.clean(output)
    return None


def _prepared(subject: Subject, protocol: str, model: LanguageModel) -> Any:
    """The object that SAEBench evaluates, with its metadata as SAEBench reads them."""
    sae = subject.source.load()
    d_in = check_hook(model.hooked, subject.hook)
    if sae.cfg.d_in != d_in:
        raise ConfigError(
            f"d_in={sae.cfg.d_in} of {subject.source.name}, but {subject.hook} of {model.alias} "
            f"has width {d_in}: another model?"
        )
    found = benchmarked(sae, protocol)
    metadata = found.cfg.metadata
    metadata.model_name = model.alias
    metadata.model_from_pretrained_kwargs = {}
    if metadata.prepend_bos is None:  # SAELens's own default, which its store insists on
        metadata.prepend_bos = True
    return found


def _report(output: Path, not_run: list[NotRun]) -> BenchOutcome:
    rows = store.rows_of(output)
    write_rows(output, rows)
    write_json(output / "results" / "not_run.json", [one._asdict() for one in not_run])
    return BenchOutcome(rows, not_run)
