"""Pull, predict with and serve checkpoints."""
