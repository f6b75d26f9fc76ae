"""Sections of an experiment on encoders, one module a kind; the network is in the module of the same name in models."""
