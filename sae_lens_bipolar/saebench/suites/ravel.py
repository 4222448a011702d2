"""RAVEL: attributes of entities exchanged through latents, on any Transformers model.

Works around, in sae_bench 0.6.0:
- evals/ravel/main.py:49 names two models; :430 turns the name into a path that makes
  `os.path.join` drop the artifacts folder: names stay, and loading is redirected.
- sae_bench_utils/activation_collection.py:39 knows the layers of Gemma 2 and GPT-NeoX only, and
  :60 (and evals/ravel/mdbm.py:65) takes a layer's output for a tuple, which Transformers 5 returns
  as a tensor: hooks see a tuple either way, and none is left behind.
- evals/ravel/mdbm.py:267 puts the language model in train mode, so GPT-2's dropout runs.
- evals/ravel/instance.py:198 counts a BOS token, and is off by one where the tokenizer adds none;
  :249 passes an argument that huggingface_hub 1 and newer do not take.
- A run that finds its data set cached draws other random numbers than the run that made it.
"""

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import PreTrainedModel

from sae_lens_bipolar.errors import BenchError
from sae_lens_bipolar.inputs.patching import replaced
from sae_lens_bipolar.saebench.job import Job
from sae_lens_bipolar.saebench.options import CommonOptions
from sae_lens_bipolar.saebench.suites.record import Cache, Headline, Need, Suite, flat

_PROMPTS = "adamkarvonen/ravel_prompts"
_LAYERS = ("layers", "h", "blocks")  # what Transformers calls the list of them


@dataclass(frozen=True)
class RavelOptions(CommonOptions):
    """Options of RAVEL; the defaults are SAEBench's own sizes."""

    ravel_data: str | None = None  # folder of RAVEL's JSON files; None: the Hub's
    ravel_entities: int = 500  # entities kept, by how often the model is right
    ravel_pairs: int = 5000  # prompt pairs per attribute
    ravel_downsample: int | None = None  # prompts tried of all; None: all
    ravel_epochs: int = 2  # of the mask
    ravel_generated_tokens: int = 6  # tokens generated per prompt
    ravel_batch_size: int = 16  # pairs per step of the mask; a last smaller batch is dropped


def needs(options: RavelOptions) -> list[Need]:
    """The prompts."""
    given = options.ravel_data
    return [Need("file", given) if given else Need("data set", _PROMPTS)]


def refusal(hook_name: str) -> str | None:
    """Why the suite cannot measure an SAE at `hook_name`; None if it can."""
    if hook_name.endswith(".hook_resid_post"):
        return None
    return f"RAVEL reads and replaces a layer's output, and this SAE reads {hook_name}"


def run(job: Job[RavelOptions]) -> None:
    """Run the suite; SAEBench's JSON lies below `job.results`."""
    from sae_bench.evals.ravel import main
    from sae_bench.evals.ravel.eval_config import RAVELEvalConfig

    config = job.config
    host = RAVELEvalConfig(
        model_name=job.model.alias,
        random_seed=config.seed,
        llm_dtype=config.llm_dtype,
        llm_batch_size=config.ravel_batch_size,
        top_n_entities=config.ravel_entities,
        full_dataset_downsample=config.ravel_downsample,
        num_pairs_per_attribute=config.ravel_pairs,
        num_epochs=config.ravel_epochs,
        n_generated_tokens=config.ravel_generated_tokens,
        artifact_dir=str(job.cache),
    )
    if config.ravel_data is not None:
        for file in Path(config.ravel_data).glob("ravel_*.json"):
            (job.cache / "base").mkdir(parents=True, exist_ok=True)
            if not (job.cache / "base" / file.name).exists():
                shutil.copyfile(file, job.cache / "base" / file.name)
    with _host(job):
        job.evaluate(main.run_eval, host, artifacts_path=str(job.folder / "artifacts"))


