"""Fusions of encoders, one module a kind."""
