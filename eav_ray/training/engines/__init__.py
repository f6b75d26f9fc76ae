"""Engines that hold a model and take its steps: plain PyTorch, DeepSpeed."""
