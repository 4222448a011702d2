"""Every kernel compiles for a GPU, on a machine without one; the interpreter takes more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

CLONE = Path(__file__).parents[3]
KERNELS = {
    *("_maxima", "_top_k", "_count_beyond", "_take_beyond", "_weighted_sums", "_dots"),
    *("_count_segments", "_sums_by_latent", "_add_segments", "_add_segments_transposed"),
}


def compile_all() -> None:
    """Call every function that launches kernels, with launches replaced by compilation."""
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from sae_lens_bipolar.sparse.triton import gradients, search, sums

    class Hopper:
        """What the compiler asks of a driver."""

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

    driver.set_active(Hopper())  # type: ignore[arg-type]
    run = JITFunction.run

    def compile_only(kernel: JITFunction, *arguments: object, **options: object) -> None:
        compiled = run(kernel, *arguments, **{**options, "warmup": True})
        assert compiled is not None
        assert "cubin" in compiled.asm
        print(kernel.fn.__name__)

    JITFunction.run = compile_only  # type: ignore[method-assign, assignment]
    torch.empty = torch.zeros  # type: ignore[assignment]  # nothing fills what kernels would
    batch, d_in, d_sae, k = 4, 768, 12_288, 76
    for dtype in (torch.float32, torch.bfloat16):
        u, x = torch.zeros(batch, d_sae, dtype=dtype), torch.zeros(batch, d_in, dtype=dtype)
        rows, bias = torch.zeros(d_sae, d_in, dtype=dtype), torch.zeros(d_sae)
        search.top_k(u, k, False, bias, bias)
        search.top_k(u[:, :1000].contiguous(), k, True)
        search.beyond(u, bias, bias, bias)
        offsets, index = torch.arange(batch + 1) * k, torch.zeros(batch * k, dtype=torch.int64)
        values = torch.zeros(batch * k)
        sums.weighted_sums(index, offsets, values, rows)
        sums.dots(index, offsets, x, rows)
        begins = torch.zeros(d_sae + 1, dtype=torch.int64)
        pairs = gradients.ByLatent.of(index, index, begins)
        gradients.sums_by_latent(pairs, values, x)
        gradients.transposed_sums_by_latent(pairs, values, x)


@pytest.mark.slow
def test_every_kernel_compiles(tmp_path: Path) -> None:
    variables = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    variables |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(CLONE)}
    script = "from tests.sparse.triton.test_compiles import compile_all; compile_all()"
    line = [sys.executable, "-c", script]
    done = subprocess.run(line, cwd=CLONE, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(done.stdout.split()) == KERNELS
