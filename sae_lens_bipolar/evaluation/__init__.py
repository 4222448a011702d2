"""What an SAE is worth: reconstruction, latents described, Pareto comparisons."""
