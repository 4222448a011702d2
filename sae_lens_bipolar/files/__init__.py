"""Files: atomic writes, locks, checked reads, redaction, and the names of what a run holds."""
