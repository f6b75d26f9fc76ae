"""Recordings in, shards out: readers, signal processing, splits. Runs without torch and without ray."""
