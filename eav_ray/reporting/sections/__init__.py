"""Sections of pages, each rendered from results."""
