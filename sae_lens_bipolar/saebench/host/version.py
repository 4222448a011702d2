"""The version of SAEBench that the workarounds are written for."""

import logging
from importlib.metadata import PackageNotFoundError, version

from sae_lens_bipolar.errors import BenchError

logger = logging.getLogger(__name__)
# Every workaround in this package names the file:line in this version that it works around.
ANSWERED = "0.6.0"
_SERIES = "0.6."


def require_saebench() -> str:
    """The installed version of SAEBench.

    Raises:
        BenchError: if it is not installed, or of a series whose internals are not known here.
    """
    try:
        found = version("sae-bench")
    except PackageNotFoundError as error:
        raise BenchError(
            "SAEBench is not installed: pip install 'sae-lens-bipolar[bench]'"
        ) from error
    if not found.startswith(_SERIES):
        raise BenchError(
            f"sae-bench {found} is installed; this package works with {ANSWERED} only: "
            f"pip install 'sae-bench>={ANSWERED},<0.7'"
        )
    if found != ANSWERED:
        logger.warning("sae-bench %s is installed; this package works with %s", found, ANSWERED)
    return found
