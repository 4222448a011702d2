"""What the training steps of several architectures share."""
