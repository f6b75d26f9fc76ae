"""Take a subject out of the stores."""
