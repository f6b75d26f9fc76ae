"""Generate synthetic recordings in EAV's layout."""
