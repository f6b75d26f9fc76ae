"""Sections of an experiment on fusions, one module a kind; the network is in the module of the same name in models."""
