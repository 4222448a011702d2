"""Runs, one directory per run: training that resumes exactly, sweeps, and what they measure."""
