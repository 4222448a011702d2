"""Runs: a directory each; training that resumes exactly, sweeps, and what they measure."""
