"""Train single folds and whole protocols."""
