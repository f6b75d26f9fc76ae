"""Encoders, one module a kind."""
