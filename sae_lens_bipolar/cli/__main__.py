"""`python -m sae_lens_bipolar.cli`: the command line."""

import sys

from sae_lens_bipolar.cli.main import main

sys.exit(main())
