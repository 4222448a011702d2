"""Names of the files of a run, spelt once."""

MARKER = ".sae-lens-bipolar"  # makes a directory ours: files in it may be replaced and removed
CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS = "checkpoints"  # finished SAEs, a directory each
SEAL = "sealed.json"  # in a checkpoint: the SHA-256 of every file of it
PROGRESS = "progress"  # training checkpoints, removed when training is complete
MIXING_BUFFER = "mixing_buffer.safetensors"  # in a training checkpoint: activations read ahead
RESULTS = "results"
SUMMARY = "results/summary.json"  # one row per SAE
CENSUS = "results/census"  # a file NAME.json per SAE: how often each side of a latent fires
LATENTS = "results/latents"  # a file NAME.json per SAE: latents described
EXPLORER = "explorer"  # the folder that a browser opens: all latents
REPORT = "report"  # tables, figures and the page
LOCK = ".lock"  # what the operating system locks; empty
HOLDER = ".lock.json"  # who holds the lock
SAE_CONFIG = "cfg.json"  # of an SAE, as SAELens names it
SAE_WEIGHTS = "sae_weights.safetensors"  # likewise
