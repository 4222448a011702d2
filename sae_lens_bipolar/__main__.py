"""`python -m sae_lens_bipolar`, and `torchrun ... -m sae_lens_bipolar`: the command line."""

import sys

from sae_lens_bipolar.cli.main import main

sys.exit(main())
