"""What the explorer keeps of each latent and token, and how much text it reads."""

from dataclasses import dataclass

from sae_lens_bipolar.errors import ConfigError

BINS = 32  # of a histogram, per side; a power of 2, so that bins can be merged in pairs
SHARD = 256  # latents in one file
TOKEN_SHARD = 512  # tokens in one file


@dataclass(frozen=True)
class ExplorerConfig:
    """Sizes of an explorer.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    text: str = "sotu"  # "sotu", a local file or directory, or a Hub data set
    tokens: int = 192_000  # tokens read at most, BOS included
    context_size: int = 128  # tokens in a sequence, BOS included
    contexts: int = 6  # strongest contexts kept per side, at most one from a sequence
    radius: int = 12  # tokens shown before and after the peak
    neighbours: int = 6  # nearest latents, and as many antipodal ones
    output_tokens: int = 10  # output tokens promoted per side
    occurrences: int = 64  # of each token that the token index counts: the first ones
    per_token: int = 48  # entries (latent and side) that the token index keeps per token
    compared_tokens: int = 32_768  # on which latents of several SAEs are compared: the first ones
    dials: int = 8  # latents per SAE whose dial curve is computed; the most balanced ones
    dial_sequences: int = 6  # sequences of 32 tokens that a dial is turned on
    save_seconds: float = 60.0  # between two saves of what a stopped build goes on from
    seed: int = 0  # of the order of sequences

    def __post_init__(self) -> None:
        limits = {
            "tokens": (2, None),
            "context_size": (2, None),
            "contexts": (1, 100),
            "radius": (1, 15),  # which tokens of a window fired is one number of 31 bits
            "neighbours": (0, 100),
            "output_tokens": (0, 100),
            "occurrences": (1, 10_000),
            "per_token": (1, 1_000),
            "compared_tokens": (1, None),
            "dials": (0, None),
            "dial_sequences": (1, None),
        }
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if value < least or (most is not None and value > most):
                allowed = f"{least} or more" if most is None else f"{least} to {most}"
                raise ConfigError(f"{name}={value} is not allowed: give {allowed}")
        if self.tokens < 2 * self.context_size:
            raise ConfigError(
                f"tokens={self.tokens} is not allowed: give at least two sequences of "
                f"context_size={self.context_size}"
            )
