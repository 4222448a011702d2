"""One run in several processes: the language model in parallel, each SAE sharded by latents.

A run starts as one process would start it, on every rank alike; then `sharding` leaves each rank
its own latents, `families` trains them, and for a checkpoint the first rank puts them together.
"""
