"""Compute what predictions are worth: accuracy, intervals, audits, robustness. Knows no Ray."""
