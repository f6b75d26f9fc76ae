"""Check and preprocess raw recordings."""
