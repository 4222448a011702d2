"""Names of the files of a run, spelt once."""

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS = "checkpoints"  # finished SAEs, a directory each
PROGRESS = "progress"  # training checkpoints, removed when training is complete
RESULTS = "results"
SUMMARY = "results/summary.json"  # one row per SAE
CENSUS = "results/census"  # a file NAME.json per SAE: how often each side of a latent fires
LATENTS = "results/latents"  # a file NAME.json per SAE: latents described
