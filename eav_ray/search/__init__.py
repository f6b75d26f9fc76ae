"""Choosing hyperparameters on inner folds. Knows nothing of Ray."""
