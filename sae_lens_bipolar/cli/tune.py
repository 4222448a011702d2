"""`sae-lens-bipolar tune`: measure which arithmetic trains fastest on this device, and keep that.

Without a table a GPU trains with SAELens's own dense step, and a CPU as the density says.
"""

import argparse

EXAMPLES = (
    "sae-lens-bipolar tune",
    "sae-lens-bipolar tune --shapes 2304:65536:64 --precisions bfloat16",
)
_PRECISIONS = ("float32", "tf32", "bfloat16")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("--device", default="cuda", help="device to measure")
    add(
        "--shapes",
        nargs="+",
        default=[],
        metavar="D_IN:D_SAE:K",
        help="sizes to measure, or D_IN:D_SAE:K:BATCH; by default four, of small to large models",
    )
    add(
        "--precisions",
        nargs="+",
        choices=_PRECISIONS,
        default=[],
        help="of products; by default all that the device has",
    )
    add("--steps", type=int, default=10, help="timed steps of each arithmetic")


def run(options: argparse.Namespace) -> None:
    """Measure, print the table, and write it to the cache.

    Raises:
        BipolarError: for a device or shape that is not allowed or not there.
    """
    import torch

    from sae_lens_bipolar.errors import ConfigError, require_number
    from sae_lens_bipolar.runs.step_times import SHAPES, Shape, lines, measure
    from sae_lens_bipolar.sparse.measured import write_table

    require_number(options.steps, "steps", 1)
    shapes = [Shape.parse(text) for text in options.shapes or SHAPES]
    try:
        device = torch.device(options.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device={options.device!r} cannot be used: {reason}; name one that "
            "`sae-lens-bipolar doctor` lists"
        ) from None
    precisions = options.precisions or [
        name for name in _PRECISIONS if name != "tf32" or device.type == "cuda"
    ]
    rows = []
    for shape in shapes:
        for precision in precisions:
            row = measure(shape, precision, options.device, options.steps)
            if row is None:
                print(f"{shape}, {precision}: left out, because the dense step does not run here")
            else:
                rows.append(row)
                print(lines([row]) if len(rows) == 1 else lines([row]).splitlines()[1], flush=True)
    print(f"table: {write_table(rows, device)}")
