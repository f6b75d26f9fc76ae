"""Look in what a checkpoint itself says for everything that a test score must not have known: a check a function.

Nothing here trusts the code that trained: the split is taken from the checkpoint's own `split.json` and held against
the recordings, against the content of their windows, and against the statistics among its weights.
"""
