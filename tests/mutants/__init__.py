"""Mutants of the arithmetic, and who notices: see `__main__`."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # as tests/conftest.py; Triton reads it on import
