"""Receive signals over a network, and cut them into windows."""
