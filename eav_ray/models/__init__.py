"""Encoders and fusion: plain modules that take plain arguments."""
