"""Where the command `sae-lens-bipolar` starts: its words are read before the package is imported.

Importing the package registers its architectures with SAELens, which loads torch: several seconds
that a help page would wait for. So the command's parser runs first, inside a package whose
`__init__` has not run yet, and that runs as soon as the words are understood.
"""

import sys
from importlib.util import find_spec, module_from_spec

_PACKAGE = "sae_lens_bipolar"


def main() -> int:
    """Run the command line; returns its exit code."""
    spec = find_spec(_PACKAGE)
    assert spec is not None
    loader = spec.loader
    assert loader is not None
    package = sys.modules.setdefault(_PACKAGE, module_from_spec(spec))
    from sae_lens_bipolar.cli.main import main as run

    return run(prepare=lambda: loader.exec_module(package))


if __name__ == "__main__":
    sys.exit(main())
