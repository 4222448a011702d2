"""What a run on several devices needs, before it starts: memory, traffic, and bounds of speed.

Per device, with `w = ceil(d_sae / devices)` latents and the SAE in float32:

    SAE        2 d_in w numbers (W_enc, W_dec), and three times as many: gradients, Adam's two
    step       batch w numbers, as often as a dense step holds them at once; on active latents
               only, tiles of a fixed size
    traffic    what every rank receives in a step, by an all-gather of n bytes per rank
               n (devices - 1), by an all-reduce of n bytes 2 n (devices - 1) / devices
    tokens/s   at most what the language model's products, the SAE's, and the traffic allow
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from sae_lens_bipolar.errors import require_choice, require_number

_FLOAT = 4  # bytes
# Reconstructions a step adds up, and numbers per token that ranks compare to choose the k largest.
_SUMS = {"top_k": 1, "batch_top_k": 1, "matryoshka": 3, "gated": 2, "jumprelu": 1}
KINDS = {
    "abstopk": "top_k",
    "sparse_topk": "top_k",
    "bi_topk": "top_k",
    "unrolled_abstopk": "top_k",
    "batch_abstopk": "batch_top_k",
    "matryoshka_batch_abstopk": "matryoshka",
    "sign_aware_gated": "gated",
    "gated_l0": "gated",
    "bi_jumprelu": "jumprelu",
}

# Arrays of [batch, latents] that a dense step holds at its peak beside the gradients, and how many
# more with an auxiliary loss of dead latents: measured with torch's profiler, on two ranks.
_DENSE = {
    "abstopk": (7.2, 2.3),
    "sparse_topk": (7.2, 2.3),
    "bi_topk": (11.4, 5.5),
    "unrolled_abstopk": (15.8, 2.3),  # of three steps
    "batch_abstopk": (7.2, 2.3),
    "matryoshka_batch_abstopk": (10.2, 2.3),
    "sign_aware_gated": (12.3, 0.0),
    "gated_l0": (10.1, 0.0),
    "bi_jumprelu": (9.2, 0.0),
}
# Those that train on active latents only where that is faster: on CPUs, elsewhere by `tune`.
_ON_PAIRS = ("abstopk", "sparse_topk", "sign_aware_gated", "gated_l0")
_TILE = (512, 14_336)  # tokens and latents of the encoder's product at one time


@dataclass(frozen=True)
class Plan:
    """One layout of one run; the language model is on every device, and the SAE is shared out.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """

    d_in: int  # width of the hook
    d_sae: int  # latents of the SAE
    devices: int = 1  # processes, each with a device
    architecture: str = "abstopk"
    k: int = 64  # latents per token; of the architectures with a target, the target
    batch: int = 4096  # tokens per step
    arithmetic: str = "dense"  # of a step: "dense", or "sparse" where it is on active latents only
    dead: float = 0.0  # share of the latents that are dead, which AuxK exchanges values of
    buffer: int = 262_144  # tokens whose activations are mixed
    llm_parameters: float = 0.0  # of the language model
    llm_share: float = 1.0  # of these, the share that a pass up to the hook uses
    llm_bytes: int = 2  # per parameter
    memory: float = 80.0  # GiB of a device
    tflops: float = 60.0  # products per second that a device reaches in float32, in 10^12
    llm_tflops: float = 350.0  # likewise in the language model's precision
    gigabytes: float = 100.0  # per second that a device receives, in 10^9

    def __post_init__(self) -> None:
        require_choice(self.architecture, tuple(KINDS), "architecture")
        require_choice(self.arithmetic, ("dense", "sparse"), "arithmetic")
        for name in ("d_in", "d_sae", "devices", "k", "batch", "buffer"):
            require_number(getattr(self, name), name, 1)
        for name in ("memory", "tflops", "llm_tflops", "gigabytes"):
            require_number(getattr(self, name), name, 0, exclusive=True)
        require_number(self.dead, "dead", 0, 1)
        require_number(self.llm_parameters, "llm_parameters", 0)
        require_number(self.llm_share, "llm_share", 0, maximum=1)

    @property
    def width(self) -> int:
        """Latents of the device that has the most."""
        return -(-self.d_sae // self.devices)

    @property
    def sae_bytes(self) -> int:
        """Parameters of a device's latents."""
        return 2 * self.d_in * self.width * _FLOAT

    @property
    def training_bytes(self) -> int:
        """Parameters, gradients and Adam's two moments of a device's latents."""
        return 4 * self.sae_bytes

    @property
    def step_bytes(self) -> int:
        """What a step holds at its peak, beside gradients."""
        if self.arithmetic == "sparse" and self.architecture in _ON_PAIRS:
            return 2 * min(self.batch, _TILE[0]) * min(self.width, _TILE[1]) * _FLOAT
        arrays, of_dead = _DENSE[self.architecture]
        return int((arrays + (of_dead if self.dead else 0.0)) * self.batch * self.width * _FLOAT)

    @property
    def buffer_bytes(self) -> int:
        """The mixing buffer, twice: it is put in a new order out of place."""
        return 2 * self.buffer * self.d_in * _FLOAT

    @property
    def llm_memory(self) -> float:
        """Parameters of the language model."""
        return self.llm_parameters * self.llm_bytes

    @property
    def device_bytes(self) -> float:
        """All of a device's memory that grows with the run's sizes."""
        return self.training_bytes + self.step_bytes + self.buffer_bytes + self.llm_memory

    @property
    def start_bytes(self) -> int:
        """What a run holds before it is shared out: the whole SAE, on every rank; resumed, with
        Adam's moments."""
        return 2 * self.d_in * self.d_sae * _FLOAT * 3

    def traffic(self) -> dict[str, float]:
        """Bytes that a rank receives in a step, by what they are."""
        n, kind = self.devices, KINDS[self.architecture]
        gathered, reduced = n - 1, 2 * (n - 1) / n
        found = {
            "activations": self.batch * self.d_in * _FLOAT / n * gathered,
            "reconstructions": _SUMS[kind] * self.batch * self.d_in * _FLOAT * reduced,
        }
        if kind in ("top_k", "batch_top_k", "matryoshka"):
            found["k values"] = self.batch * self.k * _FLOAT * gathered
            if n_aux := min(self.d_in // 2, int(self.dead * self.d_sae)):
                found["AuxK values"] = self.batch * n_aux * _FLOAT * gathered
                found["AuxK reconstruction"] = self.batch * self.d_in * _FLOAT * reduced
        return found

    def tokens_per_second(self) -> dict[str, float]:
        """Bounds, by what sets them; a run is slower than the least of them."""
        sae = 2 * self.d_in * self.width  # the encoder's product; the rest touches active latents
        bounds = {"SAE": self.tflops * 1e12 / sae}
        if self.llm_parameters:
            language_model = 2 * self.llm_parameters * self.llm_share / self.devices
            bounds["language model"] = self.llm_tflops * 1e12 / language_model
        if self.devices > 1:
            per_token = sum(self.traffic().values()) / self.batch
            bounds["traffic"] = self.gigabytes * 1e9 / per_token
        return bounds

    @property
    def fits(self) -> bool:
        """Whether a device's memory holds it, with a tenth left for the rest."""
        return self.device_bytes <= 0.9 * self.memory * 2**30

    def layouts(self) -> Iterator["Plan"]:
        """The same run on 1, 2, 4, ... devices, up to `devices`."""
        n = 1
        while n < self.devices:
            yield replace(self, devices=n)
            n *= 2
        yield self

    def cheapest(self) -> "Plan | None":
        """The layout of the fewest devices that fits, or None."""
        return next((layout for layout in self.layouts() if layout.fits), None)


def table(plan: Plan) -> str:
    """The layouts of a run, one line each, what a step sends, and the cheapest that fits."""
    lines = [
        f"{plan.architecture}, d_in {plan.d_in}, d_sae {plan.d_sae}, {plan.batch} tokens per step; "
        f"GiB per device, of {plan.memory:g}",
        f"{'devices':>7} {'latents':>9} {'SAE':>7} {'step':>7} {'buffer':>7} {'model':>7} "
        f"{'in all':>7} {'fits':>5} {'MB/step':>9} {'tokens/s below':>15}  set by",
    ]
    lines += [_line(layout) for layout in plan.layouts()]
    if plan.devices > 1:
        parts = ", ".join(f"{what} {_mb(n)}" for what, n in plan.traffic().items())
        lines.append(f"MB per step that one of {plan.devices} devices receives: {parts}")
    start = plan.start_bytes / 2**30
    lines.append(
        f"while it starts or resumes each device holds the whole SAE: up to {start:.1f} GiB"
    )
    cheapest = plan.cheapest()
    lines.append(
        f"cheapest layout that fits: {cheapest.devices} device{'s' * (cheapest.devices > 1)}"
        if cheapest
        else f"no layout of up to {plan.devices} devices fits: give more, or a smaller buffer"
    )
    return "\n".join(lines)


def _line(plan: Plan) -> str:
    held = (plan.training_bytes, plan.step_bytes, plan.buffer_bytes, plan.llm_memory)
    sizes = (*held, plan.device_bytes)
    gib = " ".join(f"{size / 2**30:7.1f}" for size in sizes)
    bounds = plan.tokens_per_second()
    least = min(bounds, key=bounds.__getitem__)
    traffic = sum(plan.traffic().values()) if plan.devices > 1 else 0.0
    return (
        f"{plan.devices:7} {plan.width:9} {gib} {'yes' if plan.fits else 'no':>5} "
        f"{_mb(traffic):>9} {bounds[least]:15.0f}  {least}"
    )


def _mb(n_bytes: float) -> str:
    return f"{n_bytes / 1e6:.1f}"
