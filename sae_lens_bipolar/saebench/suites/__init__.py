"""One file per suite, and their registry."""
