"""Turn one recording into windows."""
