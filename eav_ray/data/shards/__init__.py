"""Write and read shards of windows, and cache them for training."""
