"""The options of `bench` that belong to no suite alone; each suite's own stand in its file."""

from dataclasses import dataclass

PROTOCOLS = ("signed", "split")
# Those that decide every suite's numbers. The rest says what is run, where, and at which speed.
DECISIVE = ("device", "llm_dtype", "seed", "context_length", "trust_remote_code")


@dataclass(frozen=True)
class CommonOptions:
    """What every suite is given. A batch size of None is chosen from the memory that is free."""

    suites: tuple[str, ...] = ()  # which suites
    protocols: tuple[str, ...] = PROTOCOLS  # "signed": the SAE itself; "split": its polarity split
    model: str | None = None  # bundled model, directory or Hub name; None: the SAE's metadata
    device: str = "cpu"  # where model and SAEs are
    llm_dtype: str = "float32"  # of the model and, as in SAEBench, of the SAEs
    seed: int = 42  # of every suite
    trust_remote_code: bool = False  # run code from model and data repositories
    data_folder: str | None = None  # data sets it holds, as OWNER/NAME/, are not asked of the Hub
    keep_caches: bool = True  # keep activations, for further SAEs of the same hook
    context_length: int = 128  # tokens: SCR, TPP, sparse probing and core
    llm_batch_size: int | None = None  # sequences in a forward pass
    sae_batch_size: int | None = None  # sequences in one encoding; buffers are [b, context, d_sae]
