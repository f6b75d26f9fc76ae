"""Corrupt recordings in steps of severity."""