def layer_of(model: PreTrainedModel, layer: int) -> torch.nn.Module:
    """The decoder layer whose output is `blocks.{layer}.hook_resid_post`.

    Raises:
        BenchError: if the model has no list of layers under a name known here.
    """
    for name in _LAYERS:
        layers = getattr(model.base_model, name, None)
        if isinstance(layers, torch.nn.ModuleList):
            return layers[layer]
    raise BenchError(f"RAVEL: no list of layers found in {type(model).__name__}")


class _TupleLayer:
    """A layer whose hooks see `(hidden_states, ...)`, whether it returns a tuple or a tensor."""

    def __init__(self, layer: torch.nn.Module, handles: list[Any]):
        self.layer = layer
        self.handles = handles

    def register_forward_hook(self, hook: Callable[..., Any]) -> Any:
        def as_tuple(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return hook(module, inputs, output)
            found = hook(module, inputs, (output,))
            return output if found is None else found[0]

        handle = self.layer.register_forward_hook(as_tuple)
        self.handles.append(handle)
        return handle


@contextmanager
def _host(job: Job[RavelOptions]) -> Iterator[None]:
    from sae_bench.evals.ravel import instance, main, mdbm
    from sae_bench.sae_bench_utils import activation_collection

    model, handles = job.model, []
    tokenizer = model.plain_tokenizer()

    def module_at(llm: PreTrainedModel, layer_num: int) -> Any:
        return _TupleLayer(layer_of(llm, layer_num), handles)

    def train(self: Any, mode: bool = True) -> Any:
        torch.nn.Module.train(self, mode)
        self.model.eval()
        return self

    create = instance.RAVELInstance.create_from_files
    tokenize = instance.RAVELInstance.build_and_tokenize_prompts

    def create_apart(*args: Any, **kwargs: Any) -> Any:
        state = random.getstate()
        try:
            return create(*args, **kwargs)
        finally:
            random.setstate(state)

    def tokenize_at_entity(self: Any, tokenizer: Any) -> Any:
        prompts = tokenize(self, tokenizer)
        if tokenizer.encode("a")[0] not in tokenizer.all_special_ids:
            for prompt in prompts:
                prompt.final_entity_token_pos = (prompt.final_entity_token_pos or 0) - 1
        return prompts

    def download(*args: Any, local_dir_use_symlinks: Any = None, **kwargs: Any) -> str:
        return snapshot_download(*args, **kwargs)

    redirected = {
        "AutoModelForCausalLM": SimpleNamespace(
            from_pretrained=lambda *_, **__: model.transformers
        ),
        "AutoTokenizer": SimpleNamespace(from_pretrained=lambda *_, **__: tokenizer),
        "LLM_NAME_MAP": {model.alias: model.alias},
    }
    with ExitStack() as stack:
        stack.enter_context(replaced(main, **redirected))
        stack.enter_context(replaced(activation_collection, get_module=module_at))
        stack.enter_context(replaced(mdbm.MDBM, train=train))
        stack.enter_context(
            replaced(
                instance.RAVELInstance,
                create_from_files=staticmethod(create_apart),
                build_and_tokenize_prompts=tokenize_at_entity,
            )
        )
        stack.enter_context(replaced(instance, snapshot_download=download))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


SUITE = Suite(
    name="ravel",
    label="RAVEL",
    options=RavelOptions,
    allowed={},
    small={"ravel_entities": 40, "ravel_pairs": 200, "ravel_downsample": 800},
    paths={"ravel_data": None},
    texts=(),
    labelled=False,
    needs=needs,
    refusal=refusal,
    cache=Cache(
        (
            *("seed", "ravel_data", "ravel_entities", "ravel_downsample"),
            "ravel_generated_tokens",
        ),
        of_hook=False,
    ),
    host="sae_bench.evals.ravel.main",
    run=run,
    read=flat,
    headline=Headline(
        metric="disentanglement_score",
        budget=None,
        protocol="signed",
        higher_is_better=True,
        column="ravel (disentanglement_score)",
        measure="RAVEL: disentanglement",
    ),
)
