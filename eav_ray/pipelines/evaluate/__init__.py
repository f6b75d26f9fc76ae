"""Evaluate checkpoints and protocols, and write their pages."""
