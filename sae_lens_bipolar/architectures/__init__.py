"""The architectures, one file each, and the registry that enters them into SAELens."""
