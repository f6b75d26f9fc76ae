"""Choose hyperparameters on inner folds. Knows nothing of Ray."""
