"""A pure training loop, the engines it drives, and checkpoints of named tensors."""
