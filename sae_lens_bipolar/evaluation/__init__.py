"""Evaluating SAEs: reconstruction, descriptions of latents, Pareto comparisons."""
