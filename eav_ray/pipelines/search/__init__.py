"""Search fusions and learning rates on inner folds."""
