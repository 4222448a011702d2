"""What training gives with nothing but defaults and one number for sparsity."""
